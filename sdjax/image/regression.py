"""From a text embedding to an image embedding without a network: kernel ridge regression.

    text embedding --> whitened --> how near to each text of training --> a weighted sum --> guess

Of a few thousand pairs it learns what holds for new texts, where networks learn the pairs by heart.
A small prior starts from its guess: the diffusion prior draws what the guess is wrong by, and the
autoregressive one begins with the chances of each code about it. Not in DALL-E 2's paper.

Arithmetic only: NumPy to fit, JAX to use.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.image.codes import Codebook, chances, principal_components
from sdjax.shapes import Vectors

RIDGE = 0.1
"""What is added to the diagonal of the kernel matrix, whose own is 1."""
LEAST_VARIANCE = 1e-4
"""Variance of text embeddings in a direction, as a share of the largest, below which it is not
heard as loud as the others."""
SURPRISE = 0.01
"""How often a guess is taken to be worth nothing."""
BLOCK = 2048
"""Texts handled at once by `guesses_without`."""


class Regression(NamedTuple):
    """f(text) = image_mean + sum_i k(text, text_i) weights_i, with k(a, b) = exp(-|a - b|^2).

    Texts are whitened first: what tells one from its neighbours is small beside what tells faces
    from food. After it all directions are heard, and the mean square of a text's length is 1.
    """

    text_mean: Float[Array, " dim"]
    whitening: Float[Array, "dim dim"]
    texts: Float[Array, "rows dim"]  # of training, whitened
    weights: Float[Array, "rows dim"]
    image_mean: Float[Array, " dim"]
    covariance: Float[Array, "dim dim"]  # of what guesses are wrong by, each pair left out


def fit_regression(
    images: Float[np.ndarray, "rows dim"], texts: Float[np.ndarray, "rows dim"]
) -> tuple[Regression, Float[np.ndarray, "rows rows"]]:
    """The regression on pairs, and (K + `RIDGE`)^-1, which `guesses_without` needs.

    Raises:
        ValueError: for fewer than two pairs, which have no spread.
    """
    if len(images) < 2:
        raise ValueError(f"a regression needs at least two pairs, got {len(images)}")
    mean, components, variances = principal_components(texts)
    heard = np.maximum(variances, LEAST_VARIANCE * variances[0])
    sign = np.where(components.sum(axis=1) < 0, -1, 1)  # else either, by chance
    components = sign[:, None] * components
    whitening = components.T * (heard * np.sum(variances / heard)) ** -0.5
    white = (texts - mean) @ whitening
    inverse = np.linalg.inv(_kernel(white, white) + RIDGE * np.eye(len(white)))
    image_mean = images.mean(0, dtype=np.float64)
    weights = inverse @ (images - image_mean)
    errors = weights / np.diag(inverse)[:, None]  # see `guesses_without`
    parts = (mean, whitening, white, weights, image_mean, errors.T @ errors / len(errors))
    return Regression(*(jnp.asarray(part, jnp.float32) for part in parts)), inverse


def guess(regression: Regression, texts: Vectors) -> Vectors:
    """The image embedding that goes with each text; not of unit length."""
    white = jnp.matmul(texts - regression.text_mean, regression.whitening, precision="highest")
    near = jnp.matmul(white, regression.texts.T, precision="highest")
    lengths = jnp.sum(white**2, -1)[:, None] + jnp.sum(regression.texts**2, -1)
    kernel = jnp.exp(2 * near - lengths)
    return regression.image_mean + jnp.matmul(kernel, regression.weights, precision="highest")


def guesses_without(
    regression: Regression,
    inverse: Float[np.ndarray, "rows rows"],
    texts: Float[np.ndarray, "texts dim"],
    left_out: Int[np.ndarray, " texts"],
) -> Float[np.ndarray, "texts dim"]:
    """`guess` of each text by a regression fitted to all pairs but one, `left_out`.

    Whitening and mean image stay those of all pairs.

    What a regression guesses for its own pairs is far better than for new ones. With A = K + ridge
    and w = A^-1 y, leaving out pair i changes the weights by -A^-1[:, i] w_i / A^-1[i, i]
    (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 5.4.2).
    """
    white = (texts - np.asarray(regression.text_mean)) @ np.asarray(regression.whitening)
    weights = np.asarray(regression.weights)
    rows = []
    for start in range(0, len(texts), BLOCK):
        here, out = slice(start, start + BLOCK), left_out[start : start + BLOCK]
        kernel = _kernel(white[here], np.asarray(regression.texts))
        change = np.einsum("tr,tr->t", kernel, inverse[out]) / inverse[out, out]
        rows.append(kernel @ weights - change[:, None] * weights[out])
    return np.asarray(regression.image_mean) + np.concatenate(rows)


def log_chances(
    regression: Regression, book: Codebook, guesses: Vectors
) -> Float[Array, "batch codes buckets"]:
    """Logarithms of how likely each bucket of each code is, if all that is known is the guess.

    Images lie about their guesses as they did in training, along each component by itself, with
    equal chances of all buckets for `SURPRISE`.
    """
    left_open = jnp.matmul(book.components, regression.covariance, precision="highest")
    spread = jnp.einsum("cd,cd->c", left_open, book.components, precision="highest")
    known = chances(book, guesses, jnp.sqrt(spread))
    return jnp.log((1 - SURPRISE) * known + SURPRISE / known.shape[-1])


def _kernel(
    a: Float[np.ndarray, "rows dim"], b: Float[np.ndarray, "columns dim"]
) -> Float[np.ndarray, "rows columns"]:
    """exp(-|a_i - b_j|^2)."""
    return np.exp(2 * a @ b.T - np.sum(a**2, 1)[:, None] - np.sum(b**2, 1))
