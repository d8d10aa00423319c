"""Names of DPT-hybrid in published files.

Layout "transformers": the class DPTForDepthEstimation, the folder depth_estimator/ of the Hugging
Face hub. Layout "midas": the original dpt_hybrid-midas file, and depth_model.model.* in a single
Stable Diffusion 2 depth file.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from sdjax.config import Depth as DepthConfig
from sdjax.image.depth import Depth
from sdjax.weights.rules import (
    CONV,
    COPY,
    LINEAR,
    LINEAR_1X1,
    NORM,
    OIHW_TO_HWIO,
    TRANSPOSE,
    Kind,
    Row,
    Rule,
    Table,
    Transform,
    fused,
    layers,
)
from sdjax.weights.tree import Params

Layout = Literal["transformers", "midas"]

STANDARDIZED: Kind = ((".weight", "/kernel", OIHW_TO_HWIO),)
CLASS_TOKEN: Kind = (("", "", Transform(lambda x: x[0, 0], lambda x: x[None, None])),)
POSITIONS: Kind = (("", "", Transform(lambda x: x[0], lambda x: x[None])),)

BOTTLENECK: tuple[Row, ...] = (
    ("conv1", "conv_1", STANDARDIZED),
    ("norm1", "norm_1", NORM),
    ("conv2", "conv_2", STANDARDIZED),
    ("norm2", "norm_2", NORM),
    ("conv3", "conv_3", STANDARDIZED),
    ("norm3", "norm_3", NORM),
    ("downsample.conv", "conv_skip", STANDARDIZED),
    ("downsample.norm", "norm_skip", NORM),
)

MAPS = range(4)
"""Maps that are decoded, from fine to coarse; the last two come from the transformer's taps."""

TRANSFORMERS: tuple[Row, ...] = (
    ("dpt.embeddings.cls_token", "class_embedding", CLASS_TOKEN),
    ("dpt.embeddings.position_embeddings", "position_embedding", POSITIONS),
    ("dpt.embeddings.projection", "patches", LINEAR_1X1),
    ("dpt.embeddings.backbone.bit.embedder.convolution", "resnet/conv_stem", STANDARDIZED),
    ("dpt.embeddings.backbone.bit.embedder.norm", "resnet/norm_stem", NORM),
    ("neck.reassemble_stage.readout_projects.2.0", "readout_0", LINEAR),
    ("neck.reassemble_stage.readout_projects.3.0", "readout_1", LINEAR),
    ("neck.reassemble_stage.layers.2.projection", "reassemble_0", LINEAR_1X1),
    ("neck.reassemble_stage.layers.3.projection", "reassemble_1", LINEAR_1X1),
    ("neck.reassemble_stage.layers.3.resize", "reassemble_1_downsample", CONV),
    ("neck.convs.{i}", "neck_{i}", CONV),
    ("head.head.0", "head_1", CONV),
    ("head.head.2", "head_2", CONV),
    ("head.head.4", "head_out", LINEAR_1X1),
)

TRANSFORMERS_BLOCK: tuple[Row, ...] = (
    ("layernorm_before", "norm_self", NORM),
    ("attention.attention.query", "self_attention/query", LINEAR),
    ("attention.attention.key", "self_attention/key", LINEAR),
    ("attention.attention.value", "self_attention/value", LINEAR),
    ("attention.output.dense", "self_attention/out", LINEAR),
    ("layernorm_after", "norm_mlp", NORM),
    ("intermediate.dense", "mlp/expand", LINEAR),
    ("output.dense", "mlp/contract", LINEAR),
)

TRANSFORMERS_FUSION: tuple[Row, ...] = (
    ("residual_layer1.convolution{j}", "refine_skip/conv_{j}", CONV),
    ("residual_layer2.convolution{j}", "refine/conv_{j}", CONV),
    ("projection", "project", LINEAR_1X1),
)

MIDAS: tuple[Row, ...] = (
    ("pretrained.model.cls_token", "class_embedding", CLASS_TOKEN),
    ("pretrained.model.pos_embed", "position_embedding", POSITIONS),
    ("pretrained.model.patch_embed.proj", "patches", LINEAR_1X1),
    ("pretrained.model.patch_embed.backbone.stem.conv", "resnet/conv_stem", STANDARDIZED),
    ("pretrained.model.patch_embed.backbone.stem.norm", "resnet/norm_stem", NORM),
    ("pretrained.act_postprocess3.0.project.0", "readout_0", LINEAR),
    ("pretrained.act_postprocess4.0.project.0", "readout_1", LINEAR),
    ("pretrained.act_postprocess3.3", "reassemble_0", LINEAR_1X1),
    ("pretrained.act_postprocess4.3", "reassemble_1", LINEAR_1X1),
    ("pretrained.act_postprocess4.4", "reassemble_1_downsample", CONV),
    *((f"scratch.layer{i + 1}_rn", f"neck_{i}", CONV) for i in MAPS),
    ("scratch.output_conv.0", "head_1", CONV),
    ("scratch.output_conv.2", "head_2", CONV),
    ("scratch.output_conv.4", "head_out", LINEAR_1X1),
)

MIDAS_BLOCK: tuple[Row, ...] = (
    ("norm1", "norm_self", NORM),
    ("attn.proj", "self_attention/out", LINEAR),
    ("norm2", "norm_mlp", NORM),
    ("mlp.fc1", "mlp/expand", LINEAR),
    ("mlp.fc2", "mlp/contract", LINEAR),
)

MIDAS_FUSION: tuple[Row, ...] = (
    ("resConfUnit1.conv{j}", "refine_skip/conv_{j}", CONV),
    ("resConfUnit2.conv{j}", "refine/conv_{j}", CONV),
    ("out_conv", "project", LINEAR_1X1),
)

# The transformer's last norm comes after the last map is taken; the coarsest fusion has no coarser
# one to refine its map for; the head told the classes of ImageNet.
TRANSFORMERS_UNUSED = tuple(
    f"{name}.{leaf}"
    for name in (
        "dpt.layernorm",
        "neck.fusion_stage.layers.0.residual_layer1.convolution1",
        "neck.fusion_stage.layers.0.residual_layer1.convolution2",
    )
    for leaf in ("weight", "bias")
)
MIDAS_UNUSED = tuple(
    f"{name}.{leaf}"
    for name in (
        "pretrained.model.norm",
        "pretrained.model.head",
        "scratch.refinenet4.resConfUnit1.conv1",
        "scratch.refinenet4.resConfUnit1.conv2",
    )
    for leaf in ("weight", "bias")
)


def depth_table(layout: Layout) -> Table:
    """Rows of DPT-hybrid; what the files hold and the network never uses is dropped."""
    return _transformers_table() if layout == "transformers" else _midas_table()


@functools.cache
def depth_shapes(config: DepthConfig) -> Params:
    """The network's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        image = jnp.zeros((1, config.factor, config.factor, 3))
        return Depth(config).init(jax.random.key(0), image)

    return jax.eval_shape(init)["params"]


def _transformers_table() -> Table:
    stages = "dpt.embeddings.backbone.bit.encoder.stages.{s}.layers.{j}."
    rules = layers(TRANSFORMERS) + layers(BOTTLENECK, stages, "resnet/stage_{s}_{j}/")
    rules += layers(TRANSFORMERS_BLOCK, "dpt.encoder.layer.{i}.", "block_{i}/")
    for i in MAPS:  # theirs are numbered in the order they run
        source = f"neck.fusion_stage.layers.{len(MAPS) - 1 - i}."
        rules += layers(TRANSFORMERS_FUSION, source, f"fusion_{i}/")
    return Table(rules, TRANSFORMERS_UNUSED)


def _midas_table() -> Table:
    stages = "pretrained.model.patch_embed.backbone.stages.{s}.blocks.{j}."
    rules = layers(MIDAS) + layers(BOTTLENECK, stages, "resnet/stage_{s}_{j}/")
    rules += layers(MIDAS_BLOCK, "pretrained.model.blocks.{i}.", "block_{i}/")
    rules += _midas_attention("weight", "kernel", TRANSPOSE) + _midas_attention(
        "bias", "bias", COPY
    )
    for i in MAPS:
        rules += layers(MIDAS_FUSION, f"scratch.refinenet{i + 1}.", f"fusion_{i}/")
    return Table(rules, MIDAS_UNUSED)


def _midas_attention(name: str, leaf: str, transform: Transform) -> tuple[Rule, ...]:
    source = f"pretrained.model.blocks.{{i}}.attn.qkv.{name}"
    targets = [f"block_{{i}}/self_attention/{part}/{leaf}" for part in ("query", "key", "value")]
    return fused(source, targets, transform)
