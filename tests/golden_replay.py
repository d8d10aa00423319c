"""What a replayed golden case came to: shared by replay.py and its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


class NotSupported(Exception):
    """The case needs something that sdjax does not have; it fails, with these words."""

    def __init__(self, what: str):
        super().__init__(f"not supported by sdjax yet: {what}")


@dataclass(frozen=True)
class Result:
    """One case: the largest absolute error of all its numbers (NaN if it could not be run)."""

    name: str
    error: float
    passed: bool
    words: str = ""

    def __str__(self) -> str:
        line = f"{'pass' if self.passed else 'FAIL'}  {self.error:8.1e}  {self.name}"
        return f"{line}: {self.words}" if self.words else line


def compare(
    name: str,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
) -> Result:
    """Every wanted array is found, in its shape, to |found - wanted| <= atol + rtol |wanted|."""
    if missing := [key for key in wanted if key not in found]:
        raise NotSupported(f"the output {', '.join(missing)}")
    largest, problems = 0.0, []
    for key, want in wanted.items():
        ours, want = np.asarray(found[key], np.float64), np.asarray(want, np.float64)
        if ours.shape != want.shape:
            return Result(name, np.nan, False, f"{key} is {ours.shape}, not {want.shape}")
        error = np.abs(ours - want)
        largest = np.fmax(largest, error.max(initial=0.0))
        wrong = ~(error <= atol + rtol * np.abs(want))  # NaN is wrong
        if wrong.any():
            problems.append(f"{key}: {wrong.sum()} of {wrong.size} numbers differ")
    return Result(name, float(largest), not problems, "; ".join(problems))
