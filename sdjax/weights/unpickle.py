"""The part of the pickle language that weights need, and nothing that runs code.

A pickle is a program for a small stack machine. Python's own machine can import any module and call
anything in it; restricting what it may import still leaves it free to change the attributes of what
it was given. This machine knows the instructions that `torch.save` and TorchScript write, calls
nothing but the functions of `BUILDERS`, which build plain values, and refuses every other
instruction and every other name. PyTorch is not needed: a tensor becomes a `StoredTensor`, which
says where its numbers lie.
"""

import io
import math
import pickletools
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from sdjax.weights.tensors import MAX_RANK
from sdjax.weights.tree import shown

STORAGES: dict[str, np.dtype] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
"""Types of the flat arrays that tensors are views of."""

INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.model_checkpoint",
)
"""Names that published checkpoints hold beside the weights, as keys of "callbacks" (sd-v1-4.ckpt
and its relatives). They become `Inert`: a name without behaviour."""

NOTHING_RAN = "nothing was executed"

MAX_STEPS = 2 * 10**6
"""Instructions of a pickle, and values that its calls copy; a model with the moving averages and
its optimizer's state takes some 10**5."""


class Refused(ValueError):
    """The pickle asks for more than plain data."""


@dataclass(frozen=True)
class Inert:
    """Stands for a class or an object that is not built; what is done to it is forgotten."""

    name: str


@dataclass(frozen=True)
class StorageType:
    """A torch storage class, known by what it holds."""

    dtype: np.dtype


@dataclass(frozen=True)
class Storage:
    """A flat array in the file, shared by the tensors that are views of it."""

    key: str
    dtype: np.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A view of a storage. Offset and strides are in numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class ScriptClass:
    """A class of a TorchScript archive: "__torch__...". Its code is not read."""

    name: str


@dataclass(eq=False)
class ScriptObject:
    """An object of a TorchScript archive: its attributes."""

    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Builder:
    """A function of this module in the place of one that a pickle may call."""

    build: Callable[..., Any]


def unpickle(
    stream: io.BytesIO, path: Path, limit: int = MAX_STEPS
) -> tuple[Any, dict[str, Storage]]:
    """The pickle that starts at the position of `stream`, which is moved behind it.

    Args:
        stream: in memory: nothing here bounds what one instruction reads but the stream's end.
        path: of the file, for the messages.
        limit: steps that it may take; each takes at most a few hundred bytes of memory.

    Returns:
        The value, and the storages that it names, by their keys.

    Raises:
        ValueError: the pickle is damaged, or asks for anything but plain data and tensors.
    """
    machine = _Machine(limit)
    try:
        return machine.run(stream), machine.storages
    except Refused as error:
        raise ValueError(f"{path} {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged: its pickle does not make sense ({shown(str(error))}); "
            f"{NOTHING_RAN}; download it again"
        ) from error


class _Machine:
    """The stack machine: a method for each kind of instruction, found in `_METHODS`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.steps = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, stream: io.BytesIO) -> Any:
        for opcode, arg, _ in pickletools.genops(stream):
            self.spend(1)
            if opcode.name == "STOP":
                (value,) = self.stack
                return value
            method = _METHODS.get(opcode.name)
            if method is None:
                raise Refused(
                    f"uses the pickle instruction {opcode.name}, which weights do not need: "
                    f"refused; {NOTHING_RAN}"
                )
            method(self, arg)
        raise ValueError("it has no end")

    def spend(self, steps: int) -> None:
        """Count, so that a small file cannot become large in memory."""
        self.steps += steps
        if self.steps > self.limit:
            raise Refused(
                f"has a pickle of more than {self.limit} steps, too many for its size: refused; "
                f"{NOTHING_RAN}"
            )

    def ignore(self, arg: Any) -> None:
        pass

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, arg: Any) -> None:
        self.marks.append(len(self.stack))

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop(self, count: int) -> list[Any]:
        """The last `count` values, the topmost last."""
        if len(self.stack) < count:
            raise ValueError("it takes more values than it gave")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def marked_tuple(self, arg: Any) -> None:
        self.push(tuple(self.pop_to_mark()))

    def frozen_set(self, arg: Any) -> None:
        self.push(frozenset(_set(self.pop_to_mark())))

    def append(self, items: list[Any]) -> None:
        _expect(self.stack[-1], list).extend(items)

    def add_items(self, arg: Any) -> None:
        items = self.pop_to_mark()
        _expect(self.stack[-1], set).update(_set(items))

    def set_items(self, items: list[Any]) -> None:
        pairs = zip(items[::2], items[1::2], strict=True)
        _expect(self.stack[-1], dict).update({_key(key): value for key, value in pairs})

    def put(self, place: Any) -> None:
        self.memo[_expect(place, int)] = self.stack[-1]

    def memoize(self, arg: Any) -> None:
        self.put(len(self.memo))

    def get(self, place: Any) -> None:
        self.push(self.memo[_expect(place, int)])

    def find(self, name: Any) -> None:
        self.push(_find(_expect(name, str).replace(" ", ".", 1)))

    def find_on_stack(self, arg: Any) -> None:
        module, name = (_expect(word, str) for word in self.pop(2))
        self.spend(len(module) + len(name))  # a new text of both, whose parts may be shared
        self.push(_find(f"{module}.{name}"))

    def storage(self, arg: Any) -> None:
        storage = _storage(*self.pop(1))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"two descriptions of the storage '{shown(storage.key)}'")
        self.push(storage)

    def call(self, arg: Any) -> None:
        function, args = self.pop(2)
        # Builders copy, and what they are given may be shared.
        self.spend(sum(len(a) for a in _expect(args, tuple) if isinstance(a, Sized)))
        self.push(_call(function, args))

    def build(self, arg: Any) -> None:
        (state,) = self.pop(1)
        _set_state(self.stack[-1], state)


_LITERALS = (
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING".split()
)
_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.ignore),
    **dict.fromkeys(_LITERALS, _Machine.push),
    "MARK": _Machine.mark,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "TUPLE": _Machine.marked_tuple,
    "FROZENSET": _Machine.frozen_set,
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "ADDITEMS": _Machine.add_items,
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find_on_stack,
    "BINPERSID": _Machine.storage,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "BUILD": _Machine.build,
}
"""The instructions that weights need."""


def _find(name: str) -> Any:
    """What stands for a name: never the thing itself."""
    if name in BUILDERS:
        return BUILDERS[name]
    if name in STORAGES:
        return StorageType(STORAGES[name])
    if name in INERT:
        return Inert(name)
    if name.startswith("__torch__."):
        return ScriptClass(name)
    _refuse(name)


def _refuse(name: str) -> NoReturn:
    raise Refused(
        f"asks for {shown(name)}: refused; {NOTHING_RAN}. Weights need tensors and plain "
        "containers only: get the file as safetensors, or save its state_dict() alone"
    )


def _call(function: Any, args: tuple[Any, ...]) -> Any:
    match function:
        case Builder():
            return function.build(*args)
        case Inert():
            return function
        case ScriptClass() if not args:
            return ScriptObject()
    raise Refused(f"calls a {type(function).__name__}: refused; {NOTHING_RAN}")


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, ScriptObject):
        target.attributes = _expect(state, dict)
    elif isinstance(target, np.dtype):
        # (version, byte order, ...): numbers in a pickle are little-endian, or single bytes.
        if _expect(state, tuple)[1] not in ("<", "|"):
            raise ValueError(f"a number type with the byte order {_words(state[1])}")
    elif not isinstance(target, dict | Inert):  # of an OrderedDict: versions, not needed
        raise Refused(f"sets attributes of a {type(target).__name__}: refused; {NOTHING_RAN}")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _words(value: Any) -> str:
    """A few words for a message, and not the inside of containers."""
    return f"'{shown(value)}'" if isinstance(value, str) else f"a {type(value).__name__}"


def _key(value: Any) -> Any:
    # No tuples: hashing deeply nested ones overflows the C stack.
    if not isinstance(value, str | bytes | int | float | Inert | None):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


def _storage(identity: Any) -> Storage:
    """A storage from ("storage", type, key, device, numel); before torch 1.6 also a view, None."""
    tag, kind, key, _device, numel, *view = _expect(identity, tuple)
    if tag != "storage" or not isinstance(kind, StorageType) or view not in ([], [None]):
        raise ValueError(f"a persistent id that begins with {_words(tag)} and is no storage")
    return Storage(_expect(key, str), kind.dtype, _size(numel))


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{_words(value)} where a size belongs")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor(_v2), whose `rest` are requires_grad, hooks and metadata."""
    _expect(storage, Storage)
    shape = tuple(_size(n) for n in _expect(shape, tuple))
    strides = tuple(_size(n) for n in _expect(strides, tuple))
    offset = _size(offset)
    if len(shape) != len(strides) or len(shape) > MAX_RANK:
        raise ValueError(f"a tensor of {len(shape)} axes with {len(strides)} strides")
    if rest[2:] not in ((), (None,), ({},)):
        raise ValueError("a tensor that is marked as conjugate or negative")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # A tensor that repeats its numbers (stride 0) could claim any amount of memory.
    if 0 not in shape and (last >= storage.numel or math.prod(shape) > storage.numel):
        raise ValueError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} does not fit into "
            f"its storage of {storage.numel} numbers"
        )
    return StoredTensor(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> StoredTensor:
    return _expect(data, StoredTensor)


def _dict(items: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in items}


def _set(items: Any) -> set[Any]:
    return {_key(item) for item in items}


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {_words(encoding)}")
    return _expect(text, str).encode("latin1")


def _numpy_dtype(code: Any, *_: Any) -> np.dtype:
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"):
        raise ValueError(f"the number type {_words(code)}")
    return np.dtype(code)


def _numpy_scalar(dtype: Any, data: Any) -> bool | int | float:
    if not isinstance(dtype, np.dtype):
        raise ValueError("a number without a type")
    (value,) = np.frombuffer(_expect(data, bytes), dtype)
    return value.item()


def _first(value: Any, *_: Any) -> Any:
    return value


BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": Builder(_dict),
    "builtins.set": Builder(_set),
    "__builtin__.set": Builder(_set),
    "_codecs.encode": Builder(_encode),
    "numpy.dtype": Builder(_numpy_dtype),
    "numpy.core.multiarray.scalar": Builder(_numpy_scalar),
    "numpy._core.multiarray.scalar": Builder(_numpy_scalar),
    "torch._utils._rebuild_tensor": Builder(_tensor),
    "torch._utils._rebuild_tensor_v2": Builder(_tensor),
    "torch._utils._rebuild_parameter": Builder(_parameter),
    "torch.jit._pickle.build_intlist": Builder(_first),
    "torch.jit._pickle.build_doublelist": Builder(_first),
    "torch.jit._pickle.build_boollist": Builder(_first),
    "torch.jit._pickle.build_tensorlist": Builder(_first),
    "torch.jit._pickle.restore_type_tag": Builder(_first),
}
"""The names that a pickle may call, and what is called instead of them."""
