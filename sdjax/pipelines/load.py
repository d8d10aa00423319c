"""From a name or a folder to a pipeline."""

import os
from pathlib import Path

from sdjax import config
from sdjax.pipelines.stable_diffusion import Defaults, Pipeline
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.config_json import from_json
from sdjax.weights.files import load_model

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "models"


def bundled_models() -> list[str]:
    """Names of the models that ship with sdjax."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/model.json"))


def model_folder(model: str | os.PathLike[str]) -> Path:
    """The folder of a bundled model's name, or of a path.

    Raises:
        FileNotFoundError: if it is neither.
    """
    if str(model) in bundled_models():
        return BUNDLED / str(model)
    folder = Path(model)
    if not folder.exists():
        raise FileNotFoundError(
            f"no model {str(model)!r}: it is neither a bundled model "
            f"({', '.join(bundled_models())}) nor a folder"
        )
    return folder


def load(model: str | os.PathLike[str] = "mini") -> Pipeline:
    """Load a text-to-image model.

    Args:
        model: "mini", the model that ships with sdjax, or a folder that `sdjax train` wrote.

    Raises:
        FileNotFoundError: if there is no such model, or a file of it is missing.
        ValueError: if it is damaged, holds NaN, or is no text-to-image model.
    """
    folder = model_folder(model)
    components, described = load_model(folder)
    if described.get("kind") != "stable-diffusion":
        raise ValueError(f"{folder} holds a {described.get('kind')!r}, not a text-to-image model")
    system = from_json(config.StableDiffusion, described["config"])
    tokenizer = Tokenizer(system.text.context_length, system.text.pad, described.get("vocabulary"))
    return Pipeline(
        name=described["name"],
        config=system,
        params=components,
        tokenizer=tokenizer,
        defaults=Defaults(**described["defaults"]),
        styles=tuple(described.get("styles", ())),
    )
