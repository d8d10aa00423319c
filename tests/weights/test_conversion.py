"""Every kind of model, converted, written again and compared in every bit."""

import numpy as np
import pytest
from weights.published import (
    MODELS,
    assert_bit_equal,
    checkpoint,
    flat,
    read,
    write,
)

from sdjax.config import Clip, Depth, StableDiffusion
from sdjax.pipelines.models import read_model
from sdjax.weights.conversion import convert_checkpoint, export_model
from sdjax.weights.layouts import parts
from sdjax.weights.rules import convert
from sdjax.weights.tree import flatten

ORIGINAL = ("single-file", "openclip", "midas")
TWO_LAYOUTS = [name for name, (c, _) in MODELS.items() if isinstance(c, StableDiffusion | Clip | Depth)]  # fmt: skip


def leaves(params):
    return {
        f"{name}/{path}": np.asarray(leaf)
        for name, tree in params.items()
        for path, leaf in flatten(tree).items()
    }


def export_name(layout):
    return "single-file" if layout in ORIGINAL else "diffusers"


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
        dropped = {n for n in places[part.place] if part.table.drops(n)}
        own = {n: array for n, array in places[part.place].items() if n not in dropped}
        expected[part.component] = convert(own, part.table, part.shapes)
    model = read_model(tmp_path / "model")
    assert model.config == config
    assert_bit_equal(leaves(model.params), leaves(expected))
    assert_bit_equal(leaves(read_model(src, family=config).params), leaves(expected))

    out = tmp_path / "out.safetensors"
    export_model(tmp_path / "model", out, export_name(layout), check=True)
    assert_bit_equal(read(out), tensors)


@pytest.mark.parametrize("name", TWO_LAYOUTS)
def test_the_other_layout_holds_the_same_parameters(name, tmp_path):
    config, layout = MODELS[name]
    src = write(config, layout, flat(checkpoint(config, layout)), tmp_path / "src")
    convert_checkpoint(src, tmp_path / "model", family=config)
    other, back = tmp_path / "other.safetensors", tmp_path / "back.safetensors"
    to_single = export_name(layout) == "diffusers"
    export_model(tmp_path / "model", other, "single-file" if to_single else "diffusers", check=True)
    # A folder of diffusers says what it is; a single file cannot.
    family = config if to_single else None
    export_model(other, back, export_name(layout), family=family, check=True)
    wanted = leaves(read_model(tmp_path / "model").params)
    if to_single:  # a single file has no place for these
        wanted = {n: v for n, v in wanted.items() if not n.startswith(("safety/", "image_stat"))}
    found = read_model(other, family=family)
    got = leaves(found.params)
    statistics = {n: got.pop(n) for n in list(got) if n.startswith("image_statistics/")}
    assert_bit_equal(got, {n: v for n, v in wanted.items() if n in got or n not in statistics})
    if not to_single and not (isinstance(config, StableDiffusion) and config.safety):
        assert found.config == config
    if statistics and "image_statistics/mean" not in wanted:  # they change nothing
        np.testing.assert_array_equal(statistics["image_statistics/mean"], 0)
        np.testing.assert_array_equal(statistics["image_statistics/std"], 1)
    again = leaves(read_model(back, family=config if export_name(layout) != "diffusers" else None).params)  # fmt: skip
    for path, array in got.items():
        assert again[path].tobytes() == array.tobytes(), path
