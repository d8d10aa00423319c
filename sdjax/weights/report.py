"""What a checkpoint holds, as a table for people."""

import math
from collections import Counter
from collections.abc import Iterable

from sdjax.weights.sources import Matched, Source
from sdjax.weights.tree import shown

COLUMNS = ("part", "used", "missing", "misshapen", "left over", "unused", "parameters", "dtype")


def report(source: Source) -> str:
    """One line for each part of a checkpoint, then what lies beside the parts.

    "used" counts tensors of the file; "unused" those that the family is known to carry without use.
    """
    parts = Counter(matched.part.component for matched in source.matched)
    several = {component for component, count in parts.items() if count > 1}
    rows = [COLUMNS, *(_row(matched, several) for matched in source.matched)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [f"{source.path}: {source.family}, layout {source.layout}"]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    lines += [f"note: {note}" for note in source.notes]
    if source.averaged:
        lines.append("the UNet is the moving average of training; its raw weights are left behind")
    beside = [name for name in source.unused if not _in_a_part(name, source)]
    if beside:
        lines.append(f"beside the parts, kept but unused: {_some(beside)}")
    if source.left_over:
        lines.append(f"in no part of the model: {_some(source.left_over)}")
    return "\n".join(lines)


def _row(matched: Matched, several: set[str]) -> tuple[str, ...]:
    """Cells of one part; the place tells it apart where a component has `several`."""
    found, part = matched.comparison, matched.part
    names = {name for name, _ in found.matches.values()}
    dtypes = Counter(str(matched.tensors[name].dtype) for name in names)
    parameters = sum(math.prod(matched.tensors[name].shape) for name in names)
    counts = (names, found.missing, found.misshapen, found.left_over, found.dropped)
    return (
        f"{part.component}: {part.place}" if part.component in several else part.component,
        *(str(len(items)) for items in counts),
        f"{parameters:,}",
        "/".join(dtype for dtype, _ in dtypes.most_common()),
    )


def _in_a_part(name: str, source: Source) -> bool:
    return name.startswith(tuple(matched.part.place for matched in source.matched))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(shown(name) for name in names[:4]) + more
