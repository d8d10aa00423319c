"""Along great circles: between embeddings, between noises, and towards what a text changes."""

import math

import numpy as np
from jaxtyping import Float

PARALLEL = 1e-4
"""Angle, in radians, below which an arc is a straight line; and the same between unit vectors."""

Vector = Float[np.ndarray, "..."]
"""An array of any shape, taken as one vector."""


def unit(vector: Vector) -> Vector:
    """The vector over its length."""
    return vector / np.linalg.norm(vector).astype(vector.dtype)


def slerp(a: Vector, b: Vector, share: float) -> Vector:
    """Spherical interpolation: `a` at share 0, `b` at 1 (Shoemake 1985, SIGGRAPH, page 247).

    sin((1 - share) angle) / sin(angle) a + sin(share angle) / sin(angle) b

    Between normal noises of many numbers the result is as large as they are, where a straight line
    would pass through a middle of half the variance.

    Args:
        a: not 0, of any shape; float32 stays float32.
        b: likewise, of the same shape.
        share: 0 to 1.
    """
    angle = float(np.arccos(np.clip(np.vdot(unit(a), unit(b)), -1, 1)))
    if min(angle, np.pi - angle) < PARALLEL:  # of opposite ends every arc is as good as the next
        return (1 - share) * a + share * b
    of_a, of_b = (math.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
    return of_a * a + of_b * b


def text_difference(there: Vector, here: Vector) -> Vector:
    """The direction from one text to another: (z_t - z_t0) / |z_t - z_t0|.

    Arguments are unit text embeddings (arXiv 2204.06125, section 3.3).

    Raises:
        ValueError: both texts have the same embedding.
    """
    away = there - here
    if np.linalg.norm(away) < PARALLEL:
        raise ValueError("both texts mean the same to CLIP: there is no way from one to the other")
    return unit(away)


def mean_direction(vectors: Float[np.ndarray, "vectors dim"], weights: Vector) -> Vector:
    """The weighted mean of unit vectors, as a unit vector.

    Raises:
        ValueError: they cancel out.
    """
    mean = np.einsum("n,nd->d", weights, vectors) / np.sum(weights)
    if np.linalg.norm(mean) < PARALLEL:
        raise ValueError("the parts of the mixture cancel out: they have no mean direction")
    return unit(mean)
