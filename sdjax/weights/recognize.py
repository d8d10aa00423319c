"""Which published model a set of tensors is: told from names and shapes, never from a file's name.

What tensors cannot tell is asked for: whether a Stable Diffusion 2 predicts eps or v, and whether a
CLIP was trained with the quick GELU of OpenAI or the exact one of OpenCLIP.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdjax import config, presets, presets_unclip
from sdjax.config import Config
from sdjax.weights import karlo, ldm
from sdjax.weights.layouts import Layout, parts
from sdjax.weights.rules import compare
from sdjax.weights.stable_diffusion import unet_table
from sdjax.weights.tree import shown

LONE: dict[str, Config] = {
    "unet-sd1": presets.SD1.unet,
    "unet-sd1-inpainting": presets.SD1_INPAINTING.unet,
    "unet-sd2": presets.SD2_BASE.unet,
    "unet-sd2-inpainting": presets.SD2_INPAINTING.unet,
    "unet-sd2-depth": presets.SD2_DEPTH.unet,
    "unet-sd2-x4-upscaler": presets.SD2_X4_UPSCALER.unet,
    "unet-sd2-unclip-h": presets.SD2_UNCLIP_H.unet,
    "unet-sd2-unclip-l": presets.SD2_UNCLIP_L.unet,
    "kl-f8": presets.KL_F8,
    "kl-f4": presets.KL_F4,
    "clip-vit-l-14-text": presets.CLIP_L_TEXT,
    "clip-vit-l-14-text-projection": presets.CLIP_L_14.text,
    "openclip-vit-l-14-text": replace(presets.OPENCLIP_L_14.text, projection_dim=None),
    "openclip-vit-l-14-text-projection": presets.OPENCLIP_L_14.text,
    "openclip-vit-h-14-text": presets.OPENCLIP_H_TEXT,
    "clip-vit-l-14-image": presets.CLIP_L_IMAGE,
    "openclip-vit-l-14-image": presets.OPENCLIP_L_14.image,
    "openclip-vit-h-14-image": presets.OPENCLIP_H_IMAGE,
    "clip-vit-l-14-image-statistics": config.ImageStatistics(768),
    "openclip-vit-h-14-image-statistics": config.ImageStatistics(1024),
    "karlo-prior": presets_unclip.KARLO_PRIOR,
    "karlo-decoder": presets_unclip.KARLO_DECODER,
    "karlo-upsampler": presets_unclip.KARLO_UPSAMPLER,
    "karlo-conditioning": presets_unclip.KARLO_DECODER.conditioning,
    "unet-karlo-decoder": presets_unclip.KARLO_DECODER.unet,
    "unet-karlo-upsampler": presets_unclip.KARLO_UPSAMPLER.unet,
}
"""Parts of the published models that are also files of their own."""

OPENAI = "input_resolution"
"""A number that only OpenAI's own files have, whose activation is the quick GELU."""

FAMILIES: dict[str, Config] = {**presets.PUBLISHED, **LONE}
"""Everything a checkpoint can be recognised as."""

# A name that only files of this layout and kind have, looked for in this order.
LANDMARKS: tuple[tuple[str, Layout, type[Config]], ...] = (
    (ldm.UNET_PREFIX + "input_blocks.0.0.weight", "single-file", config.StableDiffusion),
    ("transformer_proj.weight", "single-file", config.Glide),
    (karlo.PREFIX + "clip_tok_proj.weight", "single-file", config.Decoder),
    (karlo.PREFIX + "prd_emb", "single-file", config.DiffusionPrior),
    (karlo.FIRST_STEPS + "input_blocks.0.0.weight", "single-file", config.Upsampler),
    ("prd_embedding", "diffusers", config.DiffusionPrior),
    ("clip_extra_context_tokens_proj.weight", "diffusers", config.ImageConditioning),
    ("visual.conv1.weight", "openclip", config.Clip),
    ("concept_embeds", "transformers", config.SafetyChecker),
    ("dpt.embeddings.cls_token", "transformers", config.Depth),
    ("pretrained.model.cls_token", "midas", config.Depth),
    ("logit_scale", "transformers", config.Clip),
    ("visual_projection.weight", "transformers", config.ImageTower),
    ("text_model.embeddings.token_embedding.weight", "transformers", config.TextTower),
    ("embeddings.token_embedding.weight", "transformers", config.TextTower),
    ("input_blocks.0.0.weight", "single-file", config.UNet),
    ("time_embedding.linear_1.weight", "diffusers", config.UNet),
    ("encoder.down.0.block.0.conv1.weight", "single-file", config.Autoencoder),
    ("encoder.down_blocks.0.resnets.0.conv1.weight", "diffusers", config.Autoencoder),
    ("mean", "diffusers", config.ImageStatistics),
    ("0", "single-file", config.ImageStatistics),
)


def recognize(
    tensors: Mapping[str, Any], where: str, family: str | Config | None = None
) -> tuple[Config, Layout]:
    """The config and the layout of the tensors of one file.

    Args:
        tensors: by the file's own names; only their `shape` is looked at.
        where: the file, for errors.
        family: what settles it: a name in `FAMILIES`, or a config.

    Raises:
        ValueError: if no family fits, or several do: the message says what to pass as `family`.
    """
    found = landmark(tensors)
    if found is None:
        names = ", ".join(shown(name) for name in sorted(tensors)[:5]) or "none"
        raise ValueError(
            f"{where} is no checkpoint that sdjax knows; its {len(tensors)} tensors are called: "
            f"{names}"
        )
    layout, kind = found
    candidates = {name: value for name, value in FAMILIES.items() if type(value) is kind}
    if family is not None:
        chosen = FAMILIES[family] if isinstance(family, str) else family
        if type(chosen) is not kind:
            raise ValueError(
                f"{where} holds a {kind.__name__} in the layout {layout!r}, which {named(family)} "
                f"is not: choose among {', '.join(candidates)}"
            )
        return chosen, layout
    if kind in (config.StableDiffusion, config.UNet):
        fitting = [n for n, value in candidates.items() if _unet_fits(value, layout, tensors)]
    else:
        fitting = _nearest(candidates, layout, tensors)
    if OPENAI in tensors:
        fitting = [name for name in fitting if activation(candidates[name]) == "quick_gelu"]
    if not fitting:
        raise ValueError(
            f"{where} holds a {kind.__name__} in the layout {layout!r}, but of no published size "
            f"({', '.join(candidates)}). If it is one of these and damaged, name it with --family "
            "(family=... in Python) to see what does not fit; a model of your own size is read "
            "from a folder in the diffusers or transformers layout, which says its sizes in "
            "config.json"
        )
    if len(fitting) > 1:
        raise ValueError(f"{where} could be {' or '.join(fitting)}: {_why(fitting)}")
    return candidates[fitting[0]], layout


def landmark(tensors: Mapping[str, Any]) -> tuple[Layout, type[Config]] | None:
    """The layout of a file, and the kind of model in it; None where no name tells."""
    return next(((layout, kind) for name, layout, kind in LANDMARKS if name in tensors), None)


def activation(value: Config) -> config.Activation | None:
    """That of a CLIP or of one of its towers; None for other networks."""
    if isinstance(value, config.Clip):
        value = value.text
    return value.activation if isinstance(value, config.TextTower | config.ImageTower) else None


def named(family: str | Config) -> str:
    """A family or a config of one's own, for a message."""
    return repr(family) if isinstance(family, str) else f"your {type(family).__name__}"


def _why(fitting: list[str]) -> str:
    options = " or ".join(f"--family {name}" for name in fitting)
    ask = f"say which, with {options} (in Python family={fitting[0]!r} ...)"
    if fitting[0] in presets.SYSTEMS:
        return (
            "their tensors are alike, and whether the network predicts eps or v is written nowhere "
            f"in the file. The 512-pixel base models predict eps, the 768-pixel ones v; {ask}"
        )
    return (
        "their tensors are alike, and the activation is written nowhere in the file. OpenAI's "
        f"weights need the quick GELU, OpenCLIP's own the exact one; {ask}"
    )


def _nearest(
    candidates: Mapping[str, Config], layout: Layout, tensors: Mapping[str, Any]
) -> list[str]:
    """The candidates with the fewest problems, so that a damaged file is told what it lacks."""
    problems = {}
    for name, value in candidates.items():
        (part,) = parts(value, layout)
        below = {n.removeprefix(part.place): t for n, t in tensors.items()}
        found = compare(below, part.table, part.shapes)
        problems[name] = len(found.missing) + len(found.misshapen) + len(found.left_over)
    fewest = min(problems.values())
    if fewest > len(tensors) / 2:
        return []
    return [name for name, count in problems.items() if count == fewest]


def _unet_fits(value: Config, layout: Layout, tensors: Mapping[str, Any]) -> bool:
    """Do the widths at the UNet's doors agree? Its other shapes are alike in all families."""
    prefix, unet = "", value
    if isinstance(value, config.StableDiffusion):
        prefix, unet = ldm.UNET_PREFIX, value.unet
    assert isinstance(unet, config.UNet)
    deepest = unet.channels[-1]

    def to_time(width: int | None) -> tuple[int, ...] | None:
        return None if width is None else (width, unet.time_dim)

    doors = {  # None: must not be there
        "conv_in/kernel": (3, 3, unet.in_channels, unet.channels[0]),
        "conv_out/kernel": (3, 3, unet.channels[0], unet.out_channels),
        "mid_attention/block/cross_attention/key/kernel": (unet.context_dim, deepest),
        "mid_attention/project_in/kernel": (deepest, deepest),
        "vector_embedding/linear_1/kernel": to_time(unet.vector_dim if unet.vector_mlp else None),
        "label_embedding/embedding": to_time(unet.labels),
    }
    table = ldm.unet_table(unet) if layout == "single-file" else unet_table(unet)
    for path, shape in doors.items():
        for name, rule in table.sources(path):
            found = tensors.get(prefix + name)
            wanted = None if shape is None else rule.source_shape(shape)
            if wanted != (None if found is None else tuple(found.shape)):
                return False
    return True
