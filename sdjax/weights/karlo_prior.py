"""Names of Karlo's prior in published files, and the trees of both priors of DALL-E 2.

Layout "karlo": the original checkpoint (kakaobrain/karlo), below its prefix "model.". Layout
"diffusers": the folder prior/, which also holds the statistics of image embeddings.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from sdjax.config import AutoregressivePrior as AutoregressivePriorConfig
from sdjax.config import DiffusionPrior as DiffusionPriorConfig
from sdjax.denoisers.autoregressive import AutoregressivePrior
from sdjax.denoisers.prior import DiffusionPrior
from sdjax.weights.glide import blocks
from sdjax.weights.rules import LINEAR, NORM, Kind, Row, Table, Transform, layers
from sdjax.weights.stable_diffusion import TRANSFORMER_BLOCK
from sdjax.weights.tree import Params

Layout = Literal["karlo", "diffusers"]

FIRST: Kind = (("", "", Transform(lambda x: x[0], lambda x: x[None])),)
"""[1, tokens, dim] in the file, [tokens, dim] in the tree."""
VECTOR: Kind = (("", "", Transform(lambda x: x[0, 0], lambda x: x[None, None])),)
"""[1, 1, dim] in the file, [dim] in the tree."""

KARLO: tuple[Row, ...] = (
    ("positional_embedding", "position_embedding", FIRST),
    ("prd_emb", "query", VECTOR),
    ("time_embed.0", "time/linear_1", LINEAR),
    ("time_embed.2", "time/linear_2", LINEAR),
    ("text_enc_proj", "text", LINEAR),
    ("text_emb_proj", "text_embedding", LINEAR),
    ("clip_img_proj", "image_embedding", LINEAR),
    ("final_ln", "norm_final", NORM),
    ("out_proj", "out", LINEAR),
)

DIFFUSERS: tuple[Row, ...] = (
    ("positional_embedding", "position_embedding", FIRST),
    ("prd_embedding", "query", VECTOR),
    ("time_embedding.linear_1", "time/linear_1", LINEAR),
    ("time_embedding.linear_2", "time/linear_2", LINEAR),
    ("encoder_hidden_states_proj", "text", LINEAR),
    ("embedding_proj", "text_embedding", LINEAR),
    ("proj_in", "image_embedding", LINEAR),
    ("norm_out", "norm_final", NORM),
    ("proj_to_clip_embeddings", "out", LINEAR),
)

STATISTICS = ("clip_mean", "clip_std")
"""In prior/ of diffusers, but no part of the network: the component "image_statistics"."""


def prior_table(config: DiffusionPriorConfig, layout: Layout) -> Table:
    """Rows of Karlo's prior."""
    if layout == "karlo":
        return Table(layers(KARLO) + blocks(config.heads, "", ""))
    rules = layers(DIFFUSERS)
    rules += layers(TRANSFORMER_BLOCK, "transformer_blocks.{i}.", "block_{i}/")
    return Table(rules, drop=STATISTICS)


@functools.cache
def prior_shapes(config: DiffusionPriorConfig) -> Params:
    """The diffusion prior's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        embedding = jnp.zeros((1, config.embedding_dim))
        text, mask = _text(config.text_tokens, config.text_dim)
        return DiffusionPrior(config).init(
            jax.random.key(0), embedding, jnp.zeros(1), embedding, text, mask
        )

    return jax.eval_shape(init)["params"]


@functools.cache
def autoregressive_shapes(config: AutoregressivePriorConfig) -> Params:
    """The autoregressive prior's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        embedding = jnp.zeros((1, config.embedding_dim))
        text, mask = _text(config.text_tokens, config.text_dim)
        codes = jnp.zeros((1, config.codes), jnp.int32)
        return AutoregressivePrior(config).init(jax.random.key(0), embedding, text, mask, codes)

    return jax.eval_shape(init)["params"]


def _text(tokens: int, dim: int | None) -> tuple[jax.Array, jax.Array]:
    """One text, hidden states or ids, and its mask."""
    text = jnp.zeros((1, tokens), jnp.int32) if dim is None else jnp.zeros((1, tokens, dim))
    return text, jnp.ones((1, tokens), bool)


def regression_shapes(config: DiffusionPriorConfig | AutoregressivePriorConfig) -> Params:
    """The tree of the regression that a prior starts from, with shapes for leaves."""
    dim, rows = config.embedding_dim, config.regression
    shapes = {
        "text_mean": (dim,),
        "whitening": (dim, dim),
        "texts": (rows, dim),
        "weights": (rows, dim),
        "image_mean": (dim,),
        "covariance": (dim, dim),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def codebook_shapes(config: AutoregressivePriorConfig) -> Params:
    """The tree of the codes that the autoregressive prior writes, with shapes for leaves."""
    inner = config.buckets - 1
    shapes = {
        "mean": (config.embedding_dim,),
        "components": (config.codes, config.embedding_dim),
        "edges": (config.codes, inner),
        "centres": (config.codes, config.buckets),
        "dot_edges": (inner,),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
