"""Parts that were trained one by one become one folder, which loads as DALL-E 2."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_models as tiny
import tiny_unclip

from sdjax import config, load, load_clip
from sdjax.pipelines.models import BUNDLED
from sdjax.pipelines.unclip import Unclip
from sdjax.pipelines.unclip_request import Settings
from sdjax.presets import MINI_AUTOREGRESSIVE_PRIOR
from sdjax.training.assemble import assemble
from sdjax.weights.config_json import to_json
from sdjax.weights.files import load_model, save_model
from sdjax.weights.layouts import component_shapes

MINI, CLIP = load_clip("mini").config, load_clip("mini").fingerprint
DECODER = replace(
    tiny_unclip.DECODER,
    conditioning=replace(
        tiny_unclip.DECODER.conditioning,
        embedding_dim=MINI.image.projection_dim,
        text_dim=MINI.text.dim,
    ),
)
PRIOR = config.DiffusionPrior(
    embedding_dim=MINI.image.projection_dim,
    text_tokens=MINI.text.context_length,
    dim=32,
    layers=1,
    heads=2,
    schedule=config.Schedule("cosine", prediction="x0"),
    text_dim=MINI.text.dim,
    scale=4.0,
)
VOCABULARY = json.loads((BUNDLED / "mini" / "model.json").read_text())["vocabulary"]
SETTINGS = Settings(prior="diffusion", steps=4, upsampler_steps=(2, 3))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a decoder, two upsamplers and a prior."""
    folder, found = tmp_path_factory.mktemp("parts"), {}
    system = replace(
        tiny_unclip.SYSTEM, text=MINI.text, image=MINI.image, decoder=DECODER, prior=PRIOR
    )
    shapes = component_shapes(system)
    described = {
        "decoder": ("decoder", DECODER, {}),
        "upsampler_0": ("upsampler", tiny_unclip.SYSTEM.upsamplers[0], {}),
        "upsampler_1": ("upsampler", tiny_unclip.SYSTEM.upsamplers[1], {}),
        "prior": ("prior", PRIOR, {"prior": {"defaults": {"guidance": 1.5, "steps": 7}}}),
    }
    for seed, (name, (kind, model, facts)) in enumerate(described.items()):
        training = {"seed": seed} | ({"clip": CLIP} if kind in ("prior", "decoder") else {})
        model_json = {"kind": kind, "config": to_json(model), "training": training, **facts}
        save_model(folder / name, {kind: tiny.fill(shapes[name], seed)}, model_json, "float16")
        found[name] = folder / name
    return found


def put_together(parts, folder, clip="mini"):
    assemble(
        folder,
        "tiny",
        clip,
        parts["decoder"],
        [parts["upsampler_0"], parts["upsampler_1"]],
        parts["prior"],
        settings=SETTINGS,
        styles=("noto", "flat"),
    )


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "whole"
    put_together(parts, folder)
    return folder


def test_the_folder_is_the_model(whole, parts):
    pipe = load(whole)
    assert isinstance(pipe, Unclip)
    assert (pipe.name, pipe.settings, pipe.styles) == ("tiny", SETTINGS, ("noto", "flat"))
    assert (pipe.config.decoder, pipe.config.prior) == (DECODER, PRIOR)
    assert [one.image_size for one in pipe.config.upsamplers] == [8, 16]
    assert list(pipe.priors) == ["diffusion"]
    assert pipe.priors["diffusion"].defaults.guidance == 1.5
    wanted = load(parts["upsampler_1"]).params["upsampler"]
    jax.tree.map(np.testing.assert_array_equal, pipe.params["upsampler_1"], wanted)


def test_clip_is_that_of_the_bundled_model_and_not_stored_again(whole):
    assert not (whole / "text.safetensors").exists()
    assert not (whole / "image.safetensors").exists()
    mini, found = load_clip("mini"), load_clip(whole)
    assert found.config == MINI
    jax.tree.map(np.testing.assert_array_equal, found.params, mini.params)
    pictures = np.zeros((1, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(load(whole).embed(pictures), mini.image_embeddings(pictures))


def test_a_clip_of_ones_own_is_stored_with_the_parts(parts, tmp_path):
    mini = load_clip("mini")
    described = {"kind": "clip", "config": to_json(MINI), "vocabulary": list(VOCABULARY)}
    described |= {"image_mean": mini.image_mean, "image_std": mini.image_std, "training": {}}
    save_model(tmp_path / "clip", {"clip": mini.params}, described, "float16")
    put_together(parts, tmp_path / "whole", tmp_path / "clip")
    assert "shared" not in json.loads((tmp_path / "whole" / "model.json").read_text())
    found = load_clip(tmp_path / "whole")
    assert found.fingerprint == mini.fingerprint
    pictures = np.zeros((1, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(
        load(tmp_path / "whole").embed(pictures), mini.image_embeddings(pictures)
    )


def test_what_was_trained_is_told(whole):
    described = json.loads((whole / "model.json").read_text())
    assert described["training"] == {
        "decoder": {"seed": 0, "clip": CLIP},
        "upsampler_0": {"seed": 1}, "upsampler_1": {"seed": 2},
        "prior": {"seed": 3, "clip": CLIP},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0"}, "was trained with another text than that of the bundled model mini"),
        ({"model": "../mini"}, "has its text from the bundled model '../mini', which is none of"),
    ],
)
def test_another_clip_is_refused(whole, tmp_path, change, message):
    folder = shutil.copytree(whole, tmp_path / "copy")
    described = json.loads((folder / "model.json").read_text())
    described["shared"]["text"] |= change
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_parts_in_the_wrong_place_are_refused(parts, tmp_path):
    swapped = {**parts, "decoder": parts["prior"]}
    with pytest.raises(ValueError, match="prior holds a prior, wanted is the decoder"):
        put_together(swapped, tmp_path / "whole")
    turned = {**parts, "upsampler_0": parts["upsampler_1"]}
    with pytest.raises(ValueError, match="reads 8 pixels, is given 4"):
        put_together(turned, tmp_path / "whole")
    with pytest.raises(FileNotFoundError, match="no model 'maxi'"):
        assemble(tmp_path / "whole", "x", "maxi", parts["decoder"], settings=SETTINGS)
    other = shutil.copytree(parts["prior"], tmp_path / "other")
    described = json.loads((other / "model.json").read_text())
    described["training"]["clip"] = "0"
    (other / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="other was trained with another CLIP than that of mini"):
        put_together({**parts, "prior": other}, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


@pytest.fixture
def guessing(parts, tmp_path):
    """Both priors, from one regression of nine pairs."""
    diffusion = replace(PRIOR, regression=9)
    writer = config.AutoregressivePrior(
        embedding_dim=PRIOR.embedding_dim,
        text_dim=MINI.text.dim,
        text_tokens=MINI.text.context_length,
        codes=4,
        buckets=8,
        dim=16,
        layers=1,
        heads=2,
        regression=9,
    )
    found = dict(parts)
    for kind, model in (("prior", diffusion), ("autoregressive_prior", writer)):
        shapes = component_shapes(model)
        seeds = {"regression": 7}  # the same for both
        trees = {name: tiny.fill(shapes[name], seeds.get(name, 5)) for name in shapes}
        told = {"kind": kind, "config": to_json(model), "training": {"clip": CLIP}}
        save_model(tmp_path / kind, trees, told, "float16")
        found[kind] = tmp_path / kind
    return found


def both_priors(parts, folder):
    where = parts["decoder"], [], parts["prior"], parts["autoregressive_prior"]
    assemble(folder, "tiny", "mini", *where, settings=replace(SETTINGS, upsampler_steps=()))


def test_the_regression_of_both_priors_is_stored_once(guessing, tmp_path):
    both_priors(guessing, tmp_path / "whole")
    pipe = load(tmp_path / "whole")
    diffusion, writer = (pipe.priors[name].regression for name in ("diffusion", "ar"))
    assert diffusion.texts.shape == (9, PRIOR.embedding_dim)
    jax.tree.map(np.testing.assert_array_equal, diffusion, writer)
    wanted = load_model(guessing["prior"])[0]["regression"]
    jax.tree.map(np.testing.assert_array_equal, diffusion._asdict(), wanted)
    assert (tmp_path / "whole" / "regression.safetensors").exists()


@pytest.mark.parametrize("leaf", ["weights", "covariance", "text_mean"])
def test_priors_of_two_regressions_are_refused(guessing, tmp_path, leaf):
    trees, told = load_model(guessing["autoregressive_prior"])
    trees["regression"][leaf] *= 1.1
    save_model(tmp_path / "other", trees, told, "float16")
    with pytest.raises(ValueError, match=rf"another regression .* \(they have other {leaf}\)"):
        both_priors(guessing | {"autoregressive_prior": tmp_path / "other"}, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_regressions_that_differ_by_rounding_are_one(guessing, tmp_path):
    trees, told = load_model(guessing["autoregressive_prior"])
    trees["regression"] = jax.tree.map(lambda x: x * 1.002, trees["regression"])
    save_model(tmp_path / "other", trees, told, "float16")
    both_priors(guessing | {"autoregressive_prior": tmp_path / "other"}, tmp_path / "whole")
    assert (tmp_path / "whole").exists()


def test_a_system_has_one_regression():
    writer = replace(MINI_AUTOREGRESSIVE_PRIOR, regression=8)
    with pytest.raises(ValueError, match="start from one regression, not from two"):
        replace(load("dalle2-mini").config, autoregressive_prior=writer)


def test_a_regression_needs_a_scale():
    with pytest.raises(ValueError, match="guesses unit vectors, which need a scale"):
        replace(PRIOR, scale=None, regression=9)
