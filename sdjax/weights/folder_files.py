"""Files of the folders of diffusers and transformers: JSON, the text tower, the tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sdjax.config import TextTower
from sdjax.text import tokenizer
from sdjax.weights import folder_configs, foreign
from sdjax.weights.fields import Json
from sdjax.weights.folder_configs import Settings
from sdjax.weights.readers import parse_json


def has_tokenizer(text: TextTower) -> bool:
    """Does the tower read the ids of CLIP's vocabulary, the one that ships with sdjax?"""
    return text.vocab_size == tokenizer.CLIP_VOCABULARY_SIZE


def tokenizer_files(text: TextTower) -> dict[str, str]:
    """{name: content} of the files of transformers' CLIPTokenizer, of any version."""
    model = json.loads(tokenizer.byte_pair_encoder().to_str())["model"]
    return {
        "tokenizer/vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "tokenizer/merges.txt": "\n".join(
            ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
        ),
        "tokenizer/tokenizer_config.json": to_text(folder_configs.tokenizer_settings(text)),
        "tokenizer/special_tokens_map.json": to_text(folder_configs.special_tokens(text)),
    }


def text_tower(values: Json, folder: Path) -> TextTower:
    """The tower that `values` describe, padded as the tokenizer in `folder` does."""
    projection = "CLIPTextModelWithProjection" in (values.get("architectures") or ())
    by_activation = "eot" if values.get("hidden_act") == "quick_gelu" else "zero"
    pad = _pad_by_tokenizer(folder) or pad_by_ids(values) or by_activation
    return foreign.transformers_text(values, pad=pad, projection=projection)


def _pad_by_tokenizer(folder: Path) -> Literal["eot", "zero"] | None:
    """How the tokenizer in `folder` pads; None without one."""
    # The second repeats the default of the class in folders of SD 2, where the first corrects it.
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("pad_token")
            token = token.get("content") if isinstance(token, Mapping) else token
            if token is not None:
                return "zero" if token == "!" else "eot"  # "!" is id 0
    return None


def pad_by_ids(text: Json) -> Literal["eot", "zero"] | None:
    """How a text tower's config.json says to pad; None for the numbers of old hub files."""
    pad = text.get("pad_token_id")
    if pad == 0:
        return "zero"
    return "eot" if pad is not None and pad == text.get("eos_token_id") else None


def settings_files(
    index: Settings,
    networks: Mapping[str, Settings],
    schedulers: Mapping[str, Settings],
    preprocessors: Mapping[str, Settings],
) -> dict[str, str]:
    """{name: content} of the JSON files of a pipeline's folder but the tokenizer's."""
    files = {
        "model_index.json": index,
        **{f"{name}/config.json": values for name, values in networks.items()},
        **{f"{name}/scheduler_config.json": values for name, values in schedulers.items()},
        **{f"{name}/preprocessor_config.json": values for name, values in preprocessors.items()},
    }
    return {name: to_text(values) for name, values in files.items()}


# Networks that diffusers keeps beside the pipeline that has them.
PIPELINE_FOLDERS = {
    "StableDiffusionSafetyChecker": "stable_diffusion",
    "StableUnCLIPImageNormalizer": "stable_diffusion",
    "UnCLIPTextProjModel": "unclip",
}


def library_and_class(values: Settings) -> list[str]:
    """How model_index.json names the class that settings are for."""
    architecture = next(iter(values.get("architectures", ())), None)
    name = values.get("_class_name") or architecture or values["image_processor_type"]
    library = "diffusers" if "_class_name" in values else "transformers"
    return [PIPELINE_FOLDERS.get(name, library), name]


def to_text(values: Settings) -> str:
    """A JSON file."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file, which must be there."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: download the whole folder, or say with --family what model it is"
        )
    return parse_json(path.read_bytes(), path)
