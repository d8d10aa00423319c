"""Text -> token ids of GLIDE, whose vocabulary is GPT-2's.

It has 50,257 entries: 256 bytes, 50,000 merges and an end of text, which fills the rows. Texts are
put in lower case, as GLIDE's encoder does (GPT-2's own does not), and not cleaned otherwise.
"""

import functools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from sdjax.text.tokenizer import END, byte_symbols, read_merges

GLIDE_PAD = 50256
"""The end of text, the last id."""


class GlideTokens(NamedTuple):
    """Rows of token ids, and where they are text: no start, no end, only padding after it."""

    ids: Int32[np.ndarray, "batch tokens"]
    mask: Bool[np.ndarray, "batch tokens"]


class GlideTokenizer:
    """Texts -> rows of `context_length` ids; a text that is too long is cut."""

    def __init__(self, context_length: int):
        if context_length < 1:
            raise ValueError(f"context_length is {context_length}; a text needs at least 1.")
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str]) -> GlideTokens:
        """Ids and mask, one row per text; the empty text is padding alone."""
        texts = [texts] if isinstance(texts, str) else texts
        ids = np.full((len(texts), self.context_length), GLIDE_PAD, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, seen, text in zip(ids, mask, texts, strict=True):
            pieces = glide_encoder().encode(text.lower()).ids[: self.context_length]
            row[: len(pieces)] = pieces
            seen[: len(pieces)] = True
        return GlideTokens(ids, mask)


@functools.cache
def glide_encoder() -> tokenizers.Tokenizer:
    """GPT-2's encoder with its whole vocabulary, from the bundled merges."""
    # Imported here because it takes a second; without PyTorch it warns, and we need none.
    logging.getLogger("transformers").addFilter(lambda record: "PyTorch" not in record.getMessage())
    from transformers import GPT2Tokenizer

    merges = read_merges("gpt2_vocabulary")
    # The bytes that print as themselves come first.
    pieces = [*sorted(byte_symbols()), *("".join(merge) for merge in merges), END]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    gpt2 = GPT2Tokenizer(vocab=vocabulary, merges=merges)  # pyright: ignore[reportArgumentType]
    encoder = gpt2.backend_tokenizer
    encoder.encode_special_tokens = True  # a text that holds "<|endoftext|>" is a text
    return encoder
