"""Our UNet from the configuration dictionaries of diffusers, as strictly as `foreign` reads."""

from collections.abc import Mapping
from typing import Any

from sdjax.config import UNet
from sdjax.weights.fields import Fields, Json
from sdjax.weights.foreign import HUB

TRANSFORMERS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
"""Stable Diffusion's blocks going down: those with attention and those without."""
SIMPLE = {"SimpleCrossAttnDownBlock2D": True, "ResnetDownsampleBlock2D": False}
"""Karlo's: attention alone, and residual blocks that halve."""
CONVOLUTIONS = {"AttnDownBlock2D": True, "DownBlock2D": False}
"""Of UNet2DModel, as in LDM without a text."""
RESIDUAL = {"ResnetDownsampleBlock2D": False}
"""Of UNet2DModel, as in Karlo's upsampler."""

SCALE_SHIFT = {"default": False, "scale_shift": True}


def diffusers_unet(config: Json) -> UNet:
    """UNet2DConditionModel, as in unet/config.json; or UNet2DModel, which sees no text."""
    if config.get("_class_name") == "UNet2DModel":
        return _without_text(Fields("UNet2DModel", config))
    f = Fields("UNet2DConditionModel", config)
    simple = "UNetMidBlock2DSimpleCrossAttn"
    return _simple(f) if f.left.get("mid_block_type") == simple else _transformers(f)


def _transformers(f: Fields) -> UNet:
    """Stable Diffusion's."""
    channels = f.wholes("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    default = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    attention = _levels_with_attention(f, levels, TRANSFORMERS, default)
    # Despite its name the number of heads, not their width.
    if isinstance(f.left.get("attention_head_dim"), list | tuple):
        heads = f.wholes("attention_head_dim")
    else:
        heads = (f.whole("attention_head_dim", 8),) * levels
    vector_dim = labels = None
    embedding = f.take("class_embed_type", None)
    if embedding == "projection":
        vector_dim = f.whole("projection_class_embeddings_input_dim")
    elif embedding is not None:
        f.refuse("class_embed_type", embedding, "null or 'projection'")
    elif f.left.get("num_class_embeds") is not None:
        labels = f.whole("num_class_embeds")
    result = UNet(
        in_channels=f.whole("in_channels", 4),
        out_channels=f.whole("out_channels", 4),
        channels=channels,
        res_blocks=f.whole("layers_per_block", 2),
        attention=attention,
        heads=heads,
        context_dim=f.whole("cross_attention_dim", 1280),
        vector_dim=vector_dim,
        labels=labels,
        cross_only=f.flags("only_cross_attention"),
        norm_groups=f.whole("norm_num_groups", 32),
        dropout=f.share("dropout"),
        projection="linear" if f.flag("use_linear_projection", False) else "conv",
    )
    f.fixed(mid_block_type="UNetMidBlock2DCrossAttn", resnet_time_scale_shift="default")
    _finish_conditional(f)
    return result


def _simple(f: Fields) -> UNet:
    """Karlo's decoder: joint attention with the text, and a vector that is added as it is."""
    channels = f.wholes("block_out_channels", (320, 640, 1280, 1280))
    attention = _levels_with_attention(f, len(channels), SIMPLE, [])
    if f.take("class_embed_type", None) != "identity":
        f.refuse("class_embed_type", None, "'identity' where attention is simple")
    result = UNet(
        in_channels=f.whole("in_channels", 4),
        out_channels=f.whole("out_channels", 4),
        channels=channels,
        res_blocks=f.whole("layers_per_block", 2),
        attention=attention,
        heads=_heads(f, channels, (*attention[:-1], True)),
        context_dim=f.whole("cross_attention_dim", 1280),
        vector_dim=4 * channels[0],
        norm_groups=f.whole("norm_num_groups", 32),
        dropout=f.share("dropout"),
        vector_mlp=False,
        block="attention",
        scale_shift=f.choice("resnet_time_scale_shift", SCALE_SHIFT, "default"),
        resample="res_block",
    )
    f.fixed(mid_block_type="UNetMidBlock2DSimpleCrossAttn")
    _finish_conditional(f)
    return result


def _without_text(f: Fields) -> UNet:
    """UNet2DModel: of LDM without a text, and Karlo's upsamplers."""
    channels = f.wholes("block_out_channels", (224, 448, 672, 896))
    names = f.left.get("down_block_types")
    residual = isinstance(names, list | tuple) and RESIDUAL.keys() >= set(names)
    default = ["DownBlock2D"] + ["AttnDownBlock2D"] * 3
    blocks = RESIDUAL if residual else CONVOLUTIONS
    attention = _levels_with_attention(f, len(channels), blocks, default)
    middle = f.flag("add_attention", True)
    result = UNet(
        in_channels=f.whole("in_channels", 3),
        out_channels=f.whole("out_channels", 3),
        channels=channels,
        res_blocks=f.whole("layers_per_block", 2),
        attention=attention,
        heads=_heads(f, channels, (*attention[:-1], attention[-1] or middle)),
        context_dim=None,
        norm_groups=f.whole("norm_num_groups", 32),
        dropout=f.share("dropout"),
        block="attention",
        middle_attention=middle,
        scale_shift=f.choice("resnet_time_scale_shift", SCALE_SHIFT, "default"),
        resample="res_block" if residual else "conv",
    )
    f.fixed(
        freq_shift=0,
        flip_sin_to_cos=True,
        time_embedding_type="positional",
        mid_block_type="UNetMidBlock2D",
        mid_block_scale_factor=1,
        downsample_padding=1,
        downsample_type="conv",
        upsample_type="conv",
        act_fn="silu",
        norm_eps=1e-5,
    )
    f.finish(HUB)
    return result


def _finish_conditional(f: Fields) -> None:
    """What must be off, or as it is by default, in every UNet2DConditionModel."""
    f.fixed(
        flip_sin_to_cos=True,
        freq_shift=0,
        downsample_padding=1,
        mid_block_scale_factor=1,
        act_fn="silu",
        norm_eps=1e-5,
        transformer_layers_per_block=1,
        resnet_out_scale_factor=1.0,
        time_embedding_type="positional",
        conv_in_kernel=3,
        conv_out_kernel=3,
        attention_type="default",
    )
    # Ours always computes the attention's softmax in float32; the last two count only where
    # `class_embed_type` and `addition_embed_type` ask for them.
    numbers = {"num_class_embeds", "addition_embed_type_num_heads"}
    f.finish(HUB | {"upcast_attention"} | numbers)


def _heads(f: Fields, channels: tuple[int, ...], attention: tuple[bool, ...]) -> tuple[int, ...]:
    """Heads where there is attention, from their width; 1 elsewhere."""
    width = f.whole("attention_head_dim", 8)
    field, seen = "attention_head_dim", [c for c, a in zip(channels, attention, strict=True) if a]
    heads = iter(f.heads(field, width, seen))
    return tuple(next(heads) if has else 1 for has in attention)


def _levels_with_attention(
    f: Fields, levels: int, down: Mapping[str, bool], default: list[str]
) -> tuple[bool, ...]:
    """Whether each level has attention, from the names of its blocks down and up."""
    names: Any = f.take("down_block_types", default)
    if not isinstance(names, list | tuple) or len(names) != levels or not down.keys() >= set(names):
        f.refuse("down_block_types", names, f"a list of {levels} of {' and '.join(down)}")
    f.fixed(up_block_types=[name.replace("Down", "Up") for name in reversed(names)])
    return tuple(down[name] for name in names)
