"""The bundled DALL-E 2 is what its card and the README say it is."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import presets
from sdjax.data import emoji
from sdjax.evaluate_figures import psnr
from sdjax.image.preprocess import to_pixels
from sdjax.pipelines.manipulate import interpolate, reconstruct
from sdjax.pipelines.models import BUNDLED
from sdjax.training.parts import RECIPES
from sdjax.training.priors import autoregressive_prior_task, diffusion_prior_task
from sdjax.training.state import Recipe
from sdjax.weights.readers import open_tensors

FOLDER = BUNDLED / "dalle2-mini"
MOST_MEGABYTES = 35


@pytest.fixture(scope="module")
def pipe():
    return sdjax.load("dalle2-mini")


@pytest.fixture(scope="module")
def pictures():
    """Two that training never saw."""
    return emoji.load("test", ("noto", "3d")).images[[3, -3]]


def evaluation():
    return json.loads((FOLDER / "evaluation.json").read_text())


def test_with_the_clip_that_it_borrows_it_is_small():
    described = json.loads((FOLDER / "model.json").read_text())
    files = list(FOLDER.glob("*.safetensors"))
    assert not {"text.safetensors", "image.safetensors"} & {path.name for path in files}
    for path in files:
        found = {tensor.dtype for tensor in open_tensors(path).values()}
        assert found == {np.dtype("float16")}, path.name
    for part, source in described["shared"].items():
        files.append(BUNDLED / source["model"] / f"{part}.safetensors")
    assert sum(path.stat().st_size for path in files) <= MOST_MEGABYTES * 1e6


def test_it_is_what_the_presets_and_recipes_say(pipe):
    assert (pipe.config.decoder, pipe.config.upsamplers) == (
        presets.MINI_DECODER,
        presets.MINI_UPSAMPLERS,
    )
    assert pipe.config.prior == presets.MINI_PRIOR
    assert pipe.config.autoregressive_prior == presets.MINI_AUTOREGRESSIVE_PRIOR
    training = json.loads((FOLDER / "model.json").read_text())["training"]
    parts = {
        "decoder": "decoder",
        "upsampler_0": "upsampler-1",
        "upsampler_1": "upsampler-2",
        "prior": "prior-diffusion",
        "autoregressive_prior": "prior-ar",
    }
    for part, name in parts.items():
        assert Recipe(**training[part]["segments"][-1]["recipe"]) == RECIPES[name]
    for part, task in (
        ("prior", diffusion_prior_task),
        ("autoregressive_prior", autoregressive_prior_task),
    ):
        assert training[part]["drop"] == inspect.signature(task).parameters["drop"].default


def test_every_part_was_trained_with_the_clip_that_it_borrows(pipe):
    training = json.loads((FOLDER / "model.json").read_text())["training"]
    for part in ("decoder", "prior", "autoregressive_prior"):
        assert training[part]["clip"] == pipe.clip.fingerprint


def test_in_half_precision_its_tables_are_not(pipe):
    low = sdjax.load("dalle2-mini", dtype=jnp.bfloat16).params
    for table in ("codebook", "regression"):
        jax.tree.map(np.testing.assert_array_equal, low[table], pipe.params[table])
    assert {leaf.dtype for leaf in jax.tree.leaves(low["decoder"])} == {jnp.dtype("bfloat16")}


def test_more_steps_than_the_schedule_has_are_refused(pipe):
    with pytest.raises(ValueError, match="prior_steps must be at most 1000, got 5000"):
        pipe("a red apple, 3d style", prior_steps=5000)
    with pytest.raises(ValueError, match="prior_steps are of the diffusion prior"):
        pipe("a red apple, 3d style", prior="ar", prior_steps=5)


@pytest.mark.parametrize("prior", ["diffusion", "ar"])
def test_a_picture_is_of_its_text(pipe, prior):
    texts = ["a red apple, 3d style", "a green apple, 3d style"]
    images = pipe(texts, seed=0, prior=prior)
    red, green = (np.asarray(image, np.float32)[20:44, 20:44].mean((0, 1)) for image in images)
    assert images[0].size == (64, 64)
    assert (red - green)[0] - (red - green)[1] > 40
    cosines = pipe.clip.cosines(images, [*texts, "a dog face, 3d style"])
    assert (cosines[:, :2].min(1) > cosines[:, 2]).all()


def test_what_is_inverted_comes_back(pipe, pictures):
    wanted = to_pixels(pipe.pyramid(list(pictures))[-1])
    found = np.stack([np.asarray(image) for image in reconstruct(pipe, list(pictures))])
    assert psnr(found, wanted).min() >= 30


def test_an_interpolation_begins_and_ends_with_its_pictures(pipe, pictures):
    wanted = to_pixels(pipe.pyramid(list(pictures))[-1])
    first, middle, last = (np.asarray(x) for x in interpolate(pipe, *pictures, 3))
    assert psnr(np.stack([first, last]), wanted).min() >= 30
    assert psnr(np.stack([middle, middle]), wanted).max() < 25


def test_its_evaluation_keeps_what_the_readme_promises():
    found = evaluation()
    assert found["inversion_psnr_db"]["least"] >= 30
    assert found["interpolation_ends_psnr_db"]["least"] >= 30
    assert found["retrieval_clip"]["generated"] >= 0.5
    for scores in found["priors"].values():
        assert scores["prior"]["cosine"] > scores["text"]["cosine"] + 0.1
        assert scores["prior"]["top_1"] > scores["text"]["top_1"] + 0.07
        assert scores["prior"]["top_1_of_50"] > scores["text"]["top_1_of_50"]
        assert scores["prior"]["rank"] < scores["text"]["rank"]
        for name in ("cosine", "top_1"):
            assert scores["margin"][name]["mean"] > 3 * scores["margin"][name]["error"]
    card = (FOLDER / "README.md").read_text()
    for name, word in (("diffusion", "diffusion"), ("ar", "autoregressive")):
        by = found["priors"][name]["margin"]
        first, place = by["top_1"], by["rank"]
        row = (
            f"| {word} | +{by['cosine']['mean']} ± {by['cosine']['error']} "
            f"| +{100 * first['mean']:.1f} ± {100 * first['error']:.1f} "
            f"| {place['mean']:.2f} ± {place['error']:.2f} |"
        )
        assert row in card, row
    assert (np.diff(found["textdiff"]["cosine"]) > 0).all()
    priors = [found["priors"][name]["prior"] for name in ("diffusion", "ar")]
    wanted = {
        "nearest of 50, by its own CLIP": [found["retrieval_clip"]["generated"]],
        "the same by a judge that steers no model |": [found["retrieval_judge"]["generated"]],
        "... style, of four, by that judge": [found["style_judge"]["generated"]],
        "... thing and style of one picture": [found["both_judge"]["generated"]],
        "prior's answer": [scores["cosine"] for scores in priors],
        "... how often the true picture is its nearest": [scores["top_1"] for scores in priors],
        "... mean place of the true picture": [scores["rank"] for scores in priors],
        "inverted and drawn again": [found["inversion_psnr_db"]["least"]],
    }
    for path in (Path(__file__).parents[1] / "README.md", FOLDER / "README.md"):
        for words, values in wanted.items():
            rows = [line for line in path.read_text().splitlines() if words in line]
            stated = [row.split("|")[2].split()[0] for row in rows if row.startswith("|")]
            assert stated == [str(value) for value in values], (path, words)
