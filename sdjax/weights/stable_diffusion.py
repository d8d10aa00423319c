"""Names of Stable Diffusion's UNet and autoencoder in published files.

Layout "diffusers": the folders unet/ and vae/ of a model on the Hugging Face hub. Its up_blocks are
numbered in the order they run, so up_blocks.0 is the deepest level; ours carry their level's
number, with 0 the full latent resolution.
"""

import functools

import jax
import jax.numpy as jnp

from sdjax.config import Autoencoder as AutoencoderConfig
from sdjax.config import UNet as UNetConfig
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.weights.rules import (
    CONV,
    EMBEDDING,
    LINEAR,
    LINEAR_1X1,
    NORM,
    Kind,
    Row,
    Rule,
    Table,
    layers,
)
from sdjax.weights.tree import Params

RES_BLOCK: tuple[Row, ...] = (
    ("norm1", "norm_1", NORM),
    ("conv1", "conv_1", CONV),
    ("time_emb_proj", "time", LINEAR),
    ("norm2", "norm_2", NORM),
    ("conv2", "conv_2", CONV),
    ("conv_shortcut", "skip", LINEAR_1X1),
)

TRANSFORMER_BLOCK: tuple[Row, ...] = (
    ("norm1", "norm_self", NORM),
    ("attn1.to_q", "self_attention/query", LINEAR),
    ("attn1.to_k", "self_attention/key", LINEAR),
    ("attn1.to_v", "self_attention/value", LINEAR),
    ("attn1.to_out.0", "self_attention/out", LINEAR),
    # The same names where the first attention reads the text too (`cross_only`).
    ("norm1", "norm_first", NORM),
    ("attn1.to_q", "first_attention/query", LINEAR),
    ("attn1.to_k", "first_attention/key", LINEAR),
    ("attn1.to_v", "first_attention/value", LINEAR),
    ("attn1.to_out.0", "first_attention/out", LINEAR),
    ("norm2", "norm_cross", NORM),
    ("attn2.to_q", "cross_attention/query", LINEAR),
    ("attn2.to_k", "cross_attention/key", LINEAR),
    ("attn2.to_v", "cross_attention/value", LINEAR),
    ("attn2.to_out.0", "cross_attention/out", LINEAR),
    ("norm3", "norm_mlp", NORM),
    ("ff.net.0.proj", "mlp/expand", LINEAR),
    ("ff.net.2", "mlp/contract", LINEAR),
)

UNET_ENDS: tuple[Row, ...] = (
    ("time_embedding.linear_1", "time_embedding/linear_1", LINEAR),
    ("time_embedding.linear_2", "time_embedding/linear_2", LINEAR),
    ("class_embedding.linear_1", "vector_embedding/linear_1", LINEAR),
    ("class_embedding.linear_2", "vector_embedding/linear_2", LINEAR),
    ("class_embedding", "label_embedding", EMBEDDING),
    ("conv_in", "conv_in", CONV),
    ("conv_norm_out", "norm_out", NORM),
    ("conv_out", "conv_out", CONV),
)

ATTENTION_BLOCK: tuple[Row, ...] = (
    ("group_norm", "norm", NORM),
    ("to_q", "attention/query", LINEAR),
    ("to_k", "attention/key", LINEAR),
    ("to_v", "attention/value", LINEAR),
    ("to_out.0", "attention/out", LINEAR),
    ("add_k_proj", "attention/context_key", LINEAR),
    ("add_v_proj", "attention/context_value", LINEAR),
    # Older files have other names, and may keep the shape of the 1x1 convolutions in LDM.
    ("query", "attention/query", LINEAR),
    ("key", "attention/key", LINEAR),
    ("value", "attention/value", LINEAR),
    ("proj_attn", "attention/out", LINEAR),
    ("query", "attention/query", LINEAR_1X1),
    ("key", "attention/key", LINEAR_1X1),
    ("value", "attention/value", LINEAR_1X1),
    ("proj_attn", "attention/out", LINEAR_1X1),
)

AUTOENCODER_ENDS: tuple[Row, ...] = (
    ("encoder.conv_in", "encoder/conv_in", CONV),
    ("encoder.conv_norm_out", "encoder/norm_out", NORM),
    ("encoder.conv_out", "encoder/conv_out", CONV),
    ("quant_conv", "quant", LINEAR_1X1),
    ("post_quant_conv", "post_quant", LINEAR_1X1),
    ("decoder.conv_in", "decoder/conv_in", CONV),
    ("decoder.conv_norm_out", "decoder/norm_out", NORM),
    ("decoder.conv_out", "decoder/conv_out", CONV),
)

CONVS: tuple[Row, ...] = (("conv", "conv", CONV),)


def unet_table(config: UNetConfig) -> Table:
    """Rows of unet/diffusion_pytorch_model.safetensors."""
    rules = layers(UNET_ENDS)
    rules += layers(RES_BLOCK, "mid_block.resnets.{j}.", "mid_res_{j}/")
    rules += _attention(config, "mid_block.attentions.0.", "mid_attention/")
    for source, target in _levels(len(config.channels)):
        rules += layers(RES_BLOCK, f"{source}.resnets.{{j}}.", f"{target}_res_{{j}}/")
        rules += _attention(config, f"{source}.attentions.{{j}}.", f"{target}_attention_{{j}}/")
        rules += _resample(source, target, RES_BLOCK if config.resample == "res_block" else CONVS)
    return Table(rules)


def autoencoder_table(config: AutoencoderConfig) -> Table:
    """Rows of vae/diffusion_pytorch_model.safetensors."""
    rules = layers(AUTOENCODER_ENDS)
    for half in ("encoder", "decoder"):
        source, target = f"{half}.mid_block.", f"{half}/mid_"
        rules += layers(RES_BLOCK, source + "resnets.{j}.", target + "res_{j}/")
        rules += layers(ATTENTION_BLOCK, source + "attentions.0.", target + "attention/")
    for source, target in _levels(len(config.channels)):
        half = "encoder" if source.startswith("down") else "decoder"
        source, target = f"{half}.{source}", f"{half}/{target}"
        rules += layers(RES_BLOCK, f"{source}.resnets.{{j}}.", f"{target}_res_{{j}}/")
        rules += _resample(source, target, CONVS)
    return Table(rules)


@functools.cache
def unet_shapes(config: UNetConfig) -> Params:
    """The UNet's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        vector = None if config.vector_dim is None else jnp.zeros((1, config.vector_dim))
        label = None if config.labels is None else jnp.zeros(1, jnp.int32)
        return UNet(config).init(
            jax.random.key(0),
            jnp.zeros((1, config.factor, config.factor, config.in_channels)),
            jnp.zeros(1),
            None if config.context_dim is None else jnp.zeros((1, 1, config.context_dim)),
            vector,
            label,
        )

    return jax.eval_shape(init)["params"]


@functools.cache
def autoencoder_shapes(config: AutoencoderConfig) -> Params:
    """The autoencoder's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        image = jnp.zeros((1, config.factor, config.factor, config.image_channels))
        return Autoencoder(config).init(jax.random.key(0), image, jax.random.key(0))

    return jax.eval_shape(init)["params"]


def _levels(levels: int) -> list[tuple[str, str]]:
    """(source, target) names of every level going down, then of every level going up."""
    down = [(f"down_blocks.{level}", f"down_{level}") for level in range(levels)]
    return down + [(f"up_blocks.{levels - 1 - level}", f"up_{level}") for level in range(levels)]


def spatial_transformer(projection: Kind, source: str, target: str) -> tuple[Rule, ...]:
    """The rules of one spatial transformer, which all layouts name alike, between two prefixes."""
    around: tuple[Row, ...] = (
        ("norm", "norm", NORM),
        ("proj_in", "project_in", projection),
        ("proj_out", "project_out", projection),
    )
    return layers(around, source, target) + layers(
        TRANSFORMER_BLOCK, source + "transformer_blocks.0.", target + "block/"
    )


def _attention(config: UNetConfig, source: str, target: str) -> tuple[Rule, ...]:
    """The rules of what attends, between two prefixes."""
    if config.block == "attention":
        return layers(ATTENTION_BLOCK, source, target)
    projection = LINEAR_1X1 if config.projection == "conv" else LINEAR
    return spatial_transformer(projection, source, target)


def _resample(source: str, target: str, rows: tuple[Row, ...]) -> tuple[Rule, ...]:
    return layers(rows, f"{source}.downsamplers.0.", f"{target}_downsample/") + layers(
        rows, f"{source}.upsamplers.0.", f"{target}_upsample/"
    )
