import os
import pickle
import re
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from weights import hostile
from weights.torch_writer import Call, Global, Script, write_legacy, write_zip

from sdjax.weights import tensors as tensors_module
from sdjax.weights.readers import open_checkpoint, open_tensors
from sdjax.weights.tensors import LazyTensor, write_safetensors

GENERATOR = np.random.default_rng(0)
DTYPES = (
    np.float64, np.float32, np.float16, ml_dtypes.bfloat16,
    np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_,
)  # fmt: skip
BASE = GENERATOR.normal(size=(4, 6)).astype(np.float32)
VIEWS = {
    "whole": BASE,
    "transposed": BASE.T,
    "part": BASE[1:3, 2:5],
    "column": BASE[:, 3],
    "scalar": BASE[2, 1:2].reshape(()),
    "none": BASE[:0],
    "reordered": GENERATOR.normal(size=(2, 3, 4, 5)).astype(np.float32).transpose(3, 1, 0, 2),
}
ALL_TYPES = {np.dtype(d).name: np.array([[0, 1], [2, 3]]).astype(d) for d in DTYPES}


def assert_same(got, want):
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype
        read = np.asarray(got[name])
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array, strict=True)


def test_safetensors_come_lazily_in_every_type(tmp_path):
    save_file(ALL_TYPES, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert_same({name: checkpoint.tensors[name] for name in ALL_TYPES}, ALL_TYPES)
    assert checkpoint.scalars == {"format": "pt"}
    assert checkpoint.format == "safetensors"
    assert checkpoint.files == (tmp_path / "model.safetensors",)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("state", [VIEWS, ALL_TYPES], ids=["views", "types"])
def test_torch_files_give_views_and_every_type(tmp_path, write, state):
    path = write(tmp_path / "model.bin", state)
    assert_same(open_tensors(path), state)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_training_checkpoint_gives_its_weights_and_its_numbers(tmp_path, write):
    loss = Call(
        Global("numpy.core.multiarray", "scalar"),
        (
            Call(Global("numpy", "dtype"), ("f8", 0, 1)),
            Call(Global("_codecs", "encode"), ("\0\0\0\0\0\0\xf0?", "latin1")),
        ),
    )
    lightning = Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (BASE, True, {}))
    checkpoint = {
        "epoch": 7,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "loss": loss,
        "state_dict": VIEWS | {"parameter": parameter},
        "callbacks": {lightning: {"best": loss, "dirpath": None, "object": Call(lightning, ())}},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": BASE}}, "ids": {1, 2}}],
        "lr_schedulers": [],
    }
    got = open_checkpoint(write(tmp_path / "model.ckpt", checkpoint))
    assert_same(got.tensors, VIEWS | {"parameter": BASE})
    assert got.scalars == {
        "epoch": 7,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "loss": 1.0,
    }


@pytest.mark.parametrize("wrapper", ["model", "module", "model_state_dict", "params_ema", "params"])
def test_the_weights_of_a_training_are_found(tmp_path, wrapper):
    parallel = {f"module.{name}": array for name, array in VIEWS.items()}
    got = open_checkpoint(write_zip(tmp_path / "model.pt", {wrapper: parallel, "epoch": 3}))
    assert_same(got.tensors, VIEWS)
    assert got.scalars == {"epoch": 3}


def test_an_empty_wrapper_hides_no_tensors_and_none_is_skipped(tmp_path):
    state = {"state_dict": {}, "params": VIEWS | {"bias": None}}
    assert_same(open_tensors(write_zip(tmp_path / "a.pt", state)), VIEWS)
    with pytest.raises(ValueError, match="holds a dict under 'model' where a tensor belongs"):
        open_tensors(write_zip(tmp_path / "b.pt", {"a": BASE, "model": {}}))


def test_a_flipped_bit_is_found_when_the_numbers_are_read(tmp_path):
    path = write_zip(tmp_path / "model.pt", {"a": BASE[:2], "b": BASE[2:], "c": VIEWS["reordered"]})
    data = bytearray(path.read_bytes())
    data[data.index(BASE.tobytes()) + 3] ^= 1
    path.write_bytes(data)
    tensors = open_tensors(path)
    np.testing.assert_array_equal(np.asarray(tensors["c"]), VIEWS["reordered"])
    for name in ("a", "b"):  # of one storage, which is damaged
        with pytest.raises(ValueError, match="is damaged: 'archive/data/0' has the checksum"):
            np.asarray(tensors[name])


def test_a_tuple_of_tensors_is_numbered(tmp_path):
    path = write_legacy(tmp_path / "ViT-L-14_stats.th", (BASE[0], BASE[1]))
    assert_same(open_tensors(path), {"0": BASE[0], "1": BASE[1]})


def test_a_torchscript_archive_gives_the_names_of_its_state_dict(tmp_path):
    def block():
        names = Call(Global("torch.jit._pickle", "build_intlist"), ([1, 2],))
        attributes = {"weight": GENERATOR.normal(size=(2, 3)).astype(np.float16)}
        return Script(attributes | {"training": False, "sizes": names, "hook": None}, "Conv2d")

    conv, first, second = block(), block(), block()
    scale, size = np.array(4.6, np.float16), np.array(224)
    clip = Script(
        {
            "training": False,
            "logit_scale": scale,
            "input_resolution": size,
            "context_length": 77,
            "visual": Script({"conv1": conv}),
            "resblocks": Script({"0": first, "1": second}),
        }
    )
    got = open_checkpoint(write_zip(tmp_path / "ViT-B-32.pt", clip, root="ViT-B-32"))
    assert got.format == "TorchScript"
    assert got.scalars == {"context_length": 77}
    want = {
        "logit_scale": scale,
        "input_resolution": size,
        "visual.conv1.weight": conv.attributes["weight"],
        "resblocks.0.weight": first.attributes["weight"],
        "resblocks.1.weight": second.attributes["weight"],
    }
    assert_same(got.tensors, want)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_make_one_checkpoint(tmp_path, kind):
    names = {name: f"model-{i % 2}.{kind}" for i, name in enumerate(VIEWS)}
    for shard in set(names.values()):
        part = {n: VIEWS[n].copy() for n in VIEWS if names[n] == shard}
        (save_file if kind == "safetensors" else lambda a, p: write_zip(p, a))(
            part, tmp_path / shard
        )
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(f'{{"weight_map": {names}}}'.replace("'", '"'))
    for path in (index, tmp_path):
        got = open_checkpoint(path)
        assert_same(got.tensors, VIEWS)
        assert [file.name for file in got.files] == [f"model-0.{kind}", f"model-1.{kind}"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"], 0),
        (["pytorch_model.bin", "model.fp16.safetensors", "model.fp16.bin"], 0),
        (["model.fp16.safetensors", "pytorch_model.fp16.bin"], 0),
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.non_ema.bin"], 0),
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "other.pt"], 0),
        (["model.safetensors", "model.safetensors.index.json"], 0),
        (["v1-5-pruned.ckpt", "README.md"], 0),
    ],
)
def test_a_folder_gives_full_precision_then_safetensors(tmp_path, names, chosen):
    for name in names:
        save_file({name: BASE}, tmp_path / name)
    assert list(open_tensors(tmp_path)) == [names[chosen]]


def test_links_to_files_are_followed(tmp_path):
    # The cache of the Hugging Face hub holds links to blobs.
    save_file({"a": BASE}, tmp_path / "blob")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blob")
    assert_same(open_tensors(tmp_path / "snapshot"), {"a": BASE})


def test_opening_reads_no_numbers(tmp_path):
    save_file({"big": np.zeros(2**22, np.float32)}, tmp_path / "a.safetensors")
    write_zip(tmp_path / "a.bin", {"big": np.zeros(2**22, np.float32)})
    for name in ("a.safetensors", "a.bin"):
        tracemalloc.start()
        tensor = open_tensors(tmp_path / name)["big"]
        opened = tracemalloc.get_traced_memory()[1]
        np.asarray(tensor)
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert opened < 2**20
        assert 2**24 <= read < 2**24 + 2**20
        assert tensor.nbytes == 2**24


def test_a_file_that_shrinks_after_opening(tmp_path):
    save_file({"a": BASE}, tmp_path / "a.safetensors")
    tensor = open_tensors(tmp_path / "a.safetensors")["a"]
    os.truncate(tmp_path / "a.safetensors", 90)
    with pytest.raises(ValueError, match="shorter since it was opened"):
        np.asarray(tensor)


@pytest.mark.parametrize("name", hostile.CASES)
def test_hostile_files_are_refused(tmp_path, name):
    case = hostile.CASES[name]
    path = case.make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    tracemalloc.start()
    with pytest.raises(case.error) as error:
        open_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert type(error.value) is case.error
    message = str(error.value)
    assert str(path) in message or str(tmp_path) in message
    assert re.search(case.message, message), message
    assert len(message) < 1000
    assert sorted(tmp_path.rglob("*")) == before
    assert peak < 2**26


def test_the_payloads_would_run(tmp_path):
    # In Python's own unpickler: what is refused above is not refused for being ill-formed.
    path = hostile.CASES["plain_pickle_os_system"].make(tmp_path)
    pickle.loads(path.read_bytes())
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("make", hostile.NOT_FINITE, ids=lambda make: make.__name__)
def test_nan_and_inf_are_not_written(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(ValueError, match="bad holds NaN or inf"):
        write_safetensors(tmp_path / "out.safetensors", open_tensors(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_what_is_written_the_safetensors_library_reads(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(tensors_module, "CHUNK", 7)  # so that tensors take several
    source = VIEWS | ALL_TYPES
    lazy = open_tensors(write_zip(tmp_path / "model.bin", source))
    path = tmp_path / "out.safetensors"
    write_safetensors(path, lazy, dtype, {"source": "é"})
    got = load_file(path)
    assert got.keys() == source.keys()
    for name, array in source.items():
        kept = dtype is None or array.dtype.kind in "iub"
        np.testing.assert_array_equal(
            got[name], array if kept else array.astype(np.dtype(dtype)), strict=True
        )
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"source": "é"}
    assert_same({name: open_tensors(path)[name] for name in got}, got)


def test_writing_replaces_a_file_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": BASE})
    write_safetensors(path, {"b": BASE})
    assert list(load_file(path)) == ["b"]

    def fail():
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_safetensors(path, {"a": BASE, "c": LazyTensor((3,), np.dtype(np.float32), fail)})
    assert list(load_file(path)) == ["b"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("tensors", "dtype", "message"),
    [
        ({"a": np.array([1, 7e4], np.float32)}, "float16", "a reaches 70000, more than float16"),
        ({"a": np.array([1e300])}, "bfloat16", r"a reaches 1e\+300, more than bfloat16"),
        ({"a": np.array([1j])}, None, "a is complex128"),
        ({"a": BASE}, np.int8, "a is float32, which cannot be stored as int8"),
        ({"__metadata__": BASE}, None, "__metadata__"),
        (
            {"a": LazyTensor((5,), np.dtype(np.float32), lambda: BASE)},
            None,
            r"a was announced as float32 \(5,\) and is float32 \(4, 6\)",
        ),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, tensors, dtype, message):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "out.safetensors", tensors, dtype)
    assert list(tmp_path.iterdir()) == []


def test_writing_needs_a_folder_and_the_name_of_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        write_safetensors(tmp_path / "no" / "a.safetensors", {"a": BASE})
    with pytest.raises(ValueError, match="give the name of a file"):
        write_safetensors(tmp_path, {"a": BASE})


def test_torch_is_not_imported(tmp_path):
    write_zip(tmp_path / "a.bin", VIEWS)
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from sdjax.weights.readers import open_tensors; print(len(open_tensors(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.bin")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(len(VIEWS))]
