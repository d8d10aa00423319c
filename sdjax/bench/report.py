"""The results of a measurement, for people.

GFLOP/s are the operations of the plain formulas over the time, the same number for all sides; one
that computes convolutions with fewer (Winograd) may so pass the peak of plain products.
"""

from collections.abc import Mapping
from typing import Any

from sdjax.catalog import columns

PARTS = ("trace", "lower", "compile", "call")


def report(found: Mapping[str, Any]) -> str:
    """Of what `sdjax.bench.run.bench` returned: the machine, then a table for each network."""
    sections = [_machine(found), *(_section(result) for result in found["results"])]
    return "\n\n".join(sections)


def _machine(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    versions = dict(machine["versions"])
    for result in found["results"]:
        for peer in result["peers"]:
            own = {f"{peer['name']}'s {key}": value for key, value in peer["versions"].items()}
            versions |= own
    vectors = " ".join(machine["vectors"])
    names = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
    return f"{machine['processor']} ({vectors}), {machine['cores']} cores, {names}"


def _section(result: Mapping[str, Any]) -> str:
    ours = result["sdjax"]
    head = ("", "median", "ratio", "GFLOP/s", "of peak", "first call", "temporary", "memory")
    rows = [(*head, "difference"), _row(f"sdjax {result['dtype']}", ours)]
    rows += [_row(f"{peer['name']} {peer['dtype']}", peer) for peer in result["peers"]]
    return "\n".join(
        [_title(result), columns(rows, right=set(range(1, len(rows[0])))), "", _first(ours)]
    )


def _title(result: Mapping[str, Any]) -> str:
    facts = {key: result[key] for key in ("batch", "steps", "tokens") if key in result}
    words = [f"{key} {value}" for key, value in facts.items()]
    for key in ("latents", "pixels"):
        if key in result:
            words.append(f"{'x'.join(map(str, result[key]))} {key}")
    peaks = ", ".join(f"{dtype} {g:,.0f}" for dtype, g in result["product_gflops"].items())
    return (
        f"{result['what']} of {result['preset']}: {', '.join(words)}, "
        f"{result['parameters']:,} parameters, {result['gflop']:,.1f} GFLOP a call; "
        f"{result['pairs']} {'pairs' if result['peers'] else 'timings'} of "
        f"{result['calls_per_timing']} calls; "
        f"peak of matrix products, GFLOP/s: {peaks}"
    )


def _row(name: str, side: Mapping[str, Any]) -> tuple[str, ...]:
    difference = side.get("difference")
    return (
        name,
        seconds(side["median"]),
        _ratio(side),
        f"{side['gflops']:,.0f}",
        f"{side['of_peak']:.0%}",
        seconds(sum(side["first"].get(part, 0.0) for part in PARTS)),
        _mebibytes(side.get("temporary_bytes")),
        _mebibytes(side["peak_bytes"]),
        "" if difference is None else f"{difference:.1e}",
    )


def _ratio(side: Mapping[str, Any]) -> str:
    """Of the medians, and the least and the greatest of a pair."""
    if "ratio" not in side:
        return ""
    least, most = side["ratio_range"]
    return f"{side['ratio']:.3f} ({least:.2f}-{most:.2f})"


def _first(ours: Mapping[str, Any]) -> str:
    first = ours["first"]
    parts = ", ".join(f"{part} {seconds(first[part])}" for part in PARTS if part in first)
    return f"first call of sdjax: {parts}; with its compilations on disk {seconds(first['cached'])}"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f} MiB"
