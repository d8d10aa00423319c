"""A folder becomes the pipeline it was saved from, or one clear error."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_pipeline
from safetensors.numpy import load_file, save_file

from sdjax.pipelines.load import load
from sdjax.pipelines.models import bundled_models, find_model
from sdjax.weights.files import sha256


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline.make_pipeline()


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline.save(pipe, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "tiny")


def edit(folder, **fields):
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_was_saved_is_loaded(pipe, saved):
    loaded = load(saved)
    assert (loaded.name, loaded.config, loaded.defaults, loaded.styles) == (
        pipe.name, pipe.config, pipe.defaults, pipe.styles,
    )  # fmt: skip
    assert jax.tree.structure(loaded.params) == jax.tree.structure(
        dict(sorted(pipe.params.items()))
    )
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(pipe.params), strict=True):
        np.testing.assert_array_equal(a, b)
    text = "a red cat, flat style zebra"
    np.testing.assert_array_equal(loaded.tokenizer(text), pipe.tokenizer(text))
    assert load(str(saved)).config == pipe.config


def change_model_json(folder, change):
    described = json.loads((folder / "model.json").read_text())
    change(described)
    (folder / "model.json").write_text(json.dumps(described))


def test_a_model_without_styles_takes_any(folder):
    change_model_json(folder, lambda model: model.pop("styles"))
    assert load(folder).styles == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("vocabulary"), "the vocabulary has 49408 ids, the text tower 14 rows"),
        (lambda m: m.pop("config"), r"model\.json lacks config"),
        (lambda m: m["defaults"].update(colour="red"), "unknown fields: colour"),
        (lambda m: m["sha256"].pop("unet.safetensors"), r"has no unet\.safetensors"),
        (lambda m: m["config"]["unet"].update(res_blocks=2), "unet does not fit its config"),
        (lambda m: m["config"]["unet"].update(heads=[1, 3]), "do not split into 3 heads"),
        (lambda m: m["config"]["schedule"].update(prediction="epsilon"), "must be one of eps, v"),
    ],
)
def test_weights_that_do_not_fit_the_description_are_refused(folder, change, message):
    change_model_json(folder, change)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_bundled_models_go_by_name():
    for name in bundled_models():
        assert (find_model(name) / "model.json").is_file()


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(FileNotFoundError, match="no model 'maxi': it is neither a bundled model"):
        load("maxi")


def test_no_model_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights: expected"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        load(tmp_path / "file")


def test_a_missing_file(folder):
    (folder / "unet.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists unet\.safetensors.*has no such file"):
        load(folder)


def test_a_damaged_file(folder):
    path = folder / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"unet\.safetensors is not the file that was saved"):
        load(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        load(folder)


def test_a_tensor_with_nan(folder):
    path = folder / "unet.safetensors"
    tensors = load_file(path)
    tensors["conv_in/bias"][1] = np.nan
    save_file(tensors, path)
    hashes = json.loads((folder / "model.json").read_text())["sha256"]
    edit(folder, sha256={**hashes, path.name: sha256(path)})
    with pytest.raises(ValueError, match=r"unet\.safetensors: conv_in/bias holds NaN or inf in 1"):
        load(folder)


def test_another_kind_of_model(folder):
    edit(folder, kind="sculpture")
    with pytest.raises(ValueError, match="holds a 'sculpture', which this sdjax does not know"):
        load(folder)


def test_a_config_that_does_not_fit(folder):
    described = json.loads((folder / "model.json").read_text())
    described["config"]["unet"]["context_dim"] = 33
    edit(folder, config=described["config"])
    with pytest.raises(ValueError, match="UNet reads text vectors of 33, the text tower writes 32"):
        load(folder)
