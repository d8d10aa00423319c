"""`sdjax models`: what sdjax can build, with counted parameters and the facts of public weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from sdjax import config, presets
from sdjax.config import Config
from sdjax.pipelines.models import bundled_models, find_model
from sdjax.weights.config_json import from_json
from sdjax.weights.files import MODEL_FILE
from sdjax.weights.layouts import KINDS, component_shapes
from sdjax.weights.stored import stored_config


@dataclass(frozen=True)
class Facts:
    """Of the published weights; what we are not sure of is left out."""

    sources: tuple[str, ...] = ()  # names on the Hugging Face hub
    licence: str | None = None


RAIL = "CreativeML Open RAIL-M"
RAIL_2 = "CreativeML Open RAIL++-M"
FACTS = {
    "sd1": Facts(
        ("CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5"), RAIL
    ),
    "sd1-inpainting": Facts(("stable-diffusion-v1-5/stable-diffusion-inpainting",), RAIL),
    "sd2-base": Facts(
        ("stabilityai/stable-diffusion-2-base", "stabilityai/stable-diffusion-2-1-base"), RAIL_2
    ),
    "sd2-v": Facts(("stabilityai/stable-diffusion-2", "stabilityai/stable-diffusion-2-1"), RAIL_2),
    "sd2-inpainting": Facts(("stabilityai/stable-diffusion-2-inpainting",), RAIL_2),
    "sd2-depth": Facts(("stabilityai/stable-diffusion-2-depth",), RAIL_2),
    "sd2-x4-upscaler": Facts(("stabilityai/stable-diffusion-x4-upscaler",), RAIL_2),
    "sd2-unclip-h": Facts(("stabilityai/stable-diffusion-2-1-unclip",), RAIL_2),
    "sd2-unclip-l": Facts(("stabilityai/stable-diffusion-2-1-unclip-small",), RAIL_2),
    "clip-vit-b-32": Facts(("openai/clip-vit-base-patch32",), "MIT"),
    "clip-vit-l-14": Facts(("openai/clip-vit-large-patch14",), "MIT"),
    "openclip-vit-b-32": Facts(("laion/CLIP-ViT-B-32-laion2B-s34B-b79K",), "MIT"),
    "openclip-vit-l-14": Facts(("laion/CLIP-ViT-L-14-laion2B-s32B-b82K",), "MIT"),
    "openclip-vit-h-14": Facts(("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",), "MIT"),
    "dpt-hybrid": Facts(("Intel/dpt-hybrid-midas",), "Apache-2.0"),
    "safety-checker": Facts(("CompVis/stable-diffusion-safety-checker",)),
    "karlo": Facts(("kakaobrain/karlo-v1-alpha",), RAIL),
    "karlo-variations": Facts(("kakaobrain/karlo-v1-alpha-image-variations",), RAIL),
    "dalle2-mini": Facts((), "Apache-2.0"),
    "mini": Facts((), "Apache-2.0"),
}


def catalog() -> list[dict[str, Any]]:
    """Every published and bundled model, and those of papers alone, as JSON values.

    `parameters` are counted from the networks' shapes, by component; `bytes` are those of the
    weights alone. A text-to-image model's `resolution` is what it was trained at, the others' what
    they read.
    """
    known = {**presets.PUBLISHED, **presets.PAPER}
    return [_entry(name, model, bundled=False) for name, model in known.items()] + [
        _entry(name, *_bundled(name), bundled=True) for name in bundled_models()
    ]


def _bundled(name: str) -> tuple[Config, ...]:
    """The system, and the image tower of the CLIP that comes with it."""
    stored = json.loads((find_model(name) / MODEL_FILE).read_text())
    system = stored_config(stored, name)
    if "clip" not in stored:
        return (system,)
    return system, from_json(config.Clip, stored["clip"]).image


def _entry(name: str, *models: Config, bundled: bool) -> dict[str, Any]:
    counts = {
        part: sum(leaf.size for leaf in jax.tree.leaves(shapes))
        for model in models
        for part, shapes in component_shapes(model).items()
    }
    total = sum(counts.values())
    facts = FACTS.get(name, Facts())
    schedule = getattr(getattr(models[0], "decoder", models[0]), "schedule", None)
    return {
        "name": name,
        "kind": next(kind for kind, cls in KINDS.items() if type(models[0]) is cls),
        "bundled": bundled,
        "parameters": {**counts, "total": total},
        "bytes": {"float32": 4 * total, "bfloat16": 2 * total},
        "resolution": _resolution(models[0]),
        "prediction": schedule and schedule.prediction,
        "licence": facts.licence,
        "sources": list(facts.sources),
    }


def _resolution(model: Any) -> int:
    return model.image_size if hasattr(model, "image_size") else model.image.image_size


def table(models: list[dict[str, Any]]) -> str:
    """The catalogue for people."""
    head = ("model", "parameters", "size", "predicts", "float32", "bfloat16", "licence", "source")
    rows = [head] + [
        (
            m["name"],
            f"{m['parameters']['total']:,}",
            str(m["resolution"]),
            m["prediction"] or "",
            *(f"{m['bytes'][dtype] / 2**30:.2f} GiB" for dtype in ("float32", "bfloat16")),
            m["licence"] or "",
            "bundled" if m["bundled"] else ", ".join(m["sources"]) or _unpublished(m["name"]),
        )
        for m in models
    ]
    return columns(rows, right={1, 2, 4, 5})


def _unpublished(name: str) -> str:
    return "never published" if name in presets.PAPER else ""


def columns(rows: Sequence[Sequence[str]], right: set[int]) -> str:
    """Rows of cells as lines of aligned columns, those in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
