import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.weights import files
from sdjax.weights.files import load_model, open_unused, save_model
from sdjax.weights.readers import open_tensors
from sdjax.weights.stored import stored_config
from sdjax.weights.tree import flatten

GENERATOR = np.random.default_rng(0)
COMPONENTS = {
    "text": {"embed": {"embedding": GENERATOR.normal(size=(5, 3)).astype(np.float32)}},
    "unet": {
        "conv_in": {"kernel": GENERATOR.normal(size=(3, 3, 2, 4)).astype(np.float32)},
        "gain": np.float32(1.5),  # a scalar
    },
}
MODEL = {"preset": "test", "licence": "CC0", "nested": {"list": [1, 2.5, None, "é"]}}
RELATIVE_ERROR = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def assert_same(got, want, relative=0.0):
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for key in want:
        assert got[key].shape == np.shape(want[key])
        np.testing.assert_allclose(
            np.asarray(got[key], np.float32), want[key], rtol=relative, atol=0
        )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_saved_is_loaded_as_float32(tmp_path, dtype):
    save_model(tmp_path / "model", COMPONENTS, MODEL, dtype=dtype)
    components, model = load_model(tmp_path / "model")
    assert components.keys() == COMPONENTS.keys()
    for name, params in COMPONENTS.items():
        assert_same(components[name], params, RELATIVE_ERROR[dtype])
        assert all(leaf.dtype == jnp.float32 for leaf in flatten(components[name]).values())
    assert {key: model[key] for key in MODEL} == MODEL
    assert model["dtype"] == dtype
    assert model["format_version"] == files.FORMAT_VERSION
    assert set(model["sha256"]) == {"text.safetensors", "unet.safetensors"}
    stored = open_tensors(tmp_path / "model" / "unet.safetensors")
    assert {array.dtype.name for array in stored.values()} == {dtype}


def test_loading_into_another_precision(tmp_path):
    save_model(tmp_path / "model", COMPONENTS, MODEL)
    components, _ = load_model(tmp_path / "model", dtype=jnp.bfloat16)
    assert components["unet"]["conv_in"]["kernel"].dtype == jnp.bfloat16


def test_a_loaded_model_can_be_saved_again_without_loss(tmp_path):
    save_model(tmp_path / "a", COMPONENTS, MODEL, dtype="bfloat16")
    components, model = load_model(tmp_path / "a")
    save_model(tmp_path / "b", components, model, dtype="bfloat16")
    for name in ("model.json", "text.safetensors", "unet.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_arrays_that_do_not_lie_in_order_are_stored_right(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_model(tmp_path / "m", {"unet": {"t": kernel.T, "r": kernel[::-1]}}, {})
    components, _ = load_model(tmp_path / "m")
    assert_same(components["unet"], {"t": kernel.T, "r": kernel[::-1]})


def test_an_existing_model_is_replaced_and_other_files_stay(tmp_path):
    folder = tmp_path / "model"
    save_model(folder, COMPONENTS, MODEL)
    (folder / "README.md").write_text("a card")
    (folder / "vocabulary").mkdir()
    (folder / "vocabulary" / "words.txt").write_text("words")
    save_model(folder, {"unet": COMPONENTS["unet"]}, {"preset": "second"})
    components, model = load_model(folder)
    assert set(components) == {"unet"} and model["preset"] == "second"
    assert {p.name for p in folder.iterdir()} == {
        "README.md", "model.json", "unet.safetensors", "vocabulary",
    }  # fmt: skip
    assert (folder / "vocabulary" / "words.txt").read_text() == "words"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save_model(folder, COMPONENTS, MODEL)
    with pytest.raises(ValueError, match="JSON values only"):
        save_model(folder, COMPONENTS, {"preset": object()})

    def fail(self, target):
        if self.name.endswith(".new"):
            raise OSError("disk full")
        return rename(self, target)

    rename = files.Path.rename
    monkeypatch.setattr(files.Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(folder, {"unet": COMPONENTS["unet"]}, {"preset": "second"})
    assert load_model(folder)[1]["preset"] == "test"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_model_stays_a_link(tmp_path):
    save_model(tmp_path / "model", COMPONENTS, MODEL)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    save_model(tmp_path / "link", COMPONENTS, {"preset": "second"})
    assert (tmp_path / "link").is_symlink()
    assert load_model(tmp_path / "model")[1]["preset"] == "second"


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    save_model(other, COMPONENTS, MODEL)  # empty: allowed
    (other / "model.json").unlink()
    with pytest.raises(ValueError, match="neither empty nor a model folder"):
        save_model(other, COMPONENTS, MODEL)
    assert (other / "unet.safetensors").is_file()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="is a file"):
        save_model(file, COMPONENTS, MODEL)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        save_model(tmp_path / "no" / "where", COMPONENTS, MODEL)


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (np.nan, "float32", r"unet: conv/kernel holds NaN or inf"),
        (-np.inf, "bfloat16", r"unet: conv/kernel holds NaN or inf"),
        (1e5, "float16", r"unet: conv/kernel reaches 100000, more than float16 holds"),
    ],
)
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, value, dtype, words):
    kernel = np.array([1.0, value, 2.0], np.float32)
    with pytest.raises(ValueError, match=words):
        save_model(tmp_path / "m", {"unet": {"conv": {"kernel": kernel}}}, {}, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_integers_and_strange_names_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="unet: ids holds int64"):
        save_model(tmp_path / "m", {"unet": {"ids": np.arange(3)}}, {})
    with pytest.raises(ValueError, match="'../unet' is not a component's name"):
        save_model(tmp_path / "m", {"../unet": COMPONENTS["unet"]}, {})


@pytest.fixture
def saved(tmp_path):
    save_model(tmp_path / "model", COMPONENTS, MODEL)
    return tmp_path / "model"


def edit(folder, **fields):
    model = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**model, **fields}))


def test_missing_things_are_named(saved):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_model(saved / "nowhere")
    (saved / "unet.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lists unet.safetensors"):
        load_model(saved)
    (saved / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.json"):
        load_model(saved)


def test_a_changed_file_is_found(saved):
    data = bytearray((saved / "unet.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "unet.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"unet\.safetensors is not the file that was saved"):
        load_model(saved)


def test_a_damaged_file_with_the_right_hash_is_found(saved):
    path = saved / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    edit(saved, sha256={"unet.safetensors": files.sha256(path)})
    with pytest.raises(ValueError, match="is damaged or cut off"):
        load_model(saved)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_stored_nan_is_found_and_named(saved, dtype):
    path = saved / "unet.safetensors"
    save_file({"a/b/kernel": np.array([0, np.nan, 1], dtype)}, path)
    edit(saved, sha256={"unet.safetensors": files.sha256(path)})
    with pytest.raises(ValueError, match=r"a/b/kernel holds NaN or inf in 1 of 3"):
        load_model(saved)


def test_a_model_json_that_cannot_be_read_says_why(saved):
    edit(saved, format_version=99)
    with pytest.raises(ValueError, match="format version 99, this sdjax reads 1"):
        load_model(saved)
    edit(saved, format_version=1, sha256={"../secret.safetensors": "0"})
    with pytest.raises(ValueError, match="'../secret' is not a component's name"):
        load_model(saved)
    edit(saved, sha256={"unet.bin": "0"})
    with pytest.raises(ValueError, match=r"'unet\.bin', which is no safetensors file"):
        load_model(saved)
    edit(saved, sha256=None)
    with pytest.raises(ValueError, match="no table of SHA-256"):
        load_model(saved)
    (saved / "model.json").write_text("{}")
    with pytest.raises(ValueError, match="names no format_version"):
        load_model(saved)
    (saved / "model.json").write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        load_model(saved)
    for text in ('{"a":' * 10**5, '{"format_version": 1, "format_version": 1}'):
        (saved / "model.json").write_text(text)
        with pytest.raises(ValueError, match="no valid JSON"):
            load_model(saved)


def test_unused_tensors_are_kept_as_they_are_and_have_a_hash(tmp_path):
    unused = {"betas": np.array([np.inf, np.nan, 1.0], np.float32)}
    save_file(unused, tmp_path / "betas")
    save_model(
        tmp_path / "m", COMPONENTS, MODEL, "float16", unused=open_tensors(tmp_path / "betas")
    )
    assert load_model(tmp_path / "m")[0].keys() == COMPONENTS.keys()
    found = open_unused(tmp_path / "m")
    np.testing.assert_array_equal(found["betas"], unused["betas"], strict=True)
    path = tmp_path / "m" / files.UNUSED_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="unused.safetensors is not the file that was saved"):
        open_unused(tmp_path / "m")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="lacks the file unused.safetensors"):
        open_unused(tmp_path / "m")


def test_saving_without_unused_tensors_forgets_their_hash(tmp_path):
    save_file({"betas": np.ones(3, np.float32)}, tmp_path / "betas")
    save_model(tmp_path / "m", COMPONENTS, MODEL, unused=open_tensors(tmp_path / "betas"))
    components, model = load_model(tmp_path / "m")
    save_model(tmp_path / "m", components, model)
    assert open_unused(tmp_path / "m") == {}
    save_file({"betas": np.ones(3, np.float32)}, tmp_path / "m" / files.UNUSED_FILE)
    with pytest.raises(ValueError, match="is not the file that was saved"):
        open_unused(tmp_path / "m")


@pytest.mark.parametrize("kind", [["clip"], {"clip": 1}, None, "\x1b[2J"])
def test_an_unknown_kind_is_told(kind):
    with pytest.raises(ValueError, match="which this sdjax does not know") as error:
        stored_config({"kind": kind, "config": {}}, "model")
    assert "\x1b" not in str(error.value)
