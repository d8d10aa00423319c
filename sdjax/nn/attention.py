"""Scaled dot-product attention (arXiv 1706.03762, equation 1): the one attention of sdjax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.shapes import Sequence

QUERY_BLOCK = 512
"""Queries handled at once when the score matrix would be large."""
MAX_SCORES = 1 << 20
"""Largest tokens x tokens matrix kept whole, per head."""


def dot_product_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
    *,
    causal: bool = False,
) -> Float[Array, "batch queries heads head_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V, exact; scores and softmax in float32.

    Large inputs go through in blocks of `QUERY_BLOCK` queries, so the tokens x tokens matrix is
    never stored whole. With `causal`, a query sees the keys up to its own position.
    """
    batch, queries, heads, head_dim = query.shape
    tokens = key.shape[1]
    scale = head_dim**-0.5

    def attend(block: Array, first: Array | int) -> Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", block, key, preferred_element_type=jnp.float32)
        scores = scores * scale
        if causal:
            position = first + jnp.arange(block.shape[1])
            visible = position[:, None] >= jnp.arange(tokens)[None, :]
            scores = jnp.where(visible, scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    if queries * tokens <= MAX_SCORES:
        return attend(query, 0)
    missing = -queries % QUERY_BLOCK
    padded = jnp.pad(query, ((0, 0), (0, missing), (0, 0), (0, 0)))
    blocks = padded.reshape(batch, -1, QUERY_BLOCK, heads, head_dim).swapaxes(0, 1)
    starts = jnp.arange(blocks.shape[0]) * QUERY_BLOCK
    # Recomputed for gradients, which would otherwise store every block's scores.
    out = jax.lax.map(jax.checkpoint(lambda args: attend(*args)), (blocks, starts))
    return out.swapaxes(0, 1).reshape(batch, -1, heads, head_dim)[:, :queries]


class Attention(nn.Module):
    """Multi-head attention of `x` to itself, or to `context` where one is given."""

    heads: int
    head_dim: int
    bias: bool  # on query, key and value: CLIP and the autoencoder yes, the UNet no
    causal: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Sequence, context: Sequence | None = None) -> Sequence:
        source = x if context is None else context

        def project(name: str, inputs: Array) -> Array:
            width = self.heads * self.head_dim
            y = nn.Dense(width, use_bias=self.bias, dtype=self.dtype, name=name)(inputs)
            return y.reshape(*y.shape[:2], self.heads, self.head_dim)

        out = dot_product_attention(
            project("query", x),
            project("key", source),
            project("value", source),
            causal=self.causal,
        )
        out = out.reshape(*x.shape[:2], -1)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(out)
