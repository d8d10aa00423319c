"""The residual block of the UNet and of the autoencoder."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.nn.layers import GroupNorm, conv3x3
from sdjax.shapes import FeatureMap, Vectors


class ResBlock(nn.Module):
    """norm, SiLU, conv; add the time; norm, SiLU, conv; add the input.

    The autoencoder calls it without a time embedding. A 1x1 projection (`skip`) carries the input
    over when the width changes.
    """

    channels: int
    groups: int
    epsilon: float  # 1e-5 in the UNet, 1e-6 in the autoencoder
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMap, time: Vectors | None = None) -> FeatureMap:
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm_1")(x))
        h = conv3x3(self.channels, name="conv_1", dtype=self.dtype)(h)
        if time is not None:
            shift = nn.Dense(self.channels, dtype=self.dtype, name="time")(nn.silu(time))
            h = h + shift[:, None, None]
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm_2")(h))
        h = conv3x3(self.channels, name="conv_2", dtype=self.dtype, zero=True)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + h
