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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from sdjax.weights.tensors import MAX_RANK

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


def unpickle(stream: io.BytesIO, path: Path) -> tuple[Any, dict[str, Storage]]:
    """The pickle that starts at the position of `stream`, which is moved behind it.

    Args:
        stream: in memory: nothing here bounds what one instruction reads but the stream's end.
        path: of the file, for the messages.

    Returns:
        The value, and the storages that it names, by their keys.

    Raises:
        ValueError: the pickle is damaged, or asks for anything but plain data and tensors.
    """
    storages: dict[str, Storage] = {}
    try:
        return _run(stream, storages), storages
    except Refused as error:
        raise ValueError(f"{path} {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged: its pickle does not make sense ({error}); {NOTHING_RAN}; "
            "download it again"
        ) from error


def _run(stream: io.BytesIO, storages: dict[str, Storage]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop() -> Any:
        return stack.pop()

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, arg, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "STOP":
                (value,) = stack
                return value
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case name if name in _LITERALS:
                stack.append(arg)
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(_EMPTY[opcode.name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([pop() for _ in range(int(opcode.name[-1]))])))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "FROZENSET":
                stack.append(frozenset(_set(pop_to_mark())))
            case "APPEND" | "APPENDS":
                items = pop_to_mark() if opcode.name == "APPENDS" else [pop()]
                _expect(stack[-1], list).extend(items)
            case "ADDITEMS":
                items = pop_to_mark()
                _expect(stack[-1], set).update(_set(items))
            case "SETITEM" | "SETITEMS":
                items = pop_to_mark() if opcode.name == "SETITEMS" else [pop(), pop()][::-1]
                pairs = zip(items[::2], items[1::2], strict=True)
                _expect(stack[-1], dict).update({_key(key): value for key, value in pairs})
            case "BINPUT" | "LONG_BINPUT":
                memo[_expect(arg, int)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[_expect(arg, int)])
            case "GLOBAL":
                stack.append(_find(_expect(arg, str).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = _expect(pop(), str), _expect(pop(), str)
                stack.append(_find(f"{module}.{name}"))
            case "BINPERSID":
                storage = _storage(pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise ValueError(f"two descriptions of the storage {_shown(storage.key)}")
                stack.append(storage)
            case "REDUCE" | "NEWOBJ":
                args, function = _expect(pop(), tuple), pop()
                stack.append(_call(function, args))
            case "BUILD":
                state = pop()
                _set_state(stack[-1], state)
            case name:
                raise Refused(
                    f"uses the pickle instruction {name}, which weights do not need: refused; "
                    f"{NOTHING_RAN}"
                )
    raise ValueError("it has no end")


_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING".split()
)
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


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
        f"asks for {_shown(name)[1:-1]}: refused; {NOTHING_RAN}. Weights need tensors and plain "
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
            raise ValueError(f"a number type with the byte order {_shown(state[1])}")
    elif not isinstance(target, dict | Inert):  # of an OrderedDict: versions, not needed
        raise Refused(f"sets attributes of a {type(target).__name__}: refused; {NOTHING_RAN}")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _shown(value: Any) -> str:
    """A few words for a message: without control characters, and not the inside of containers."""
    return repr(value[:100]) if isinstance(value, str) else f"a {type(value).__name__}"


def _key(value: Any) -> Any:
    # No tuples: hashing deeply nested ones overflows the C stack.
    if not isinstance(value, str | bytes | int | float | Inert | None):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


def _storage(identity: Any) -> Storage:
    """A storage from ("storage", type, key, device, numel); before torch 1.6 also a view, None."""
    tag, kind, key, _device, numel, *view = _expect(identity, tuple)
    if tag != "storage" or not isinstance(kind, StorageType) or view not in ([], [None]):
        raise ValueError(f"a persistent id that begins with {_shown(tag)} and is no storage")
    return Storage(_expect(key, str), kind.dtype, _size(numel))


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{_shown(value)} where a size belongs")
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
        raise ValueError(f"bytes in the encoding {_shown(encoding)}")
    return _expect(text, str).encode("latin1")


def _numpy_dtype(code: Any, *_: Any) -> np.dtype:
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"):
        raise ValueError(f"the number type {_shown(code)}")
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
