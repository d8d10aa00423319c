"""Both priors with networks of a few thousand numbers and random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_models as tiny

from sdjax import config
from sdjax.image.codes import Codebook, fit_codebook
from sdjax.image.regression import Regression, fit_regression
from sdjax.pipelines.priors import Text
from sdjax.weights.karlo_prior import autoregressive_shapes, prior_shapes

DIFFUSION = config.DiffusionPrior(
    embedding_dim=12,
    text_tokens=5,
    dim=16,
    layers=2,
    heads=2,
    schedule=config.Schedule("cosine", prediction="x0"),
    text_dim=10,
    scale=2.0,
)
CODES = config.AutoregressivePrior(
    embedding_dim=12, text_dim=10, text_tokens=5, codes=4, buckets=8, dim=16, layers=2, heads=2
)
DIFFUSION_PARAMS = tiny.fill(prior_shapes(DIFFUSION), 1)
CODES_PARAMS = tiny.fill(autoregressive_shapes(CODES), 2)
MASK = jnp.arange(5)[None] < jnp.array([5, 3, 1])[:, None]


def unit_rows(seed: int, rows: int, dim: int = 12) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def text(seed: int = 0) -> Text:
    """Three texts of 5, 3 and 1 tokens."""
    states = jax.random.normal(jax.random.key(seed), (3, 5, 10))
    return Text(jnp.asarray(unit_rows(seed, 3)), states, MASK)


EMPTY = jax.tree.map(lambda x: x[2:], text(9))


def book() -> Codebook:
    return fit_codebook(unit_rows(3, 64), unit_rows(4, 64), CODES.codes, CODES.buckets)


def regression() -> Regression:
    return fit_regression(unit_rows(3, 64), unit_rows(4, 64))[0]
