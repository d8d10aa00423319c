"""Step 1: text -> tokens -> embeddings."""

from sdjax.text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
