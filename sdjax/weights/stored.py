"""What a model folder says that it is, and whether its tensors agree."""

from collections.abc import Container, Mapping
from typing import Any

from sdjax import presets
from sdjax.config import Config, StableDiffusion
from sdjax.weights.config_json import from_json
from sdjax.weights.layouts import KINDS, component_shapes
from sdjax.weights.tree import Params, flatten, shown

OPTIONAL = ("image_statistics",)
"""Components that a model may lack; see `lacks_statistics`."""
NO_STATISTICS = (
    "it comes without the mean and deviation of image embeddings, so these are noised without the "
    "standardisation of training; the same model in the layout of diffusers has them, in "
    "image_normalizer"
)


def stored_config(model: Mapping[str, Any], where: str) -> Config:
    """The config in the contents of a model.json; `where` is told in errors.

    Raises:
        ValueError: it has none, or one of a kind that is not known.
    """
    if missing := [name for name in ("kind", "config") if name not in model]:
        raise ValueError(f"{where}: model.json lacks {', '.join(missing)}; save the model again")
    kind = model["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"{where} holds a '{shown(kind)}', which this sdjax does not know: it knows "
            f"{', '.join(KINDS)}"
        )
    return from_json(KINDS[kind], model["config"])


def lacks_statistics(config: Config, components: Container[str]) -> bool:
    """Was the model trained with statistics of image embeddings that are not among `components`?

    Only with OpenCLIP's ViT-H were they 0 and 1, so that a model without them is whole.
    """
    return (
        isinstance(config, StableDiffusion)
        and config.image not in (None, presets.OPENCLIP_H_IMAGE)
        and "image_statistics" not in components
    )


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
                    f"{where}: {name} does not fit its config: {shown(path)} is {found.get(path)}, "
                    f"wanted {expected.get(path)}"
                )
