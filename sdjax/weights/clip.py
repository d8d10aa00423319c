"""Names of CLIP's text tower in published files.

Layout "transformers": text_encoder/ of a model on the Hugging Face hub, the classes CLIPTextModel
and CLIPTextModelWithProjection.
"""

import jax
import jax.numpy as jnp

from sdjax.config import TextTower
from sdjax.text.clip_text import ClipText
from sdjax.weights.rules import EMBEDDING, LINEAR, NORM, WEIGHT, Row, Table, layers
from sdjax.weights.tree import Params

TEXT_TOWER: tuple[Row, ...] = (
    ("embeddings.token_embedding", "token_embedding", EMBEDDING),
    ("embeddings.position_embedding", "position_embedding", WEIGHT),
    ("encoder.layers.{i}.layer_norm1", "block_{i}/norm_self", NORM),
    ("encoder.layers.{i}.self_attn.q_proj", "block_{i}/self_attention/query", LINEAR),
    ("encoder.layers.{i}.self_attn.k_proj", "block_{i}/self_attention/key", LINEAR),
    ("encoder.layers.{i}.self_attn.v_proj", "block_{i}/self_attention/value", LINEAR),
    ("encoder.layers.{i}.self_attn.out_proj", "block_{i}/self_attention/out", LINEAR),
    ("encoder.layers.{i}.layer_norm2", "block_{i}/norm_mlp", NORM),
    ("encoder.layers.{i}.mlp.fc1", "block_{i}/mlp/expand", LINEAR),
    ("encoder.layers.{i}.mlp.fc2", "block_{i}/mlp/contract", LINEAR),
    ("final_layer_norm", "norm_final", NORM),
)

TEXT_PROJECTION: tuple[Row, ...] = (("text_projection", "projection", LINEAR),)

TEXT_PREFIXES = ("text_model.", "")
"""Before the tower's names, never before text_projection: files of the hub have the first,
CLIPTextModel of transformers 5.6 and later writes none."""


def text_table(config: TextTower) -> Table:
    """Rows of text_encoder/model.safetensors."""
    rules = () if config.projection_dim is None else layers(TEXT_PROJECTION)
    for prefix in TEXT_PREFIXES:
        rules += layers(TEXT_TOWER, prefix)
    # Old files store the numbers 0 .. 76 as if they were learnt.
    return Table(rules, drop=tuple(f"{p}embeddings.position_ids" for p in TEXT_PREFIXES))


def text_shapes(config: TextTower) -> Params:
    """The text tower's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        tokens = jnp.zeros((1, config.context_length), jnp.int32)
        return ClipText(config).init(jax.random.key(0), tokens, jnp.zeros(1, jnp.int32))

    return jax.eval_shape(init)["params"]
