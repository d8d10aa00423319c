"""Files of `torch.save` and TorchScript archives, read without PyTorch.

    name.ckpt, .bin, .pt, .pth   a zip, in which nothing that matters here is compressed:
        NAME/data.pkl                what the tensors are called, and how they lie in storages
        NAME/data/0, 1, ...          the storages: plain numbers
        NAME/code/, constants.pkl    in TorchScript archives only; not read

Before PyTorch 1.6 the same came as a row of pickles with the numbers behind them.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdjax.weights.tensors import Checkpoint, LazyTensor, Scalar, file_tensor
from sdjax.weights.unpickle import ScriptObject, StoredTensor, unpickle

PICKLE_LIMIT = 2**24
"""Bytes of a pickle; Stable Diffusion's with its optimizer's state takes about 2**20."""
ATTRIBUTE_LIMIT = 10**5
"""Attributes of all modules of a TorchScript archive; CLIP ViT-L/14 has some thousands."""
NAME_LIMIT = 1000
"""Characters of the path of a module there."""
STATE_DICTS = ("state_dict", "model")
"""Where a checkpoint of a training holds its weights."""

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
    value, storages = unpickle(_memory(path, *_stored(path, entries[f"{root}data.pkl"])), path)
    if order := entries.get(f"{root}byteorder"):
        order = _memory(path, *_stored(path, order)).read()
        if order != b"little":
            raise ValueError(f"{path} has the byte order {order[:20]!r}: only little is supported")
    starts = {}
    for storage in storages.values():
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise ValueError(f"{path} is damaged: it has no entry {name[:100]!r}; {AGAIN}")
        starts[storage.key], size = _stored(path, entries[name])
        if size < storage.nbytes:
            raise ValueError(
                f"{path} is damaged: {name[:100]!r} has {size} bytes, {storage.numel} numbers of "
                f"{storage.dtype} take {storage.nbytes}; {AGAIN}"
            )
    # Each fits, but entries may overlap: a small file must not hold much.
    if sum(storage.nbytes for storage in storages.values()) > path.stat().st_size:
        raise ValueError(f"{path} claims to hold more than its own size: refused")
    kind = "TorchScript" if isinstance(value, ScriptObject) else "torch"
    return _checkpoint(path, value, starts, kind)


def read_legacy(path: Path) -> Checkpoint:
    """Tensors of a file of `torch.save` in the format before PyTorch 1.6.

    Raises:
        ValueError: the file is damaged, another pickle, or asks for more than tensors.
    """
    file_size = path.stat().st_size
    stream = _memory(path, 0, min(file_size, PICKLE_LIMIT))
    if unpickle(stream, path)[0] != MAGIC or unpickle(stream, path)[0] != LEGACY_PROTOCOL:
        raise ValueError(
            f"{path} is a pickle that torch.save did not write: not read; save the tensors as "
            "safetensors"
        )
    system, _ = unpickle(stream, path)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError(f"{path} does not say that it is little-endian: only that is supported")
    value, storages = unpickle(stream, path)
    keys, _ = unpickle(stream, path)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
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
                raise ValueError(f"{path} is damaged: storage {key[:40]!r} is not whole; {AGAIN}")
    return _checkpoint(path, value, starts, "torch before 1.6")


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
            raise ValueError(f"{path} holds {info.filename[:100]!r}, outside of itself: refused")
        if info.filename in entries:
            raise ValueError(f"{path} holds {info.filename[:100]!r} twice: refused")
        entries[info.filename] = info
    return entries


def _stored(path: Path, info: zipfile.ZipInfo) -> tuple[int, int]:
    """(start, size) of a file in the zip, in bytes."""
    name = info.filename[:100]
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(
            f"{path}: {name!r} is compressed, which torch.save never does: unpack the archive and "
            "zip it again without compression, or get the file as safetensors"
        )
    with path.open("rb") as file:
        # A damaged directory can place an entry before the file's beginning.
        file.seek(max(info.header_offset, 0))
        header = file.read(_LOCAL_HEADER.size)
    in_place = info.header_offset >= 0 and header[:4] == b"PK\3\4"
    if len(header) < _LOCAL_HEADER.size or not in_place:
        raise ValueError(f"{path} is damaged: {name!r} is not where it should be; {AGAIN}")
    _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
    if start + info.file_size > path.stat().st_size:
        raise ValueError(f"{path} is damaged: {name!r} goes beyond its end; {AGAIN}")
    return start, info.file_size


def _memory(path: Path, start: int, size: int) -> io.BytesIO:
    if size > PICKLE_LIMIT:
        raise ValueError(
            f"{path} has a pickle of {size} bytes, more than the {PICKLE_LIMIT} that any model "
            "here needs: refused"
        )
    with path.open("rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(size))


def _checkpoint(path: Path, value: Any, starts: dict[str, int], kind: str) -> Checkpoint:
    tensors, scalars = _named(value, path)
    lazy = {name: _lazy(path, tensor, starts) for name, tensor in tensors.items()}
    return Checkpoint(lazy, scalars, kind, (path,))


def _lazy(path: Path, tensor: StoredTensor, starts: dict[str, int]) -> LazyTensor:
    storage = tensor.storage
    start = starts[storage.key] + tensor.offset * storage.dtype.itemsize
    return file_tensor(path, storage.dtype, start, tensor.shape, tensor.strides)


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
    inside = next((k for k in STATE_DICTS if isinstance(value.get(k), dict)), None)
    state = value if inside is None else value[inside]
    for name, item in state.items():
        if not isinstance(name, str) or not isinstance(item, StoredTensor | Scalar):
            raise ValueError(
                f"{path} holds a {type(item).__name__} under {str(name)[:100]!r} where a tensor "
                "belongs: save the state_dict() of one model, with nothing inside but tensors"
            )
    tensors, scalars = _split(state)
    return tensors, _split(value)[1] | scalars


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
