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


class Damaged(ValueError):
    """A file is not what it should be."""


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
    """The cases of a file."""
    content = read(path)
    try:
        found = list(_jobs(content, tolerance))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"{path}: is damaged: {type(error).__name__}: {error}") from error
    if not found:
        raise Damaged(f"{path}: holds no cases that a golden file may hold")
    return found


def _jobs(content: dict[str, Any], tolerance: float) -> Iterator[Job]:
    for case in content.get("cases", []):
        yield case["id"], _case(case, tolerance)
    for row in content.get("rows", []):
        yield _compared(ascii(row["prompt"][:40]), lambda row=row: golden_tables.tokens(row))
    meta = content.get("meta", {})
    for name, stored in content.get("ops", {}).items():
        wanted = np.reshape(stored["data"], stored["shape"])
        exact = name.startswith("PIL")
        yield _compared(
            name,
            lambda name=name, wanted=wanted: (
                {"result": golden_tables.operation(name, meta)},
                {"result": wanted},
            ),
            atol=0.0 if exact else tolerance,
        )
    if "timesteps" in content or "schedules" in content:
        for section, name, stored in golden_tables.table_cases(content):
            function, limits = golden_tables.TABLES.get(section, (golden_tables.unknown_table, {}))
            yield _compared(
                f"{section}: {name}",
                lambda f=function, name=name, stored=stored: f(name, stored),
                **limits,
            )
    for kind in ("weight", "input", "crc32"):
        for key, stored in content.get(kind, {}).items():
            yield _compared(
                f"{kind}: {key}",
                lambda kind=kind, key=key, stored=stored: golden_tables.rule_check(
                    kind, key, stored
                ),
                atol=1e-8,
            )


def _compared(name: str, pair: Callable[[], golden_tables.Pair], **limits: float) -> Job:
    return name, lambda: compare(name, *pair(), **limits)


def _case(case: dict[str, Any], tolerance: float) -> Callable[[], Result]:
    """What replays one entry of "cases"."""
    if "state_dict_shapes" in case:
        network = _network_case(case)
        return lambda: golden_networks.replay(network, tolerance)
    for field, function, outputs in (
        ("scheduler", golden_samplers.diffusers_trajectory, ("x_after_step",)),
        ("ddim_timesteps_ascending", golden_samplers.ldm_trajectory, ("x_after_step", "x_final")),
        ("timestep_map", golden_samplers.openai_trajectory, ("x_after_step",)),
    ):
        if field in case:
            wanted = {name: np.array(case[name], np.float64) for name in outputs}
            limits = {"atol": golden_samplers.ATOL, "rtol": golden_samplers.rtol_of(case)}
            return lambda: compare(case["id"], function(case), wanted, **limits)

    def unknown() -> Result:
        raise NotSupported(f"a case with the fields {', '.join(case)}")

    return unknown


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
