"""Published checkpoints to the stored format, to another published layout, and back."""

import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from sdjax.config import Clip, Config, Depth, Unclip
from sdjax.image.preprocess import CLIP_MEAN, CLIP_STD
from sdjax.weights.config_json import to_json
from sdjax.weights.files import MODEL_FILE, StoredDtype, open_model, open_unused, save_model, sha256
from sdjax.weights.folders import weights_name, write_configs
from sdjax.weights.layouts import TRANSFORMERS, Layout, parts
from sdjax.weights.rules import Rule, assemble, names
from sdjax.weights.sources import CUSTOM, Matched, Source, open_source
from sdjax.weights.stored import NO_STATISTICS, check_components, lacks_statistics, stored_config
from sdjax.weights.tensors import LazyTensor, write_safetensors
from sdjax.weights.tree import Params, flatten, shown, unflatten

Export = Literal["diffusers", "single-file"]
"""Layouts that a model can be written in."""

Leaves = Mapping[str, LazyTensor]
"""Of one component, by path."""


def convert_checkpoint(
    src: str | os.PathLike[str] | Source,
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
        src: a weights file or folder, see `open_source`; or what that gave, where `family` and
            `ema` are settled.
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
    source = src if isinstance(src, Source) else open_source(src, family, ema)
    components = {name: unflatten(leaves) for name, leaves in source.components().items()}
    verify = partial(check_round_trip, source, dtype=dtype) if check else None
    model = describe(source)
    model["source"] |= {"sha256": _hashes(source)}
    save_model(dst, components, model, dtype, source.unused, verify)
    return source


def describe(source: Source, name: str | None = None) -> dict[str, Any]:
    """The contents of model.json for a checkpoint, but the hashes of its files.

    `name` is what the checkpoint is called, where its path does not say that.
    """
    path = source.path.absolute()
    own = name or (path.name if path.is_dir() else path.stem)
    return {
        "kind": source.kind,
        "name": own if source.family == CUSTOM else source.family,
        "family": source.family,
        "config": to_json(source.config),
        **({"image_mean": CLIP_MEAN, "image_std": CLIP_STD} if _sees(source.config) else {}),
        "source": {
            "name": name or path.name,
            "layout": source.layout,
            "moving_average": source.averaged,
        },
    }


def _sees(model: Config) -> bool:
    """Does it have CLIP's image tower for pictures that people give?"""
    return isinstance(model, Clip | Unclip) and model.image is not None


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
    src: str | os.PathLike[str] | Source,
    dst: str | os.PathLike[str],
    layout: Export,
    *,
    family: str | Config | None = None,
    dtype: StoredDtype = "source",
    ema: bool | None = None,
    check: bool = False,
) -> None:
    """Write a model in a published layout, whole or not at all, one tensor in memory at a time.

    A part that the layout has no place for, such as a safety checker in a single file, is left out
    with a warning.

    Args:
        src: a model folder, or a published checkpoint in any layout, or what `open_source` gave.
        dst: for "diffusers" a new folder, with a subfolder for each part of a system; for
            "single-file" a new safetensors file.
        layout: "single-file" is the original layout: of CompVis and Stability for Stable Diffusion,
            of OpenCLIP for CLIP, of MiDaS for depth, of GLIDE, of a part of Karlo.
        family: as for `convert_checkpoint`; of no use where `src` is a model folder.
        dtype: precision of the parameters; "source" keeps each tensor's own.
        ema: as for `convert_checkpoint`.
        check: open what was written as the checkpoint that it is, and prove that every parameter
            and every unused tensor comes back from it, bit by bit (after the cast to `dtype`).

    Raises:
        FileNotFoundError: `src` or the folder of `dst` does not exist.
        ValueError: `dst` exists; the model has no such layout, or needs a part that it cannot hold;
            or as for `convert_checkpoint`.
    """
    dst = Path(dst).absolute()
    if dst.exists():
        raise ValueError(f"{dst} exists: choose another name")
    if not dst.parent.is_dir():
        raise FileNotFoundError(f"cannot write {dst}: {dst.parent} is not a folder")
    config, components, unused = _open(src, layout, family, ema)
    cast = _numpy(dtype)
    files = {
        place: {
            name: tensor if _full(name, place, layout) in unused else _stored(name, tensor, cast)
            for name, tensor in tensors.items()
        }
        for place, tensors in published(config, components, unused, layout).items()
    }
    new = dst.with_name(f".{dst.name}.{uuid.uuid4().hex[:8]}.new")
    new.mkdir()
    try:
        if layout == "single-file":
            result = new / dst.name
            whole = {name: t for tensors in files.values() for name, t in tensors.items()}
            write_safetensors(result, whole, finite=False)
        else:
            result = new
            write_configs(config, new)
            for place, tensors in files.items():
                (new / place).mkdir(exist_ok=True)
                path = new / place / weights_name(config, place)
                write_safetensors(path, tensors, finite=False)
        if check:
            check_export(result, config, components, unused, dtype=dtype)
        result.rename(dst)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_export(
    path: Path,
    config: Config,
    components: Mapping[str, Leaves],
    unused: Leaves,
    *,
    dtype: StoredDtype,
) -> None:
    """Prove that a model, opened from the published layout at `path`, is the one it was.

    Raises:
        ValueError: `path` cannot be opened as such a model; or names the first tensor that differs.
    """
    written = open_source(path, config)
    for component, leaves in written.components().items():
        for name, leaf in leaves.items():
            if component in components:  # statistics may have been made up
                wanted = components[component][name]
                _same(np.asarray(leaf), wanted, _numpy(dtype), f"{component}: {name}")
    for name, tensor in unused.items():
        _same(np.asarray(written.unused[name]), tensor, None, name)


def published(
    config: Config,
    components: Mapping[str, Leaves],
    unused: Leaves,
    layout: Export,
) -> dict[str, dict[str, LazyTensor]]:
    """Tensors by the names of a published layout: {place of the part: {name: tensor}}.

    Names in a single file begin with the part's place, those in a folder do not.

    Raises:
        ValueError: the layout has no place for something that the model needs.
    """
    files: dict[str, dict[str, LazyTensor]] = {}
    all_parts = parts(config, _layout_of(config, layout))
    _check_places(components, {part.component for part in all_parts}, layout)
    for part in all_parts:
        if part.component == "image_statistics" and part.component not in components:
            if lacks_statistics(config, components):
                warnings.warn(f"{NO_STATISTICS}; 0 and 1 are written", stacklevel=2)
            leaves = _standard(part.shapes)
        else:
            whole, own = components[part.component], flatten(part.shapes)
            leaves = {path: leaf for path, leaf in whole.items() if path in own}
        prefix = part.place if layout == "single-file" else ""
        files.setdefault(part.place, {}).update(
            (prefix + name, _whole(pieces, leaves))
            for name, pieces in names(leaves, part.table).items()
        )
        for name, tensor in unused.items():
            if name.startswith(part.place):
                files[part.place][prefix + name[len(part.place) :]] = tensor
    if layout == "single-file":
        places = tuple(files)
        files["unused"] = {k: t for k, t in unused.items() if not k.startswith(places)}
    return files


def _check_places(components: Mapping[str, Leaves], held: set[str], layout: Export) -> None:
    """Warn of components that the layout cannot hold; refuse where it would be another model."""
    lost = components.keys() - held
    if statistics := components.get("image_statistics" if "image_statistics" in lost else ""):
        usual = _standard({name: leaf for name, leaf in statistics.items()})
        if any((np.asarray(statistics[n]) != np.asarray(usual[n])).any() for n in usual):
            raise ValueError(
                f"the layout {layout} has no place for the mean and deviation of image embeddings "
                "(image_statistics), without which this is another model: export in the layout "
                "diffusers"
            )
    if lost := sorted(lost - {"image_statistics"}):
        warnings.warn(
            f"the layout {layout} has no place for: {', '.join(lost)}; left out", stacklevel=3
        )


def _full(name: str, place: str, layout: Export) -> str:
    return name if layout == "single-file" else place + name


def _stored(name: str, tensor: LazyTensor, dtype: np.dtype | None) -> LazyTensor:
    """A parameter as it is written: cast and checked, which unused tensors beside it are not."""
    stored = dtype or tensor.dtype

    def read() -> np.ndarray:
        array = np.asarray(tensor)
        with np.errstate(over="ignore", under="ignore"):
            cast = array.astype(stored, copy=False)
        if not np.isfinite(cast).all():
            reason = "holds NaN or inf: the file is damaged or training failed"
            if np.isfinite(array).all():
                reason = (
                    f"reaches {np.abs(array).max():.6g}, more than {stored.name} holds: choose "
                    "bfloat16 or float32"
                )
            raise ValueError(f"{shown(name)} {reason}")
        return cast

    return LazyTensor(tensor.shape, stored, read)


def _same(found: np.ndarray, wanted: LazyTensor, dtype: np.dtype | None, where: str) -> None:
    """Refuse numbers that are not `wanted`, cast to `dtype`, in every bit."""
    cast = np.asarray(wanted)
    if dtype is not None and jnp.issubdtype(cast.dtype, jnp.floating):
        cast = cast.astype(dtype)
    if (found.shape, found.dtype) != (cast.shape, cast.dtype) or found.tobytes() != cast.tobytes():
        raise ValueError(f"{shown(where)} does not come back as it was: nothing was written")


def _open(
    src: str | os.PathLike[str] | Source,
    layout: Export,
    family: str | Config | None,
    ema: bool | None,
) -> tuple[Config, dict[str, dict[str, LazyTensor]], dict[str, LazyTensor]]:
    """Config, leaves and unused tensors (where `layout` has a place for them) of any model."""
    if not isinstance(src, Source) and (Path(src) / MODEL_FILE).is_file():
        components, model = open_model(src)
        if model.get("shared"):
            raise ValueError(
                f"{src} has its {', '.join(map(shown, model['shared']))} from a bundled model, "
                "which no published layout can say: only sdjax reads it"
            )
        config = stored_config(model, str(src))
        trees = {name: unflatten(leaves) for name, leaves in components.items()}
        check_components(config, trees, str(src))
        unused = open_unused(src)
        recorded = model.get("source")
        origin = recorded.get("layout") if isinstance(recorded, Mapping) else None
    else:
        source = src if isinstance(src, Source) else open_source(src, family, ema)
        config, components = source.config, source.components()
        unused, origin = dict(source.unused), source.layout
    return config, components, unused if origin == _layout_of(config, layout) else {}


def _numpy(dtype: StoredDtype) -> np.dtype | None:
    return None if dtype == "source" else np.dtype(jnp.dtype(dtype))


def _layout_of(config: Config, layout: Export) -> Layout:
    """What a layout is called for one network of this kind."""
    if not isinstance(config, TRANSFORMERS):
        return layout
    originals: dict[type, Layout] = {Clip: "openclip", Depth: "midas"}
    return "transformers" if layout == "diffusers" else originals.get(type(config), "single-file")


def _standard(shapes: Params) -> dict[str, LazyTensor]:
    """Mean 0 and deviation 1: what a file without statistics computes with."""
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
