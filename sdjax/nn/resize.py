"""Interpolation between the pixels of a grid, from its definition.

`jax.image.resize` has neither aligned corners nor the sharper cubic that the published models were
trained with, and it blurs on shrinking.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Float

from sdjax.shapes import FeatureMap

CUBIC_SHARPNESS = -0.75
"""The `a` of Keys' cubic (IEEE TASSP 29, 1981, equation 4 with a free): PyTorch's and OpenCV's."""


def interpolate(
    x: FeatureMap, size: tuple[int, int], kind: Literal["linear", "cubic"], *, align_corners: bool
) -> FeatureMap:
    """Resize height and width to `size`; pixels beyond the edge repeat it, nothing is blurred.

    Args:
        x: [batch, height, width, channels].
        size: the new (height, width).
        kind: "linear" weighs the 2 nearest pixels of each axis, "cubic" 4.
        align_corners: whether the centres of the corner pixels keep their places (True), or the
            edges of the image do.
    """
    rows = _weights(x.shape[1], size[0], kind, align_corners)
    columns = _weights(x.shape[2], size[1], kind, align_corners)
    y = jnp.einsum("yh,bhwc->bywc", rows, x, precision=Precision.HIGHEST)
    y = jnp.einsum("xw,bywc->byxc", columns, y, precision=Precision.HIGHEST)
    return y.astype(x.dtype)


def _weights(
    old: int, new: int, kind: Literal["linear", "cubic"], align_corners: bool
) -> Float[np.ndarray, "{new} {old}"]:
    """What each old pixel of an axis gives to each new one; rows sum to 1."""
    at = np.arange(new)
    place = at * (old - 1) / max(new - 1, 1) if align_corners else (at + 0.5) * old / new - 0.5
    first = np.floor(place).astype(int)
    matrix = np.zeros((new, old))
    for tap in (0, 1) if kind == "linear" else (-1, 0, 1, 2):
        distance = np.abs(place - (first + tap))
        weight = 1 - distance if kind == "linear" else _cubic(distance)
        matrix[at, np.clip(first + tap, 0, old - 1)] += weight
    return matrix.astype(np.float32)


def _cubic(d: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    a = CUBIC_SHARPNESS
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, far)
