"""Compiling ahead of time, and keeping what was compiled for the next process."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SHORTEST = 0.2
"""Seconds of compilation from which a program is kept."""


class Timing(NamedTuple):
    """Seconds that a program took before it could run."""

    trace: float  # Python, to a jaxpr
    lower: float  # to StableHLO
    compile: float  # by XLA, or to read it from the folder


def keep_compilations(folder: str | os.PathLike[str] | None = None) -> None:
    """Keep compiled programs on disk: only the first process that needs one compiles it.

    The commands of sdjax do this by themselves; in Python, call it before anything is compiled.
    The folder, with what `Pipeline.precompile` puts there, serves another machine with a processor
    or accelerator of the same kind and the same version of JAX; any other compiles again.

    Args:
        folder: made if missing. None is the variable JAX_COMPILATION_CACHE_DIR, or `sdjax/jax` in
            the user's cache folder.

    Raises:
        ValueError: if `folder` is a file.
    """
    # Not among the names of what is kept, which would else hold the folder's own.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    if folder is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # JAX itself has read it
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(folder or cache / "sdjax" / "jax").absolute()
    if path.is_file():
        raise ValueError(f"{path} is a file: give a folder for compiled programs")
    jax.config.update("jax_compilation_cache_dir", str(path))


def compiling(stage: Callable[..., Any], times: list[Timing]) -> Callable[..., Any]:
    """A jitted function that is compiled for its arguments instead of run, and returns zeros.

    The next call of `stage` with such arguments finds it compiled.

    Args:
        stage: from `jax.jit`.
        times: what it took is appended here.
    """

    def instead(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        traced = stage.trace(*args, **options)  # pyright: ignore[reportFunctionMemberAccess]
        after_trace = time.perf_counter()
        lowered = traced.lower()
        after_lower = time.perf_counter()
        lowered.compile()
        end = time.perf_counter()
        times.append(Timing(after_trace - start, after_lower - after_trace, end - after_lower))
        return jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), lowered.out_info)

    return instead
