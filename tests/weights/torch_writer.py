"""Writes what `torch.save` and TorchScript write, without PyTorch: for tests of the readers.

Arrays anywhere in a value become tensors; arrays that are views of one array share a storage.
`Global`, `Call` and `Script` put arbitrary names into the pickle, honest or hostile.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STORAGE_NAMES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call of a name."""

    function: Any
    args: tuple


@dataclass(frozen=True)
class State:
    """An object, and what is set on it: the instruction BUILD."""

    target: Any
    state: Any


@dataclass(frozen=True)
class Persistent:
    """A persistent id: how a pickle of torch names a storage."""

    identity: Any


@dataclass(eq=False)
class Script:
    """A module of TorchScript."""

    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = "Module"


@dataclass(frozen=True)
class Raw:
    """Instructions as they are."""

    code: bytes


def storage(key: str, numel: Any, name: str = "FloatStorage", legacy: bool = False) -> Persistent:
    identity = ("storage", Global("torch", name), key, "cpu", numel)
    return Persistent((*identity, None) if legacy else identity)


def tensor(where: Any, offset: Any, shape: Any, strides: Any) -> Call:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (where, offset, shape, strides, False, OrderedDict()))


class _Pickler(pickle._Pickler):
    """Python's own pickler, with the classes above. `storages` collects the flat arrays."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, legacy=False):
        super().__init__(file, protocol=2)
        self.legacy = legacy
        self.storages: dict[int, tuple[str, np.ndarray]] = {}

    def save_global_name(self, value):
        self.write(f"c{value.module}\n{value.name}\n".encode())

    def save_call(self, value):
        self.save(value.function)
        self.save(value.args)
        self.write(pickle.REDUCE)

    def save_state(self, value):
        self.save(value.target)
        self.save(value.state)
        self.write(pickle.BUILD)

    def save_persistent(self, value):
        self.save(value.identity)
        self.write(pickle.BINPERSID)

    def save_script(self, value):
        if id(value) in self.memo:
            self.write(self.get(self.memo[id(value)][0]))
            return
        self.write(f"c__torch__.net\n{value.name}\n".encode())
        self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        self.memoize(value)
        self.save(value.attributes)
        self.write(pickle.BUILD)

    def save_raw(self, value):
        self.write(value.code)

    def save_array(self, array):
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        key, _ = self.storages.setdefault(id(base), (str(len(self.storages)), base))
        start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        strides = tuple(step // array.itemsize for step in array.strides)
        where = storage(key, base.size, STORAGE_NAMES[array.dtype.name], self.legacy)
        self.save(tensor(where, start // array.itemsize, array.shape, strides))

    dispatch[Global] = save_global_name
    dispatch[Call] = save_call
    dispatch[State] = save_state
    dispatch[Persistent] = save_persistent
    dispatch[Script] = save_script
    dispatch[Raw] = save_raw
    dispatch[np.ndarray] = save_array


def dumps(value: Any, legacy: bool = False) -> tuple[bytes, dict[str, np.ndarray]]:
    """The pickle of `value`, and the storages of its arrays by key: flat arrays."""
    file = io.BytesIO()
    pickler = _Pickler(file, legacy)
    pickler.dump(value)
    return file.getvalue(), {
        key: array.ravel(order="K") for key, array in pickler.storages.values()
    }


def write_zip(path, value, *, root="archive", byteorder=b"little", extra=None, compression=0):
    """A file of `torch.save`; of TorchScript if `value` is a `Script`.

    `extra` holds further entries of the archive, name -> bytes, with `root` put before.
    """
    code, storages = dumps(value)
    entries = {"data.pkl": code, "byteorder": byteorder}
    entries |= {f"data/{key}": array.tobytes() for key, array in storages.items()}
    entries |= {"version": b"3\n"} | (extra or {})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(f"{root}/{name}", data)
        if isinstance(value, Script):
            archive.writestr(f"{root}/code/__torch__.py", "x" * 1000, zipfile.ZIP_DEFLATED)
            archive.writestr(f"{root}/constants.pkl", b"\x80\x02).")
    return path


def write_legacy(path, value, little_endian=True):
    """A file of `torch.save` before PyTorch 1.6."""
    code, storages = dumps(value, legacy=True)
    sizes = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps(sizes, 2)]
    parts += [code, pickle.dumps(list(storages), 2)]
    for array in storages.values():
        parts += [array.size.to_bytes(8, "little"), array.tobytes()]
    path.write_bytes(b"".join(parts))
    return path
