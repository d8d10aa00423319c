"""The ResNet below DPT-hybrid: Big Transfer's, whose convolutions are standardised."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.nn.layers import GroupNorm
from sdjax.shapes import FeatureMap

NORM_EPSILON = 1e-5
STANDARDIZATION_EPSILON = 1e-8


class StandardizedConv(nn.Module):
    """A convolution without bias, its kernel shifted and scaled to mean 0 and variance 1.

    Weight standardisation (arXiv 1903.10520, equation 4), over all inputs of an output channel.
    """

    features: int
    side: int  # of the kernel
    strides: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = kernel.astype(jnp.float32)
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel * jax.lax.rsqrt(kernel.var((0, 1, 2)) + STANDARDIZATION_EPSILON)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.strides, self.strides),
            "SAME",  # TensorFlow's: with stride 2 more on the right and at the bottom
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution at a quarter of the width, each normalised; add the input.

    ResNet (arXiv 1512.03385, figure 5). The first of a stage projects its input to the new width.
    """

    channels: int
    strides: int
    project: bool
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        def layer(x: FeatureMap, channels: int, side: int, strides: int, name: str) -> FeatureMap:
            conv = StandardizedConv(channels, side, strides, self.dtype, name=f"conv_{name}")
            return GroupNorm(self.groups, NORM_EPSILON, self.dtype, name=f"norm_{name}")(conv(x))

        h = nn.relu(layer(x, self.channels // 4, 1, 1, "1"))
        h = nn.relu(layer(h, self.channels // 4, 3, self.strides, "2"))
        h = layer(h, self.channels, 1, 1, "3")
        if self.project:
            x = layer(x, self.channels, 1, self.strides, "skip")
        return nn.relu(x + h)


class ResNet(nn.Module):
    """Big Transfer's ResNet (arXiv 1912.11370, section 3.2) as ViT-hybrid has it: no last stage."""

    stem_channels: int
    channels: tuple[int, ...]  # of each stage
    blocks: tuple[int, ...]  # in each stage
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: FeatureMap) -> list[FeatureMap]:
        """The output of each stage; the first is at a quarter of the image's resolution."""
        x = StandardizedConv(self.stem_channels, 7, 2, self.dtype, name="conv_stem")(image)
        x = nn.relu(GroupNorm(self.groups, NORM_EPSILON, self.dtype, name="norm_stem")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        maps = []
        for stage, (channels, blocks) in enumerate(zip(self.channels, self.blocks, strict=True)):
            for j in range(blocks):
                strides = 2 if stage > 0 and j == 0 else 1
                block = Bottleneck(
                    channels, strides, j == 0, self.groups, self.dtype, name=f"stage_{stage}_{j}"
                )
                x = block(x)
            maps.append(x)
        return maps
