"""Where the parts of a published checkpoint lie, and under which names.

A `Layout` is one way of writing a model to disk. "single-file" is the original checkpoint of Stable
Diffusion, in which a prefix names the part, of GLIDE or of a part of Karlo; "diffusers" a folder
with one subfolder for each part;
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
    AutoregressivePrior,
    Clip,
    Config,
    Decoder,
    Depth,
    DiffusionPrior,
    Glide,
    ImageConditioning,
    ImageStatistics,
    ImageTower,
    SafetyChecker,
    StableDiffusion,
    TextTower,
    Unclip,
    UNet,
    Upsampler,
)
from sdjax.weights import clip, depth, glide, karlo, karlo_prior, ldm, safety, stable_diffusion
from sdjax.weights.rules import COPY, Rule, Table, Transform, within
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
    "unclip": Unclip,
    "glide": Glide,
    "decoder": Decoder,
    "conditioning": ImageConditioning,
    "upsampler": Upsampler,
    "prior": DiffusionPrior,
    "autoregressive_prior": AutoregressivePrior,
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
    "prior": "prior/",
    "decoder": "decoder/",
    "conditioning": "text_proj/",
    "upsampler": "super_res_first/",
    "last_step": "super_res_last/",  # the upsampler's, where it has a network of its own
}
"""Where diffusers keeps each component."""
UNCLIP_ONLY = tuple(
    FOLDERS[n] for n in ("prior", "decoder", "conditioning", "upsampler", "last_step")
)
"""Of no use beside the UNet of a Stable Diffusion, some of which come with a prior, too."""

TRANSFORMERS = (Clip, Depth, SafetyChecker, TextTower, ImageTower)
"""Networks whose folders are in the layout of transformers, also beside those of diffusers."""

ROW = Transform(lambda x: x[0], lambda x: x[None])
"""[1, dim] in the file, [dim] in the tree."""


@dataclass(frozen=True, eq=False)
class Part:
    """One network of a checkpoint."""

    component: str  # our name of it, or of what it is a part of
    place: str  # the prefix of its tensors' names, or its subfolder and "/"; "" is the whole file
    table: Table
    shapes: Params


@functools.cache
def parts(config: Config, layout: Layout) -> tuple[Part, ...]:
    """The parts of a model as `layout` writes it.

    Raises:
        ValueError: if models of this kind are never written so.
    """
    if isinstance(config, StableDiffusion | Unclip):
        if layout == "diffusers":
            return _diffusers(config) if isinstance(config, StableDiffusion) else _unclip(config)
        if layout == "single-file" and isinstance(config, StableDiffusion):
            return _single_file(config)
    else:
        found = _lone(config, layout)
        if found is not None:
            return (found,)
    raise ValueError(f"no {type(config).__name__} is written in the layout {layout!r}")


def component_shapes(config: Config) -> dict[str, Params]:
    """The parameter tree of each component of a model, with shapes for leaves."""
    match config:
        case Unclip():
            return _unclip_shapes(config)
        case AutoregressivePrior():
            return _autoregressive_shapes(config)
        case DiffusionPrior(regression=int()):
            return _diffusion_shapes(config)
        case Glide() | Decoder() | Upsampler():
            found = parts(config, "single-file")
        case _:
            of_transformers = isinstance(config, TRANSFORMERS)
            found = parts(config, "transformers" if of_transformers else "diffusers")
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


def _unclip(config: Unclip) -> tuple[Part, ...]:
    """The folders of Karlo."""
    upsampler = next(iter(config.upsamplers), None)
    if config.decoder.text or config.autoregressive_prior or len(config.upsamplers) > 1:
        raise ValueError(
            "the pipeline of diffusers has a text from CLIP, a diffusion prior and one upsampler: "
            "a model with more than that is stored in sdjax's own format only"
        )
    found = [
        _component("text", config.text),
        *_under("decoder", "unet", FOLDERS["decoder"], config.decoder.unet),
        *_under("decoder", "conditioning", FOLDERS["conditioning"], config.decoder.conditioning),
    ]
    if upsampler is not None:
        found += _under("upsampler_0", "unet", FOLDERS["upsampler"], upsampler.unet)
    if upsampler is not None and upsampler.own_last_step:
        found += _under("upsampler_0", "last_unet", FOLDERS["last_step"], upsampler.unet)
    if config.prior is not None:
        found.append(_component("prior", config.prior))
        shapes = _statistics(config.prior.embedding_dim)
        table = Table(tuple(Rule(f"clip_{name}", name, ROW) for name in shapes))
        found.append(Part("image_statistics", FOLDERS["prior"], table, shapes))
    if config.image is not None:
        found.append(_component("image", config.image))
    return tuple(found)


def _under(component: str, name: str, place: str, config: UNet | ImageConditioning) -> list[Part]:
    """A network that is the branch `name` of a component's tree."""
    lone = _lone(config, "diffusers")
    assert lone is not None
    return [Part(component, place, Table(within(lone.table, "", f"{name}/")), {name: lone.shapes})]


def _unclip_shapes(config: Unclip) -> dict[str, Params]:
    shapes = {"text": clip.text_shapes(config.text)}
    if config.image is not None:
        shapes["image"] = clip.image_shapes(config.image)
    if config.prior is not None:
        shapes |= _diffusion_shapes(config.prior)
        if config.prior.scale is None:
            shapes["image_statistics"] = _statistics(config.prior.embedding_dim)
    if config.autoregressive_prior is not None:
        shapes |= _autoregressive_shapes(config.autoregressive_prior)
    shapes["decoder"] = karlo.decoder_shapes(config.decoder)
    for i, upsampler in enumerate(config.upsamplers):
        shapes[f"upsampler_{i}"] = karlo.upsampler_shapes(upsampler)
    return shapes


def _diffusion_shapes(config: DiffusionPrior) -> dict[str, Params]:
    return {"prior": karlo_prior.prior_shapes(config), **_regression_shapes(config)}


def _autoregressive_shapes(config: AutoregressivePrior) -> dict[str, Params]:
    return {
        "autoregressive_prior": karlo_prior.autoregressive_shapes(config),
        "codebook": karlo_prior.codebook_shapes(config),
        **_regression_shapes(config),
    }


def _regression_shapes(config: DiffusionPrior | AutoregressivePrior) -> dict[str, Params]:
    if config.regression is None:
        return {}
    return {"regression": karlo_prior.regression_shapes(config)}


def _statistics(dim: int) -> Params:
    leaf = jax.ShapeDtypeStruct((dim,), jnp.float32)
    return {"mean": leaf, "std": leaf}


def _component(name: str, config: Config) -> Part:
    found = _lone(config, "transformers" if isinstance(config, TRANSFORMERS) else "diffusers")
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
            table = Table(tuple(Rule(name, name, ROW) for name in ("mean", "std")))
            return Part("image_statistics", "", table, _statistics(config.dim))
        case ImageStatistics(), "single-file":  # a pair without names
            table = Table((Rule("0", "mean", COPY), Rule("1", "std", COPY)))
            return Part("image_statistics", "", table, _statistics(config.dim))
    return _lone_of_unclip(config, layout)


def _lone_of_unclip(config: Config, layout: Layout) -> Part | None:
    """The same for GLIDE and the parts of unCLIP."""
    match config, layout:
        case Glide(), "single-file":
            return Part("glide", "", glide.glide_table(config), glide.glide_shapes(config))
        case Decoder(), "single-file":
            table, shapes = karlo.decoder_table(config), karlo.decoder_shapes(config)
            return Part("decoder", karlo.PREFIX, table, shapes)
        case Upsampler(), "single-file":
            table, shapes = karlo.upsampler_table(config), karlo.upsampler_shapes(config)
            return Part("upsampler", "", table, shapes)
        case ImageConditioning(), "diffusers":
            table, shapes = karlo.conditioning_table(config), karlo.conditioning_shapes(config)
            return Part("conditioning", "", table, shapes)
        case DiffusionPrior(), "diffusers":
            table = karlo_prior.prior_table(config, "diffusers")
            return Part("prior", "", table, karlo_prior.prior_shapes(config))
        case DiffusionPrior(), "single-file":
            table = karlo_prior.prior_table(config, "karlo")
            return Part("prior", karlo.PREFIX, table, karlo_prior.prior_shapes(config))
    return None
