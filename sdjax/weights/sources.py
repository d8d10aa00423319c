"""A published checkpoint, opened, recognised and laid beside the model it should be.

`open_source` reads names and shapes only; numbers are read when a tensor is looked at, so a
checkpoint of any size can be looked into, and converted with one tensor in memory at a time.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp

from sdjax import presets
from sdjax.config import Config, StableDiffusion
from sdjax.weights import ldm
from sdjax.weights.files import MODEL_FILE
from sdjax.weights.folders import diffusers_config, lone_config
from sdjax.weights.layouts import FOLDERS, KINDS, Layout, Part, parts
from sdjax.weights.readers import open_checkpoint
from sdjax.weights.recognize import FAMILIES, recognize
from sdjax.weights.rules import LISTED, Comparison, Rule, compare
from sdjax.weights.tensors import LazyTensor
from sdjax.weights.tree import flatten

Tensors = Mapping[str, LazyTensor]

CUSTOM = "custom"
"""The family of a model whose sizes are its own."""


@dataclass(frozen=True, eq=False)
class Matched:
    """One network of a checkpoint beside our own: `comparison` says which tensor is which leaf."""

    part: Part
    tensors: Tensors  # by their names below `part.place`
    comparison: Comparison

    def leaves(self) -> dict[str, LazyTensor]:
        """The leaves of our tree by path."""
        shapes = flatten(self.part.shapes)
        return {
            path: _leaf(self.tensors[name], rule, tuple(shapes[path].shape))
            for path, (name, rule) in self.comparison.matches.items()
        }


@dataclass(frozen=True, eq=False)
class Source:
    """What a checkpoint holds."""

    path: Path
    family: str  # a name in FAMILIES, or "custom"
    config: Config
    layout: Layout
    files: tuple[Path, ...]  # with weights
    matched: tuple[Matched, ...]
    unused: Tensors  # by full name: what the model has no use for, such as a noise schedule
    left_over: tuple[str, ...] = ()  # full names that belong to no part
    averaged: bool = False  # the UNet's weights are the moving average of training

    @property
    def kind(self) -> str:
        """The word for the config's class in model.json."""
        return next(kind for kind, cls in KINDS.items() if cls is type(self.config))

    def components(self) -> dict[str, dict[str, LazyTensor]]:
        """Leaves by path of every component.

        Raises:
            ValueError: lists every tensor that does not fit, if any.
        """
        self.check()
        return {matched.part.component: matched.leaves() for matched in self.matched}

    def check(self) -> None:
        """Raise a ValueError that lists every tensor that does not fit, if any."""
        problems = []
        for matched in self.matched:
            try:
                matched.comparison.check()
            except ValueError as error:
                problems.append(f"{matched.part.component}: {error}")
            problems += [
                f"{matched.part.component}: {name} holds {matched.tensors[name].dtype}, parameters "
                "are floats (quantized weights are not supported)"
                for name in sorted({name for name, _ in matched.comparison.matches.values()})
                if not jnp.issubdtype(matched.tensors[name].dtype, jnp.floating)
            ][:LISTED]
        if self.left_over:
            more = len(self.left_over) - LISTED
            names = ", ".join(self.left_over[:LISTED]) + (f", and {more} more" if more > 0 else "")
            problems.append(f"in no part of the model, {len(self.left_over)}: {names}")
        if problems:
            raise ValueError(f"{self.path} is no whole {self.family}.\n" + "\n".join(problems))


def open_source(
    path: str | os.PathLike[str],
    family: str | Config | None = None,
    ema: bool | None = None,
) -> Source:
    """Open a checkpoint in any published layout and recognise it.

    Args:
        path: a weights file, or a folder in the layout of diffusers, transformers or OpenCLIP.
        family: a name in `FAMILIES`, where the tensors cannot tell; or the config of a model with
            sizes of its own.
        ema: take the moving average of the UNet's weights (True), the raw weights (False), or the
            average where the file has it (None). Only single files may have both.

    Raises:
        FileNotFoundError: there is no such file, or a file is missing in the folder.
        ValueError: the file is damaged or hostile, or it is none of the models that sdjax knows.
            That it lacks tensors is said by `check`, not here.
    """
    path = Path(path)
    if isinstance(family, str) and family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: choose among {', '.join(FAMILIES)}")
    if (path / MODEL_FILE).is_file():
        raise ValueError(f"{path} is converted already: it has a {MODEL_FILE}")
    if (path / "model_index.json").is_file() or (path / "unet").is_dir():
        source = _open_diffusers(path, family)
    else:
        source = _open_file(path, family, ema)
    if ema and not source.averaged:
        raise ValueError(f"{path} holds no moving average of the weights: leave out --ema")
    return source


def _open_file(path: Path, family: str | Config | None, ema: bool | None) -> Source:
    """One file, or a folder that holds one, with the config beside it where there is one."""
    checkpoint = open_checkpoint(path)
    tensors = checkpoint.tensors
    config_file = path / "config.json"
    if family is None and config_file.is_file():
        config, layout = lone_config(config_file)
    else:
        config, layout = recognize(tensors, str(path), family)
    if isinstance(config, StableDiffusion):
        config = replace(config, safety=None)  # a single file has no place for one
    tensors, averaged = _without_averages(tensors, ema, path)
    matched, used = [], set()
    for part in parts(config, layout):
        own = [name for name in tensors if name.startswith(part.place)]
        used.update(own)
        matched.append(_match(part, {name[len(part.place) :]: tensors[name] for name in own}))
    rest = [name for name in tensors if name not in used]
    unused = {name: tensors[name] for name in rest if name in ldm.BUFFERS}
    left_over = tuple(name for name in rest if name not in unused)
    unused |= _dropped(matched)
    return Source(
        path,
        family if isinstance(family, str) else _family(config),
        config,
        layout,
        checkpoint.files,
        tuple(matched),
        unused,
        left_over,
        averaged,
    )


def _open_diffusers(path: Path, family: str | Config | None) -> Source:
    if family is None:
        config = diffusers_config(path)
    else:
        config = FAMILIES[family] if isinstance(family, str) else family
        if not isinstance(config, StableDiffusion):
            raise ValueError(
                f"{path} holds a StableDiffusion in the layout 'diffusers', which {family!r} is "
                f"not: choose among {', '.join(presets.SYSTEMS)}, or leave out --family"
            )
        if isinstance(family, str) and (path / FOLDERS["safety"]).is_dir():
            config = replace(config, safety=presets.SAFETY_CHECKER)
    family = _family(config)
    matched, files = [], []
    for part in parts(config, "diffusers"):
        folder = path / part.place
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} has no folder {part.place}, as a {family} should")
        checkpoint = open_checkpoint(folder)
        files += checkpoint.files
        matched.append(_match(part, checkpoint.tensors))
    unused = _dropped(matched)
    return Source(path, family, config, "diffusers", tuple(files), tuple(matched), unused)


def _match(part: Part, tensors: Tensors) -> Matched:
    return Matched(part, tensors, compare(tensors, part.table, part.shapes))


def _dropped(matched: list[Matched]) -> dict[str, LazyTensor]:
    """What the tables know to hold nothing, by full name."""
    return {
        one.part.place + name: one.tensors[name]
        for one in matched
        for name in one.comparison.dropped
    }


def _leaf(tensor: LazyTensor, rule: Rule, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, tensor.dtype, lambda: rule.read(tensor))


def _without_averages(
    tensors: Tensors, ema: bool | None, path: Path
) -> tuple[dict[str, LazyTensor], bool]:
    """The tensors with one set of weights of the UNet: the averages if wanted, under their names.

    Of the set that is not taken nothing is kept. The second value is whether averages were taken.
    """
    averages = {ldm.ema_name(n): n for n in tensors if n.startswith(ldm.UNET_PREFIX)}
    present = averages.keys() & tensors.keys()
    if not present:
        return dict(tensors), False
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in present and not (name.startswith(ldm.EMA_PREFIX) and name in ldm.BUFFERS)
    }
    if ema is False:
        return kept, False
    for average, name in averages.items():
        if average not in present:
            raise ValueError(
                f"{path} has averaged weights, but none of {name} (it would be called "
                f"{average}): take the raw weights with --no-ema"
            )
        kept[name] = tensors[average]
    return kept, True


def _family(config: Config) -> str:
    """The family whose config this is, a safety checker apart."""
    if isinstance(config, StableDiffusion):
        config = replace(config, safety=None)
    return next((name for name, value in FAMILIES.items() if value == config), CUSTOM)
