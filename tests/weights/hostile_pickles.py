"""Damaged and hostile files of torch.save, zipped and not.

Payloads would create `folder/canary`.
"""

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
from weights.hostile_cases import WEIGHTS, case, register
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
    ("name_no_text", "holds a StoredTensor under a int", {3: WEIGHTS["a"]}),
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


# What takes more than its share


LIST = b"](" + b"K\1" * 20_000 + b"eq\xff"  # in the memo as 255
TEXT = b"X" + (10**6).to_bytes(4, "little") + b"_" * 10**6 + b"q\xff"
for _name, _code in (
    ("sets_without_end", b"\x8f" * 300_000),  # each takes 216 bytes
    ("copies_of_a_list", LIST + b"cbuiltins\nset\nh\xff\x85R" * 200),
    ("copies_of_a_text", TEXT + b"X\x0a\0\0\0__torch__.h\xff\x93" * 200),
):
    register_pickle(_name, "steps, too many for its size: refused", Raw(b"(" + _code + b"t"))
register_pickle(
    "numel_of_2_to_63", "a int where a size belongs", tensor(storage("0", 2**63), 0, (1,), (1,))
)
register_pickle(
    "numel_of_many_digits",
    "a int where a size belongs",
    tensor(storage("0", 10**5000), 0, (1,), (1,)),
)
register_pickle(
    "key_of_terminal_codes",
    r"no entry 'archive/data/\\x1b\[2J",
    tensor(storage("\x1b[2J", 6), 0, (6,), (1,)),
)
BIG = np.zeros(10_000, np.float32)
register_root(
    "views_without_end", "names more numbers than it holds", {str(i): BIG[i:] for i in range(10)}
)
for _name, _value in (
    ("bare", lambda hostile: hostile),
    ("in_a_list", lambda hostile: [hostile]),
    ("in_a_tuple", lambda hostile: (WEIGHTS["a"], hostile)),
    ("as_the_weights", lambda hostile: {"state_dict": hostile}),
):
    register(
        f"os_system_{_name}",
        "asks for os.system: refused",
        lambda folder, value=_value: write_zip(
            folder / "model.pt", value(Call(Global("os", "system"), (touch(folder),)))
        ),
    )


@case("'archive/data.pkl' has the checksum")
def flipped_bit_in_the_pickle(folder):
    path = write_zip(folder / "model.pt", {"first": WEIGHTS["a"]})
    path.write_bytes(path.read_bytes().replace(b"first", b"furst"))
    return path


def write_legacy_keys(folder: Path, keys: bytes) -> Path:
    path = write_legacy(folder / "model.pt", {"a": WEIGHTS["a"]})
    data = path.read_bytes()
    own = pickle.dumps(["0"], 2)
    assert data.count(own) == 1
    path.write_bytes(data.replace(own, keys))
    return path


for _name, _keys in (
    ("number", pickle.dumps([0], 2)),
    ("nested", b"\x80\x02]" + b"]" * 20_000 + b"a" * 20_000 + b"."),
    ("twice", pickle.dumps(["0", "0"], 2)),
):
    register(
        f"legacy_key_{_name}",
        "its list of storages is not what it uses",
        lambda folder, keys=_keys: write_legacy_keys(folder, keys),
    )
