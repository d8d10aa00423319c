"""A published checkpoint, opened, recognised and laid beside the model it should be.

`open_source` reads names and shapes only; numbers are read when a tensor is looked at, so a
checkpoint of any size can be looked into, and converted with one tensor in memory at a time.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sdjax import presets
from sdjax.config import Clip, Config, Decoder, Depth, StableDiffusion, TextTower, Unclip, UNet
from sdjax.weights import ldm, readers
from sdjax.weights.config_json import to_json
from sdjax.weights.files import MODEL_FILE
from sdjax.weights.folders import diffusers_config, lone_config, open_clip_config
from sdjax.weights.layouts import FOLDERS, KINDS, Layout, Part, parts
from sdjax.weights.readers import open_checkpoint
from sdjax.weights.recognize import FAMILIES, OPENAI, activation, landmark, named, recognize
from sdjax.weights.rules import LISTED, Comparison, Rule, compare, listing
from sdjax.weights.stored import NO_STATISTICS, lacks_statistics
from sdjax.weights.tensors import LazyTensor
from sdjax.weights.tree import flatten, shown

Tensors = Mapping[str, LazyTensor]

CUSTOM = "custom"
"""The family of a model whose sizes are its own."""
EPSILON = presets.DPT_HYBRID.layer_norm_epsilon


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
    notes: tuple[str, ...] = ()  # what was assumed, and what is not there, in words

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
        found: dict[str, dict[str, LazyTensor]] = {}
        for matched in self.matched:
            found.setdefault(matched.part.component, {}).update(matched.leaves())
        return found

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
            names = ", ".join(shown(name) for name in self.left_over[:LISTED])
            names += f", and {more} more" if more > 0 else ""
            problems.append(f"in no part of the model, {len(self.left_over)}: {names}")
        if problems:
            whole = "model of this config" if self.family == CUSTOM else self.family
            raise ValueError(f"{self.path} is no whole {whole}.\n" + "\n".join(problems))


def open_source(
    path: str | os.PathLike[str],
    family: str | Config | None = None,
    ema: bool | None = None,
) -> Source:
    """Open a checkpoint in any published layout and recognise it.

    Args:
        path: a weights file, or a folder in the layout of diffusers, transformers or OpenCLIP.
        family: a name in `FAMILIES`, where the tensors cannot tell; or the config of a model with
            sizes of its own. Settings that lie beside the weights must say the same.
        ema: take the moving average of the UNet's weights (True), the raw weights (False), or the
            average where the file has it (None). Only single files may have both.

    Raises:
        FileNotFoundError: there is no such file, or a file is missing in the folder.
        ValueError: the file is damaged or hostile, or it is none of the models that sdjax knows.
            That it lacks tensors is said by `check`, not here.
    """
    path = Path(path)
    if isinstance(family, str) and family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        meant = f"did you mean {near[0]!r}? All names: " if near else "choose among "
        raise ValueError(f"unknown family {family!r}: {meant}{', '.join(FAMILIES)}")
    if (path / MODEL_FILE).is_file():
        raise ValueError(f"{path} is converted already: it has a {MODEL_FILE}")
    if any((path / name).exists() for name in ("model_index.json", "unet", "decoder")):
        source = _open_diffusers(path, family)
    else:
        source = _open_file(path, family, ema)
    if ema and not source.averaged:
        raise ValueError(
            f"{path} holds no moving average of the weights: leave out --ema (in Python ema=True)"
        )
    return source


def _open_file(path: Path, family: str | Config | None, ema: bool | None) -> Source:
    """One file, or a folder that holds one, with the config beside it where there is one."""
    checkpoint = open_checkpoint(path)
    tensors = checkpoint.tensors
    notes = []
    said = _settings(path, tensors)
    if said is None:
        config, layout = recognize(tensors, str(path), family)
        if family is None and OPENAI not in tensors and activation(config):
            notes.append(
                f"no file says its activation: {activation(config)} is assumed, as OpenCLIP "
                "trained models of this size"
            )
    else:
        config, layout = said
        if family is not None:
            _agree(config, family, path)
    if isinstance(config, StableDiffusion):
        config = replace(config, safety=None)  # a single file has no place for one
    tensors, averaged = _without_averages(tensors, ema, path)
    matched, used = [], set()
    for part in parts(config, layout):
        own = [name for name in tensors if name.startswith(part.place)]
        used.update(own)
        matched.append(_match(part, {name[len(part.place) :]: tensors[name] for name in own}))
    rest = [name for name in tensors if name not in used]
    unused = {name: tensors[name] for name in rest if ldm.is_buffer(name, tensors[name].shape)}
    left_over = tuple(name for name in rest if name not in unused)
    unused |= _dropped(matched)
    if lacks_statistics(config, [one.part.component for one in matched]):
        notes.append(NO_STATISTICS)
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
        tuple(notes),
    )


def _open_diffusers(path: Path, family: str | Config | None) -> Source:
    try:
        config = diffusers_config(path)
    except FileNotFoundError:
        if family is None:
            raise
        config = _wanted(family)
        if not isinstance(config, StableDiffusion | Unclip):
            raise ValueError(_unlike_kind(path, StableDiffusion, family)) from None
        has_checker = isinstance(family, str) and (path / FOLDERS["safety"]).is_dir()
        if isinstance(config, StableDiffusion) and has_checker:
            config = replace(config, safety=presets.SAFETY_CHECKER)
    else:
        if family is not None:
            _agree(config, family, path)
    family = _family(config)
    matched, files, every = [], [], parts(config, "diffusers")
    for part in every:
        folder = path / part.place
        if not folder.is_dir():
            raise FileNotFoundError(f"{path} has no folder {part.place}, as a {family} should")
        checkpoint = open_checkpoint(folder)
        files += [file for file in checkpoint.files if file not in files]
        others = {
            name
            for other in every
            if other.place == part.place and other is not part
            for name in listing(other.shapes, other.table)
        }
        own = {name: t for name, t in checkpoint.tensors.items() if name not in others}
        matched.append(_match(part, own))
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
        if name not in present and name not in ldm.EMA_BUFFERS
    }
    if ema is False:
        return kept, False
    for average, name in averages.items():
        if average not in present:
            raise ValueError(
                f"{path} has averaged weights, but none of {shown(name)} (it would be called "
                f"{shown(average)}): take the raw weights with --no-ema (in Python ema=False)"
            )
        kept[name] = tensors[average]
    return kept, True


def _settings(path: Path, tensors: Tensors) -> tuple[Config, Layout] | None:
    """What the settings beside the weights of one network say, where there are any."""
    if not path.is_dir() and not readers.MODEL_FILE.fullmatch(path.name):
        return None  # what lies beside a file with a name of its own may be about another
    found = landmark(tensors)
    if found is not None and found[1] is StableDiffusion:
        return None  # such a file has none
    folder = path if path.is_dir() else path.parent
    choices = [("config.json", lone_config), ("open_clip_config.json", open_clip_config)]
    if found is not None and found[0] == "openclip":
        choices.reverse()
    for name, read in choices:
        if (folder / name).is_file():
            config, layout = read(folder / name)
            # The settings are those of the model, its weights may be in another layout.
            if found is not None and found[1] is type(config):
                layout = found[0]
            return config, layout
    return None


def _agree(said: Config, family: str | Config, path: Path) -> None:
    """Refuse a family that the settings beside the weights contradict."""
    wanted = _wanted(family)
    if type(wanted) is not type(said):
        raise ValueError(_unlike_kind(path, type(said), family))
    differences = _unlike(to_json(_plain(wanted)), to_json(_plain(said)))
    if isinstance(said, TextTower | Clip):  # is about the tokenizer
        differences = [words for words in differences if not words.split(" ")[0].endswith("pad")]
    if differences:
        more = f", and {len(differences) - LISTED} more" if len(differences) > LISTED else ""
        raise ValueError(
            f"the settings in {path} are not those of {named(family)}: "
            f"{', '.join(differences[:LISTED])}{more}. Leave out --family (in Python family), or "
            "mend the settings"
        )


def _wanted(family: str | Config) -> Config:
    return FAMILIES[family] if isinstance(family, str) else family


def _unlike_kind(path: Path, kind: type[Config], family: str | Config) -> str:
    names = ", ".join(name for name, value in FAMILIES.items() if type(value) is kind)
    return (
        f"{path} holds a {kind.__name__}, which {named(family)} is not: choose among {names}, or "
        "leave out --family"
    )


def _unlike(wanted: Any, said: Any, where: str = "") -> list[str]:
    """What differs in two configs as JSON values, in words."""
    if isinstance(wanted, dict) and isinstance(said, dict):
        inside = f"{where}." if where else ""
        return [words for k in wanted for words in _unlike(wanted[k], said[k], f"{inside}{k}")]
    return [] if wanted == said else [f"{where} is {_short(said)}, not {_short(wanted)}"]


def _short(value: Any) -> str:
    return "there" if isinstance(value, dict) else repr(value)


def _family(config: Config) -> str:
    """The family whose config this is."""
    config = _plain(config)
    return next((name for name, value in FAMILIES.items() if _plain(value) == config), CUSTOM)


def _plain(config: Config) -> Config:
    """A config without what does not tell families apart.

    That is a safety checker, the depth network's epsilon, of which the hub's files give another
    value than the network was trained with, and what counts in training only.
    """
    match config:
        case StableDiffusion():
            depth = config.depth and replace(config.depth, layer_norm_epsilon=EPSILON)
            return replace(config, safety=None, depth=depth)
        case Depth():
            return replace(config, layer_norm_epsilon=EPSILON)
        case UNet():
            return replace(config, dropout=0.0)
        case Decoder():
            return replace(config, unet=replace(config.unet, dropout=0.0))
        case Unclip():
            unet = replace(config.decoder.unet, dropout=0.0)
            return replace(config, decoder=replace(config.decoder, unet=unet))
    return config
