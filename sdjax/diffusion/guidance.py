"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.shapes import Scalar


def guide(
    unconditional: Float[Array, "..."], conditional: Float[Array, "..."], scale: Scalar
) -> Float[Array, "..."]:
    """Move from unconditional to conditional and beyond: u + scale (c - u); 1 is no guidance.

    The paper's equation 6 writes (1 + w) c - w u: its w is our scale - 1.
    """
    return unconditional + scale * (conditional - unconditional)


def guide_doubled(output: Float[Array, "double ..."], scale: Scalar) -> Float[Array, "..."]:
    """Guidance of a network output whose batch is [unconditional, conditional]."""
    unconditional, conditional = jnp.split(output, 2)
    return guide(unconditional, conditional, scale)
