"""Warnings about the words of a text that a model cannot read."""

import warnings
from collections.abc import Iterable

from sdjax.text.tokenizer import Tokenizer


def warn_about_words(name: str, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Tell which words are cut off or were never seen in training by the model called `name`."""
    for text in dict.fromkeys(texts):
        if lost := tokenizer.truncated(text):
            warnings.warn(f"the text is too long, this is ignored: {lost!r}", stacklevel=3)
        if unknown := tokenizer.unknown_words(text):
            words = ", ".join(unknown)
            warnings.warn(f"{name} was never shown the words: {words}", stacklevel=3)
