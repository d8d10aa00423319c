"""Published checkpoints to the stored format, to another published layout, and back."""

import os
import shutil
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from sdjax.config import (
    Autoencoder,
    Clip,
    Config,
    Depth,
    ImageStatistics,
    StableDiffusion,
    UNet,
)
from sdjax.image.preprocess import CLIP_MEAN, CLIP_STD
from sdjax.weights.config_json import to_json
from sdjax.weights.files import MODEL_FILE, StoredDtype, open_model, open_unused, save_model, sha256
from sdjax.weights.folders import weights_name, write_configs
from sdjax.weights.layouts import Layout, parts
from sdjax.weights.readers import open_tensors
from sdjax.weights.rules import Rule, assemble, names
from sdjax.weights.sources import CUSTOM, Matched, Source, open_source
from sdjax.weights.stored import check_components, stored_config
from sdjax.weights.tensors import LazyTensor, write_safetensors
from sdjax.weights.tree import Params, unflatten

Export = Literal["diffusers", "single-file"]
"""Layouts that a model can be written in."""

Leaves = Mapping[str, LazyTensor]
"""Of one component, by path."""


def convert_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    family: str | Config | None = None,
    dtype: StoredDtype = "source",
    ema: bool | None = None,
    check: bool = False,
) -> Source:
    """Convert a published checkpoint to a model folder, whole or not at all.

    One tensor is in memory at a time. What the checkpoint holds beside the model (a noise schedule,
    a block that the model skips) is kept in `unused.safetensors`, so that it can be written again.

    Args:
        src: a weights file or folder, see `open_source`.
        dst: the model folder; an existing model folder is replaced.
        family: a name in `sdjax.weights.recognize.FAMILIES`, where the tensors cannot tell; or the
            config of a model with sizes of its own.
        dtype: stored precision; "source" keeps each tensor's own.
        ema: see `open_source`.
        check: read the folder again and prove that every tensor of the source comes back from it
            bit by bit (after the cast to `dtype`).

    Raises:
        FileNotFoundError: `src` or the folder of `dst` does not exist.
        ValueError: see `open_source` and `Source.check`; or a tensor holds NaN or inf, or more than
            `dtype` can hold.
    """
    source = open_source(src, family, ema)
    components = {name: unflatten(leaves) for name, leaves in source.components().items()}
    verify = partial(check_round_trip, source, dtype=dtype) if check else None
    model = describe(source)
    model["source"] |= {"sha256": _hashes(source)}
    save_model(dst, components, model, dtype, source.unused, verify)
    return source


def describe(source: Source) -> dict[str, Any]:
    """The contents of model.json for a checkpoint, but the hashes of its files."""
    path = source.path.absolute()
    own = path.name if path.is_dir() else path.stem
    return {
        "kind": source.kind,
        "name": own if source.family == CUSTOM else source.family,
        "family": source.family,
        "config": to_json(source.config),
        **({"image_mean": CLIP_MEAN, "image_std": CLIP_STD} if source.kind == "clip" else {}),
        "source": {
            "name": path.name,
            "layout": source.layout,
            "moving_average": source.averaged,
        },
    }


def _hashes(source: Source) -> dict[str, str]:
    """SHA-256 of every file with weights, by its path from the source's folder."""
    folder = source.path if source.path.is_dir() else source.path.parent
    return {os.path.relpath(path, folder): sha256(path) for path in sorted(set(source.files))}


def check_round_trip(source: Source, folder: Path, *, dtype: StoredDtype) -> None:
    """Prove that every tensor of `source` can be had back from the model folder it became.

    Raises:
        ValueError: names the first tensor that differs in a bit.
    """
    stored, _ = open_model(folder)
    for matched in source.matched:
        leaves = stored[matched.part.component]
        for name, pieces in _by_source(matched).items():
            where = f"{source.path}: {matched.part.place}{name}"
            _same(assemble(pieces, leaves), matched.tensors[name], _numpy(dtype), where)
    unused = open_unused(folder)
    for name, tensor in source.unused.items():
        _same(np.asarray(unused[name]), tensor, None, f"{source.path}: {name}")


def export_model(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    layout: Export,
    *,
    family: str | Config | None = None,
    dtype: StoredDtype = "source",
    ema: bool | None = None,
    check: bool = False,
) -> None:
    """Write a model in a published layout, whole or not at all, one tensor in memory at a time.

    Args:
        src: a model folder, or a published checkpoint in any layout.
        dst: for "diffusers" a new folder, with a subfolder for each part of a system; for
            "single-file" a new safetensors file.
        layout: "single-file" is the original layout: of CompVis and Stability for Stable Diffusion,
            of OpenCLIP for CLIP, of MiDaS for depth.
        family: as for `convert_checkpoint`; of no use where `src` is a model folder.
        dtype: precision of the file; "source" keeps each tensor's own.
        ema: as for `convert_checkpoint`.
        check: read what was written again and compare every tensor, bit by bit.

    Raises:
        FileNotFoundError: `src` or the folder of `dst` does not exist.
        ValueError: `dst` exists; the model has no such layout; or as for `convert_checkpoint`.
    """
    dst = Path(dst).absolute()
    if dst.exists():
        raise ValueError(f"{dst} exists: choose another name")
    if not dst.parent.is_dir():
        raise FileNotFoundError(f"cannot write {dst}: {dst.parent} is not a folder")
    config, components, unused = _open(src, layout, family, ema)
    cast = _numpy(dtype)
    files = published(config, components, unused, layout)
    new = dst.with_name(f".{dst.name}.{uuid.uuid4().hex[:8]}.new")
    new.mkdir()
    try:
        if layout == "single-file":
            result = new / dst.name
            _write(result, {k: t for part in files.values() for k, t in part.items()}, cast, check)
        else:
            result = new
            write_configs(config, new)
            for place, tensors in files.items():
                (new / place).mkdir(exist_ok=True)
                _write(new / place / weights_name(config, place), tensors, cast, check)
        result.rename(dst)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def published(
    config: Config,
    components: Mapping[str, Leaves],
    unused: Leaves,
    layout: Export,
) -> dict[str, dict[str, LazyTensor]]:
    """Tensors by the names of a published layout: {place of the part: {name: tensor}}.

    Names in a single file begin with the part's place, those in a folder do not.
    """
    files: dict[str, dict[str, LazyTensor]] = {}
    for part in parts(config, _layout_of(config, layout)):
        if part.component == "image_statistics" and part.component not in components:
            leaves = _standard(part.shapes)
        else:
            leaves = components[part.component]
        prefix = part.place if layout == "single-file" else ""
        files[part.place] = {
            prefix + name: _whole(pieces, leaves)
            for name, pieces in names(leaves, part.table).items()
        }
        for name, tensor in unused.items():
            if name.startswith(part.place):
                files[part.place][prefix + name[len(part.place) :]] = tensor
    if layout == "single-file":
        places = tuple(files)
        files["unused"] = {k: t for k, t in unused.items() if not k.startswith(places)}
    return files


def _write(path: Path, tensors: Leaves, dtype: np.dtype | None, check: bool) -> None:
    write_safetensors(path, tensors, dtype)
    if check:
        written = open_tensors(path)
        for name, tensor in tensors.items():
            _same(np.asarray(written[name]), tensor, dtype, f"{path.name}: {name}")


def _same(found: np.ndarray, wanted: LazyTensor, dtype: np.dtype | None, where: str) -> None:
    """Refuse numbers that are not `wanted`, cast to `dtype`, in every bit."""
    cast = np.asarray(wanted)
    if dtype is not None and jnp.issubdtype(cast.dtype, jnp.floating):
        cast = cast.astype(dtype)
    if (found.shape, found.dtype) != (cast.shape, cast.dtype) or found.tobytes() != cast.tobytes():
        raise ValueError(f"{where} does not come back as it was: nothing was written")


def _open(
    src: str | os.PathLike[str], layout: Export, family: str | Config | None, ema: bool | None
) -> tuple[Config, dict[str, dict[str, LazyTensor]], dict[str, LazyTensor]]:
    """Config, leaves and unused tensors (where `layout` has a place for them) of any model."""
    if (Path(src) / MODEL_FILE).is_file():
        components, model = open_model(src)
        config = stored_config(model, str(src))
        trees = {name: unflatten(leaves) for name, leaves in components.items()}
        check_components(config, trees, str(src))
        unused = open_unused(src)
        origin = model["source"]["layout"] if unused else None
    else:
        source = open_source(src, family, ema)
        config, components = source.config, source.components()
        unused, origin = dict(source.unused), source.layout
    return config, components, unused if origin == _layout_of(config, layout) else {}


def _numpy(dtype: StoredDtype) -> np.dtype | None:
    return None if dtype == "source" else np.dtype(jnp.dtype(dtype))


def _layout_of(config: Config, layout: Export) -> Layout:
    """What a layout is called for one network of this kind."""
    if isinstance(config, StableDiffusion | UNet | Autoencoder | ImageStatistics):
        return layout
    originals: dict[type, Layout] = {Clip: "openclip", Depth: "midas"}
    return "transformers" if layout == "diffusers" else originals.get(type(config), "single-file")


def _standard(shapes: Params) -> dict[str, LazyTensor]:
    """Statistics that change nothing, for a model that comes without."""
    dtype = np.dtype(np.float32)
    shape = shapes["mean"].shape
    return {
        "mean": LazyTensor(shape, dtype, lambda: np.zeros(shape, dtype)),
        "std": LazyTensor(shape, dtype, lambda: np.ones(shape, dtype)),
    }


def _whole(pieces: list[tuple[str, Rule]], leaves: Leaves) -> LazyTensor:
    """The tensor of a file from the leaves that it holds."""
    path, rule = pieces[0]
    shape = rule.source_shape(tuple(leaves[path].shape))
    return LazyTensor(shape, leaves[path].dtype, lambda: assemble(pieces, leaves))


def _by_source(matched: Matched) -> dict[str, list[tuple[str, Rule]]]:
    """{source name: its leaves, (path, rule), in the order of their parts}, as they were read."""
    found: dict[str, list[tuple[str, Rule]]] = {}
    for path, (name, rule) in matched.comparison.matches.items():
        found.setdefault(name, []).append((path, rule))
    return {name: sorted(pieces, key=lambda p: p[1].part) for name, pieces in found.items()}
