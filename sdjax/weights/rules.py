"""Conversion by table: names and layouts of published files <-> parameter trees.

A `Table` is a list of rows (source name, target path, transform). `convert` reads it left to right,
`export` right to left. Reading is strict both ways: every tensor of the file is used exactly once,
every leaf of the tree is filled, every shape is equal, or one error lists what is not.

Names are patterns: "{i}" stands for a whole number, the same one on both sides, so that
"layers.{i}.mlp.fc1.weight" <-> "block_{i}/mlp/expand/kernel" is one row for all layers. Where files
of one family differ, several rows may lead to one target: the first whose source the file has, in
the right shape, is taken. The first of all is the one `export` writes.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdjax.weights.tree import Params, flatten, shown, unflatten

Shape = tuple[int, ...]

NUMBER = "(?:0|[1-9][0-9]{0,3})"
"""What "{i}" stands for: a layer's number as files write it."""

LISTED = 8
"""Names an error shows of each kind."""


@dataclass(frozen=True)
class Transform:
    """A change of layout, and back. Both functions return views where they can."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]

    def source_shape(self, target_shape: Shape) -> Shape:
        """The shape in the file of what has `target_shape` in the tree."""
        # Strides of zero: a stand-in of any size without memory.
        return self.inverse(np.broadcast_to(np.float32(0), target_shape)).shape


COPY = Transform(lambda x: x, lambda x: x)
TRANSPOSE = Transform(lambda x: x.T, lambda x: x.T)
OIHW_TO_HWIO = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
OI11_TO_IO = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
OI1_TO_IO = Transform(lambda x: x[:, :, 0].T, lambda x: x.T[:, :, None])

Kind = tuple[tuple[str, str, Transform], ...]
"""The tensors of one kind of layer: (source suffix, target suffix, transform)."""

CONV: Kind = ((".weight", "/kernel", OIHW_TO_HWIO), (".bias", "/bias", COPY))
LINEAR: Kind = ((".weight", "/kernel", TRANSPOSE), (".bias", "/bias", COPY))
LINEAR_1X1: Kind = ((".weight", "/kernel", OI11_TO_IO), (".bias", "/bias", COPY))
"""A linear layer stored as a 1x1 convolution."""
LINEAR_1: Kind = ((".weight", "/kernel", OI1_TO_IO), (".bias", "/bias", COPY))
"""A linear layer stored as a convolution of width 1 over positions."""
NORM: Kind = ((".weight", "/scale", COPY), (".bias", "/bias", COPY))
EMBEDDING: Kind = ((".weight", "/embedding", COPY),)
PLAIN: Kind = (("", "", COPY),)
"""A tensor that bears its layer's name, in our own shape."""
WEIGHT: Kind = ((".weight", "", COPY),)
"""A table of numbers that is a parameter of its own, not of a layer."""

Row = tuple[str, str, Kind]
"""One layer: (source name, target path, kind)."""


@dataclass(frozen=True)
class Rule:
    """One row of a table, for one tensor. Both names have the same "{...}" numbers."""

    source: str
    target: str
    transform: Transform
    part: int = 0
    parts: int = 1  # of equal size along the source's first axis, of which the target is `part`
    groups: int = 1  # the first axis is first cut into so many, and each of them into the parts

    def __post_init__(self) -> None:
        source, target = (set(re.findall(r"\{(\w+)\}", s)) for s in (self.source, self.target))
        if source != target:
            raise ValueError(
                f"rule {self.source!r} <-> {self.target!r}: numbers {sorted(source)} on the left, "
                f"{sorted(target)} on the right"
            )

    def source_of(self, path: str) -> str | None:
        """The source name that belongs to the target `path`; None if the rule is not about it."""
        match = _regex(self.target).fullmatch(path)
        return match and self.source.format(**match.groupdict())

    def source_shape(self, target_shape: Shape) -> Shape:
        """The shape in the file, all parts together, where one target has `target_shape`."""
        shape = self.transform.source_shape(target_shape)
        return (shape[0] * self.parts, *shape[1:]) if self.parts > 1 else shape

    def read(self, tensor: Any) -> np.ndarray:
        """The target from the source tensor, contiguous."""
        array = np.asarray(tensor)
        if self.parts > 1:
            cut = array.reshape(self.groups, self.parts, -1, *array.shape[1:])
            array = cut[:, self.part].reshape(-1, *array.shape[1:])
        return np.asarray(self.transform.forward(array), order="C")


@dataclass(frozen=True)
class Table:
    """Rules, and patterns of the source names that hold nothing and are dropped on reading."""

    rules: tuple[Rule, ...]
    drop: tuple[str, ...] = ()

    def sources(self, path: str) -> list[tuple[str, Rule]]:
        """(source name, rule) of every rule that fills the target `path`, in their order."""
        candidates = self._by_outline.get(_outline(path), [])
        found = ((rule.source_of(path), rule) for rule in candidates)
        return [(name, rule) for name, rule in found if name is not None]

    def drops(self, name: str) -> bool:
        """Is the source tensor `name` one that holds nothing this model uses?"""
        return any(_regex(pattern).fullmatch(name) for pattern in self.drop)

    @functools.cached_property
    def _by_outline(self) -> dict[str, list[Rule]]:
        # A UNet has 700 paths and 400 rules: trying each with each takes seconds.
        index: dict[str, list[Rule]] = {}
        for rule in self.rules:
            index.setdefault(_outline(rule.target), []).append(rule)
        return index


def layers(rows: Iterable[Row], source: str = "", target: str = "") -> tuple[Rule, ...]:
    """The rules of `rows`, with `source` and `target` put before the names of each.

    A row may name a tensor that some layers lack, such as a bias: a rule without a target in the
    model does nothing.
    """
    return tuple(
        Rule(source + name + suffix, target + path + leaf, transform)
        for name, path, kind in rows
        for suffix, leaf, transform in kind
    )


def fused(
    source: str, targets: Sequence[str], transform: Transform, groups: int = 1
) -> tuple[Rule, ...]:
    """The rules of one source tensor that holds several targets, one after the other.

    Its first axis is cut into equal parts before `transform`: the query, key and value of a fused
    attention projection. With `groups`, the heads, each head has its own query, key and value there
    instead.
    """
    return tuple(
        Rule(source, target, transform, part, len(targets), groups)
        for part, target in enumerate(targets)
    )


def within(table: Table, source: str, target: str) -> tuple[Rule, ...]:
    """The rules of a table, with `source` and `target` put before the names of each."""
    return tuple(
        replace(rule, source=source + rule.source, target=target + rule.target)
        for rule in table.rules
    )


@dataclass(frozen=True)
class Comparison:
    """What a file has, beside what a model needs."""

    matches: dict[str, tuple[str, Rule]]  # {target path: (source name, rule)}
    missing: list[str]
    left_over: list[str]
    misshapen: list[str]
    shared: list[str]  # tensors that two targets ask for, or of which a part is unused
    dropped: list[str]  # known to hold nothing

    def check(self) -> None:
        """Raise a ValueError that lists what does not fit, if anything."""
        kinds = ("missing", "left_over", "misshapen", "shared")
        problems = {kind.replace("_", " "): getattr(self, kind) for kind in kinds}
        problems["left over"] = [shown(name) for name in self.left_over]  # the file's choice
        _raise_if_any(problems, "these tensors do not make this model")


def compare(source: Mapping[str, Any], table: Table, expected_shapes: Params) -> Comparison:
    """Names and shapes of a file beside those of a model; reads no numbers.

    Args:
        source: tensors by the file's own names; only their `shape` is looked at.
        table: the names of this family of files.
        expected_shapes: the tree to fill; leaves have a `shape`, as `jax.eval_shape` of a module's
            `init` gives them. With or without "params" at the top: the result is alike.
    """
    result = Comparison({}, [], [], [], [], [])
    used: dict[str, dict[int, str]] = {}
    for path, leaf in flatten(_inside(expected_shapes)).items():
        choices = table.sources(path)
        present = [(name, rule) for name, rule in choices if name in source]
        if not present:
            name = choices[0][0] if choices else "no row of the table"
            result.missing.append(f"{name} (for {path})")
            continue
        shape = tuple(leaf.shape)
        fitting = [
            (name, rule)
            for name, rule in present
            if tuple(source[name].shape) == rule.source_shape(shape)
        ]
        name, rule = (fitting or present)[0]
        if rule.part in used.setdefault(name, {}):
            result.shared.append(f"{name} (for {used[name][rule.part]} and {path})")
        used[name][rule.part] = path
        result.matches[path] = (name, rule)
        if not fitting:
            result.misshapen.append(
                f"{name} is {tuple(source[name].shape)}, not {rule.source_shape(shape)}"
            )
    for name, parts in used.items():
        wanted = max(result.matches[path][1].parts for path in parts.values())
        if len(parts) != wanted:
            result.shared.append(f"{name} ({len(parts)} of its {wanted} parts used)")
    for name in source:
        if name not in used:
            (result.dropped if table.drops(name) else result.left_over).append(name)
    return result


def convert(source: Mapping[str, Any], table: Table, expected_shapes: Params) -> dict[str, Any]:
    """Parameters from the tensors of a published file, in the precision of the file.

    Takes the arguments of `compare`.

    Returns:
        A nested dictionary of NumPy arrays.

    Raises:
        ValueError: lists tensors that are missing, left over, misshapen or used twice.
    """
    comparison = compare(source, table, expected_shapes)
    comparison.check()
    filled = {path: rule.read(source[name]) for path, (name, rule) in comparison.matches.items()}
    params = unflatten(filled)
    return {"params": params} if _inside(expected_shapes) is not expected_shapes else params


def export(params: Params, table: Table) -> dict[str, np.ndarray]:
    """The tensors of a published file from parameters: `convert` backwards.

    Raises:
        ValueError: lists leaves that the table has no name for, or that share one.
    """
    flat = flatten(_inside(params))
    return {name: assemble(parts, flat) for name, parts in names(flat, table).items()}


def assemble(parts: Sequence[tuple[str, Rule]], leaves: Mapping[str, Any]) -> np.ndarray:
    """One source tensor from the targets that it holds, as `names` lists them."""
    arrays = [rule.transform.inverse(np.asarray(leaves[path])) for path, rule in parts]
    if len(arrays) == 1:
        return np.asarray(arrays[0], order="C")
    groups, rest = parts[0][1].groups, arrays[0].shape[1:]
    cut = [array.reshape(groups, -1, *rest) for array in arrays]
    return np.concatenate(cut, axis=1).reshape(-1, *rest)


def listing(expected_shapes: Params, table: Table) -> dict[str, Shape]:
    """Names and shapes of the file that `export` would write, from shapes alone."""
    flat = flatten(_inside(expected_shapes))
    return {
        name: parts[0][1].source_shape(tuple(flat[parts[0][0]].shape))
        for name, parts in names(flat, table).items()
    }


def names(paths: Iterable[str], table: Table) -> dict[str, list[tuple[str, Rule]]]:
    """{source name: its targets, (path, rule), in the order of their parts} for writing.

    Raises:
        ValueError: lists paths that the table has no name for, or that share one.
    """
    problems: dict[str, list[str]] = {"without a row in the table": [], "shared": []}
    found: dict[str, dict[int, tuple[str, Rule]]] = {}
    for path in paths:
        choices = table.sources(path)
        if not choices:
            problems["without a row in the table"].append(shown(path))
            continue
        name, rule = choices[0]
        parts = found.setdefault(name, {})
        if rule.part in parts:
            problems["shared"].append(f"{name} (for {parts[rule.part][0]} and {path})")
        parts[rule.part] = (path, rule)
    for name, parts in found.items():
        wanted = next(iter(parts.values()))[1].parts
        if len(parts) != wanted:
            problems["shared"].append(f"{name} ({len(parts)} of its {wanted} parts are there)")
    _raise_if_any(problems, "the table does not fit these parameters")
    return {name: [parts[i] for i in sorted(parts)] for name, parts in found.items()}


def _inside(tree: Params) -> Params:
    """The tree below "params", where that is all there is, as in what `init` returns."""
    return tree["params"] if set(tree) == {"params"} else tree


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", rf"(?P<\1>{NUMBER})", re.escape(pattern)))


def _outline(name: str) -> str:
    """A path or a pattern with every number, known or not, replaced by "#"."""
    return re.sub(r"\d+|\{\w+\}", "#", name)


def _raise_if_any(problems: Mapping[str, list[str]], message: str) -> None:
    lines = []
    for kind, items in problems.items():
        if items:
            more = f", and {len(items) - LISTED} more" if len(items) > LISTED else ""
            lines.append(f"  {kind}, {len(items)}: {', '.join(items[:LISTED])}{more}")
    if lines:
        raise ValueError("\n".join([f"{message}:", *lines]))
