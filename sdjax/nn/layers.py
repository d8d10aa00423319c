"""Small layers: activations, group norm, convolution, resampling by a factor of two."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.nn.convolution import convolve, convolve_doubled
from sdjax.shapes import FeatureMap

SYMMETRIC = ((1, 1), (1, 1))
"""Padding of every 3x3 convolution, and of the UNet's stride-2 ones."""
BOTTOM_RIGHT = ((0, 1), (0, 1))
"""Padding of the autoencoder's stride-2 convolutions."""


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The GELU of OpenAI's CLIP: x * sigmoid(1.702 x) (arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU proper, x * Phi(x) by the error function; Flax's default is a tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def activation(name: str) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """The function called `name`: "quick_gelu" or "gelu" (exact)."""
    return {"quick_gelu": quick_gelu, "gelu": exact_gelu}[name]


class GroupNorm(nn.Module):
    """Group normalisation (arXiv 1803.08494) over height, width and the channels of a group.

    Statistics are float32 whatever the input. Per-channel sums come first and are then pooled into
    groups: on a CPU this is several times faster than reshaping the whole map into groups.
    """

    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        batch, channels = x.shape[0], x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x32 = x.astype(jnp.float32)
        # E[(x - m)^2] and not E[x^2] - m^2, which cancels where the mean is large.
        mean = x32.mean((1, 2))  # batch channels
        spread = jnp.square(x32 - mean[:, None, None]).mean((1, 2))
        by_group = (batch, self.groups, channels // self.groups)
        center = mean.reshape(by_group).mean(-1, keepdims=True)
        offset = mean.reshape(by_group) - center
        variance = (spread.reshape(by_group) + offset**2).mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt(variance + self.epsilon)
        gain = jnp.broadcast_to(inverse, by_group).reshape(batch, channels) * scale
        shift = (offset * inverse).reshape(batch, channels) * scale + bias
        centered = x32 - mean[:, None, None]
        return (centered * gain[:, None, None] + shift[:, None, None]).astype(self.dtype)


def layer_norm(epsilon: float, *, name: str, dtype: DTypeLike) -> nn.LayerNorm:
    """Layer normalisation (arXiv 1607.06450), float32 inside, without cancellation as above."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def conv3x3(
    features: int,
    *,
    name: str,
    dtype: DTypeLike,
    strides: int = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] = SYMMETRIC,
    bias: bool = True,
    zero: bool = False,
    doubled: bool = False,
) -> nn.Conv:
    """A 3x3 convolution; `zero` starts it at zero, so that its residual branch starts silent.

    With `doubled` it is of the map with every pixel repeated, to twice the height and width.
    """
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(
        features,
        (3, 3),
        strides=(strides, strides),
        padding=padding,
        use_bias=bias,
        kernel_init=init,
        dtype=dtype,
        conv_general_dilated=convolve_doubled if doubled else convolve,
        name=name,
    )


class Downsample(nn.Module):
    """Halve height and width with a stride-2 convolution."""

    padding: tuple[tuple[int, int], tuple[int, int]]  # SYMMETRIC (UNet) or BOTTOM_RIGHT (VAE)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        return conv3x3(x.shape[-1], name="conv", dtype=self.dtype, strides=2, padding=self.padding)(
            x
        )


class Upsample(nn.Module):
    """Double height and width by repeating pixels, then smooth with a convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        return conv3x3(x.shape[-1], name="conv", dtype=self.dtype, doubled=True)(x)


def halve(x: FeatureMap) -> FeatureMap:
    """Half the height and width, the mean of every 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def space_to_depth(x: FeatureMap, block: int) -> FeatureMap:
    """Fold block x block pixels into channels: [b, h, w, c] -> [b, h/block, w/block, block^2 c]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, -1)


def depth_to_space(x: FeatureMap, block: int) -> FeatureMap:
    """The inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, block, block, channels // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * block, width * block, -1)
