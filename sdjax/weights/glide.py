"""Names in GLIDE's files: a text transformer and a UNet side by side, without prefixes."""

import functools

import jax
import jax.numpy as jnp

from sdjax.config import Glide, GlideText
from sdjax.text.glide_text import GlideText as GlideTextNetwork
from sdjax.weights import ldm
from sdjax.weights.rules import (
    EMBEDDING,
    LINEAR,
    NORM,
    PLAIN,
    Row,
    Rule,
    Table,
    fused,
    layers,
    within,
)
from sdjax.weights.stable_diffusion import unet_shapes
from sdjax.weights.tree import Params

TEXT: tuple[Row, ...] = (
    ("token_embedding", "token_embedding", EMBEDDING),
    ("positional_embedding", "position_embedding", PLAIN),
    ("padding_embedding", "padding_embedding", PLAIN),
    ("final_ln", "norm_final", NORM),
    ("transformer_proj", "vector", LINEAR),
)

BLOCK: tuple[Row, ...] = (
    ("ln_1", "norm_self", NORM),
    ("attn.c_proj", "self_attention/out", LINEAR),
    ("ln_2", "norm_mlp", NORM),
    ("mlp.c_fc", "mlp/expand", LINEAR),
    ("mlp.c_proj", "mlp/contract", LINEAR),
)


def blocks(heads: int, source: str, target: str) -> tuple[Rule, ...]:
    """The rules of a transformer's blocks, between two prefixes; Karlo's prior has the same.

    Every head has its query, key and value side by side in one tensor.
    """
    source, target = source + "transformer.resblocks.{i}.", target + "block_{i}/"
    rules = layers(BLOCK, source, target)
    for suffix, leaf, transform in LINEAR:
        targets = [f"{target}self_attention/{part}{leaf}" for part in ("query", "key", "value")]
        rules += fused(f"{source}attn.c_qkv{suffix}", targets, transform, heads)
    return rules


def text_table(config: GlideText) -> Table:
    """Rows of the text transformer."""
    return Table(layers(TEXT) + blocks(config.heads, "", ""))


def glide_table(config: Glide) -> Table:
    """Rows of a file of GLIDE, whose tree is {"text": ..., "unet": ...}."""
    rules = within(text_table(config.text), "", "text/")
    return Table(rules + within(ldm.unet_table(config.unet), "", "unet/"))


@functools.cache
def text_shapes(config: GlideText) -> Params:
    """The text transformer's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        tokens = jnp.zeros((1, config.context_length), jnp.int32)
        return GlideTextNetwork(config).init(jax.random.key(0), tokens, tokens == 0)

    return jax.eval_shape(init)["params"]


def glide_shapes(config: Glide) -> Params:
    """The parameter tree of a whole GLIDE with shapes for leaves; nothing is computed."""
    return {"text": text_shapes(config.text), "unet": unet_shapes(config.unet)}
