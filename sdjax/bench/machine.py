"""The machine that a figure was measured on: its name and its fastest products."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax.bench.measuring import fastest

PRODUCT_SIZE = 3072
"""Rows and columns of the matrices whose product is the machine's peak."""
VECTORS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")
"""Instructions that decide how fast products are, as the kernel names them."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor, cores, and the versions of what computes."""
    fields = _processor()
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "vectors": [name for name in VECTORS if name in flags],
        "cores": cores(),
        "system": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("sdjax", "jax", "jaxlib", "flax")},
    }


def _processor() -> dict[str, str]:
    """The first processor in Linux's list; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def product_gflops(dtype: DTypeLike, size: int) -> float:
    """The most GFLOP/s that a few products of two square matrices reach here.

    By XLA and, where it has the type, by NumPy, whose products are often faster.
    """
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    ways: list[Callable[[], object]] = [lambda: product(a, a).block_until_ready()]
    if a.dtype == jnp.float32:
        b = np.asarray(a)
        ways.append(lambda: b @ b)
    return 2 * size**3 / min(map(fastest, ways)) / 1e9
