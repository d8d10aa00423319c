"""Damaged and hostile files, one function each: `CASES[name].make(folder)` gives the path to open.

Payloads would create `folder/canary`: after a refusal the folder must hold what `make` put there.
"""

import gzip
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file
from weights import hostile_pickles  # noqa: F401 (it fills CASES)
from weights.hostile_cases import CASES as CASES
from weights.hostile_cases import WEIGHTS, case, register
from weights.torch_writer import write_zip

# Safetensors


def safetensors(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape=(2,), dtype="F32", offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def register_bytes(name: str, message: str, data: bytes, file: str = "model.safetensors") -> None:
    def make(folder):
        (folder / file).write_bytes(data)
        return folder / file

    register(name, message, make)


GOOD = save(WEIGHTS)
EIGHT = bytes(8)
for _name, _message, _data in (
    ("empty_file", "is empty: download", b""),
    ("three_bytes", "no file of weights", b"\x10\x00\x00"),
    ("cut_in_the_header", "announces a header of", GOOD[:40]),
    (
        "cut_in_the_data",
        "damaged or cut off: its tensors take 40 bytes, the file has 39",
        GOOD[:-1],
    ),
    ("bytes_at_the_end", "cut off: its tensors take 40 bytes, the file has 48", GOOD + EIGHT),
    ("header_bomb", "announces a header of 1152921504606846976", safetensors(b"{}", EIGHT, 2**60)),
    ("header_no_json", "no valid JSON", safetensors(b"{{{{", EIGHT)),
    ("header_no_utf8", "no valid JSON", safetensors(b'{"\xff": 1}', EIGHT)),
    ("header_depth_bomb", "no valid JSON", safetensors(b'{"a":' + b"[" * 200_000, EIGHT)),
    ("header_digits_bomb", "no valid JSON", safetensors(b'{"a":' + b"1" * 10**6 + b"}", EIGHT)),
    ("name_twice", "a name occurs twice", safetensors(b'{"a": {}, "a": {}}', EIGHT)),
    ("entry_no_table", "'a' has no dtype", safetensors({"a": 3}, EIGHT)),
    (
        "shape_too_large",
        "takes 16 bytes, the file gives it 8",
        safetensors({"a": entry([4])}, EIGHT),
    ),
    ("shape_negative", "no valid shape", safetensors({"a": entry([-2])}, EIGHT)),
    ("shape_fraction", "no valid shape", safetensors({"a": entry([2.0])}, EIGHT)),
    ("shape_wraps_around", "takes 1361129", safetensors({"a": entry([2**62, 2**62, 2**4])}, EIGHT)),
    ("shape_of_many_axes", "no valid shape", safetensors({"a": entry([1] * 1000)}, EIGHT)),
    ("dtype_unknown", "has the type 'F4'", safetensors({"a": entry(dtype="F4")}, EIGHT)),
    ("dtype_no_text", "has the type", safetensors({"a": entry(dtype=["F32"])}, EIGHT)),
    ("offsets_reversed", "the file gives it -8", safetensors({"a": entry(offsets=(8, 0))}, EIGHT)),
    ("offsets_outside", "hole at byte 64", safetensors({"a": entry(offsets=(64, 72))}, EIGHT)),
    (
        "offsets_overlap",
        "tensors overlap at byte 4",
        safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    ),
    (
        "offsets_with_a_hole",
        "leave a hole at byte 12",
        safetensors({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    ),
    ("metadata_no_text", "metadata", safetensors({"__metadata__": {"a": [1]}})),
    ("no_tensors", "holds no tensors", safetensors({})),
    ("web_page", "is a web page", b"\n<!DOCTYPE html>\n<html><title>Not found</title></html>"),
    (
        "lfs_pointer",
        "pointer of Git LFS.*git lfs pull",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265380512\n",
    ),
    ("text_file", "no file of weights.*begins with b'These are", b"These are not the weights"),
    ("json_file", "is JSON", b'{"hidden_size": 768}'),
    ("gzip_file", "compressed archive: unpack", gzip.compress(GOOD, mtime=0)),
    ("pickle_of_protocol_0", "no file of weights", b"cos\nsystem\n(S'touch canary'\ntR."),
    ("pickle_cut_off", "damaged: its pickle", pickle.dumps({"a": 1}, 2)[:-1]),
    ("other_pickle", "torch.save did not write", pickle.dumps([1, 2])),
):
    register_bytes(_name, _message, _data)


@case("tar archive")
def tar_file(folder):
    with tarfile.open(folder / "model.bin", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return folder / "model.bin"


# Shards, folders, links


def write_shards(folder: Path, weight_map) -> Path:
    save_file({"a": WEIGHTS["a"]}, folder / "part-1.safetensors")
    save_file({"b": WEIGHTS["b"]}, folder / "part-2.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": weight_map}))
    return index


PART_1, PART_2 = "part-1.safetensors", "part-2.safetensors"
for _name, _message, _map in (
    ("shard_outside", "not in its folder: refused", {"a": PART_1, "b": "../part-2.safetensors"}),
    ("shard_absolute", "not in its folder: refused", {"a": "/etc/passwd"}),
    ("shard_is_the_folder", "not in its folder: refused", {"a": "."}),
    ("shard_is_the_index", "is JSON", {"a": "model.safetensors.index.json"}),
    ("shard_lacks_a_tensor", "part-2.safetensors lacks 'c'",
     {"a": PART_1, "b": PART_2, "c": PART_2}),
    ("shard_holds_another", "part-2.safetensors holds 'b'", {"a": PART_1, "c": PART_2}),
    ("index_with_numbers", "no weight_map", {"a": 1}),
    ("index_with_a_list", "no weight_map", [PART_1]),
    ("index_empty", "lists no tensors", {}),
):  # fmt: skip
    register(_name, _message, lambda folder, weight_map=_map: write_shards(folder, weight_map))


@case("holds 'a'")
def tensor_in_two_shards(folder):
    index = write_shards(folder, {"a": PART_1, "b": PART_2})
    save_file(WEIGHTS, folder / PART_2)
    return index


@case("lacks the shard part-2.safetensors", FileNotFoundError)
def shard_missing(folder):
    index = write_shards(folder, {"a": PART_1, "b": PART_2})
    (folder / PART_2).unlink()
    return index


@case("holds no weights", FileNotFoundError)
def empty_folder(folder):
    (folder / "unet").mkdir()
    return folder / "unet"


@case("several files of weights")
def folder_of_several(folder):
    for name in ("one.safetensors", "two.safetensors"):
        save_file(WEIGHTS, folder / name)
    return folder


@case("no file or folder", FileNotFoundError)
def nothing(folder):
    return folder / "model.safetensors"


@case("is a link to .*blob, which does not exist", FileNotFoundError)
def dangling_link(folder):
    (folder / "model.safetensors").symlink_to(folder / "blob")
    return folder / "model.safetensors"


@case("cannot read")
def link_to_itself(folder):
    (folder / "model.safetensors").symlink_to("model.safetensors")
    return folder / "model.safetensors"


@case("is a pipe or device")
def link_to_a_device(folder):
    (folder / "model.safetensors").symlink_to("/dev/zero")
    return folder / "model.safetensors"


@case("is a pipe or device")
def pipe(folder):
    os.mkfifo(folder / "model.safetensors")
    return folder / "model.safetensors"


@case("is a pipe or device")
def pipe_in_a_folder(folder):
    os.mkfifo(folder / "model.safetensors")
    return folder


@case("is a folder")
def folder_called_like_a_file(folder):
    (folder / "model.safetensors").mkdir()
    return folder


# Readable, but not to be written


def _with(value: float) -> dict[str, np.ndarray]:
    return WEIGHTS | {"bad": np.array([1, value], np.float32)}


def nan_in_safetensors(folder: Path) -> Path:
    save_file(_with(np.nan), folder / "model.safetensors")
    return folder / "model.safetensors"


def inf_in_safetensors(folder: Path) -> Path:
    save_file(_with(-np.inf), folder / "model.safetensors")
    return folder / "model.safetensors"


def nan_in_torch(folder: Path) -> Path:
    return write_zip(folder / "model.ckpt", {"state_dict": _with(np.nan)})


NOT_FINITE = (nan_in_safetensors, inf_in_safetensors, nan_in_torch)
"""Files that open, whose tensor "bad" holds NaN or inf."""
