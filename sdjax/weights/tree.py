"""Parameter trees as flat dictionaries: {"mid_res_0/conv_1/kernel": array}."""

import reprlib
from collections.abc import Mapping
from typing import Any

Params = Mapping[str, Any]
"""A nested dictionary whose leaves are arrays (or their shapes); its paths name the layers."""

SEPARATOR = "/"
"""Between the names of a path."""
SHOWN = 100
"""Characters that a message spends on a name."""


def shown(value: Any) -> str:
    """A name, or a JSON value, from a file for a message: short, control characters escaped."""
    # Cut first: a name may have any length, a list any depth.
    text = repr(value[: SHOWN + 1])[1:-1] if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def flatten(params: Params) -> dict[str, Any]:
    """Leaves of a nested dictionary by path, "a/b/c", in the order of the tree.

    Raises:
        ValueError: for a name that is empty or holds a "/", and for an empty branch: neither could
            be rebuilt by `unflatten`.
    """
    flat: dict[str, Any] = {}

    def visit(node: Params, prefix: str) -> None:
        for name, child in node.items():
            if not name or SEPARATOR in name:
                raise ValueError(
                    f"'{shown(prefix)}' has a branch called '{shown(name)}': not a name for a path"
                )
            path = prefix + name
            if not isinstance(child, Mapping):
                flat[path] = child
            elif child:
                visit(child, path + SEPARATOR)
            else:
                raise ValueError(f"'{shown(path)}' is an empty branch: remove it")

    visit(params, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`.

    Raises:
        ValueError: if a path is at once a leaf and a branch.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *branches, name = path.split(SEPARATOR)
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f"'{shown(path)}': '{shown(branch)}' is both a leaf and a branch")
        if name in node:
            raise ValueError(f"'{shown(path)}' is both a leaf and a branch")
        node[name] = leaf
    return tree
