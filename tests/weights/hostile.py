"""Damaged and hostile files, one function each: `CASES[name].make(folder)` gives the path to open.

Payloads would create `folder/canary`: after a refusal the folder must hold what `make` put there.
"""

import gzip
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file
from weights.torch_writer import (
    Call,
    Global,
    Persistent,
    Raw,
    Script,
    State,
    dumps,
    storage,
    tensor,
    write_legacy,
    write_zip,
)


@dataclass(frozen=True)
class Case:
    make: Callable[[Path], Path]
    message: str  # pattern of what the error must say besides the path
    error: type[Exception] = ValueError


CASES: dict[str, Case] = {}
WEIGHTS = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}


def case(message: str, error: type[Exception] = ValueError):
    def register(make):
        CASES[make.__name__] = Case(make, message, error)
        return make

    return register


def register(name: str, message: str, make: Callable[[Path], Path]) -> None:
    assert name not in CASES
    CASES[name] = Case(make, message)


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
    ("gzip_file", "compressed archive: unpack", gzip.compress(GOOD)),
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


# Pickles


def register_pickle(name: str, message: str, value) -> None:
    """A checkpoint that holds `value`, or what `value(folder)` gives, beside good weights."""

    def make(folder):
        content = value(folder) if callable(value) else value
        state = {"state_dict": WEIGHTS, "global_step": 1, "callbacks": content}
        return write_zip(folder / "model.ckpt", state)

    register(name, message, make)


def touch(folder: Path) -> str:
    return f"touch {folder / 'canary'}"


def create(folder: Path) -> str:
    return f"open({str(folder / 'canary')!r}, 'w')"


GETATTR = Global("builtins", "getattr")
for _name, _message, _value in (
    ("os_system", "asks for os.system: refused; nothing was executed",
     lambda folder: Call(Global("os", "system"), (touch(folder),))),
    ("posix_system", "asks for posix.system: refused",
     lambda folder: Call(Global("posix", "system"), (touch(folder),))),
    ("subprocess", "asks for subprocess.Popen: refused",
     lambda folder: Call(Global("subprocess", "Popen"), (["touch", str(folder / "canary")],))),
    ("eval", "asks for builtins.eval: refused",
     lambda folder: Call(Global("builtins", "eval"), (create(folder),))),
    ("exec_of_python_2", "asks for __builtin__.exec: refused",
     lambda folder: Call(Global("__builtin__", "exec"), (create(folder),))),
    ("open_file", "asks for io.open: refused",
     lambda folder: Call(Global("io", "open"), (str(folder / "canary"), "w"))),
    ("getattr", "asks for builtins.getattr: refused",
     Call(GETATTR, (Global("os", "path"), "join"))),
    ("reduce_chain", "asks for builtins.getattr: refused",
     lambda folder: Call(
         Call(GETATTR, (Call(Global("builtins", "__import__"), ("os",)), "system")),
         (touch(folder),),
     )),
    ("torch_load", "asks for torch.load: refused", Call(Global("torch", "load"), ("x.pt",))),
    ("load_from_bytes", "asks for torch.storage._load_from_bytes: refused",
     Call(Global("torch.storage", "_load_from_bytes"), (b"",))),
    ("numpy_runstring", "asks for numpy.testing._private.utils.runstring: refused",
     Call(Global("numpy.testing._private.utils", "runstring"), ("1", {}))),
    ("attribute_of_an_allowed_name", "asks for collections.OrderedDict.fromkeys: refused",
     Call(Global("collections", "OrderedDict.fromkeys"), ([],))),
    ("whole_module", "asks for torch.nn.modules.linear.Linear: refused",
     Raw(b"ctorch.nn.modules.linear\nLinear\n)\x81}b")),
    ("lightning_name_not_listed", "asks for pytorch_lightning.utilities.x.run: refused",
     Global("pytorch_lightning.utilities.x", "run")),
    ("stack_global", "asks for os.system: refused",
     lambda folder: Raw(b"\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R")),
    ("name_with_terminal_codes", r"asks for os.\\x1b\[2Jsystem: refused",
     Raw(b"\x8c\x02os\x8c\x0a\x1b[2Jsystem\x93")),
    ("instruction_inst", "uses the pickle instruction INST",
     lambda folder: Raw(b"(X\x01\x00\x00\x00xios\nsystem\n")),
    ("instruction_obj", "uses the pickle instruction OBJ", Raw(b"(o")),
    ("instruction_ext", "uses the pickle instruction EXT1", Raw(b"\x82\x01")),
    ("state_of_a_class", "sets attributes of a Builder: refused",
     State(Global("collections", "OrderedDict"), {"fromkeys": 1})),
    ("state_of_a_storage_class", "sets attributes of a StorageType: refused",
     State(Global("torch", "FloatStorage"), (None, {"dtype": 1}))),
    ("setstate", "sets attributes of a StoredTensor: refused",
     lambda folder: State(WEIGHTS["a"], {"__setstate__": touch(folder)})),
    ("call_of_a_tensor", "calls a StoredTensor: refused", Call(WEIGHTS["a"], ())),
    ("persistent_id_text", "a str where a tuple", Persistent("storage")),
    ("persistent_id_other", "a persistent id that begins with 'module'",
     Persistent(("module", Global("torch", "FloatStorage"), "0", "cpu", 6))),
    ("persistent_id_no_class", "a persistent id", Persistent(("storage", "os", "0", "cpu", 6))),
    ("persistent_id_short", "not enough values", Persistent(("storage",))),
    ("key_of_nested_tuples", "a tuple as a key", Raw(b"})" + b"\x85" * 20_000 + b"Ns")),
    ("stack_underflow", "does not make sense", Raw(b"R" * 40)),
    ("memo_unknown", "does not make sense", Raw(b"h\xff")),
    ("append_to_a_number", "a int where a list", Raw(b"K\x01K\x02a")),
    ("strides_leave_the_storage", "does not fit into its storage of 6 numbers",
     tensor(storage("0", 6), 0, (2, 3), (4, 1))),
    ("offset_outside", "does not fit into its storage of 6 numbers",
     tensor(storage("0", 6), 6, (), ())),
    ("size_negative", "where a size belongs", tensor(storage("0", 6), 0, (-1,), (1,))),
    ("stride_negative", "where a size belongs", tensor(storage("0", 6), 5, (6,), (-1,))),
    ("size_no_number", "where a size belongs", tensor(storage("0", 6), 0, ("6",), (1,))),
    ("numel_negative", "where a size belongs", tensor(storage("0", -6), 0, (0,), (1,))),
    ("tensor_from_nothing", r"shape \(1099511627776,\), strides \(0,\)",
     tensor(storage("0", 6), 0, (2**40,), (0,))),
    ("tensor_of_many_axes", "a tensor of 1000 axes",
     tensor(storage("0", 6), 0, (1,) * 1000, (1,) * 1000)),
    ("two_sizes_of_a_storage", "two descriptions of the storage '0'",
     tensor(storage("0", 7), 0, (1,), (1,))),
    ("storage_missing", r"has no entry 'archive/data/77'",
     tensor(storage("77", 6), 0, (6,), (1,))),
    ("storage_elsewhere", r"has no entry 'archive/data/../../secret'",
     tensor(storage("../../secret", 6), 0, (6,), (1,))),
):  # fmt: skip
    register_pickle(_name, _message, _value)


def register_root(name: str, message: str, value, **options) -> None:
    register(name, message, lambda folder: write_zip(folder / "model.pt", value, **options))


CYCLE = Script({"weight": WEIGHTS["a"]})
CYCLE.attributes["self"] = CYCLE
DOUBLING = Script({"weight": WEIGHTS["a"]})
for _ in range(60):
    DOUBLING = Script({"left": DOUBLING, "right": DOUBLING})

for _name, _message, _value in (
    ("one_tensor", "holds a StoredTensor, no tensors with names", WEIGHTS["a"]),
    ("only_text", "holds a str, no tensors with names", "weights"),
    ("no_tensors_in_torch", "holds no tensors", {"state_dict": {}, "global_step": 3}),
    ("nested_models", "holds a dict under 'unet'", {"unet": WEIGHTS, "vae": WEIGHTS}),
    ("lightning_in_the_weights", "holds a Inert under 'x'",
     {"x": Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")}),
    ("name_no_text", "holds a StoredTensor under '3'", {3: WEIGHTS["a"]}),
    ("script_cycle", "attributes: refused", CYCLE),
    ("script_doubling", "attributes: refused", DOUBLING),
):  # fmt: skip
    register_root(_name, _message, _value)
register_root("big_endian", "byte order b'big'", WEIGHTS, byteorder=b"big")
register_root("zip_traversal", "outside of itself", WEIGHTS, extra={"../../canary": b"x"})
register_root("zip_traversal_windows", "outside of itself", WEIGHTS, extra={"..\\canary": b"x"})
register_root("zip_compressed", "is compressed", WEIGHTS, compression=zipfile.ZIP_DEFLATED)


@case("zip with 0 files NAME/data.pkl")
def zip_of_something_else(folder):
    np.savez(folder / "model.npz", **WEIGHTS)
    return folder / "model.npz"


@case("zip with 2 files NAME/data.pkl")
def two_pickles(folder):
    path = write_zip(folder / "model.pt", WEIGHTS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", dumps({})[0])
    return path


@case("'archive/data.pkl' twice")
def pickle_twice(folder):
    path = write_zip(folder / "model.pt", WEIGHTS)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("archive/data.pkl", dumps({})[0])
    return path


@case("is compressed")
def zip_bomb(folder):
    with zipfile.ZipFile(folder / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    return folder / "model.pt"


@case("a pickle of 33554432 bytes")
def pickle_bomb(folder):
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", bytes(2**25))
    return folder / "model.pt"


def edit_entry(path: Path, name: str, **changes) -> Path:
    """Changes what the zip's directory says about an entry, and nothing else."""
    with zipfile.ZipFile(path, "a") as archive:
        for key, value in changes.items():
            setattr(archive.getinfo(name), key, value)
        archive._didModify = True
    return path


@case("goes beyond its end")
def zip_size_bomb(folder):
    path = write_zip(folder / "model.pt", WEIGHTS)
    return edit_entry(path, "archive/data/0", file_size=2**40, compress_size=2**40)


@case("not where it should be")
def zip_entry_elsewhere(folder):
    return edit_entry(write_zip(folder / "model.pt", WEIGHTS), "archive/data/0", header_offset=3)


@case("not where it should be")
def zip_entry_before_the_file(folder):
    path = write_zip(folder / "model.pt", WEIGHTS)
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\5\6")
    # A directory that claims a later start: the reader then takes the file for shifted.
    start = int.from_bytes(data[end + 16 : end + 20], "little")
    data[end + 16 : end + 20] = (start + 1000).to_bytes(4, "little")
    path.write_bytes(data)
    return path


@case("more than its own size")
def zip_overlap_bomb(folder):
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        keys = [str(i) for i in range(100)]
        parts = {key: tensor(storage(key, 1000), 0, (1000,), (1,)) for key in keys}
        archive.writestr("archive/data.pkl", dumps(parts)[0])
        archive.writestr("archive/data/0", bytes(4000))
        for key in keys[1:]:
            archive.writestr(f"archive/data/{key}", b"")
            first, info = archive.getinfo("archive/data/0"), archive.infolist()[-1]
            info.header_offset, info.file_size = first.header_offset, first.file_size
            info.compress_size = first.compress_size
    return folder / "model.pt"


@case("'archive/data/0' has 20 bytes, 6 numbers of float32 take 24")
def storage_too_short(folder):
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", dumps({"a": WEIGHTS["a"]})[0])
        archive.writestr("archive/data/0", bytes(20))
    return folder / "model.pt"


for _cut in (30, 300, 600):
    register(
        f"zip_cut_at_{_cut}",
        "damaged or cut off zip",
        lambda folder, cut=_cut: cut_file(write_zip(folder / "model.pt", WEIGHTS), cut),
    )


def cut_file(path: Path, size: int) -> Path:
    os.truncate(path, size)
    return path


@case("damaged: its pickle")
def legacy_cut_in_the_pickle(folder):
    return cut_file(write_legacy(folder / "model.pt", WEIGHTS), 200)


@case("is not whole")
def legacy_cut_in_the_data(folder):
    path = write_legacy(folder / "model.pt", WEIGHTS)
    return cut_file(path, path.stat().st_size - 1)


@case("little-endian")
def legacy_big_endian(folder):
    return write_legacy(folder / "model.pt", WEIGHTS, little_endian=False)


@case("asks for os.system: refused")
def legacy_os_system(folder):
    hostile = Call(Global("os", "system"), (touch(folder),))
    return write_legacy(folder / "model.pt", {"a": hostile})


@case("asks for os.system: refused")
def plain_pickle_os_system(folder):
    (folder / "model.bin").write_bytes(dumps(Call(Global("os", "system"), (touch(folder),)))[0])
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
