"""Models by name: bundled, on disk in any format, or on the Hugging Face hub."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax.config import Config
from sdjax.nn.functional import Params
from sdjax.weights.conversion import describe
from sdjax.weights.files import MODEL_FILE, SUFFIX, open_model, to_params
from sdjax.weights.hub import REPOSITORY, hub_folder
from sdjax.weights.readers import SUFFIXES
from sdjax.weights.recognize import FAMILIES
from sdjax.weights.sources import open_source
from sdjax.weights.stored import NO_STATISTICS, check_components, lacks_statistics, stored_config
from sdjax.weights.tensors import LazyTensor
from sdjax.weights.tree import shown

TABLES = ("codebook", "image_statistics", "regression")
"""Components that are no weights: float32 whatever the precision of the model."""
BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "models"


@dataclass(frozen=True, eq=False)
class Model:
    """A model as it was read: what it is, and its parameter tree by component."""

    name: str
    config: Config
    params: Params
    described: Mapping[str, Any]  # the contents of model.json


def bundled_models() -> list[str]:
    """Names of the models that ship with sdjax."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/model.json"))


def find_model(model: str | os.PathLike[str]) -> Path:
    """The file or folder of a bundled model's name, of a path, or of a name on the hub.

    Raises:
        FileNotFoundError: if it is none of them.
    """
    if str(model) in bundled_models():
        return BUNDLED / str(model)
    path = Path(model)
    if path.exists() or path.is_symlink():
        return path
    if isinstance(model, str) and REPOSITORY.fullmatch(model):
        return hub_folder(model)
    if path.suffix in SUFFIXES:
        raise FileNotFoundError(f"no file {path.absolute()}")
    if str(model) in FAMILIES:
        raise FileNotFoundError(
            f"{model} is a family of models, whose weights do not come with sdjax: give their file "
            "or folder, or their name on the hub (`sdjax models` lists some)"
        )
    raise FileNotFoundError(
        f"no model {str(model)!r}: it is neither a bundled model ({', '.join(bundled_models())}), "
        'nor a file or folder, nor a name on the hub like "owner/model"'
    )


def read_model(
    model: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    family: str | Config | None = None,
    ema: bool | None = None,
) -> Model:
    """Read a model of any kind into memory; compiles nothing.

    Args:
        model: as for `find_model`. A published checkpoint need not be converted.
        dtype: of the parameters in memory.
        family: what the tensors of a published checkpoint cannot tell; see
            `sdjax.weights.sources.open_source`.
        ema: take the moving average in a single file, or the raw weights; see there.

    Raises:
        FileNotFoundError: if there is no such model, or a file of it is missing.
        ValueError: if it is damaged, hostile or unknown, or a tensor is missing, left over,
            misshapen or holds NaN.

    What had to be assumed, or is not there, is a warning.
    """
    path = find_model(model)
    # A folder of the hub's cache is called by the hash of a commit.
    name = None if path == Path(model) else str(model)
    if path.is_dir() and (path / MODEL_FILE).is_file():
        return _read_stored(path, dtype, name or path.name)
    source = open_source(path, family, ema)
    params = {
        part: _tree(part, leaves, dtype, f"{path}: {part}")
        for part, leaves in source.components().items()
    }
    described = describe(source, name)
    for note in source.notes:
        warnings.warn(f"{described['source']['name']}: {note}", stacklevel=2)
    return Model(described["name"], source.config, params, described)


def _tree(part: str, leaves: Mapping[str, LazyTensor], dtype: DTypeLike, where: str) -> Params:
    return to_params(leaves, jnp.float32 if part in TABLES else dtype, where)


def _read_stored(folder: Path, dtype: DTypeLike, name: str) -> Model:
    components, described = open_model(folder)
    params = {
        part: _tree(part, leaves, dtype, f"{folder / part}{SUFFIX}")
        for part, leaves in components.items()
    }
    params |= _shared(described, dtype, str(folder))
    config = stored_config(described, str(folder))
    check_components(config, params, str(folder))
    name = described.get("name", name)
    if lacks_statistics(config, params):
        warnings.warn(f"{name}: {NO_STATISTICS}", stacklevel=3)
    return Model(name, config, params, described)


def _shared(described: Mapping[str, Any], dtype: DTypeLike, where: str) -> Params:
    """Components that a model has from a bundled one, so that they are not stored twice.

    The field "shared" of model.json says of each which model it is in, and the hash of its file.
    """
    found: Params = {}
    for component, source in described.get("shared", {}).items():
        lender, expected = source["model"], source["sha256"]
        if lender not in bundled_models():
            raise ValueError(
                f"{where} has its {shown(component)} from the bundled model '{shown(str(lender))}',"
                f" which is none of {', '.join(bundled_models())}: update sdjax"
            )
        components, lent = open_model(BUNDLED / lender)
        if lent["sha256"].get(f"{component}{SUFFIX}") != expected:
            raise ValueError(
                f"{where} was trained with another {shown(component)} than that of the bundled "
                f"model {lender}: update sdjax, or train it again"
            )
        found[component] = to_params(components[component], dtype, f"{lender}: {component}")
    return found
