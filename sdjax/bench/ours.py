"""Our side of a comparison: a compiled program with its inputs, or a whole pipeline."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from sdjax.costs import operations

CACHE_OPTIONS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


class Compiled:
    """One jitted function, whose first call is taken apart: trace, lower, compile, call."""

    def __init__(
        self,
        function: Any,
        arguments: tuple[Any, ...],
        advance: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] = lambda given, _: given,
        output: Callable[[Any], np.ndarray | None] = np.asarray,
    ) -> None:
        """Nothing is compiled yet.

        Args:
            function: what `jax.jit` gave.
            arguments: of the first call.
            advance: (arguments, result) of a call to the arguments of the next.
            output: what of a result is compared.
        """
        self.function, self.arguments = function, arguments
        self.advance, self.pick = advance, output
        self.operations, self.temporary_bytes = 0, None
        self.program: Any = None
        self.result: Any = None

    def first(self) -> dict[str, float]:
        """Seconds of the first call by part, and of one with its compilations on disk."""
        parts = self._compile()
        start = time.perf_counter()
        self._call()
        parts["call"] = time.perf_counter() - start
        # What is timed from here on, and what tells its memory, is the program that was compiled.
        program, temporary = self.program, self.temporary_bytes
        jax.clear_caches()
        cached = self._compile()
        self.program, self.temporary_bytes = program, temporary
        return parts | {"cached": sum(cached.values()) + parts["call"]}

    def _compile(self) -> dict[str, float]:
        shapes = jax.tree.map(_shape, self.arguments)
        times = [time.perf_counter()]
        traced = self.function.trace(*shapes)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        self.program = lowered.compile()
        times.append(time.perf_counter())
        self.operations = operations(traced.jaxpr.jaxpr)
        memory = self.program.memory_analysis()
        self.temporary_bytes = None if memory is None else int(memory.temp_size_in_bytes)
        names = ("trace", "lower", "compile")
        return dict(zip(names, np.diff(times).tolist(), strict=True))

    def _call(self) -> None:
        self.result = jax.block_until_ready(self.program(*self.arguments))
        self.arguments = self.advance(self.arguments, self.result)

    def run(self, calls: int) -> float:
        """Seconds of so many calls."""
        start = time.perf_counter()
        for _ in range(calls):
            self._call()
        return time.perf_counter() - start

    def output(self) -> np.ndarray | None:
        """What is compared of the last call; None where the sides cannot have the same."""
        return self.pick(self.result)


class Drawn:
    """A pipeline, called as people call it: every call goes from words to pixels."""

    def __init__(self, draw: Callable[[], np.ndarray], operations: int) -> None:
        """`draw` returns float32 pixels; `operations` are of one call of it."""
        self.draw, self.operations = draw, operations
        self.temporary_bytes = None  # there are several programs
        self.pixels: np.ndarray | None = None

    def first(self) -> dict[str, float]:
        """Seconds of the first call, and of one with its compilations on disk."""
        call = self.run(1)
        jax.clear_caches()
        return {"call": call, "cached": self.run(1)}

    def run(self, calls: int) -> float:
        """Seconds of so many calls."""
        start = time.perf_counter()
        for _ in range(calls):
            self.pixels = self.draw()
        return time.perf_counter() - start

    def output(self) -> np.ndarray | None:
        """The pixels of the last call."""
        return self.pixels


Ours = Compiled | Drawn


@contextmanager
def empty_cache(folder: Path) -> Iterator[None]:
    """Compiled programs go to a new folder, so that the first compilation is a real one."""
    options = {"jax_compilation_cache_dir": str(folder), **CACHE_OPTIONS}
    before = {name: getattr(jax.config, name) for name in options}
    _configure(options)
    try:
        yield
    finally:
        _configure(before)


def _configure(options: dict[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it stays where it was opened


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf
