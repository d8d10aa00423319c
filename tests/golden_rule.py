"""Golden numbers: the rule that makes weights and inputs, and a reader for the stored cases.

A case stores no weights. It lists PyTorch keys and shapes, and the rule below turns a key and a
shape into numbers, so a test makes the checkpoint, converts it with sdjax and compares outputs.

    case = {case.id: case for case in cases("tiny_modules_diffusers_hf")}["unet_sd1_tiny"]
    case.tensors()          # {PyTorch key: array}, a checkpoint
    case.input("x")         # NCHW, as PyTorch has it
    case.output("sample")
"""

import functools
import gzip
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True, eq=False)
class Case:
    """One forward pass of a tiny model, recorded from the reference implementation."""

    id: str
    layout: str
    source: str
    config: dict[str, Any]
    note: str
    state_dict_shapes: dict[str, list[int]]
    inputs: dict[str, Any]
    outputs: dict[str, dict[str, Any]]

    def tensors(self) -> dict[str, np.ndarray]:
        """The checkpoint: rule-made weights under the reference's own keys."""
        return {key: weight(key, shape) for key, shape in self.state_dict_shapes.items()}

    def input(self, name: str) -> np.ndarray:
        """An input array, made by the rule or stored literally (timesteps, ids, masks)."""
        stored = self.inputs[name]
        if isinstance(stored, list) and isinstance(stored[0], str):  # ["inp name=ctx ...", shape]
            spec, shape = stored
            named = [
                word.removeprefix("name=") for word in spec.split() if word.startswith("name=")
            ]
            return input_values(named[0] if named else "x", shape)
        return np.asarray(stored)

    def output(self, name: str) -> np.ndarray:
        """An output array of the reference implementation, rounded to 7 digits."""
        data = np.asarray(self.outputs[name]["data"]).reshape(self.outputs[name]["shape"])
        return data.astype(np.float32) if data.dtype == np.float64 else data


@functools.cache
def golden(name: str) -> Any:
    """The content of tests/golden/NAME.json or NAME.json.gz."""
    packed = GOLDEN / f"{name}.json.gz"
    data = gzip.decompress(packed.read_bytes()) if packed.exists() else None
    return json.loads(data if data is not None else (GOLDEN / f"{name}.json").read_bytes())


def cases(name: str) -> list[Case]:
    """The cases of tests/golden/NAME.json.gz."""
    return [Case(**{"note": "", **stored}) for stored in golden(name)["cases"]]


def weight(key: str, shape: list[int]) -> np.ndarray:
    """A weight: fan-in scaled for matrices, near 1 for norm scales, small for biases."""
    noise = _uniform(key, shape)
    if len(shape) >= 2:
        noise = noise * math.sqrt(3 / math.prod(shape[1:]))
    elif len(shape) == 1 and key.endswith("weight"):
        noise = 1 + 0.2 * noise
    else:
        noise = 0.1 * noise
    return noise.astype(np.float32)


def input_values(name: str, shape: list[int]) -> np.ndarray:
    """An input: uniform with variance 1."""
    return (_uniform(f"input:{name}", shape) * math.sqrt(3)).astype(np.float32)


def _uniform(key: str, shape: list[int]) -> np.ndarray:
    """Float64 in [-1, 1) from the key and the flat index: SplitMix64, modulo 2**64."""
    first = (zlib.crc32(key.encode()) << 32) + 1
    x = np.uint64(first) + np.arange(math.prod(shape), dtype=np.uint64)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).reshape(shape)
