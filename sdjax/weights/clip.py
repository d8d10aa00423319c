"""Names of CLIP's towers in published files.

Layout "transformers": the classes CLIPTextModel[WithProjection], CLIPVisionModelWithProjection and
CLIPModel, as in the folders text_encoder/ and image_encoder/ of the Hugging Face hub.

Layout "openclip": the files of OpenCLIP and of OpenAI, and what single-file Stable Diffusion 2 has
of them. Query, key and value are one tensor, projections are plain matrices [in, out].
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from sdjax.config import Clip, ImageTower, TextTower
from sdjax.image.clip_image import ClipImage
from sdjax.text.clip_text import ClipText
from sdjax.weights.rules import (
    CONV,
    COPY,
    EMBEDDING,
    LINEAR,
    NORM,
    PLAIN,
    TRANSPOSE,
    WEIGHT,
    Row,
    Rule,
    Table,
    fused,
    layers,
)
from sdjax.weights.tree import Params

Layout = Literal["transformers", "openclip"]

TRANSFORMERS_BLOCK: tuple[Row, ...] = (
    ("layer_norm1", "norm_self", NORM),
    ("self_attn.q_proj", "self_attention/query", LINEAR),
    ("self_attn.k_proj", "self_attention/key", LINEAR),
    ("self_attn.v_proj", "self_attention/value", LINEAR),
    ("self_attn.out_proj", "self_attention/out", LINEAR),
    ("layer_norm2", "norm_mlp", NORM),
    ("mlp.fc1", "mlp/expand", LINEAR),
    ("mlp.fc2", "mlp/contract", LINEAR),
)

TRANSFORMERS_TEXT: tuple[Row, ...] = (
    ("embeddings.token_embedding", "token_embedding", EMBEDDING),
    ("embeddings.position_embedding", "position_embedding", WEIGHT),
    ("final_layer_norm", "norm_final", NORM),
)

TRANSFORMERS_IMAGE: tuple[Row, ...] = (
    ("embeddings.class_embedding", "class_embedding", PLAIN),
    ("embeddings.patch_embedding", "patches", CONV),
    ("embeddings.position_embedding", "position_embedding", WEIGHT),
    ("pre_layrnorm", "norm_in", NORM),  # their spelling
    ("post_layernorm", "norm_out", NORM),
)

TEXT_PROJECTION: tuple[Row, ...] = (("text_projection", "projection", LINEAR),)
IMAGE_PROJECTION: tuple[Row, ...] = (("visual_projection", "projection", LINEAR),)

TEXT_PREFIXES = ("text_model.", "")
"""Before the tower's names, never before text_projection: files of the hub have the first,
CLIPTextModel of transformers 5.6 and later writes none."""

OPENCLIP_BLOCK: tuple[Row, ...] = (
    ("ln_1", "norm_self", NORM),
    ("attn.out_proj", "self_attention/out", LINEAR),
    ("ln_2", "norm_mlp", NORM),
    ("mlp.c_fc", "mlp/expand", LINEAR),
    ("mlp.c_proj", "mlp/contract", LINEAR),
)

OPENCLIP_TEXT: tuple[Row, ...] = (
    ("token_embedding", "token_embedding", EMBEDDING),
    ("positional_embedding", "position_embedding", PLAIN),
    ("ln_final", "norm_final", NORM),
    ("text_projection", "projection/kernel", PLAIN),
)

OPENCLIP_IMAGE: tuple[Row, ...] = (
    ("class_embedding", "class_embedding", PLAIN),
    ("conv1", "patches", CONV),
    ("positional_embedding", "position_embedding", PLAIN),
    ("ln_pre", "norm_in", NORM),
    ("ln_post", "norm_out", NORM),
    ("proj", "projection/kernel", PLAIN),
)

LOGIT_SCALE = "logit_scale"
"""Of the whole model, in both layouts and in our tree: the logarithm of 1 / temperature."""

OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Scalars in OpenAI's files that repeat the config."""


def text_table(config: TextTower) -> Table:
    """Rows of text_encoder/model.safetensors."""
    rules = () if config.projection_dim is None else layers(TEXT_PROJECTION)
    for prefix in TEXT_PREFIXES:
        rules += _transformers_text(prefix)
    # Old files store the numbers 0 .. 76 as if they were learnt.
    return Table(rules, drop=tuple(f"{p}embeddings.position_ids" for p in TEXT_PREFIXES))


def image_table(config: ImageTower) -> Table:
    """Rows of image_encoder/model.safetensors."""
    rules = transformers_image("vision_model.") + layers(IMAGE_PROJECTION)
    return Table(rules, drop=("vision_model.embeddings.position_ids",))


def openclip_text_table(config: TextTower) -> Table:
    """Rows of the text tower of an OpenCLIP file, of which it may be a part.

    Stable Diffusion 2 leaves the last block, the projection and the logit scale of its file unused:
    for a tower without projection all three are dropped.
    """
    rules = _openclip_text()
    if config.projection_dim is not None:
        return Table(rules, drop=(LOGIT_SCALE,))
    unused = (r.source.format(i=config.layers) for r in rules if r.target.startswith("block_"))
    return Table(rules, drop=(LOGIT_SCALE, "text_projection", *unused))


def openclip_image_table(config: ImageTower) -> Table:
    """Rows of the image tower of an OpenCLIP file; what the file has of a text tower is dropped."""
    text = (rule.source for rule in _openclip_text())
    return Table(_openclip_image(), drop=(LOGIT_SCALE, *OPENAI_SIZES, *text))


def clip_table(config: Clip, layout: Layout) -> Table:
    """Rows of a whole CLIP, whose tree is {"text": ..., "image": ..., "logit_scale": ...}."""
    scale = Rule(LOGIT_SCALE, LOGIT_SCALE, COPY)
    if layout == "openclip":
        rules = (scale, *_openclip_text("text/"), *_openclip_image("image/"))
        return Table(rules, drop=OPENAI_SIZES)
    rules = _transformers_text("text_model.", "text/") + layers(TEXT_PROJECTION, target="text/")
    rules += transformers_image("vision_model.", "image/")
    rules += layers(IMAGE_PROJECTION, target="image/")
    ids = tuple(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision"))
    return Table((scale, *rules), drop=ids)


@functools.cache
def text_shapes(config: TextTower) -> Params:
    """The text tower's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        tokens = jnp.zeros((1, config.context_length), jnp.int32)
        return ClipText(config).init(jax.random.key(0), tokens, jnp.zeros(1, jnp.int32))

    return jax.eval_shape(init)["params"]


@functools.cache
def image_shapes(config: ImageTower) -> Params:
    """The image tower's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        image = jnp.zeros((1, config.image_size, config.image_size, 3))
        return ClipImage(config).init(jax.random.key(0), image)

    return jax.eval_shape(init)["params"]


def clip_shapes(config: Clip) -> Params:
    """The parameter tree of a whole CLIP with shapes for leaves; nothing is computed."""
    return {
        "text": text_shapes(config.text),
        "image": image_shapes(config.image),
        LOGIT_SCALE: jax.ShapeDtypeStruct((), jnp.float32),
    }


def transformers_image(source: str, target: str = "") -> tuple[Rule, ...]:
    """The rules of CLIPVisionModel, without projection, between two prefixes."""
    return layers(TRANSFORMERS_IMAGE, source, target) + _transformers_blocks(source, target)


def _transformers_text(source: str, target: str = "") -> tuple[Rule, ...]:
    return layers(TRANSFORMERS_TEXT, source, target) + _transformers_blocks(source, target)


def _transformers_blocks(source: str, target: str) -> tuple[Rule, ...]:
    return layers(TRANSFORMERS_BLOCK, source + "encoder.layers.{i}.", target + "block_{i}/")


def _openclip_text(target: str = "") -> tuple[Rule, ...]:
    return layers(OPENCLIP_TEXT, target=target) + _openclip_blocks("", target)


def _openclip_image(target: str = "") -> tuple[Rule, ...]:
    return layers(OPENCLIP_IMAGE, "visual.", target) + _openclip_blocks("visual.", target)


def _openclip_blocks(source: str, target: str) -> tuple[Rule, ...]:
    source, target = source + "transformer.resblocks.{i}.", target + "block_{i}/"
    rules = layers(OPENCLIP_BLOCK, source, target)
    for name, leaf, transform in (
        ("in_proj_weight", "kernel", TRANSPOSE),
        ("in_proj_bias", "bias", COPY),
    ):
        targets = [f"{target}self_attention/{part}/{leaf}" for part in ("query", "key", "value")]
        rules += fused(f"{source}attn.{name}", targets, transform)
    return rules
