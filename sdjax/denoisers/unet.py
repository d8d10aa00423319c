"""The UNet: latents or pixels, time and text to a prediction (arXiv 2112.10752, 2105.05233)."""

from typing import Literal

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


class UNet(nn.Module):
    """Down, middle, up, with a skip connection at every step of the same resolution.

    Parameter names are `down_{level}_{part}_{j}`, `mid_{part}` and `up_{level}_{part}_{j}`, where
    level 0 is the full latent resolution on both sides (with a `patch`, that many times less).
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
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
        c = self.config
        levels = len(c.channels)
        cross_only = c.cross_only or (False,) * levels
        _check_given("context_dim", c.context_dim, "context", context)
        _check_given("vector_dim", c.vector_dim, "vector", vector)
        _check_given("labels", c.labels, "label", label)

        def res(
            channels: int, name: str, resample: Literal["none", "up", "down"] = "none"
        ) -> ResBlock:
            return ResBlock(
                channels,
                c.norm_groups,
                EPSILON,
                self.dtype,
                c.scale_shift,
                resample,
                c.dropout,
                name=name,
            )

        def attend(heads: int, cross_only: bool, name: str, h: FeatureMap) -> FeatureMap:
            if c.block == "attention":
                block = AttentionBlock(heads, c.norm_groups, EPSILON, self.dtype, name=name)
            else:
                block = SpatialTransformer(heads, c.norm_groups, cross_only, self.dtype, name=name)
            return block(h, context, mask)

        if context is not None:
            context = context.astype(self.dtype)
        time = EmbeddingMLP(c.time_dim, self.dtype, name="time_embedding")(
            sinusoid(timesteps, c.channels[0])
        )
        if vector is not None and c.vector_mlp:
            vector = EmbeddingMLP(c.time_dim, self.dtype, name="vector_embedding")(vector)
        if vector is not None:
            time = time + vector.astype(self.dtype)
        if label is not None and c.labels is not None:
            table = nn.Embed(c.labels, c.time_dim, dtype=self.dtype, name="label_embedding")
            time = time + table(label)

        h = space_to_depth(x.astype(self.dtype), c.patch)
        h = conv3x3(c.channels[0], name="conv_in", dtype=self.dtype)(h)
        skips = [h]
        for level in range(levels):
            for j in range(c.res_blocks):
                h = res(c.channels[level], f"down_{level}_res_{j}")(h, time)
                if c.attention[level]:
                    h = attend(c.heads[level], cross_only[level], f"down_{level}_attention_{j}", h)
                skips.append(h)
            if level < levels - 1:
                name = f"down_{level}_downsample"
                if c.resample == "res_block":
                    h = res(c.channels[level], name, "down")(h, time)
                else:
                    h = Downsample(SYMMETRIC, self.dtype, name=name)(h)
                skips.append(h)

        h = res(c.channels[-1], "mid_res_0")(h, time)
        if c.middle_attention:
            h = attend(c.heads[-1], False, "mid_attention", h)
        h = res(c.channels[-1], "mid_res_1")(h, time)

        for level in reversed(range(levels)):
            for j in range(c.res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(c.channels[level], f"up_{level}_res_{j}")(h, time)
                if c.attention[level]:
                    h = attend(c.heads[level], cross_only[level], f"up_{level}_attention_{j}", h)
            if level > 0:
                name = f"up_{level}_upsample"
                if c.resample == "res_block":
                    h = res(c.channels[level], name, "up")(h, time)
                else:
                    h = Upsample(self.dtype, name=name)(h)

        h = nn.silu(GroupNorm(c.norm_groups, EPSILON, self.dtype, name="norm_out")(h))
        width = c.out_channels * c.patch**2
        h = conv3x3(width, name="conv_out", dtype=self.dtype, zero=True)(h)
        return depth_to_space(h, c.patch).astype(jnp.float32)


def _check_given(field: str, value: int | None, name: str, given: Array | None) -> None:
    """The config has `value` exactly where the input is given."""
    if (given is None) != (value is None):
        raise ValueError(
            f"this UNet's config has {field} {value}, but the {name} given is "
            f"{None if given is None else given.shape}"
        )
