"""DPT-hybrid: one image to a map of depth (Ranftl et al. 2021, arXiv 2103.13413; MiDaS 3).

image -> ResNet -> tokens -> transformer -> maps at 1/4, 1/8, 1/16, 1/32 -> fused, coarse to fine
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.config import Depth as DepthConfig
from sdjax.image.resnet import ResNet
from sdjax.nn.functional import Params, apply, keep
from sdjax.nn.layers import conv3x3, exact_gelu
from sdjax.nn.resize import interpolate
from sdjax.nn.transformer import TransformerBlock
from sdjax.shapes import FeatureMap, Images, Sequence

HEAD_CHANNELS = 32
"""Of the last map before the depth itself."""


class Depth(nn.Module):
    """ResNet features as the tokens of a ViT; its middle and its end, with finer maps, decoded."""

    config: DepthConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Images) -> Float[Array, "batch height width"]:
        """Images in [-1, 1] -> inverse depth, float32: larger is nearer, 0 is far, no unit.

        Height and width are multiples of `config.factor`; the network was trained on squares of
        `config.image_size`. Keeps "before_relu", the map before negative values are cut off.
        """
        c = self.config
        batch, height, width, _ = image.shape
        if height % c.factor or width % c.factor:
            raise ValueError(
                f"depth is estimated of images whose sides are multiples of {c.factor}, got "
                f"{height} x {width}: resize them (sdjax.image.depth.estimate_depth does)"
            )
        fine, middle, coarse = ResNet(
            c.stem_channels,
            c.stage_channels,
            c.stage_blocks,
            c.backbone_groups,
            self.dtype,
            name="resnet",
        )(image.astype(self.dtype))

        grid = height // c.patch_size, width // c.patch_size
        x = nn.Dense(c.dim, dtype=self.dtype, name="patches")(coarse).reshape(batch, -1, c.dim)
        first = self.param("class_embedding", nn.initializers.normal(0.02), (c.dim,))
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, c.dim)).astype(x.dtype), x], axis=1)
        side = c.image_size // c.patch_size
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), (side**2 + 1, c.dim)
        )
        x = x + fit_positions(position, grid).astype(self.dtype)
        maps = [fine, middle]
        for layer in range(c.layers):
            x = TransformerBlock(
                c.heads,
                c.dim // c.heads,
                c.mlp_dim,
                "gelu",
                attention_bias=True,
                epsilon=c.layer_norm_epsilon,
                dtype=self.dtype,
                name=f"block_{layer}",
            )(x)
            if layer in c.taps:
                tap = c.taps.index(layer)
                maps.append(self._reassemble(x, grid, tap))

        h = None
        for i in reversed(range(len(maps))):
            skip = conv3x3(c.fusion_channels, name=f"neck_{i}", dtype=self.dtype, bias=False)(
                maps[i]
            )
            h = Fusion(self.dtype, name=f"fusion_{i}")(skip, h)
        h = conv3x3(c.fusion_channels // 2, name="head_1", dtype=self.dtype)(h)
        h = double(h)
        h = nn.relu(conv3x3(HEAD_CHANNELS, name="head_2", dtype=self.dtype)(h))
        depth = nn.Dense(1, dtype=self.dtype, name="head_out")(h)[..., 0].astype(jnp.float32)
        keep(self, "before_relu", depth)
        return nn.relu(depth)

    def _reassemble(self, x: Sequence, grid: tuple[int, int], tap: int) -> FeatureMap:
        """Tokens back to a map; the class token is read into each (section 3.1, "proj")."""
        c = self.config
        tokens = x[:, 1:]
        pairs = jnp.concatenate([tokens, jnp.broadcast_to(x[:, :1], tokens.shape)], axis=-1)
        read = exact_gelu(nn.Dense(c.dim, dtype=self.dtype, name=f"readout_{tap}")(pairs))
        h = read.reshape(-1, *grid, c.dim)
        h = nn.Dense(c.tap_channels[tap], dtype=self.dtype, name=f"reassemble_{tap}")(h)
        if tap == 1:
            h = conv3x3(
                c.tap_channels[1], name="reassemble_1_downsample", dtype=self.dtype, strides=2
            )(h)
        return h


class ResidualUnit(nn.Module):
    """x + conv(ReLU(conv(ReLU(x)))): RefineNet's, without norms (arXiv 2103.13413, figure 1)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        h = conv3x3(x.shape[-1], name="conv_1", dtype=self.dtype)(nn.relu(x))
        return x + conv3x3(x.shape[-1], name="conv_2", dtype=self.dtype)(nn.relu(h))


class Fusion(nn.Module):
    """Add a map to what comes from the coarser ones, refine, and double the resolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, skip: FeatureMap, coarser: FeatureMap | None) -> FeatureMap:
        h = skip
        if coarser is not None:
            h = coarser + ResidualUnit(self.dtype, name="refine_skip")(skip)
        h = double(ResidualUnit(self.dtype, name="refine")(h))
        return nn.Dense(h.shape[-1], dtype=self.dtype, name="project")(h)


def double(x: FeatureMap) -> FeatureMap:
    """Twice the height and width; here corners stay where they are."""
    return interpolate(x, (2 * x.shape[1], 2 * x.shape[2]), "linear", align_corners=True)


def fit_positions(
    position: Float[Array, "tokens dim"], grid: tuple[int, int]
) -> Float[Array, "_tokens dim"]:
    """Learnt positions, a class token's and those of a square, for a grid of another size."""
    side = round((position.shape[0] - 1) ** 0.5)
    square = position[1:].reshape(1, side, side, -1)
    fitted = interpolate(square, grid, "linear", align_corners=False)
    return jnp.concatenate([position[:1], fitted.reshape(-1, position.shape[1])])


def estimate_depth(
    config: DepthConfig, params: Params, images: Images
) -> Float[Array, "batch height width"]:
    """Inverse depth of images in [-1, 1] of any one size: larger is nearer, without a unit.

    The network sees them about as large as those it was trained on (see `network_size`); its map is
    resized to the images' size.
    """
    height, width = images.shape[1:3]
    seen = interpolate(images, network_size(config, height, width), "cubic", align_corners=False)
    depth = _estimate(config, params, seen)[..., None]
    return interpolate(depth, (height, width), "cubic", align_corners=False)[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def _estimate(
    config: DepthConfig, params: Params, image: Images
) -> Float[Array, "batch height width"]:
    return apply(Depth(config), params, image)


def network_size(config: DepthConfig, height: int, width: int) -> tuple[int, int]:
    """The size at which an image goes through the network, as in MiDaS ("minimal").

    One side becomes `config.image_size`, the one that changes less, the other keeps the aspect;
    both are then rounded to multiples of `config.factor`.
    """
    scale = min(config.image_size / height, config.image_size / width, key=lambda s: abs(1 - s))

    def fit(side: int) -> int:
        return max(1, round(scale * side / config.factor)) * config.factor

    return fit(height), fit(width)


def depth_condition(
    depth: Float[Array, "batch _height _width"], size: tuple[int, int]
) -> Float[Array, "batch height width 1"]:
    """What the UNet of Stable Diffusion 2 depth reads beside latents of `size` (height, width).

    Each map is stretched to [-1, 1]; one that is flat says nothing, and becomes -1.
    """
    x = interpolate(depth[..., None], size, "cubic", align_corners=False)
    least, most = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
    spread = jnp.where(most > least, most - least, 1.0)
    return 2 * (x - least) / spread - 1
