"""Every kind of model, converted, written again and compared in every bit."""

from dataclasses import replace

import numpy as np
import pytest
from weights.published import MODELS, assert_bit_equal, checkpoint, flat, read, write

import sdjax
from sdjax.config import Clip, Depth, StableDiffusion
from sdjax.pipelines.models import read_model
from sdjax.weights.conversion import convert_checkpoint, export_model
from sdjax.weights.layouts import parts
from sdjax.weights.report import report
from sdjax.weights.rules import convert, listing
from sdjax.weights.sources import open_source
from sdjax.weights.tree import flatten

ORIGINAL = ("single-file", "openclip", "midas")
# Both ways are in one test; a single file has no place for a safety checker.
TWO_LAYOUTS = [
    name
    for name, (model, layout) in MODELS.items()
    if isinstance(model, StableDiffusion | Clip | Depth)
    if layout in ORIGINAL or name == "sd1-safety diffusers"
]
WITHOUT_STATISTICS = "ignore:.*without the mean and deviation of image embeddings"
"""A single file of stable unCLIP has none; `test_statistics_of_image_embeddings` is about that."""


def leaves(params):
    return {
        f"{name}/{path}": np.asarray(leaf)
        for name, tree in params.items()
        for path, leaf in flatten(tree).items()
    }


def without_safety(config):
    return replace(config, safety=None) if isinstance(config, StableDiffusion) else config


def export_name(layout):
    return "single-file" if layout in ORIGINAL else "diffusers"


@pytest.mark.filterwarnings(WITHOUT_STATISTICS)
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_comes_back_bit_by_bit(name, tmp_path):
    config, layout = MODELS[name]
    places = checkpoint(config, layout)
    tensors = flat(places)
    src = write(config, layout, tensors, tmp_path / "src")
    source = convert_checkpoint(src, tmp_path / "model", family=config, check=True)
    assert (source.config, source.layout) == (config, layout)

    expected = {}
    for part in parts(config, layout):
        names = listing(part.shapes, part.table)
        own = {n: array for n, array in places[part.place].items() if n in names}
        expected.setdefault(part.component, {}).update(convert(own, part.table, part.shapes))
    model = read_model(tmp_path / "model")
    assert model.config == config
    assert_bit_equal(leaves(model.params), leaves(expected))
    assert_bit_equal(leaves(read_model(src, family=config).params), leaves(expected))

    out = tmp_path / "out.safetensors"
    export_model(tmp_path / "model", out, export_name(layout), check=True)
    assert_bit_equal(read(out), tensors)


def test_a_pipeline_loads_from_a_model_folder_and_from_the_file_itself(tmp_path):
    config, layout = MODELS["sd1 single-file"]
    config = replace(config, text=replace(config.text, vocab_size=49408))  # CLIP's vocabulary
    src = write(config, layout, flat(checkpoint(config, layout)), tmp_path / "src")
    convert_checkpoint(src, tmp_path / "model", family=config)
    stored, direct = sdjax.load(tmp_path / "model"), sdjax.load(src, family=config)
    assert stored.config == direct.config == config
    assert_bit_equal(leaves(direct.params), leaves(stored.params))
    table = stored.params["text"]["token_embedding"]["embedding"]
    name = "text_model.embeddings.token_embedding.weight"
    wanted = checkpoint(config, layout)["cond_stage_model.transformer."][name]
    np.testing.assert_array_equal(table, wanted)


@pytest.mark.filterwarnings(WITHOUT_STATISTICS)
@pytest.mark.filterwarnings("ignore:the layout single-file has no place for. safety")
@pytest.mark.parametrize("name", TWO_LAYOUTS)
def test_the_other_layout_holds_the_same_parameters(name, tmp_path):
    config, layout = MODELS[name]
    src = write(config, layout, flat(checkpoint(config, layout)), tmp_path / "src")
    convert_checkpoint(src, tmp_path / "model", family=config)
    here = export_name(layout)
    there = "diffusers" if here == "single-file" else "single-file"
    # A folder of diffusers says what it is; a single file cannot.
    family = {"diffusers": None, "single-file": config}
    other, back = tmp_path / "other.safetensors", tmp_path / "back.safetensors"
    export_model(tmp_path / "model", other, there, check=True)
    export_model(other, back, here, family=family[there], check=True)
    original = leaves(read_model(tmp_path / "model").params)
    for path, layout_name in ((other, there), (back, here)):
        model = read_model(path, family=family[layout_name])
        assert without_safety(model.config) == without_safety(config)
        got = leaves(model.params)
        made_up, lost = got.keys() - original.keys(), original.keys() - got.keys()
        assert {path.split("/")[0] for path in made_up} <= {"image_statistics"}
        assert {path.split("/")[0] for path in lost} <= {"safety"}
        common = got.keys() - made_up
        assert_bit_equal({n: got[n] for n in common}, {n: original[n] for n in common})


def test_statistics_of_image_embeddings(tmp_path):
    """What a single file cannot hold is told; what makes it another model is refused."""
    config, _ = MODELS["sd2-unclip single-file"]
    single = write(config, "single-file", flat(checkpoint(config, "single-file")), tmp_path / "s")
    assert "note: it comes without the mean" in report(open_source(single, config))
    convert_checkpoint(single, tmp_path / "model", family=config)
    for model in (single, tmp_path / "model"):
        with pytest.warns(UserWarning, match="without the mean and deviation of image embeddings"):
            read_model(model, family=config)
    with pytest.warns(UserWarning, match="0 and 1 are written"):
        export_model(tmp_path / "model", tmp_path / "usual", "diffusers", check=True)
    export_model(tmp_path / "usual", tmp_path / "again.safetensors", "single-file")

    tensors = flat(checkpoint(config, "diffusers"))
    real = write(config, "diffusers", tensors, tmp_path / "real")
    with pytest.raises(ValueError, match="no place for the mean and deviation .* layout diffusers"):
        export_model(real, tmp_path / "lost.safetensors", "single-file", family=config)
    assert not (tmp_path / "lost.safetensors").exists()


def test_the_safety_checker_that_is_left_out_is_told(tmp_path):
    config, layout = MODELS["sd1-safety diffusers"]
    src = write(config, layout, flat(checkpoint(config, layout)), tmp_path / "src")
    with pytest.warns(UserWarning, match="single-file has no place for: safety; left out"):
        export_model(src, tmp_path / "out.safetensors", "single-file", family=config)
