"""Time and memory of a process, measured alike on all sides.

The standard library alone: `tests/benchmarks/setup.py` copies this file beside the peers' worker.
"""

import ctypes
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPEATS = 4


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls after the first."""
    call()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def forget_peak_memory() -> None:
    """Begin anew with the peak of resident memory, where the system can (Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is not in use
    except (AttributeError, OSError):
        pass
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then it is the peak since the start


def peak_memory() -> int:
    """Most bytes of memory that this process had in use, since `forget_peak_memory` if possible."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
