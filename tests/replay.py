"""Replay golden files: every number that they hold, computed by sdjax.

    python tests/replay.py tests/golden/tiny_modules_*.json.gz [--tolerance 2e-4]

A line for each case with its largest absolute error, then "N passed, M failed". What a file holds
is told from its structure. Exit status: 0, 1 if a case failed, 2 if a file cannot be read.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import golden_networks
import golden_samplers
import golden_tables
import jax
import numpy as np
from golden_replay import NotSupported, Result, compare
from golden_rule import Case

Job = tuple[str, Callable[[], Result]]
"""A case's name, and what replays it."""

NETWORK = {
    "id": str,
    "layout": str,
    "source": str,
    "config": dict,
    "state_dict_shapes": dict,
    "inputs": dict,
    "outputs": dict,
}
"""Fields that a case of a network must have."""


SECTIONS: dict[str, type] = {
    "cases": list,
    "rows": list,
    "ops": dict,
    "weight": dict,
    "input": dict,
    "crc32": dict,
}
"""What a file holds at the top, tables apart."""


class Damaged(ValueError):
    """A file, or a case of it, is not what it should be."""


def read(path: Path) -> dict[str, Any]:
    """The content of a .json or .json.gz file, told apart by what is inside."""
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, ValueError, gzip.zlib.error) as error:
        raise Damaged(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: holds a {type(content).__name__}, golden files hold an object")
    return content


def jobs(path: Path, tolerance: float) -> list[Job]:
    """The cases of a file, and what it holds besides, which fails."""
    content = read(path)
    found = list(_jobs(content, tolerance))
    if not found:
        raise Damaged(f"{path}: holds no cases that a golden file may hold")
    return found + list(_others(content))


def _jobs(content: dict[str, Any], tolerance: float) -> Iterator[Job]:
    """What is wrong with a case is found when it is replayed: it fails alone."""

    def section(name: str) -> Any:
        value, kind = content.get(name), SECTIONS[name]
        return value if isinstance(value, kind) else kind()

    for number, case in enumerate(section("cases")):
        name = _text(case, "id", f"case {number}")
        yield name, lambda name=name, case=case: _case(name, case, tolerance)()
    for number, row in enumerate(section("rows")):
        name = ascii(_text(row, "prompt", f"row {number}")[:40])
        yield _compared(name, lambda row=row: golden_tables.tokens(row))
    meta = content.get("meta", {})
    for name, stored in section("ops").items():
        yield _compared(
            name,
            lambda name=name, stored=stored: (
                {"result": golden_tables.operation(name, meta)},
                {"result": np.reshape(stored["data"], stored["shape"])},
            ),
            atol=0.0 if name.startswith("PIL") else tolerance,
        )
    if _has_tables(content):
        tables = {key: value for key, value in content.items() if key not in SECTIONS}
        for table, name, stored in golden_tables.table_cases(tables):
            function, limits = golden_tables.TABLES.get(table, (golden_tables.unknown_table, {}))
            yield _compared(
                f"{table}: {name}",
                lambda f=function, name=name, stored=stored: f(name, stored),
                **limits,
            )
    for kind in ("weight", "input", "crc32"):
        for key, stored in section(kind).items():
            yield _compared(
                f"{kind}: {key}",
                lambda kind=kind, key=key, stored=stored: golden_tables.rule_check(
                    kind, key, stored
                ),
                atol=1e-8,
            )


def _others(content: dict[str, Any]) -> Iterator[Job]:
    """Sections that nothing here replays, remarks apart."""
    for name, value in content.items():
        known = isinstance(value, SECTIONS.get(name, ())) or name == "meta"
        table = _has_tables(content) and isinstance(value, dict) and name not in SECTIONS
        if not (known or table or isinstance(value, str)):
            yield (
                ascii(name[:40]),
                lambda value=value: _unknown(f"a section {type(value).__name__}"),
            )


def _has_tables(content: dict[str, Any]) -> bool:
    return "timesteps" in content or "schedules" in content


def _text(entry: Any, field: str, default: str) -> str:
    """What an entry is called."""
    name = entry.get(field) if isinstance(entry, dict) else None
    return name if isinstance(name, str) else default


def _unknown(what: str) -> Result:
    raise NotSupported(what)


def _compared(name: str, pair: Callable[[], golden_tables.Pair], **limits: float) -> Job:
    return name, lambda: compare(name, *pair(), **limits)


def _case(name: str, case: Any, tolerance: float) -> Callable[[], Result]:
    """What replays one entry of "cases"."""
    if not isinstance(case, dict) or not isinstance(case.get("id"), str):
        raise Damaged(f"a case without an id: {case!r:.60}")
    if "state_dict_shapes" in case:
        network = _network_case(case)
        return lambda: golden_networks.replay(network, tolerance)
    for field, function, outputs in (
        ("scheduler", golden_samplers.diffusers_trajectory, ("x_after_step",)),
        ("ddim_timesteps_ascending", golden_samplers.ldm_trajectory, ("x_after_step", "x_final")),
        ("timestep_map", golden_samplers.openai_trajectory, ("x_after_step",)),
    ):
        if field in case:
            wanted = {output: np.array(case[output], np.float64) for output in outputs}
            limits = {"atol": golden_samplers.ATOL, "rtol": golden_samplers.rtol_of(case)}
            return lambda: compare(name, function(case), wanted, **limits)
    return lambda: _unknown(f"a case with the fields {', '.join(case)}")


def _network_case(case: dict[str, Any]) -> Case:
    for field, kind in NETWORK.items():
        if not isinstance(case.get(field), kind):
            raise Damaged(f"case {case['id']!r}: {field} is {case.get(field)!r:.60}")
    for output in case["outputs"].values():
        np.reshape(output["data"], output["shape"])  # a wrong number of them is a ValueError
    return Case(note="", **{field: case[field] for field in NETWORK})


def run(name: str, job: Callable[[], Result]) -> Result:
    """The result of a case; whatever goes wrong in it is its failure, and no other's."""
    try:
        return job()
    except NotSupported as error:
        return Result(name, np.nan, False, str(error))
    except Exception as error:  # noqa: BLE001
        words = " ".join(str(error).split())[:300]
        return Result(name, np.nan, False, f"{type(error).__name__}: {words}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=golden_networks.TOLERANCE,
        help="absolute, of networks and operations (%(default)s); trajectories and tables have "
        "their own",
    )
    args = parser.parse_args(arguments)
    try:
        every = [job for path in args.files for job in jobs(path, args.tolerance)]
    except Damaged as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    failed = 0
    with jax.default_matmul_precision("highest"):
        for name, job in every:
            result = run(name, job)
            failed += not result.passed
            print(result, flush=True)
    print(f"{len(every) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
