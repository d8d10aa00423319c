"""From a name or a folder to a pipeline."""

import os
from collections.abc import Mapping
from pathlib import Path

from sdjax import config
from sdjax.nn.functional import Params
from sdjax.pipelines.stable_diffusion import Defaults, Pipeline
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.clip import text_shapes
from sdjax.weights.config_json import from_json
from sdjax.weights.files import load_model
from sdjax.weights.stable_diffusion import autoencoder_shapes, unet_shapes
from sdjax.weights.tree import flatten

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


def check_components(
    system: config.StableDiffusion, components: Mapping[str, Params], where: str
) -> None:
    """Compare every tensor's path and shape with what the config asks for; compiles nothing.

    Raises:
        ValueError: names the first that is missing, left over or of another shape.
    """
    wanted = {
        "text": text_shapes(system.text),
        "unet": unet_shapes(system.unet),
        "autoencoder": autoencoder_shapes(system.autoencoder),
    }
    for name, tree in wanted.items():
        if name not in components:
            raise ValueError(f"{where} has no {name}.safetensors")
        expected = {path: leaf.shape for path, leaf in flatten(tree).items()}
        found = {path: leaf.shape for path, leaf in flatten(components[name]).items()}
        for path in sorted(expected.keys() | found.keys()):
            if expected.get(path) != found.get(path):
                raise ValueError(
                    f"{where}: {name} does not fit its config: {path} is {found.get(path)}, "
                    f"wanted {expected.get(path)}"
                )


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
    if missing := [name for name in ("name", "config", "defaults") if name not in described]:
        raise ValueError(f"{folder}: model.json lacks {', '.join(missing)}; save the model again")
    system = from_json(config.StableDiffusion, described["config"])
    check_components(system, components, str(folder))
    tokenizer = Tokenizer(system.text.context_length, system.text.pad, described.get("vocabulary"))
    if tokenizer.vocab_size != system.text.vocab_size:
        raise ValueError(
            f"{folder}: the vocabulary has {tokenizer.vocab_size} ids, the text tower "
            f"{system.text.vocab_size} rows"
        )
    return Pipeline(
        name=described["name"],
        config=system,
        params=components,
        tokenizer=tokenizer,
        defaults=from_json(Defaults, described["defaults"]),
        styles=tuple(described.get("styles", ())),
    )
