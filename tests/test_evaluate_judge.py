"""The bundled judge: what it may have seen, how good it is on real drawings, what it refuses."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import presets
from sdjax.data import emoji
from sdjax.evaluate import copies, draw_candidates, judge_figures, other_pictures
from sdjax.evaluate_judge import ASSETS, judged_hits, judged_styles, load_judge, styles_named
from sdjax.image.judge import Verdict
from sdjax.pipelines.models import BUNDLED
from sdjax.training.parts import RECIPES
from sdjax.training.state import Recipe
from sdjax.weights.readers import open_tensors

WORDS = list(presets.MINI_STYLES)


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def test_set():
    return emoji.load("test", WORDS)


def described():
    return json.loads((Path(ASSETS) / "model.json").read_text())


def test_it_is_small_and_made_by_its_recipe(judge):
    tensors = open_tensors(ASSETS / "judge.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float16")}
    assert (ASSETS / "judge.safetensors").stat().st_size <= 2.2e6
    assert judge.config == presets.JUDGE
    segment = described()["training"]["segments"][-1]
    assert Recipe(**segment["recipe"]) == RECIPES["judge"]


def test_it_knows_held_out_drawings_that_it_never_saw(judge, test_set):
    verdict = judge.read(test_set.images)
    pool = sorted(set(emoji.load("all").concepts))
    hits = judged_hits(judge, verdict, draw_candidates(test_set.concepts, pool, seed=3))
    assert hits.mean() > 0.8
    assert styles_named(judge, verdict, test_set.styles, WORDS) > 0.9


def test_the_drawings_of_other_things_are_refused(judge, test_set):
    pool = sorted(set(emoji.load("all").concepts))
    rows = draw_candidates(test_set.concepts[::-1], pool, seed=0)
    assert judged_hits(judge, judge.read(test_set.images), rows).mean() < 0.1


def test_a_picture_and_its_mirror_image_are_the_same_to_it(judge, test_set):
    a, b = (judge.read(x) for x in (test_set.images[:5], test_set.images[:5, :, ::-1]))
    np.testing.assert_allclose(a.concepts, b.concepts, atol=1e-3)


def test_hits_and_styles_by_hand(judge):
    logits = np.full((2, len(judge.concepts)), -1.0)
    cat, dog, key = judge.columns(["cat", "dog", "key"])
    logits[0, cat], logits[0, key], logits[1, dog] = 5, 9, 2
    styles = np.array([[0.0, 1, 2, 3, 9, 9], [4, 1, 2, 3, 9, 9]])
    verdict = Verdict(jnp.zeros((2, 1)), jnp.asarray(logits), jnp.asarray(styles))
    candidates = [["cat", "dog"], ["cat", "dog"]]
    assert judged_hits(judge, verdict, candidates).tolist() == [True, False]
    assert judged_styles(judge, verdict, WORDS) == ["3d", "noto"]
    assert judged_styles(judge, verdict, ["flat", "twemoji"]) == ["flat", "flat"]


def test_real_drawings_are_their_own_ceiling(judge, test_set):
    few = test_set.images[:60]
    styles, concepts = test_set.styles[:60], test_set.concepts[:60]
    candidates = draw_candidates(concepts, sorted(set(judge.concepts)), seed=0)
    copied = copies(emoji.load("train", WORDS), concepts, styles)
    other = other_pictures(WORDS, concepts, list(styles), seed=0)
    found = judge_figures(judge, (few, few, copied), other, styles, WORDS, candidates)
    assert found["retrieval_judge"]["ratio"] == found["style_judge"]["ratio"] == 1
    assert found["both_judge"]["real"] <= found["style_judge"]["real"]
    # A copier has the thing and not the style.
    assert found["retrieval_judge"]["copied"] > 0.9 > 0.1 > found["both_judge"]["copied"]
    assert found["frechet_judge"]["generated"] == pytest.approx(0, abs=1e-4)
    assert found["frechet_judge"]["real"] > 0.01


def test_what_it_cannot_read_is_refused_in_words(judge):
    with pytest.raises(ValueError, match=r"reads pictures of 64 x 64 pixels, got \(32, 32, 3\)"):
        judge.read(np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="does not know 'purple cat'"):
        judge.columns(["cat", "purple cat"])
    with pytest.raises(ValueError, match="holds no judge: give the folder"):
        load_judge(BUNDLED / "mini")
