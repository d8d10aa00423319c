"""The UNet: latents or pixels, time and text to a prediction (arXiv 2112.10752, 2105.05233)."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from sdjax.config import UNet as UNetConfig
from sdjax.nn.embeddings import EmbeddingMLP, sinusoid
from sdjax.nn.layers import (
    SYMMETRIC,
    Downsample,
    GroupNorm,
    Upsample,
    conv3x3,
    depth_to_space,
    space_to_depth,
)
from sdjax.nn.resnet import ResBlock
from sdjax.nn.transformer import AttentionBlock, SpatialTransformer
from sdjax.shapes import FeatureMap, Labels, Latents, Mask, Sequence, Timesteps, Vectors

EPSILON = 1e-5
"""Of the group norms in ResBlocks and at the output; transformers have their own."""
SHALLOW = 2
"""Outermost skip connections that `UNet.reuse` runs; see there."""


class UNet(nn.Module):
    """Down, middle, up, with a skip connection at every step of the same resolution.

    Parameter names are `down_{level}_{part}_{j}`, `mid_{part}` and `up_{level}_{part}_{j}`, where
    level 0 is the full latent resolution on both sides (with a `patch`, that many times less).
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    merge: float = 0.0  # share of tokens merged at `merged_level`, see `sdjax.nn.merging`

    def __call__(
        self,
        x: Latents,
        timesteps: Timesteps,
        context: Sequence | None = None,
        vector: Vectors | None = None,
        label: Labels | None = None,
        mask: Mask | None = None,
    ) -> Latents:
        """Predict eps, v or x0 (the schedule says which) in float32, of the size of `x`.

        Args:
            x: noisy latents or pixels, and what is concatenated to them; height and width are
                multiples of `config.factor`.
            timesteps: float32 [batch] in [0, train_steps).
            context: text hidden states [batch, tokens, context_dim], where the config has one.
            vector: [batch, vector_dim], added to the time embedding where the config has one.
            label: integers [batch] below `config.labels`, whose rows of a table are added likewise.
            mask: the tokens of the context that are seen; all without one.
        """
        return self._run(x, timesteps, context, vector, label, mask)[0]

    def remember(self, *inputs: Any) -> tuple[Latents, FeatureMap]:
        """`__call__`, and the feature map of the deep part for `reuse`."""
        return self._run(*inputs)

    def reuse(self, deep: FeatureMap, *inputs: Any) -> Latents:
        """`__call__`, with the feature map of the deep part as `remember` gave it at another time.

        Only what lies between the `SHALLOW` outermost skip connections and the output is run, as
        in DeepCache (arXiv 2312.00858).
        """
        return self._run(*inputs, deep=deep)[0]

    @nn.compact
    def _run(
        self,
        x: Latents,
        timesteps: Timesteps,
        context: Sequence | None = None,
        vector: Vectors | None = None,
        label: Labels | None = None,
        mask: Mask | None = None,
        deep: FeatureMap | None = None,
    ) -> tuple[Latents, FeatureMap]:
        """The prediction and the feature map of the deep part, which is run if not given."""
        c = self.config
        cross_only = c.cross_only or (False,) * len(c.channels)
        _check_given("context_dim", c.context_dim, "context", context)
        _check_given("vector_dim", c.vector_dim, "vector", vector)
        _check_given("labels", c.labels, "label", label)

        def res(
            channels: int, name: str, resample: Literal["none", "up", "down"] = "none"
        ) -> ResBlock:
            options = self.dtype, c.scale_shift, resample, c.dropout
            return ResBlock(channels, c.norm_groups, EPSILON, *options, name=name)

        def attend(
            heads: int, cross_only: bool, name: str, h: FeatureMap, merge: float = 0.0
        ) -> FeatureMap:
            if c.block == "attention":
                block = AttentionBlock(heads, c.norm_groups, EPSILON, self.dtype, name=name)
            else:
                block = SpatialTransformer(
                    heads, c.norm_groups, cross_only, self.dtype, merge, name=name
                )
            return block(h, context, mask)

        def step(side: str, level: int, j: int, h: FeatureMap) -> FeatureMap:
            h = res(c.channels[level], f"{side}_{level}_res_{j}")(h, time)
            if c.attention[level]:
                merge = self.merge if level == merged_level(c) else 0.0
                name = f"{side}_{level}_attention_{j}"
                h = attend(c.heads[level], cross_only[level], name, h, merge)
            return h

        def resample(way: Literal["up", "down"], level: int, h: FeatureMap) -> FeatureMap:
            name = f"{way}_{level}_{way}sample"
            if c.resample == "res_block":
                return res(c.channels[level], name, way)(h, time)
            if way == "up":
                return Upsample(self.dtype, name=name)(h)
            return Downsample(SYMMETRIC, self.dtype, name=name)(h)

        if context is not None:
            context = context.astype(self.dtype)
        time = _time(c, self.dtype, timesteps, vector, label)
        h = space_to_depth(x.astype(self.dtype), c.patch)
        h = conv3x3(c.channels[0], name="conv_in", dtype=self.dtype)(h)
        downs, ups = _steps(c, outermost=deep is not None)
        skips = [h]
        for level, j in downs:
            h = step("down", level, j, h) if j < c.res_blocks else resample("down", level, h)
            skips.append(h)
        if deep is None:
            h = res(c.channels[-1], "mid_res_0")(h, time)
            if c.middle_attention:
                h = attend(c.heads[-1], False, "mid_attention", h)
            h = res(c.channels[-1], "mid_res_1")(h, time)
        else:
            h = deep
        for level, j in ups:
            deep = h if len(skips) == _shallow(c) else deep
            h = step("up", level, j, jnp.concatenate([h, skips.pop()], axis=-1))
            if j == c.res_blocks and level > 0:
                h = resample("up", level, h)
        assert deep is not None

        h = nn.silu(GroupNorm(c.norm_groups, EPSILON, self.dtype, name="norm_out")(h))
        width = c.out_channels * c.patch**2
        h = conv3x3(width, name="conv_out", dtype=self.dtype, zero=True)(h)
        return depth_to_space(h, c.patch).astype(jnp.float32), deep


def _time(
    c: UNetConfig, dtype: DTypeLike, timesteps: Timesteps, vector: Vectors | None, label: Any
) -> Vectors:
    """The time embedding, with the vector and the row of the label if the config has them."""
    time = EmbeddingMLP(c.time_dim, dtype, name="time_embedding")(
        sinusoid(timesteps, c.channels[0])
    )
    if vector is not None and c.vector_mlp:
        vector = EmbeddingMLP(c.time_dim, dtype, name="vector_embedding")(vector)
    if vector is not None:
        time = time + vector.astype(dtype)
    if label is not None and c.labels is not None:
        table = nn.Embed(c.labels, c.time_dim, dtype=dtype, name="label_embedding")
        time = time + table(label)
    return time


def _shallow(config: UNetConfig) -> int:
    """Outermost skip connections that are run when the deep part is reused."""
    return min(SHALLOW, config.res_blocks + 1)


def _steps(
    config: UNetConfig, outermost: bool
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Steps down and up as (level, j), where j is `res_blocks` for resampling on the way down.

    Each step down gives a skip connection, as the convolution before them does; each step up takes
    one, the innermost first.
    """
    levels, each = range(len(config.channels)), range(config.res_blocks + 1)
    downs = [(level, j) for level in levels for j in each][:-1]
    ups = [(level, j) for level in reversed(levels) for j in each]
    if outermost:
        return downs[: _shallow(config) - 1], ups[-_shallow(config) :]
    return downs, ups


def merged_level(config: UNetConfig) -> int | None:
    """The outermost level with self-attention over a sequence; None if there is none."""
    if config.block != "transformer":
        return None
    cross_only = config.cross_only or (False,) * len(config.channels)
    flags = zip(config.attention, cross_only, strict=True)
    return next((level for level, (own, cross) in enumerate(flags) if own and not cross), None)


def _check_given(field: str, value: int | None, name: str, given: Array | None) -> None:
    """The config has `value` exactly where the input is given."""
    if (given is None) != (value is None):
        raise ValueError(
            f"this UNet's config has {field} {value}, but the {name} given is "
            f"{None if given is None else given.shape}"
        )
