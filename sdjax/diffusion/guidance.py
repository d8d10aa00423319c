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


def rescale(
    guided: Float[Array, "batch ..."], conditional: Float[Array, "batch ..."], share: Scalar
) -> Float[Array, "batch ..."]:
    """Give guidance back the spread of the conditional output (arXiv 2305.08891, section 3.4).

    share (std(conditional) / std(guided)) guided + (1 - share) guided, with standard deviations of
    each image; share 0 changes nothing. The paper's phi is 0.7.
    """

    def spread(values: Array) -> Array:
        variance = jnp.var(values, tuple(range(1, values.ndim)), keepdims=True)
        return jnp.sqrt(variance + 1e-20)  # the gradient of the root is finite at 0, too

    return guided * (share * spread(conditional) / spread(guided) + (1 - share))


def guide_doubled(
    output: Float[Array, "double ..."], scale: Scalar, rescaled: Scalar | float = 0.0
) -> Float[Array, "..."]:
    """Guidance of a network output whose batch is [unconditional, conditional], and `rescale`."""
    unconditional, conditional = jnp.split(output, 2)
    return rescale(guide(unconditional, conditional, scale), conditional, jnp.asarray(rescaled))
