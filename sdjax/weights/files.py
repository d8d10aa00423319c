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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.weights.readers import open_tensors, parse_json
from sdjax.weights.tensors import LazyTensor, write_safetensors
from sdjax.weights.tree import Params, flatten, shown, unflatten

FORMAT_VERSION = 1
"""Of the folder's layout; `load_model` refuses any other."""
MODEL_FILE = "model.json"
SUFFIX = ".safetensors"
OWN_FIELDS = ("format_version", "dtype", "sha256", "unused_sha256")
"""Fields of model.json that `save_model` writes; the others are the caller's."""

UNUSED_FILE = "unused.safetensors"
"""What a converted checkpoint held besides the model, by its own names."""

StoredDtype = Literal["float16", "bfloat16", "float32", "source"]


def save_model(
    folder: str | os.PathLike[str],
    components: Mapping[str, Params],
    model: Mapping[str, Any],
    dtype: StoredDtype = "float32",
    unused: Mapping[str, LazyTensor] | None = None,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Write a model folder, whole or not at all, with one tensor in memory at a time.

    Everything is written to a sibling folder first, which then takes the name. An existing model
    folder is replaced; of its files only model.json and the safetensors are lost, others (a model
    card, a vocabulary) are carried over. A process killed between the two renames of a replacement
    leaves the old model beside it, as `.NAME.*.old`.

    Args:
        folder: where; its parent must exist.
        components: parameter tree by name, such as "text" or "unet"; "x" becomes x.safetensors.
            Leaves are arrays or `LazyTensor`s.
        model: JSON values that say what the model is. The fields of `OWN_FIELDS` are filled in
            here, so what `load_model` returned can be passed back.
        dtype: stored precision of every tensor; "source" keeps what each has.
        unused: tensors of a converted checkpoint that the model has no use for, by the names they
            had; kept as they are, for writing the checkpoint again.
        verify: called with the new folder before it takes its name; what it raises leaves an
            existing model in its place.

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
            _write(path, flatten(params), dtype)
            hashes[path.name] = sha256(path)
        own = {"format_version": FORMAT_VERSION, "dtype": dtype, "sha256": hashes}
        if unused:
            # As they are: NaN does no harm where it is not used.
            write_safetensors(new / UNUSED_FILE, unused, finite=False)
            own["unused_sha256"] = sha256(new / UNUSED_FILE)
        callers = {key: value for key, value in model.items() if key not in OWN_FIELDS}
        (new / MODEL_FILE).write_text(_json_text(callers | own), encoding="utf-8")
        if verify is not None:
            verify(new)
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
    components, model = open_model(folder)
    params = {
        name: to_params(leaves, dtype, f"{Path(folder) / name}{SUFFIX}")
        for name, leaves in components.items()
    }
    return params, model


def open_model(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, dict[str, LazyTensor]], dict[str, Any]]:
    """`load_model` without the numbers: (leaves by path of every component, model.json)."""
    folder = Path(folder)
    model = _read_model_json(folder)
    components = {}
    for filename, expected in model["sha256"].items():
        path = folder / filename
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} lists {filename} in {MODEL_FILE}, but has no such file"
            )
        _check_hash(path, expected)
        components[filename.removesuffix(SUFFIX)] = open_tensors(path)
    return components, model


def open_unused(folder: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """What `save_model` was given as `unused`.

    Raises:
        FileNotFoundError: `folder` is no model folder, or the file is missing.
        ValueError: model.json is damaged, or the file is, or differs from its hash.
    """
    path = Path(folder) / UNUSED_FILE
    expected = _read_model_json(Path(folder)).get("unused_sha256")
    if expected is None and not path.exists():
        return {}
    if not path.is_file():
        raise FileNotFoundError(f"{folder} lacks the file {UNUSED_FILE} of its {MODEL_FILE}")
    _check_hash(path, expected)
    return open_tensors(path)


def to_params(leaves: Mapping[str, LazyTensor], dtype: DTypeLike, where: str) -> dict[str, Any]:
    """Leaves by path to a tree of JAX arrays, one tensor at a time; `where` is told in errors.

    Raises:
        ValueError: if one holds NaN or inf; it is named.
    """

    def read(path: str, leaf: LazyTensor) -> jax.Array:
        array = np.asarray(leaf)
        _check_finite(array, f"{where}: {shown(path)}")
        return jnp.array(array, dtype)

    return unflatten({path: read(path, leaf) for path, leaf in leaves.items()})


def _check_hash(path: Path, expected: Any) -> None:
    found = sha256(path)
    if found != expected:
        raise ValueError(
            f"{path} is not the file that was saved: its SHA-256 is {found}, "
            f"{MODEL_FILE} says {shown(expected)}; copy or download it again"
        )


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
        raise ValueError(f"'{shown(name)}' is not a component's name: letters, digits and _ only")


def _write(path: Path, leaves: Mapping[str, Any], dtype: StoredDtype) -> None:
    for key, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path.stem}: {shown(key)} holds {leaf.dtype}, parameters are floats")
    try:
        write_safetensors(path, leaves, None if dtype == "source" else np.dtype(jnp.dtype(dtype)))
    except ValueError as error:
        raise ValueError(f"{path.stem}: {error}") from error


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
    model = parse_json(path.read_bytes(), path)
    if "format_version" not in model:
        raise ValueError(f"{path} names no format_version: not written by sdjax")
    version = model["format_version"]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {shown(version)}, this sdjax reads {FORMAT_VERSION}: "
            "update sdjax or save the model again"
        )
    if not isinstance(model.get("sha256"), dict):
        raise ValueError(f"{path} has no table of SHA-256 sums under 'sha256'")
    for filename in model["sha256"]:
        if not filename.endswith(SUFFIX):
            raise ValueError(f"{path} lists '{shown(filename)}', which is no safetensors file")
        _check_name(filename.removesuffix(SUFFIX))
    return model


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
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
