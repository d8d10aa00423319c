"""GLIDE's text transformer: token ids to what its UNet attends to and adds to the time."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import GlideText as GlideTextConfig
from sdjax.nn.layers import layer_norm
from sdjax.nn.transformer import LAYER_NORM_EPSILON, TransformerBlock
from sdjax.shapes import Mask, Sequence, Tokens, Vectors


class GlideTextOutput(NamedTuple):
    """What the text transformer writes.

    states: float32 [batch, tokens, dim]: the UNet's context, padding included.
    vector: float32 [batch, vector_dim]: added to the UNet's time embedding.
    """

    states: Sequence
    vector: Vectors


class GlideText(nn.Module):
    """Pre-norm transformer in which every token sees every other (arXiv 2112.10741, section 4).

    A position without text has no token but a learnt embedding of its own, so nothing is masked
    afterwards. The vector is made of the last position.
    """

    config: GlideTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens, mask: Mask) -> GlideTextOutput:
        """Args: token ids of the whole context, and where there is text."""
        c = self.config

        def positions(name: str) -> Vectors:
            table = self.param(name, nn.initializers.normal(0.01), (c.context_length, c.dim))
            return table.astype(self.dtype)

        x = nn.Embed(c.vocab_size, c.dim, dtype=self.dtype, name="token_embedding")(tokens)
        x = x + positions("position_embedding")
        x = jnp.where(mask[..., None], x, positions("padding_embedding"))
        for layer in range(c.layers):
            x = TransformerBlock(
                c.heads,
                c.dim // c.heads,
                4 * c.dim,
                "gelu",
                attention_bias=True,
                epsilon=LAYER_NORM_EPSILON,
                dtype=self.dtype,
                name=f"block_{layer}",
            )(x)
        x = layer_norm(LAYER_NORM_EPSILON, name="norm_final", dtype=self.dtype)(x)
        vector = nn.Dense(c.vector_dim, dtype=self.dtype, name="vector")(x[:, -1])
        return GlideTextOutput(x.astype(jnp.float32), vector.astype(jnp.float32))
