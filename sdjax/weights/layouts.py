"""Where the parts of a published checkpoint lie, and under which names.

A `Layout` is one way of writing a model to disk. "single-file" is the original Stable Diffusion
checkpoint, in which a prefix names the part; "diffusers" a folder with one subfolder for each part;
"transformers", "openclip" and "midas" are the files of CLIP and of the depth estimator as those
projects write them.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from sdjax.config import (
    Autoencoder,
    Clip,
    Config,
    Depth,
    ImageStatistics,
    ImageTower,
    SafetyChecker,
    StableDiffusion,
    TextTower,
    UNet,
)
from sdjax.weights import clip, depth, ldm, safety, stable_diffusion
from sdjax.weights.rules import Rule, Table, Transform
from sdjax.weights.tree import Params

Layout = Literal["single-file", "diffusers", "transformers", "openclip", "midas"]

KINDS: dict[str, type[Config]] = {
    "stable-diffusion": StableDiffusion,
    "clip": Clip,
    "depth": Depth,
    "safety": SafetyChecker,
    "unet": UNet,
    "autoencoder": Autoencoder,
    "text": TextTower,
    "image": ImageTower,
    "image_statistics": ImageStatistics,
}
"""The field `kind` of model.json, and the config that goes with it. A lone network's component has
the name of its kind."""

FOLDERS = {
    "unet": "unet/",
    "autoencoder": "vae/",
    "text": "text_encoder/",
    "depth": "depth_estimator/",
    "image": "image_encoder/",
    "image_statistics": "image_normalizer/",
    "safety": "safety_checker/",
}
"""Where diffusers keeps each component."""

ROW = Transform(lambda x: x[0], lambda x: x[None])
"""[1, dim] in the file, [dim] in the tree."""


@dataclass(frozen=True, eq=False)
class Part:
    """One network of a checkpoint."""

    component: str  # our name of it
    place: str  # the prefix of its tensors' names, or its subfolder and "/"; "" is the whole file
    table: Table
    shapes: Params


@functools.cache
def parts(config: Config, layout: Layout) -> tuple[Part, ...]:
    """The parts of a model as `layout` writes it.

    Raises:
        ValueError: if models of this kind are never written so.
    """
    if isinstance(config, StableDiffusion):
        if layout == "single-file":
            return _single_file(config)
        if layout == "diffusers":
            return _diffusers(config)
    else:
        found = _lone(config, layout)
        if found is not None:
            return (found,)
    raise ValueError(f"no {type(config).__name__} is written in the layout {layout!r}")


def component_shapes(config: Config) -> dict[str, Params]:
    """The parameter tree of each component of a model, with shapes for leaves."""
    of_diffusers = isinstance(config, StableDiffusion | UNet | Autoencoder | ImageStatistics)
    found = parts(config, "diffusers" if of_diffusers else "transformers")
    return {part.component: part.shapes for part in found}


def _single_file(config: StableDiffusion) -> tuple[Part, ...]:
    found = [
        Part(
            "unet",
            ldm.UNET_PREFIX,
            ldm.unet_table(config.unet),
            stable_diffusion.unet_shapes(config.unet),
        ),
        Part(
            "autoencoder",
            ldm.AUTOENCODER_PREFIX,
            ldm.autoencoder_table(config.autoencoder),
            stable_diffusion.autoencoder_shapes(config.autoencoder),
        ),
    ]
    shapes = clip.text_shapes(config.text)
    if config.text.pad == "eot":  # SD 1 took OpenAI's CLIP from transformers, SD 2 OpenCLIP
        prefix, table = "cond_stage_model.transformer.", clip.text_table(config.text)
    else:
        prefix, table = "cond_stage_model.model.", clip.openclip_text_table(config.text)
    found.append(Part("text", prefix, table, shapes))
    if config.depth is not None:
        table = depth.depth_table("midas")
        found.append(Part("depth", "depth_model.model.", table, depth.depth_shapes(config.depth)))
    if config.image is not None:
        table = clip.openclip_image_table(config.image)
        found.append(Part("image", "embedder.model.", table, clip.image_shapes(config.image)))
    return tuple(found)


def _diffusers(config: StableDiffusion) -> tuple[Part, ...]:
    found = [
        _component("unet", config.unet),
        _component("autoencoder", config.autoencoder),
        _component("text", config.text),
    ]
    if config.depth is not None:
        found.append(_component("depth", config.depth))
    if config.image is not None:
        found.append(_component("image", config.image))
        statistics = ImageStatistics(config.image.projection_dim)
        found.append(_component("image_statistics", statistics))
    if config.safety is not None:
        found.append(_component("safety", config.safety))
    return tuple(found)


def _component(name: str, config: Config) -> Part:
    of_diffusers = isinstance(config, UNet | Autoencoder | ImageStatistics)
    layout: Layout = "diffusers" if of_diffusers else "transformers"
    found = _lone(config, layout)
    assert found is not None
    return Part(name, FOLDERS[name], found.table, found.shapes)


@functools.cache  # systems share their networks
def _lone(config: Config, layout: Layout) -> Part | None:
    """The one part of a file that holds one network."""
    match config, layout:
        case UNet(), "diffusers":
            return Part(
                "unet",
                "",
                stable_diffusion.unet_table(config),
                stable_diffusion.unet_shapes(config),
            )
        case UNet(), "single-file":
            return Part("unet", "", ldm.unet_table(config), stable_diffusion.unet_shapes(config))
        case Autoencoder(), "diffusers":
            table = stable_diffusion.autoencoder_table(config)
            return Part("autoencoder", "", table, stable_diffusion.autoencoder_shapes(config))
        case Autoencoder(), "single-file":
            table = ldm.autoencoder_table(config)
            return Part("autoencoder", "", table, stable_diffusion.autoencoder_shapes(config))
        case TextTower(), "transformers":
            return Part("text", "", clip.text_table(config), clip.text_shapes(config))
        case ImageTower(), "transformers":
            return Part("image", "", clip.image_table(config), clip.image_shapes(config))
        case Clip(), "transformers" | "openclip":
            return Part("clip", "", clip.clip_table(config, layout), clip.clip_shapes(config))
        case Depth(), "transformers" | "midas":
            return Part("depth", "", depth.depth_table(layout), depth.depth_shapes(config))
        case SafetyChecker(), "transformers":
            return Part("safety", "", safety.safety_table(config), safety.safety_shapes(config))
        case ImageStatistics(), "diffusers":
            leaf = jax.ShapeDtypeStruct((config.dim,), jnp.float32)
            table = Table(tuple(Rule(name, name, ROW) for name in ("mean", "std")))
            return Part("image_statistics", "", table, {"mean": leaf, "std": leaf})
    return None
