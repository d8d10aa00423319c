"""Priors of DALL-E 2: text to CLIP image embedding (arXiv 2204.06125, section 2.2, table 3)."""

import math
from dataclasses import dataclass

from sdjax.config.checks import require, require_valid
from sdjax.config.schedule import Schedule


@dataclass(frozen=True)
class DiffusionPrior:
    """A causal transformer over [text, text embedding, time, noised image embedding, query].

    Of the text it reads the hidden states of CLIP's text tower (Karlo, mini), or token ids through
    a table of its own. The paper says "encoded text"; its one row of sizes, with 256 text
    positions, suggests one transformer for text and embedding, which is our choice for its sizes.
    """

    embedding_dim: int  # of CLIP's joint space
    text_tokens: int  # text positions
    dim: int  # width of the residual stream
    layers: int
    heads: int
    schedule: Schedule  # of the image embedding; it predicts x0
    text_dim: int | None = None  # of CLIP's hidden states; None: it reads token ids
    vocab_size: int | None = None  # rows of its own token embedding; None: it reads hidden states
    scale: float | None = None  # of unit vectors; None: standardised by stored mean and deviation
    dropout: float = 0.0  # in training
    regression: int | None = None  # pairs of the regression whose guess it starts from, if any

    def __post_init__(self) -> None:
        _check(self)
        require(
            (self.text_dim is None) != (self.vocab_size is None),
            f"DiffusionPrior: text_dim {self.text_dim} or vocab_size {self.vocab_size}, one of "
            "them, says what it reads",
        )
        require(
            self.scale is None or 0 < self.scale < math.inf,
            f"DiffusionPrior: scale {self.scale} must be above 0 and finite",
        )
        require(self.dim % 2 == 0, f"DiffusionPrior: dim {self.dim} must be even, as times need")
        require(
            self.schedule.prediction == "x0",
            f"DiffusionPrior: it predicts x0, not {self.schedule.prediction!r}",
        )
        require(
            self.regression is None or self.scale is not None,
            "DiffusionPrior: a regression guesses unit vectors, which need a scale",
        )

    @property
    def positions(self) -> int:
        """Of the sequence: the text's and four."""
        return self.text_tokens + 4


@dataclass(frozen=True)
class AutoregressivePrior:
    """A causal transformer over [text, text embedding, dot product, codes], one code at a time.

    Codes are an image embedding's principal components, the largest first, each cut into buckets.
    The text is hidden states of another network: CLIP's text tower, or one trained with the prior.
    """

    embedding_dim: int  # of CLIP's joint space
    text_dim: int  # of the hidden states
    text_tokens: int  # hidden states in the prefix
    codes: int  # principal components kept
    buckets: int  # of each code, and of the dot product
    dim: int  # width of the residual stream
    layers: int
    heads: int
    dropout: float = 0.0  # in training
    regression: int | None = None  # pairs of the regression whose guess it starts from, if any

    def __post_init__(self) -> None:
        _check(self)
        require(
            self.codes <= self.embedding_dim,
            f"AutoregressivePrior: {self.codes} codes of an embedding of {self.embedding_dim}",
        )
        require(
            self.buckets % 2 == 0,
            f"AutoregressivePrior: {self.buckets} buckets have no top half: choose an even number",
        )

    @property
    def positions(self) -> int:
        """Of the sequence: the text's, two, and all codes but the last, which is only predicted."""
        return self.text_tokens + 1 + self.codes


def _check(prior: DiffusionPrior | AutoregressivePrior) -> None:
    require_valid(prior)
    name = type(prior).__name__
    require(
        prior.dim % prior.heads == 0,
        f"{name}: dim {prior.dim} does not split into {prior.heads} heads",
    )
    require(0 <= prior.dropout < 1, f"{name}: dropout {prior.dropout} must be in [0, 1)")
