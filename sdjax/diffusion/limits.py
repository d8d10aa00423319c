"""How far predicted data may go: clipping, and dynamic thresholding."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.shapes import Scalar


class Limits(NamedTuple):
    """Limits on x0; the numbers are traced."""

    clip: Scalar | float = np.inf  # x0 is clipped to [-clip, clip]
    quantile: Scalar | float | None = None  # of dynamic thresholding, which replaces the clip
    most: Scalar | float = 1.0  # of its threshold
    agree: Scalar | float = 1.0  # 1: eps follows x0; 0: it is left alone, as in diffusers' DDIM


NO_LIMITS = Limits()


def check_limits(limits: Limits) -> None:
    """Refuse limits that are out of range; they must be known, not traced.

    Raises:
        ValueError: says which, and its range.
    """
    clip, quantile, most, agree = limits
    for good, words, value in (
        (clip > 0, "clip must be above 0", clip),
        (quantile is None or 0 < quantile <= 1, "quantile must be above 0, at most 1", quantile),
        (most >= 1, "most must be at least 1", most),
        (0 <= agree <= 1, "agree must be between 0 and 1", agree),
    ):
        if not good:
            raise ValueError(f"limits: {words}, got {value}")


def limit(
    x0: Float[Array, "batch height width channels"], limits: Limits
) -> Float[Array, "batch height width channels"]:
    """Clipping, or dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3).

    Each picture is clipped to a quantile of its absolute values, which is kept between 1 and
    `limits.most`, and divided by it.
    """
    if limits.quantile is None:
        return jnp.clip(x0, -limits.clip, limits.clip)
    size = jnp.quantile(jnp.abs(x0.reshape(x0.shape[0], -1)), limits.quantile, axis=1)
    size = jnp.clip(size, 1.0, limits.most)[:, None, None, None]
    return jnp.clip(x0, -size, size) / size
