"""Tensors that stay in their files until they are looked at, and a writer that streams them.

A published model is larger than the memory that one likes to spend on it, so a reader gives names,
shapes and types at once and numbers on demand: `np.asarray(tensor)` reads one tensor. Ranges of the
file are read rather than memory-mapped: the pages of a map count as used memory until it is closed,
and a file that shrinks under a map kills the process instead of raising an error.
"""

import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Array, Shaped

from sdjax.weights.tree import shown

Scalar = bool | int | float | str
"""A value beside the tensors of a checkpoint, such as its `global_step`."""

SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""The types of the safetensors format that model weights come in, by its names for them."""

CHUNK = 2**20
"""Numbers that the writer casts and checks at a time."""
MAX_RANK = 8
"""Axes of a tensor in a file; weights have at most five."""


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor known by shape and type, whose numbers are read by `np.asarray`, anew each time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes that `np.asarray` will take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What one file, or one set of shards, holds."""

    tensors: dict[str, LazyTensor]
    scalars: dict[str, Scalar]
    format: str  # "safetensors", "torch", "torch before 1.6" or "TorchScript"
    files: tuple[Path, ...]  # that were read: shards in the order of their names, no index


def file_tensor(
    path: Path,
    dtype: np.dtype,
    start: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    check: Callable[[], None] | None = None,
) -> LazyTensor:
    """A tensor that lies in `path` from byte `start` on.

    Args:
        path: a file of which the caller has checked that it holds the whole tensor.
        dtype: type in the file, little-endian.
        start: in bytes.
        shape: of the tensor.
        strides: steps between neighbours along each axis, in numbers and not negative; None for the
            usual order, last axis fastest.
        check: called before numbers are read; raises an error where the file is damaged.
    """
    if strides is None or 0 in shape:
        count = math.prod(shape)
    else:
        count = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))

    def read() -> np.ndarray:
        if check is not None:
            check()
        return _read(path, dtype, start, count, shape, strides)

    return LazyTensor(shape, dtype, read)


def _read(
    path: Path,
    dtype: np.dtype,
    start: int,
    count: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
) -> np.ndarray:
    array = np.fromfile(path, dtype, count, offset=start)
    if array.size < count:
        raise ValueError(f"{path} has become shorter since it was opened: open it again")
    if strides is None or 0 in shape:
        return array.reshape(shape)
    steps = [step * dtype.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(array, shape, steps)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, LazyTensor | Shaped[np.ndarray | Array, "..."]],
    dtype: Any = None,
    metadata: Mapping[str, str] | None = None,
    finite: bool = True,
) -> None:
    """Write a safetensors file, whole or not at all, with one tensor in memory at a time.

    The file is written beside `path` and then takes its name; a file of that name is replaced.

    Args:
        path: where; the folder must exist.
        tensors: by name; lazy ones are read when their turn comes.
        dtype: what floating-point tensors are cast to, None to keep each as it is. Whole numbers
            and booleans are kept in any case.
        metadata: text by name for the file's header.
        finite: refuse NaN and inf.

    Raises:
        ValueError: a tensor holds NaN or inf, before or after the cast (it is named), or has a type
            that the format does not know.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: {path.parent} is not a folder")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; give the name of a file")
    stored = {name: _stored_dtype(name, tensor, dtype) for name, tensor in tensors.items()}
    # Wide types first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-stored[name].itemsize, name))
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        with new.open("xb") as file:
            file.write(_header({n: (tensors[n].shape, stored[n]) for n in order}, metadata))
            for name in order:
                for chunk in _chunks(name, tensors[name], stored[name], finite):
                    file.write(chunk.tobytes())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _stored_dtype(name: str, tensor: Any, dtype: Any) -> np.dtype:
    own = np.dtype(tensor.dtype)
    stored = own if dtype is None or not _is_floating(own) else np.dtype(dtype)
    if _is_floating(own) and not _is_floating(stored):
        raise ValueError(f"{shown(name)} is {own.name}, which cannot be stored as {stored.name}")
    if stored not in SAFETENSORS_DTYPES.values():
        raise ValueError(
            f"{shown(name)} is {stored.name}: a safetensors file of weights cannot hold that"
        )
    return stored


def _is_floating(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def _header(
    layout: Mapping[str, tuple[tuple[int, ...], np.dtype]], metadata: Mapping[str, str] | None
) -> bytes:
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    if "__metadata__" in layout:
        raise ValueError("no tensor can be called __metadata__: the format keeps that name")
    start = 0
    for name, (shape, dtype) in layout.items():
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": names[dtype],
            "shape": [int(n) for n in shape],
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(name: str, tensor: Any, dtype: np.dtype, finite: bool) -> Iterator[np.ndarray]:
    """The numbers of `tensor` in the usual order, cast and checked, a few at a time."""
    array = np.asarray(tensor)
    finite = finite and _is_floating(dtype)
    if array.shape != tuple(tensor.shape) or array.dtype != tensor.dtype:
        raise ValueError(
            f"{shown(name)} was announced as {tensor.dtype} {tuple(tensor.shape)} and is "
            f"{array.dtype} {array.shape}"
        )
    flags = ("external_loop", "buffered", "zerosize_ok")
    # A buffered iterator flattens any strides without a copy of the whole.
    for buffer in np.nditer(array, flags, order="C", buffersize=CHUNK):
        chunk = np.asarray(buffer)
        if finite and not np.isfinite(chunk).all():
            raise ValueError(
                f"{shown(name)} holds NaN or inf: the file is damaged or training failed"
            )
        with np.errstate(over="ignore", under="ignore"):
            cast = chunk.astype(dtype, copy=False)
        if finite and not np.isfinite(cast).all():
            raise ValueError(
                f"{shown(name)} reaches {np.abs(chunk).max():.6g}, more than {dtype.name} holds: "
                "choose bfloat16 or float32"
            )
        yield cast
