"""A CLIP image embedding as a row of whole numbers, and back: what the autoregressive prior writes.

    embedding --> principal components, the largest first --> a bucket of each --> and back

Arithmetic only: NumPy to fit, JAX to use. Section 2.2 of DALL-E 2's paper (arXiv 2204.06125).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.shapes import Keys, Vectors

MOST_ERROR = 0.01
"""Of the spread of embeddings, that the components left out may hold: the paper's 1%."""


class Codebook(NamedTuple):
    """How embeddings are coded. Bucket b of a code lies between its edges b - 1 and b."""

    mean: Float[Array, " dim"]
    components: Float[Array, "codes dim"]  # orthonormal, by falling variance
    edges: Float[Array, "codes inner"]  # one fewer than buckets
    centres: Float[Array, "codes buckets"]  # what a bucket stands for
    dot_edges: Float[Array, " inner"]  # of the dot product with the text embedding


def principal_components(
    embeddings: Float[np.ndarray, "rows dim"],
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, "dim dim"], Float[np.ndarray, " dim"]]:
    """(mean, orthonormal rows by falling variance, these variances), in float64."""
    x = np.asarray(embeddings, np.float64)
    mean = x.mean(0)
    variances, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    return mean, vectors.T[::-1], np.maximum(variances[::-1], 0)


def count_components(variances: Float[np.ndarray, " dim"]) -> int:
    """The least number of components that leave out less than `MOST_ERROR` of the spread.

    The paper keeps 319 of 1,024. It does not say what its 1% is of; we take the variance, which is
    the stricter reading.
    """
    left_out = 1 - np.cumsum(variances) / np.sum(variances)
    return int(np.argmax(left_out < MOST_ERROR)) + 1


def fit_codebook(
    images: Float[np.ndarray, "rows dim"],
    texts: Float[np.ndarray, "rows dim"],
    codes: int,
    buckets: int,
) -> Codebook:
    """The codebook of image embeddings, and of their dot products with those of their texts.

    The paper leaves the spacing of the buckets open. Ours hold equally many of the embeddings each,
    so that none is rare, and stand for the mean of these.

    Raises:
        ValueError: if there are fewer embeddings than buckets.
    """
    if len(images) < buckets:
        raise ValueError(f"{len(images)} embeddings do not fill {buckets} buckets: give more")
    mean, vectors, _ = principal_components(images)
    values = (images - mean) @ vectors[:codes].T  # rows codes
    edges = _quantiles(values, buckets)
    bucket = np.stack([np.searchsorted(e, v) for e, v in zip(edges, values.T, strict=True)])
    centres = np.stack(
        [_means(v, b, buckets) for v, b in zip(values.T, bucket, strict=True)]
    )  # codes buckets
    dots = np.sum(images * texts, axis=1)
    parts = (mean, vectors[:codes], edges, centres, _quantiles(dots[:, None], buckets)[0])
    return Codebook(*(jnp.asarray(part, jnp.float32) for part in parts))


def _quantiles(values: np.ndarray, buckets: int) -> np.ndarray:
    """Inner edges of buckets that hold equally many values: [columns, buckets - 1]."""
    return np.quantile(values, np.arange(1, buckets) / buckets, axis=0).T


def _means(values: np.ndarray, bucket: np.ndarray, buckets: int) -> np.ndarray:
    """The mean of the values in each bucket; equal values may leave one empty: then theirs."""
    counts = np.bincount(bucket, minlength=buckets)
    sums = np.bincount(bucket, values, minlength=buckets)
    middle = np.quantile(values, (np.arange(buckets) + 0.5) / buckets)
    return np.where(counts > 0, sums / np.maximum(counts, 1), middle)


def along_components(book: Codebook, images: Vectors) -> Float[Array, "batch codes"]:
    """What of image embeddings is cut into buckets."""
    return jnp.einsum("bd,cd->bc", images - book.mean, book.components, precision="highest")


def encode(book: Codebook, images: Vectors) -> Int[Array, "batch codes"]:
    """The codes of image embeddings."""
    find = jax.vmap(jnp.searchsorted, in_axes=(0, 1), out_axes=1)
    return find(book.edges, along_components(book, images)).astype(jnp.int32)


def decode(book: Codebook, codes: Int[Array, "batch codes"]) -> Vectors:
    """The embeddings that codes stand for; they are not of unit length."""
    values = jnp.take_along_axis(book.centres, codes.T, axis=1).T
    return book.mean + jnp.einsum("bc,cd->bd", values, book.components, precision="highest")


def chances(
    book: Codebook, images: Vectors, deviations: Float[Array, " codes"]
) -> Float[Array, "batch codes buckets"]:
    """Of each code of image embeddings, how likely every bucket is when they are not quite known.

    Args:
        book: the codebook.
        images: the embeddings; they need not be of unit length.
        deviations: of normal noise on what is along each component.
    """
    above = book.edges - along_components(book, images)[..., None]
    below = jax.scipy.stats.norm.cdf(above / deviations[:, None])
    return jnp.diff(below, axis=-1, prepend=0.0, append=1.0)


def encode_dot(book: Codebook, images: Vectors, texts: Vectors) -> Int[Array, " batch"]:
    """The bucket of the dot product of each image embedding with its text's."""
    return jnp.searchsorted(book.dot_edges, jnp.sum(images * texts, -1)).astype(jnp.int32)


def draw_dot(keys: Keys, buckets: int) -> Int[Array, " batch"]:
    """A bucket of the dot product for each image, from the top half: images that fit their text.

    The paper found the half best, of halves, 30%, 15% and 5% (percentiles 50, 70, 85 and 95).
    Equally many embeddings are in each bucket, with their plain captions, so the draw is even.
    """
    return jax.vmap(lambda key: jax.random.randint(key, (), buckets // 2, buckets))(keys)
