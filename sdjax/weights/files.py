"""The stored format: a folder with `model.json` and one safetensors file per component.

    my_model/
        model.json               what the model is, the stored precision and a hash of every file
        text.safetensors         tensors by tree path, "block_0/mlp/expand/kernel"
        unet.safetensors
        ...

Safetensors hold numbers and nothing executable, and are read without PyTorch.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sdjax.weights.tree import Params, flatten, unflatten

FORMAT_VERSION = 1
"""Of the folder's layout; `load_model` refuses any other."""
MODEL_FILE = "model.json"
SUFFIX = ".safetensors"
OWN_FIELDS = ("format_version", "dtype", "sha256")
"""Fields of model.json that `save_model` writes; the others are the caller's."""

StoredDtype = Literal["float16", "bfloat16", "float32"]


def save_model(
    folder: str | os.PathLike[str],
    components: Mapping[str, Params],
    model: Mapping[str, Any],
    dtype: StoredDtype = "float32",
) -> None:
    """Write a model folder, whole or not at all.

    Everything is written to a sibling folder first, which then takes the name. An existing model
    folder is replaced; of its files only model.json and the safetensors are lost, others (a model
    card, a vocabulary) are carried over. A process killed between the two renames of a replacement
    leaves the old model beside it, as `.NAME.*.old`.

    Args:
        folder: where; its parent must exist.
        components: parameter tree by name, such as "text" or "unet"; "x" becomes x.safetensors.
        model: JSON values that say what the model is. The fields of `OWN_FIELDS` are filled in
            here, so what `load_model` returned can be passed back.
        dtype: stored precision of every tensor.

    Raises:
        ValueError: if `folder` exists and is neither empty nor a model folder; if a tensor holds
            NaN or inf, before or after the cast; if `model` is not JSON.
        FileNotFoundError: if the parent folder does not exist.
    """
    target = Path(folder).resolve()
    _check_target(target)
    for name in components:
        _check_name(name)
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.new")
    new.mkdir()
    try:
        hashes = {}
        for name, params in components.items():
            path = new / f"{name}{SUFFIX}"
            save_file(_cast(params, np.dtype(jnp.dtype(dtype)), name), path)
            hashes[path.name] = _sha256(path)
        own = {"format_version": FORMAT_VERSION, "dtype": dtype, "sha256": hashes}
        (new / MODEL_FILE).write_text(_json_text({**model, **own}), encoding="utf-8")
        if target.exists():
            _carry_over(target, new)
        _swap(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def load_model(
    folder: str | os.PathLike[str], dtype: DTypeLike = jnp.float32
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Read a model folder: (parameter trees by component, the contents of model.json).

    Leaves are JAX arrays of `dtype`, whatever the stored precision.

    Raises:
        FileNotFoundError: no folder, no model.json, or a component's file is missing.
        ValueError: model.json is damaged or of another format version; a file is damaged, differs
            from its hash, or holds NaN or inf (the tensor is named).
    """
    folder = Path(folder)
    model = _read_model_json(folder)
    components = {}
    for filename, expected in model["sha256"].items():
        path = folder / filename
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} lists {filename} in {MODEL_FILE}, but has no such file"
            )
        found = _sha256(path)
        if found != expected:
            raise ValueError(
                f"{path} is not the file that was saved: its SHA-256 is {found}, "
                f"{MODEL_FILE} says {expected}; copy or download it again"
            )
        flat = read_safetensors(path)
        for key, tensor in flat.items():
            _check_finite(tensor, f"{path}: {key}")
        components[filename.removesuffix(SUFFIX)] = unflatten(
            {key: jnp.array(tensor, dtype) for key, tensor in flat.items()}
        )
    return components, model


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Tensors of one safetensors file by name, as NumPy arrays in the stored precision.

    bfloat16 comes as the NumPy type of the package ml_dtypes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or is no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: {target.parent} is not a folder")
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file: give the name of a folder")
    if not (target / MODEL_FILE).is_file() and any(target.iterdir()):
        raise ValueError(
            f"{target} is neither empty nor a model folder (no {MODEL_FILE}): not replaced; "
            "choose another name"
        )


def _check_name(name: str) -> None:
    # Names from a downloaded model.json become paths: they must not leave the folder.
    if not name.isidentifier():
        raise ValueError(f"{name!r} is not a component's name: letters, digits and _ only")


def _cast(params: Params, dtype: np.dtype, component: str) -> dict[str, np.ndarray]:
    stored = {}
    for key, leaf in flatten(params).items():
        array = np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{component}: {key} holds {array.dtype}, parameters are floats")
        _check_finite(array, f"{component}: {key}")
        with np.errstate(over="ignore"):
            cast = np.array(array, dtype=dtype, order="C")  # safetensors stores memory as it lies
        _check_finite(cast, f"{component}: {key}, stored as {dtype.name},")
        stored[key] = cast
    return stored


def _check_finite(array: np.ndarray, what: str) -> None:
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(f"{what} holds NaN or inf in {bad} of {array.size} numbers")


def _json_text(model: Mapping[str, Any]) -> str:
    try:
        return json.dumps(model, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{MODEL_FILE} can hold JSON values only: {error}") from error


def _read_model_json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}")
    path = folder / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a model folder: it has no {MODEL_FILE}")
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(model, dict) or "format_version" not in model:
        raise ValueError(f"{path} names no format_version: not written by sdjax")
    version = model["format_version"]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}, this sdjax reads {FORMAT_VERSION}: "
            "update sdjax or save the model again"
        )
    if not isinstance(model.get("sha256"), dict):
        raise ValueError(f"{path} has no table of SHA-256 sums under 'sha256'")
    for filename in model["sha256"]:
        if not filename.endswith(SUFFIX):
            raise ValueError(f"{path} lists {filename!r}, which is no safetensors file")
        _check_name(filename.removesuffix(SUFFIX))
    return model


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _carry_over(old: Path, new: Path) -> None:
    """Copy what `save_model` does not write from the folder about to be replaced."""
    for entry in old.iterdir():
        if entry.name == MODEL_FILE or entry.suffix == SUFFIX:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def _swap(new: Path, target: Path) -> None:
    """Give `new` the name `target`; a folder that has it steps aside until that worked."""
    old = None
    if target.exists():
        old = new.with_suffix(".old")
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    if old is not None:
        shutil.rmtree(old)
