"""Files of `torch.save` and TorchScript archives, read without PyTorch.

    name.ckpt, .bin, .pt, .pth   a zip, in which nothing that matters here is compressed:
        NAME/data.pkl                what the tensors are called, and how they lie in storages
        NAME/data/0, 1, ...          the storages: plain numbers
        NAME/code/, constants.pkl    in TorchScript archives only; not read

Before PyTorch 1.6 the same came as a row of pickles with the numbers behind them.
"""

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sdjax.weights.tensors import Checkpoint, LazyTensor, Scalar, file_tensor
from sdjax.weights.tree import shown
from sdjax.weights.unpickle import MAX_STEPS, ScriptObject, StoredTensor, unpickle

Check = Callable[[], None]
"""Raises an error where numbers are not what was written."""

CHUNK = 2**20
"""Bytes that are summed at a time."""

PICKLE_LIMIT = 2**24
"""Bytes of a pickle; Stable Diffusion's with its optimizer's state takes about 2**20."""
ATTRIBUTE_LIMIT = 10**5
"""Attributes of all modules of a TorchScript archive; CLIP ViT-L/14 has some thousands."""
NAME_LIMIT = 1000
"""Characters of the path of a module there."""
STATE_DICTS = ("state_dict", "model", "module", "model_state_dict", "params_ema", "params")
"""Where a checkpoint of a training holds its weights."""
PARALLEL = "module."
"""Before every name of a model that was trained on several devices."""
FREE_STEPS = 10**5
"""Steps of a pickle (see `unpickle`) in a file of any size; a larger one has more."""
STEP_BYTES = 16
"""Bytes of a file for each further step; one tensor, which takes about 40, has some hundreds."""
SLACK = 2
"""How often a file may name the same numbers, on average: views of one array share it."""

MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a file before PyTorch 1.6."""
LEGACY_PROTOCOL = 1001
"""Its second one."""

_LOCAL_HEADER = struct.Struct("<4s 22x HH")
"""In front of a file in a zip: signature, sizes of its name and of an extra field."""

AGAIN = "download it again"


def read_zip(path: Path) -> Checkpoint:
    """Tensors of a zip of `torch.save`, or of a TorchScript archive.

    Raises:
        ValueError: the file is damaged, no such zip, or asks for more than tensors.
    """
    entries = _zip_entries(path)
    roots = [name[: -len("data.pkl")] for name in entries if _is_data_pickle(name)]
    if len(roots) != 1:
        raise ValueError(
            f"{path} is a zip with {len(roots)} files NAME/data.pkl, not one: torch.save did not "
            "write it; if weights are inside, unpack it and give their path"
        )
    root = roots[0]
    stream = _memory(path, *_stored(path, entries[f"{root}data.pkl"]))
    _compare_sums(path, entries[f"{root}data.pkl"], zlib.crc32(stream.getbuffer()))
    value, storages = unpickle(stream, path, _steps(path))
    if entry := entries.get(f"{root}byteorder"):
        order = _memory(path, *_stored(path, entry)).read()
        if order != b"little":
            raise ValueError(f"{path} has the byte order {order[:20]!r}: only little is supported")
    starts, checks = {}, {}
    for storage in storages.values():
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise ValueError(f"{path} is damaged: it has no entry '{shown(name)}'; {AGAIN}")
        starts[storage.key], size = _stored(path, entries[name])
        # Once, and only when numbers are wanted: it reads the whole storage.
        checks[storage.key] = functools.cache(
            partial(_check_entry, path, entries[name], starts[storage.key])
        )
        if size < storage.nbytes:
            raise ValueError(
                f"{path} is damaged: '{shown(name)}' has {size} bytes, {storage.numel} numbers of "
                f"{storage.dtype} take {storage.nbytes}; {AGAIN}"
            )
    # Each fits, but entries may overlap: a small file must not hold much.
    if sum(storage.nbytes for storage in storages.values()) > path.stat().st_size:
        raise ValueError(f"{path} claims to hold more than its own size: refused")
    kind = "TorchScript" if isinstance(value, ScriptObject) else "torch"
    return _checkpoint(path, value, starts, checks, kind)


def read_legacy(path: Path) -> Checkpoint:
    """Tensors of a file of `torch.save` in the format before PyTorch 1.6.

    Raises:
        ValueError: the file is damaged, another pickle, or asks for more than tensors.
    """
    file_size = path.stat().st_size
    stream = _memory(path, 0, min(file_size, PICKLE_LIMIT))
    steps = _steps(path)
    if any(unpickle(stream, path, steps)[0] != wanted for wanted in (MAGIC, LEGACY_PROTOCOL)):
        raise ValueError(
            f"{path} is a pickle that torch.save did not write: not read; save the tensors as "
            "safetensors"
        )
    system, _ = unpickle(stream, path, steps)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError(f"{path} does not say that it is little-endian: only that is supported")
    value, storages = unpickle(stream, path, steps)
    keys, _ = unpickle(stream, path, steps)
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise ValueError(f"{path} is damaged: its list of storages is not what it uses; {AGAIN}")
    starts = {}
    position = stream.tell()
    with path.open("rb") as file:
        for key in keys:
            file.seek(position)
            numel = int.from_bytes(file.read(8), "little")
            starts[key] = position + 8
            position += 8 + storages[key].nbytes
            if numel != storages[key].numel or position > file_size:
                raise ValueError(f"{path} is damaged: storage '{shown(key)}' is not whole; {AGAIN}")
    return _checkpoint(path, value, starts, {}, "torch before 1.6")


def _steps(path: Path) -> int:
    return min(MAX_STEPS, FREE_STEPS + path.stat().st_size // STEP_BYTES)


def _is_data_pickle(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _zip_entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is a damaged or cut off zip ({error}); {AGAIN}") from error
    entries = {}
    for info in infos:
        # Nothing is unpacked; but an honest archive has neither of these.
        if info.filename.startswith("/") or ".." in info.filename.replace("\\", "/").split("/"):
            raise ValueError(f"{path} holds '{shown(info.filename)}', outside of itself: refused")
        if info.filename in entries:
            raise ValueError(f"{path} holds '{shown(info.filename)}' twice: refused")
        entries[info.filename] = info
    return entries


def _stored(path: Path, info: zipfile.ZipInfo) -> tuple[int, int]:
    """(start, size) of a file in the zip, in bytes."""
    name = shown(info.filename)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(
            f"{path}: '{name}' is compressed, which torch.save never does: unpack the archive and "
            "zip it again without compression, or get the file as safetensors"
        )
    with path.open("rb") as file:
        # A damaged directory can place an entry before the file's beginning.
        file.seek(max(info.header_offset, 0))
        header = file.read(_LOCAL_HEADER.size)
    in_place = info.header_offset >= 0 and header[:4] == b"PK\3\4"
    if len(header) < _LOCAL_HEADER.size or not in_place:
        raise ValueError(f"{path} is damaged: '{name}' is not where it should be; {AGAIN}")
    _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
    if start + info.file_size > path.stat().st_size:
        raise ValueError(f"{path} is damaged: '{name}' goes beyond its end; {AGAIN}")
    return start, info.file_size


def _check_entry(path: Path, info: zipfile.ZipInfo, start: int) -> None:
    """Compare a file in the zip, which begins at byte `start`, with its checksum."""
    found, left = 0, info.file_size
    with path.open("rb") as file:
        file.seek(start)
        while left and (chunk := file.read(min(left, CHUNK))):
            found = zlib.crc32(chunk, found)
            left -= len(chunk)
    _compare_sums(path, info, found)


def _compare_sums(path: Path, info: zipfile.ZipInfo, found: int) -> None:
    if found != info.CRC:
        raise ValueError(
            f"{path} is damaged: '{shown(info.filename)}' has the checksum {found:08x}, not "
            f"{info.CRC:08x} as when it was written; {AGAIN}"
        )


def _memory(path: Path, start: int, size: int) -> io.BytesIO:
    if size > PICKLE_LIMIT:
        raise ValueError(
            f"{path} has a pickle of {size} bytes, more than the {PICKLE_LIMIT} that any model "
            "here needs: refused"
        )
    with path.open("rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(size))


def _checkpoint(
    path: Path, value: Any, starts: dict[str, int], checks: dict[str, Check], kind: str
) -> Checkpoint:
    """What `value` names, whose storages begin at `starts`; `checks` are called before reading."""
    tensors, scalars = _named(value, path)
    lazy = {name: _lazy(path, tensor, starts, checks) for name, tensor in tensors.items()}
    if sum(tensor.nbytes for tensor in lazy.values()) > SLACK * path.stat().st_size:
        raise ValueError(f"{path} names more numbers than it holds, each several times: refused")
    return Checkpoint(lazy, scalars, kind, (path,))


def _lazy(
    path: Path, tensor: StoredTensor, starts: dict[str, int], checks: dict[str, Check]
) -> LazyTensor:
    storage = tensor.storage
    start = starts[storage.key] + tensor.offset * storage.dtype.itemsize
    check = checks.get(storage.key)
    return file_tensor(path, storage.dtype, start, tensor.shape, tensor.strides, check)


def _named(value: Any, path: Path) -> tuple[dict[str, StoredTensor], dict[str, Scalar]]:
    """Tensors by name and scalars of what a checkpoint unpickled to.

    A training's other contents (optimizer, callbacks) are dropped. A tuple gives "0", "1", ...
    """
    if isinstance(value, ScriptObject):
        return _split(dict(_attributes(value, path)))
    if isinstance(value, tuple | list):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} holds a {type(value).__name__}, no tensors with names: save a state_dict()"
        )
    inner = [value[key] for key in STATE_DICTS if isinstance(value.get(key), dict)]
    inside = next(filter(_holds_tensors, [*inner, value]), [*inner, value][0])
    state = {name: item for name, item in inside.items() if item is not None}
    for name, item in state.items():
        if not isinstance(name, str) or not isinstance(item, StoredTensor | Scalar):
            key = f"'{shown(name)}'" if isinstance(name, str) else f"a {type(name).__name__}"
            raise ValueError(
                f"{path} holds a {type(item).__name__} under {key} where a tensor "
                "belongs: save the state_dict() of one model, with nothing inside but tensors"
            )
    tensors, scalars = _split(state)
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors, _split(value)[1] | scalars


def _holds_tensors(items: dict[Any, Any]) -> bool:
    return any(isinstance(item, StoredTensor) for item in items.values())


def _split(items: dict[Any, Any]) -> tuple[dict[str, StoredTensor], dict[str, Scalar]]:
    tensors = {k: v for k, v in items.items() if isinstance(v, StoredTensor)}
    scalars = {k: v for k, v in items.items() if isinstance(k, str) and isinstance(v, Scalar)}
    return tensors, scalars


def _attributes(top: ScriptObject, path: Path) -> Iterator[tuple[str, Any]]:
    """Tensors of all modules by their path, "visual.conv1.weight", and scalars of the top one."""
    waiting = [("", top)]
    seen = 0
    while waiting:
        prefix, module = waiting.pop()
        # Modules may be shared, so that a few could stand for any number, or hold themselves.
        seen += 1 + len(module.attributes)
        if seen > ATTRIBUTE_LIMIT or len(prefix) > NAME_LIMIT:
            raise ValueError(
                f"{path} has modules that hold themselves, or more than {ATTRIBUTE_LIMIT} "
                "attributes: refused"
            )
        children = []
        for name, value in module.attributes.items():
            if isinstance(value, ScriptObject):
                children.append((f"{prefix}{name}.", value))
            elif isinstance(value, StoredTensor) or (not prefix and name != "training"):
                yield f"{prefix}{name}", value
        waiting += reversed(children)
