"""Published weights by path: `open_tensors("v1-5-pruned.ckpt")["...weight"]`, without PyTorch.

A path is a file (safetensors, `torch.save`, TorchScript; told apart by content, not by name), an
index of shards (`*.index.json`) or a folder that holds one of these. Opening reads names, shapes
and types; numbers are read tensor by tensor.

In a folder with several files of one model, the choice is: names of transformers and diffusers
before OpenCLIP's, full precision before float16, safetensors before pickles, one file before
shards.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdjax.weights.tensors import (
    MAX_RANK,
    SAFETENSORS_DTYPES,
    Checkpoint,
    LazyTensor,
    file_tensor,
)
from sdjax.weights.torch_files import AGAIN, read_legacy, read_zip
from sdjax.weights.tree import shown

HEADER_LIMIT = 10**8
"""Bytes of a safetensors header or an index; the format's own limit."""

MODEL_FILE = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model|open_clip_pytorch_model|open_clip_model)"
    r"(?P<half_1>\.fp16)?\.(?P<kind>safetensors|bin)"
    r"(?P<index>(?P<half_2>\.fp16)?\.index(?P<half_3>\.fp16)?\.json)?"
)
"""Names that diffusers, transformers and OpenCLIP give to the weights of a folder."""
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""Of weights with a name of their own."""


def open_tensors(path: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """Tensors by their names in the file, index or folder `path`; see `open_checkpoint`."""
    return open_checkpoint(path).tensors


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The tensors and scalars of the file, index or folder `path`.

    Raises:
        FileNotFoundError: nothing is there, or a shard is missing.
        ValueError: it is damaged, no file of weights, or would run code; one message says which,
            and what to do.
    """
    path = Path(path)
    if path.is_dir():
        path = path / choose((entry.name for entry in path.iterdir()), str(path))
    _check_regular(path)
    checkpoint = _open_shards(path) if path.name.endswith(".json") else _open_file(path)
    if not checkpoint.tensors:
        raise ValueError(f"{path} holds no tensors: give the file of the weights")
    return checkpoint


def choose(names: Iterable[str], folder: str) -> str:
    """Which of the files `names` has the weights of a folder; `folder` is told in errors.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, none better than the others.
    """
    names = sorted(names)
    known = [match for name in names if (match := MODEL_FILE.fullmatch(name))]
    ranks = {match[0]: _rank(match) for match in known}
    best = [name for name, rank in ranks.items() if rank == min(ranks.values())]
    candidates = best or [name for name in names if name.endswith(SUFFIXES)]
    if not candidates:
        raise FileNotFoundError(
            f"{folder} holds no weights: expected model.safetensors, "
            f"diffusion_pytorch_model.safetensors or a file *{', *'.join(SUFFIXES)}"
        )
    if len(candidates) > 1:
        raise ValueError(
            f"{folder} holds several files of weights ({', '.join(map(shown, candidates[:8]))}): "
            "give the path of one"
        )
    return candidates[0]


def _rank(match: re.Match[str]) -> tuple[bool, bool, bool, bool]:
    # A repository with OpenCLIP's file and that of transformers has the config.json of the latter.
    openclip = match["stem"].startswith("open_clip")
    half = any(match[f"half_{i}"] for i in (1, 2, 3))
    return openclip, half, match["kind"] == "bin", match["index"] is not None


def shards_of(index: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that are shards of the file `index`, told by name; none if it is no index.

    "model.safetensors.index.json" goes with "model-00001-of-00002.safetensors".
    """
    match = MODEL_FILE.fullmatch(index)
    if match is None or match["index"] is None:
        return []
    half = r"(\.fp16)" if any(match[f"half_{i}"] for i in (1, 2, 3)) else "()"
    # The word for half precision comes before the numbers or after them.
    shard = re.compile(rf"{match['stem']}{half}?-\d+-of-\d+{half}?\.{match['kind']}")
    return [n for n in names if (m := shard.fullmatch(n)) and (half == "()" or m[1] or m[2])]


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; {AGAIN}"
            ) from None
        raise FileNotFoundError(f"no file or folder {path}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    # Opening a pipe waits for someone to write into it.
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe or device"
        raise ValueError(f"{path} is a {kind}, not a file of weights")


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty: {AGAIN}")
    if head[8:9] == b"{":  # first: the length before it may be any bytes, those of a pickle too
        return _open_safetensors(path)
    if head.startswith(b"PK"):
        return read_zip(path)
    if head.startswith(b"\x80"):
        return read_legacy(path)
    raise ValueError(f"{path} {_what_it_is(head)}")


def _what_it_is(head: bytes) -> str:
    """Words for the beginning of a file that holds no weights."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "is a web page, not weights: the address of the page was downloaded instead of the "
            "file's own (on Hugging Face: /resolve/ instead of /blob/), or a login was asked for"
        )
    if text.startswith(b"version https://git-lfs"):
        return (
            "is a pointer of Git LFS, which stands for the real file: fetch that with "
            "'git lfs pull', or download it from the web site"
        )
    if text.startswith((b"{", b"[")):
        return "is JSON, not weights: give the file or the folder of the weights"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it, or save the weights again with a newer PyTorch"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")):
        return "is a compressed archive: unpack it first"
    return f"is no file of weights that is known here: it begins with {head[:16]!r}"


def _open_safetensors(path: Path) -> Checkpoint:
    file_size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > min(HEADER_LIMIT, file_size - 8):
            raise ValueError(
                f"{path} is damaged or cut off: it announces a header of {header_size} bytes, "
                f"{file_size - 8} follow; {AGAIN}"
            )
        header = parse_json(file.read(header_size), path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path} is damaged: its metadata are not texts by name; {AGAIN}")
    start = 8 + header_size
    spans = {name: _span(entry, f"{path}: '{shown(name)}'") for name, entry in header.items()}
    _check_tiling((span for *_, span in spans.values()), file_size - start, path)
    tensors = {
        name: file_tensor(path, dtype, start + begin, shape)
        for name, (dtype, shape, (begin, _)) in spans.items()
    }
    return Checkpoint(tensors, metadata, "safetensors", (path,))


def _span(entry: Any, what: str) -> tuple[Any, tuple[int, ...], tuple[int, int]]:
    """(type, shape, (begin, end)) of one tensor in a safetensors header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what} has no dtype, shape and data_offsets: damaged; {AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise ValueError(
            f"{what} has the type '{shown(dtype)}': known are {', '.join(SAFETENSORS_DTYPES)}; "
            "get a file in one of these (quantized weights are not supported)"
        )
    if not (_sizes(shape) and len(shape) <= MAX_RANK and _sizes(offsets) and len(offsets) == 2):
        raise ValueError(f"{what} has no valid shape and data_offsets: damaged; {AGAIN}")
    begin, end = offsets
    nbytes = math.prod(shape) * SAFETENSORS_DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise ValueError(
            f"{what} of shape {tuple(shape)} and type {dtype} takes {nbytes} bytes, the file gives "
            f"it {end - begin}: damaged; {AGAIN}"
        )
    return SAFETENSORS_DTYPES[dtype], tuple(shape), (begin, end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_tiling(spans: Iterable[tuple[int, int]], total: int, path: Path) -> None:
    """Tensors must cover the file without holes or overlaps."""
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            kind = "overlap" if begin < position else "leave a hole"
            raise ValueError(f"{path} is damaged: tensors {kind} at byte {begin}; {AGAIN}")
        position = end
    if position != total:
        raise ValueError(
            f"{path} is damaged or cut off: its tensors take {position} bytes, the file has "
            f"{total}; {AGAIN}"
        )


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """The object that JSON from another's file holds; no name may occur twice.

    Raises:
        ValueError: it is damaged, too deep, or no object; `path` is told.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique)
        if not isinstance(value, dict):
            raise ValueError("no table of names")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: no valid JSON ({shown(str(error))}); {AGAIN}"
        ) from error
    return value


def _open_shards(index: Path) -> Checkpoint:
    if index.stat().st_size > HEADER_LIMIT:
        raise ValueError(f"{index} is larger than {HEADER_LIMIT} bytes: no index of shards")
    names = parse_json(index.read_bytes(), index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise ValueError(
            f"{index} has no weight_map, so it is no index of shards: give the file or the folder "
            "of the weights"
        )
    shards = {}
    for shard in sorted(set(names.values())):
        # From the internet: it must not lead out of the folder.
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard:
            raise ValueError(
                f"{index} names the shard '{shown(shard)}', not in its folder: refused"
            )
        if not os.path.lexists(index.parent / shard):
            raise FileNotFoundError(
                f"{index.parent} lacks the shard {shown(shard)} of {index.name}; {AGAIN}"
            )
        _check_regular(index.parent / shard)
        shards[shard] = _open_file(index.parent / shard)
    held = {(name, shard) for shard, part in shards.items() for name in part.tensors}
    if wrong := sorted(held ^ set(names.items())):
        name, shard = wrong[0]
        words = "holds" if (name, shard) in held else "lacks"
        raise ValueError(
            f"{index} and its shards disagree about {len(wrong)} tensors: unlike it says, "
            f"{shown(shard)} {words} '{shown(name)}'; {AGAIN}"
        )
    parts = list(shards.values())
    if not parts:
        raise ValueError(f"{index} lists no tensors; {AGAIN}")
    return Checkpoint(
        {name: shards[shard].tensors[name] for name, shard in names.items()},
        {key: value for part in parts for key, value in part.scalars.items()},
        parts[0].format,
        tuple(file for part in parts for file in part.files),
    )
