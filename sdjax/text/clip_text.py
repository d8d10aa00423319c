"""CLIP's text transformer: token ids to hidden states and to one vector per text."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from sdjax.config import TextTower
from sdjax.nn.layers import layer_norm
from sdjax.nn.transformer import LAYER_NORM_EPSILON, TransformerBlock
from sdjax.shapes import Sequence, Tokens, Vectors


class TextOutput(NamedTuple):
    """What the text tower writes.

    hidden: float32 [batch, tokens, dim], after the final layer norm: what the UNet attends to.
    pooled: float32 [batch, projection_dim], not normalised: the text's place in CLIP's space; None
        for a tower without projection.
    """

    hidden: Sequence
    pooled: Vectors | None


class ClipText(nn.Module):
    """Causal pre-norm transformer over tokens (arXiv 2103.00020, section 2.4).

    There is no padding mask: every published model was trained attending to its padding.
    """

    config: TextTower
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens, end: Int[Array, " batch"]) -> TextOutput:
        """Args: token ids, and the position of each text's (first) end token."""
        c = self.config
        embed = nn.Embed(c.vocab_size, c.dim, dtype=self.dtype, name="token_embedding")
        position = self.param(
            "position_embedding", nn.initializers.normal(0.01), (c.context_length, c.dim)
        )
        x = embed(tokens) + position.astype(self.dtype)
        hidden = x
        for layer in range(c.layers):
            x = TransformerBlock(
                c.heads,
                c.dim // c.heads,
                c.mlp_dim,
                c.activation,
                attention_bias=True,
                epsilon=LAYER_NORM_EPSILON,
                causal=True,
                dtype=self.dtype,
                name=f"block_{layer}",
            )(x)
            if layer == c.layers - 1 - c.skip_layers:
                hidden = x
        final_norm = layer_norm(LAYER_NORM_EPSILON, name="norm_final", dtype=self.dtype)
        pooled = None
        if c.projection_dim is not None:
            last = jnp.take_along_axis(final_norm(x), end[:, None, None], axis=1)[:, 0]
            project = nn.Dense(
                c.projection_dim, use_bias=False, dtype=self.dtype, name="projection"
            )
            pooled = project(last).astype(jnp.float32)
        return TextOutput(final_norm(hidden).astype(jnp.float32), pooled)


def end_positions(tokens: Tokens, end_id: int) -> Int[Array, " batch"]:
    """Position of the first end token in each row, where CLIP pools."""
    return jnp.argmax(tokens == end_id, axis=-1)
