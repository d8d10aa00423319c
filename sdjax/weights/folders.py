"""Folders in the layouts of diffusers and transformers: their settings, read and written."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sdjax.config import (
    Autoencoder,
    Conditioning,
    Config,
    ImageStatistics,
    Schedule,
    StableDiffusion,
    TextTower,
    UNet,
)
from sdjax.text import tokenizer
from sdjax.weights import folder_configs, foreign
from sdjax.weights.fields import Fields, Json
from sdjax.weights.folder_configs import Settings, network_settings
from sdjax.weights.layouts import Layout
from sdjax.weights.readers import parse_json
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
    values = _read_json(path)
    name = values.get("_class_name") or next(iter(values.get("architectures") or ()), None)
    match str(name).removeprefix("Flax"):  # the same network, saved by the Flax class
        case "UNet2DConditionModel":
            return foreign.diffusers_unet(values), "diffusers"
        case "AutoencoderKL":
            return foreign.diffusers_autoencoder(values), "diffusers"
        case "StableUnCLIPImageNormalizer":
            fields = Fields("StableUnCLIPImageNormalizer", values)
            return ImageStatistics(fields.whole("embedding_dim", 768)), "diffusers"
        case "CLIPTextModel" | "CLIPTextModelWithProjection":
            return _text(values, path.parent), "transformers"
        case "CLIPVisionModelWithProjection":
            return foreign.transformers_image(values), "transformers"
        case "CLIPModel":
            # The tokenizer beside it pads with the end, OpenAI with 0; a whole CLIP reads no pads.
            pad = _pad_by_ids(values.get("text_config") or {}) or "zero"
            return foreign.transformers_clip(values, pad=pad), "transformers"
        case "DPTForDepthEstimation":
            return foreign.transformers_depth(values), "transformers"
        case "StableDiffusionSafetyChecker":
            return foreign.transformers_safety(values), "transformers"
    raise ValueError(f"{path} describes a '{shown(str(name))}', which sdjax does not have")


def open_clip_config(path: Path) -> tuple[Config, Layout]:
    """The config in open_clip_config.json, which OpenCLIP writes beside its weights."""
    return foreign.open_clip(_read_json(path).get("model_cfg", {})), "openclip"


def diffusers_config(folder: Path) -> StableDiffusion:
    """The system in a folder of diffusers, from the config.json of each part."""

    def schedule(name: str) -> Schedule:
        return foreign.diffusers_schedule(_read_json(folder / name / "scheduler_config.json"))

    def noise(name: str) -> Schedule:
        return replace(schedule(name), prediction="eps")  # nothing is predicted with it

    unet_values = _read_json(folder / "unet/config.json")
    unet = foreign.diffusers_unet(unet_values)
    autoencoder_values = _read_json(folder / "vae/config.json")
    if unet.labels is not None:
        autoencoder_values = {"scaling_factor": UPSCALER_SCALING} | autoencoder_values
    autoencoder = foreign.diffusers_autoencoder(autoencoder_values)
    text = _text(_read_json(folder / "text_encoder/config.json"), folder / "tokenizer")
    extra: dict[str, Any] = {}
    if unet.labels is not None:
        extra = {"conditioning": "low-res", "condition_noise": noise("low_res_scheduler")}
    elif (folder / "depth_estimator").is_dir():
        depth = foreign.transformers_depth(_read_json(folder / "depth_estimator/config.json"))
        extra = {"conditioning": "depth", "depth": depth}
    elif unet.vector_dim is not None:
        extra = {
            "conditioning": "image",
            "image": foreign.transformers_image(_read_json(folder / "image_encoder/config.json")),
            "condition_noise": noise("image_noising_scheduler"),
        }
    elif unet.in_channels > autoencoder.latent_channels:
        extra = {"conditioning": "inpainting"}
    if (folder / "safety_checker").is_dir():
        extra["safety"] = foreign.transformers_safety(
            _read_json(folder / "safety_checker/config.json")
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
    if isinstance(config, StableDiffusion):
        files = _system_files(config)
        if _has_tokenizer(config.text):
            files |= _tokenizer_files(config.text)
    else:
        files = {"config.json": _json(network_settings(config))}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")


def weights_name(config: Config, place: str) -> str:
    """The file of weights of a part, by its place as in `sdjax.weights.layouts.Part`."""
    of_diffusers = isinstance(config, UNet | Autoencoder | ImageStatistics)
    if of_diffusers or place in ("unet/", "vae/", "image_normalizer/"):
        return "diffusion_pytorch_model.safetensors"
    return "model.safetensors"


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
    files = {
        "model_index.json": index,
        **{f"{name}/config.json": values for name, values in networks.items()},
        **{f"{name}/scheduler_config.json": values for name, values in schedulers.items()},
        **{f"{name}/preprocessor_config.json": values for name, values in preprocessors.items()},
    }
    return {name: _json(values) for name, values in files.items()}


def _model_index(config: StableDiffusion, parts: Mapping[str, Settings]) -> Settings:
    """model_index.json: the pipeline's class, and library and class of each part."""
    index: Settings = {
        "_class_name": PIPELINES[config.conditioning],
        "_diffusers_version": folder_configs.DIFFUSERS_VERSION,
    }
    ours = _has_tokenizer(config.text)
    index["tokenizer"] = ["transformers", "CLIPTokenizer"] if ours else [None, None]
    if config.conditioning in CHECKED:
        index["safety_checker"] = index["feature_extractor"] = [None, None]
    if config.conditioning in ("text", "inpainting"):
        index["requires_safety_checker"] = config.safety is not None
    if config.conditioning == "low-res":
        index["max_noise_level"] = min(350, (config.unet.labels or 1) - 1)
    for name, values in parts.items():
        if name == "safety_checker" and config.conditioning not in CHECKED:
            continue
        if name in ("safety_checker", "image_normalizer"):
            library = "stable_diffusion"  # the folder of diffusers that they live in
        else:
            library = "diffusers" if "_class_name" in values else "transformers"
        architecture = next(iter(values.get("architectures", ())), None)
        found = values.get("_class_name") or architecture or values["image_processor_type"]
        index[name] = [library, found]
    return index


def _has_tokenizer(text: TextTower) -> bool:
    """Does the tower read the ids of CLIP's vocabulary, the one that ships with sdjax?"""
    return text.vocab_size == tokenizer.CLIP_VOCABULARY_SIZE


def _tokenizer_files(text: TextTower) -> dict[str, str]:
    """{name: content} of the files of transformers' CLIPTokenizer, of any version."""
    model = json.loads(tokenizer.byte_pair_encoder().to_str())["model"]
    return {
        "tokenizer/vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "tokenizer/merges.txt": "\n".join(
            ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
        ),
        "tokenizer/tokenizer_config.json": _json(folder_configs.tokenizer_settings(text)),
        "tokenizer/special_tokens_map.json": _json(folder_configs.special_tokens(text)),
    }


def _sample_size(unet: Json) -> int:
    """The latent height and width that a pipeline draws where nobody asks for another."""
    size = Fields("UNet2DConditionModel", unet).whole("sample_size", 64)
    version = re.match(r"(\d+)\.(\d+)", str(unet.get("_diffusers_version", "")))
    if version and (int(version[1]), int(version[2])) < (0, 9):
        return max(size, 64)  # early files say 32 and mean 64, and diffusers reads them so
    return size


def _text(values: Json, folder: Path) -> TextTower:
    projection = "CLIPTextModelWithProjection" in (values.get("architectures") or ())
    by_activation = "eot" if values.get("hidden_act") == "quick_gelu" else "zero"
    pad = _pad_by_tokenizer(folder) or _pad_by_ids(values) or by_activation
    return foreign.transformers_text(values, pad=pad, projection=projection)


def _pad_by_tokenizer(folder: Path) -> Literal["eot", "zero"] | None:
    """How the tokenizer in `folder` pads; None without one."""
    # The second repeats the default of the class in folders of SD 2, where the first corrects it.
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            token = _read_json(folder / name).get("pad_token")
            token = token.get("content") if isinstance(token, Mapping) else token
            if token is not None:
                return "zero" if token == "!" else "eot"  # "!" is id 0
    return None


def _pad_by_ids(text: Json) -> Literal["eot", "zero"] | None:
    """How a text tower's config.json says to pad; None for the numbers of old hub files."""
    pad = text.get("pad_token_id")
    if pad == 0:
        return "zero"
    return "eot" if pad is not None and pad == text.get("eos_token_id") else None


def _json(values: Settings) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: download the whole folder, or say with --family what model it is"
        )
    return parse_json(path.read_bytes(), path)
