"""Turning a time into a vector."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.shapes import Timesteps, Vectors


def sinusoid(timesteps: Timesteps, dim: int, ddpm: bool = False) -> Float[Array, "batch {dim}"]:
    """[cos(t w_i), sin(t w_i)] with w_i = 10000^(-i / (dim/2)), i = 0 .. dim/2 - 1, in float32.

    Transformer positions (arXiv 1706.03762, section 3.5) with the cosines first, as in GLIDE and
    Stable Diffusion. bfloat16 cannot hold the integers up to 1000, so this never leaves float32.
    With `ddpm`, as in the code of DDPM: the sines first, and the last w is 1/10000.
    """
    half = dim // 2
    last = half - 1 if ddpm else half
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / last)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    parts = [jnp.cos(angles), jnp.sin(angles)]
    return jnp.concatenate(parts[::-1] if ddpm else parts, axis=-1)


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, Linear: from a sinusoid or an embedding to the width the ResBlocks add."""

    dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Vectors) -> Vectors:
        x = nn.Dense(self.dim, dtype=self.dtype, name="linear_1")(x.astype(self.dtype))
        return nn.Dense(self.dim, dtype=self.dtype, name="linear_2")(nn.silu(x))
