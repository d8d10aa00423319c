"""A peer of `sdjax bench`: another implementation, told what to do line by line.

    python worker.py diffusers | diffusers-flax

The lines are described in `sdjax/bench/peers.py`. `setup.py` copies this file, and those beside it,
to the environments, so that it runs without sdjax.
"""

import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path

PROTOCOL = 1
SIDES = {"diffusers": "side_torch", "diffusers-flax": "side_flax"}


class Session:
    """What is kept from request to request."""

    def __init__(self, side):
        self.side = side
        self.measuring = importlib.import_module("measuring")  # the package's, copied by setup.py
        self.program = None

    def load(self, protocol, what, folder, dtype, threads, options):
        if protocol != PROTOCOL:
            return {"protocol": PROTOCOL}
        self.side.prepare(threads)
        self.dtype = dtype
        self.program = self.side.load(what, Path(folder), dtype, options)
        return {
            "protocol": PROTOCOL,
            "versions": self.side.versions(),
            "parameters": self.program.parameters,
        }

    def first(self):
        return self.run(1)

    def run(self, calls):
        start = time.perf_counter()
        for _ in range(calls):
            self.program.call()
        return {"seconds": time.perf_counter() - start}

    def save(self, file):
        import numpy as np

        np.save(file, self.program.output())
        return {}

    def product(self, size):
        seconds = self.measuring.fastest(self.side.product(size, self.dtype))
        return {"gflops": 2 * size**3 / seconds / 1e9}

    def forget(self):
        self.measuring.forget_peak_memory()
        return {}

    def memory(self):
        return {"bytes": self.measuring.peak_memory()}


def main(name):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    session = Session(importlib.import_module(SIDES[name]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(session, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
