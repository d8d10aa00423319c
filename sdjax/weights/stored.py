"""What a model folder says that it is, and whether its tensors agree."""

from collections.abc import Mapping
from typing import Any

from sdjax.config import Config
from sdjax.weights.config_json import from_json
from sdjax.weights.layouts import KINDS, component_shapes
from sdjax.weights.tree import Params, flatten

OPTIONAL = ("image_statistics",)
"""Components whose absence has a meaning: of these, that they change nothing."""


def stored_config(model: Mapping[str, Any], where: str) -> Config:
    """The config in the contents of a model.json; `where` is told in errors.

    Raises:
        ValueError: it has none, or one of a kind that is not known.
    """
    if missing := [name for name in ("kind", "config") if name not in model]:
        raise ValueError(f"{where}: model.json lacks {', '.join(missing)}; save the model again")
    kind = model["kind"]
    if kind not in KINDS:
        raise ValueError(
            f"{where} holds a {kind!r}, which this sdjax does not know: it knows {', '.join(KINDS)}"
        )
    return from_json(KINDS[kind], model["config"])


def check_components(config: Config, components: Mapping[str, Params], where: str) -> None:
    """Compare every tensor's path and shape with what the config asks for; compiles nothing.

    Raises:
        ValueError: names the first that is missing, left over or of another shape.
    """
    for name, tree in component_shapes(config).items():
        if name not in components:
            if name in OPTIONAL:
                continue
            raise ValueError(f"{where} has no {name}.safetensors")
        expected = {path: leaf.shape for path, leaf in flatten(tree).items()}
        found = {path: leaf.shape for path, leaf in flatten(components[name]).items()}
        for path in sorted(expected.keys() | found.keys()):
            if expected.get(path) != found.get(path):
                raise ValueError(
                    f"{where}: {name} does not fit its config: {path} is {found.get(path)}, "
                    f"wanted {expected.get(path)}"
                )
