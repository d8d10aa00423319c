"""The list of damaged and hostile files, which the modules beside this one fill."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Case:
    make: Callable[[Path], Path]
    message: str  # pattern of what the error must say besides the path
    error: type[Exception] = ValueError


CASES: dict[str, Case] = {}
WEIGHTS = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}


def case(message: str, error: type[Exception] = ValueError):
    def register(make):
        CASES[make.__name__] = Case(make, message, error)
        return make

    return register


def register(name: str, message: str, make: Callable[[Path], Path]) -> None:
    assert name not in CASES
    CASES[name] = Case(make, message)
