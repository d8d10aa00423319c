"""Folders in the layouts of diffusers and transformers: their settings, read and written."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdjax.config import (
    Conditioning,
    Config,
    ImageStatistics,
    Schedule,
    StableDiffusion,
    Unclip,
)
from sdjax.weights import folder_configs, foreign, foreign_unclip, foreign_unets, unclip_folders
from sdjax.weights.fields import Fields, Json
from sdjax.weights.folder_configs import Settings, network_settings
from sdjax.weights.folder_files import (
    has_tokenizer,
    library_and_class,
    pad_by_ids,
    read_json,
    settings_files,
    text_tower,
    to_text,
    tokenizer_files,
)
from sdjax.weights.layouts import FOLDERS, TRANSFORMERS, Layout
from sdjax.weights.tree import shown

PIPELINES: dict[Conditioning, str] = {
    "text": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
    "low-res": "StableDiffusionUpscalePipeline",
    "image": "StableUnCLIPImg2ImgPipeline",
}
CHECKED: tuple[Conditioning, ...] = ("text", "inpainting", "low-res")
"""Pipelines that look at their pictures with a safety checker, if they get one."""

UPSCALER_SCALING = 0.08333
"""What old folders of the upscaler mean where they leave the autoencoder's scaling factor out."""


def lone_config(path: Path) -> tuple[Config, Layout]:
    """The config and layout of a folder with one network, from its config.json."""
    values = read_json(path)
    name = values.get("_class_name") or next(iter(values.get("architectures") or ()), None)
    match str(name).removeprefix("Flax"):  # the same network, saved by the Flax class
        case "UNet2DConditionModel" | "UNet2DModel":
            return foreign_unets.diffusers_unet(values), "diffusers"
        case "AutoencoderKL":
            return foreign.diffusers_autoencoder(values), "diffusers"
        case "StableUnCLIPImageNormalizer":
            fields = Fields("StableUnCLIPImageNormalizer", values)
            return ImageStatistics(fields.whole("embedding_dim", 768)), "diffusers"
        case "UnCLIPTextProjModel":
            return foreign_unclip.conditioning(values), "diffusers"
        case "PriorTransformer":
            return foreign_unclip.prior(values), "diffusers"
        case "CLIPTextModel" | "CLIPTextModelWithProjection":
            return text_tower(values, path.parent), "transformers"
        case "CLIPVisionModelWithProjection":
            return foreign.transformers_image(values), "transformers"
        case "CLIPModel":
            # The tokenizer beside it pads with the end, OpenAI with 0; a whole CLIP reads no pads.
            pad = pad_by_ids(values.get("text_config") or {}) or "zero"
            return foreign.transformers_clip(values, pad=pad), "transformers"
        case "DPTForDepthEstimation":
            return foreign.transformers_depth(values), "transformers"
        case "StableDiffusionSafetyChecker":
            return foreign.transformers_safety(values), "transformers"
    raise ValueError(f"{path} describes a '{shown(str(name))}', which sdjax does not have")


def open_clip_config(path: Path) -> tuple[Config, Layout]:
    """The config in open_clip_config.json, which OpenCLIP writes beside its weights."""
    return foreign.open_clip(read_json(path).get("model_cfg", {})), "openclip"


def diffusers_config(folder: Path) -> StableDiffusion | Unclip:
    """The system in a folder of diffusers, from the config.json of each part."""
    if (folder / FOLDERS["decoder"]).is_dir():
        return unclip_folders.unclip_config(folder)

    def schedule(name: str) -> Schedule:
        return foreign.diffusers_schedule(read_json(folder / name / "scheduler_config.json"))

    def noise(name: str) -> Schedule:
        return replace(schedule(name), prediction="eps")  # nothing is predicted with it

    unet_values = read_json(folder / "unet/config.json")
    unet = foreign_unets.diffusers_unet(unet_values)
    autoencoder_values = read_json(folder / "vae/config.json")
    if unet.labels is not None:
        autoencoder_values = {"scaling_factor": UPSCALER_SCALING} | autoencoder_values
    autoencoder = foreign.diffusers_autoencoder(autoencoder_values)
    text = text_tower(read_json(folder / "text_encoder/config.json"), folder / "tokenizer")
    extra: dict[str, Any] = {}
    if unet.labels is not None:
        extra = {"conditioning": "low-res", "condition_noise": noise("low_res_scheduler")}
    elif (folder / "depth_estimator").is_dir():
        depth = foreign.transformers_depth(read_json(folder / "depth_estimator/config.json"))
        extra = {"conditioning": "depth", "depth": depth}
    elif unet.vector_dim is not None:
        extra = {
            "conditioning": "image",
            "image": foreign.transformers_image(read_json(folder / "image_encoder/config.json")),
            "condition_noise": noise("image_noising_scheduler"),
        }
    elif unet.in_channels > autoencoder.latent_channels:
        extra = {"conditioning": "inpainting"}
    if (folder / "safety_checker").is_dir():
        extra["safety"] = foreign.transformers_safety(
            read_json(folder / "safety_checker/config.json")
        )
    return StableDiffusion(
        text,
        autoencoder,
        unet,
        schedule("scheduler"),
        image_size=_sample_size(unet_values) * autoencoder.factor,
        **extra,
    )


def write_configs(config: Config, folder: Path) -> None:
    """Write all that a folder needs beside the weights, so that diffusers or transformers load it.

    Args:
        config: a system, or one network.
        folder: where; it must exist, subfolders are made where they are missing.

    Raises:
        ValueError: if no class of diffusers or transformers can be this model.
    """
    if isinstance(config, StableDiffusion | Unclip):
        of_unclip = isinstance(config, Unclip)
        files = unclip_folders.system_files(config) if of_unclip else _system_files(config)
        if has_tokenizer(config.text):
            files |= tokenizer_files(config.text)
    else:
        files = {"config.json": to_text(network_settings(config))}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")


def weights_name(config: Config, place: str) -> str:
    """The file of weights of a part, by its place as in `sdjax.weights.layouts.Part`."""
    of_transformers = isinstance(config, TRANSFORMERS)
    if place:
        of_transformers = place in (FOLDERS[name] for name in ("text", "image", "depth", "safety"))
    return "model.safetensors" if of_transformers else "diffusion_pytorch_model.safetensors"


def _system_files(config: StableDiffusion) -> dict[str, str]:
    """{name: content} of every JSON file of a system but the tokenizer's."""
    if config.conditioning != "image" and config.unet.vector_dim is not None:
        raise ValueError(
            f"the UNet reads a vector of {config.unet.vector_dim} from the text beside its hidden "
            "states; no pipeline of diffusers gives it one"
        )
    size = config.image_size
    networks = {
        "unet": network_settings(config.unet) | {"sample_size": size // config.autoencoder.factor},
        "vae": network_settings(config.autoencoder) | {"sample_size": size},
        "text_encoder": network_settings(config.text),
    }
    schedulers = {"scheduler": folder_configs.sampler_settings(config.schedule)}
    preprocessor: Settings | None = None
    if config.safety is not None:
        networks["safety_checker"] = network_settings(config.safety)
        preprocessor = folder_configs.clip_preprocessor(config.safety.image.image_size)
    if config.depth is not None:
        networks["depth_estimator"] = network_settings(config.depth)
        preprocessor = folder_configs.depth_preprocessor(config.depth.image_size)
    if config.image is not None:
        networks["image_encoder"] = network_settings(config.image)
        statistics = ImageStatistics(config.image.projection_dim)
        networks["image_normalizer"] = network_settings(statistics)
        preprocessor = folder_configs.clip_preprocessor(config.image.image_size)
    if config.condition_noise is not None:
        name = (
            "low_res_scheduler" if config.conditioning == "low-res" else "image_noising_scheduler"
        )
        schedulers[name] = folder_configs.noise_settings(config.condition_noise)
    preprocessors = {} if preprocessor is None else {"feature_extractor": preprocessor}
    index = _model_index(config, networks | schedulers | preprocessors)
    return settings_files(index, networks, schedulers, preprocessors)


def _model_index(config: StableDiffusion, parts: Mapping[str, Settings]) -> Settings:
    """model_index.json: the pipeline's class, and library and class of each part."""
    index: Settings = {
        "_class_name": PIPELINES[config.conditioning],
        "_diffusers_version": folder_configs.DIFFUSERS_VERSION,
    }
    ours = has_tokenizer(config.text)
    index["tokenizer"] = ["transformers", "CLIPTokenizer"] if ours else [None, None]
    if config.conditioning in CHECKED:
        index["safety_checker"] = index["feature_extractor"] = [None, None]
    if config.conditioning in ("text", "inpainting"):
        index["requires_safety_checker"] = config.safety is not None
    if config.conditioning == "low-res":
        index["max_noise_level"] = min(350, (config.unet.labels or 1) - 1)
    for name, values in parts.items():
        if name != "safety_checker" or config.conditioning in CHECKED:
            index[name] = library_and_class(values)
    return index


def _sample_size(unet: Json) -> int:
    """The latent height and width that a pipeline draws where nobody asks for another."""
    size = Fields("UNet2DConditionModel", unet).whole("sample_size", 64)
    version = re.match(r"(\d+)\.(\d+)", str(unet.get("_diffusers_version", "")))
    if version and (int(version[1]), int(version[2])) < (0, 9):
        return max(size, 64)  # early files say 32 and mean 64, and diffusers reads them so
    return size
