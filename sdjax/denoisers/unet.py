"""The text-conditional UNet: noisy latents, time and text to a prediction (arXiv 2112.10752)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from sdjax.config import UNet as UNetConfig
from sdjax.nn.embeddings import EmbeddingMLP, sinusoid
from sdjax.nn.layers import SYMMETRIC, Downsample, GroupNorm, Upsample, conv3x3
from sdjax.nn.resnet import ResBlock
from sdjax.nn.transformer import SpatialTransformer
from sdjax.shapes import FeatureMap, Labels, Latents, Sequence, Timesteps, Vectors

EPSILON = 1e-5
"""Of the group norms in ResBlocks and at the output; transformers have their own."""


class UNet(nn.Module):
    """Down, middle, up, with a skip connection at every step of the same resolution.

    Parameter names are `down_{level}_{part}_{j}`, `mid_{part}` and `up_{level}_{part}_{j}`, where
    level 0 is the full latent resolution on both sides.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Latents,
        timesteps: Timesteps,
        context: Sequence,
        vector: Vectors | None = None,
        label: Labels | None = None,
    ) -> Latents:
        """Predict eps, v or x0 (the schedule says which) in float32, shaped like the latents.

        Args:
            x: noisy latents; height and width are multiples of `config.factor`.
            timesteps: float32 [batch] in [0, train_steps).
            context: text hidden states [batch, tokens, context_dim].
            vector: [batch, vector_dim], added to the time embedding where the config has one.
            label: integers [batch] below `config.labels`, whose rows of a table are added likewise.
        """
        c = self.config
        levels = len(c.channels)
        cross_only = c.cross_only or (False,) * levels

        def res(channels: int, name: str) -> ResBlock:
            return ResBlock(channels, c.norm_groups, EPSILON, self.dtype, name=name)

        def attend(heads: int, cross_only: bool, name: str, h: FeatureMap) -> FeatureMap:
            transformer = SpatialTransformer(
                heads, c.norm_groups, cross_only, self.dtype, name=name
            )
            return transformer(h, context)

        context = context.astype(self.dtype)
        time = EmbeddingMLP(c.time_dim, self.dtype, name="time_embedding")(
            sinusoid(timesteps, c.channels[0])
        )
        _check_given("vector_dim", c.vector_dim, "vector", vector)
        _check_given("labels", c.labels, "label", label)
        if vector is not None:
            time = time + EmbeddingMLP(c.time_dim, self.dtype, name="vector_embedding")(vector)
        if label is not None and c.labels is not None:
            table = nn.Embed(c.labels, c.time_dim, dtype=self.dtype, name="label_embedding")
            time = time + table(label)

        h = conv3x3(c.channels[0], name="conv_in", dtype=self.dtype)(x.astype(self.dtype))
        skips = [h]
        for level in range(levels):
            for j in range(c.res_blocks):
                h = res(c.channels[level], f"down_{level}_res_{j}")(h, time)
                if c.attention[level]:
                    h = attend(c.heads[level], cross_only[level], f"down_{level}_attention_{j}", h)
                skips.append(h)
            if level < levels - 1:
                h = Downsample(SYMMETRIC, self.dtype, name=f"down_{level}_downsample")(h)
                skips.append(h)

        h = res(c.channels[-1], "mid_res_0")(h, time)
        h = attend(c.heads[-1], False, "mid_attention", h)
        h = res(c.channels[-1], "mid_res_1")(h, time)

        for level in reversed(range(levels)):
            for j in range(c.res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res(c.channels[level], f"up_{level}_res_{j}")(h, time)
                if c.attention[level]:
                    h = attend(c.heads[level], cross_only[level], f"up_{level}_attention_{j}", h)
            if level > 0:
                h = Upsample(self.dtype, name=f"up_{level}_upsample")(h)

        h = nn.silu(GroupNorm(c.norm_groups, EPSILON, self.dtype, name="norm_out")(h))
        h = conv3x3(c.out_channels, name="conv_out", dtype=self.dtype, zero=True)(h)
        return h.astype(jnp.float32)


def _check_given(field: str, value: int | None, name: str, given: Array | None) -> None:
    """The config has `value` exactly where the input is given."""
    if (given is None) != (value is None):
        raise ValueError(
            f"this UNet's config has {field} {value}, but the {name} given is "
            f"{None if given is None else given.shape}"
        )
