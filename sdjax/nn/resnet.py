"""The residual block of the UNet and of the autoencoder."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.nn.convolution import double
from sdjax.nn.layers import GroupNorm, conv3x3, halve
from sdjax.shapes import FeatureMap, Vectors

RESAMPLE = {"none": lambda x: x, "up": double, "down": halve}
"""What a block does to height and width between its first activation and its first convolution."""


class ResBlock(nn.Module):
    """norm, SiLU, conv; add the time; norm, SiLU, conv; add the input.

    The autoencoder calls it without a time embedding. A 1x1 projection (`skip`) carries the input
    over when the width changes. With `scale_shift` the time does not shift the features before the
    second norm but scales and shifts them after it: AdaGN of ADM (arXiv 2105.05233, section 3).
    """

    channels: int
    groups: int
    epsilon: float  # 1e-5 in the UNet, 1e-6 in the autoencoder
    dtype: DTypeLike = jnp.float32
    scale_shift: bool = False
    resample: Literal["none", "up", "down"] = "none"
    dropout: float = 0.0  # before the last convolution, where a "dropout" key is given

    @nn.compact
    def __call__(self, x: FeatureMap, time: Vectors | None = None) -> FeatureMap:
        resample = RESAMPLE[self.resample]
        h = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm_1")(x))
        x, doubled = resample(x), self.resample == "up"
        h = h if doubled else resample(h)  # the convolution doubles it
        h = conv3x3(self.channels, name="conv_1", dtype=self.dtype, doubled=doubled)(h)
        norm = GroupNorm(self.groups, self.epsilon, self.dtype, name="norm_2")
        if time is None:
            h = norm(h)
        else:
            width = 2 * self.channels if self.scale_shift else self.channels
            told = nn.Dense(width, dtype=self.dtype, name="time")(nn.silu(time))[:, None, None]
            if self.scale_shift:
                scale, shift = jnp.split(told, 2, axis=-1)
                h = norm(h) * (1 + scale) + shift
            else:
                h = norm(h + told)
        h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(nn.silu(h))
        h = conv3x3(self.channels, name="conv_2", dtype=self.dtype, zero=True)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + h
