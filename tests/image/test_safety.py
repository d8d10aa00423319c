"""The safety checker against its rule written out one concept at a time."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from sdjax.image.clip_image import ClipImage, unit
from sdjax.image.preprocess import clip_images
from sdjax.image.safety import check_safety
from sdjax.nn.functional import apply
from sdjax.weights.rules import convert, export
from sdjax.weights.safety import safety_shapes, safety_table
from sdjax.weights.tree import flatten

PARAMS = tiny.fill(safety_shapes(tiny.SAFETY))
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)


def cosines(params, name):
    image = jnp.asarray(clip_images(PIXELS, tiny.SAFETY.image.image_size))
    vectors = unit(apply(ClipImage(tiny.SAFETY.image), params["image"], image))
    return np.asarray(vectors @ unit(params[name]).T)


def with_margins(special, concepts):
    """Thresholds so that the first image is above each by this much."""
    params = dict(PARAMS)
    for name, margins in (("special_concepts", special), ("concepts", concepts)):
        params[f"{name}_thresholds"] = jnp.asarray(cosines(PARAMS, name)[0] - margins)
    return params


def rule(cosines, thresholds, lenience):
    """Scores and the lenience after each, as the published checker goes through them."""
    scores = []
    for cosine, threshold in zip(cosines, thresholds, strict=True):
        scores.append(round(float(cosine) - float(threshold) + lenience, 3))
        lenience = 0.01 if scores[-1] > 0 else lenience
    return scores, lenience


@pytest.mark.parametrize(
    ("special", "concepts", "special_scores", "scores"),
    [
        # The second special one is found: those after it, and all others, gain 0.01.
        ([-0.004, 0.002, -0.006], [-0.05, -0.012, -0.005, -0.2], (-4, 2, 4), (-40, -2, 5, -190)),
        (
            [-0.004, -0.002, -0.006],
            [-0.05, -0.012, -0.005, -0.2],
            (-4, -2, -6),
            (-50, -12, -5, -200),
        ),
        ([0.03, -0.02, -0.02], [-0.05, -0.02, -0.02, -0.2], (30, -10, -10), (-40, -10, -10, -190)),
        # Less than half a thousandth is nothing.
        ([0.0004, -0.002, -0.006], [0.0004, -0.1, -0.1, -0.1], (0, -2, -6), (0, -100, -100, -100)),
    ],
)
def test_scores_and_flags(special, concepts, special_scores, scores):
    params = with_margins(special, concepts)
    found = check_safety(tiny.SAFETY, params, PIXELS)
    np.testing.assert_allclose(found.special_scores[0] * 1000, special_scores, atol=1e-3)
    np.testing.assert_allclose(found.scores[0] * 1000, scores, atol=1e-3)
    assert bool(found.flagged[0]) == (max(scores) > 0)


def test_every_image_is_judged_by_itself():
    params = with_margins([0.004, 0.002, -0.006], [-0.05, -0.012, -0.005, -0.2])
    found = check_safety(tiny.SAFETY, params, PIXELS)
    for i in range(len(PIXELS)):
        special, lenience = rule(
            cosines(params, "special_concepts")[i], params["special_concepts_thresholds"], 0.0
        )
        both = zip(cosines(params, "concepts")[i], params["concepts_thresholds"], strict=True)
        scores = [round(float(c) - float(t) + lenience, 3) for c, t in both]
        np.testing.assert_allclose(found.special_scores[i], special, atol=2e-6)
        np.testing.assert_allclose(found.scores[i], scores, atol=2e-6)
        assert bool(found.flagged[i]) == (max(scores) > 0)


def test_names_of_both_releases_of_transformers():
    table, shapes = safety_table(tiny.SAFETY), safety_shapes(tiny.SAFETY)
    doubled = export(PARAMS, table)
    assert "vision_model.vision_model.pre_layrnorm.weight" in doubled
    plain = {
        name.replace("vision_model.vision_model", "vision_model"): x for name, x in doubled.items()
    }
    for file in (doubled, plain, {**plain, "vision_model.embeddings.position_ids": np.arange(5)}):
        again = flatten(convert(file, table, shapes))
        for path, leaf in flatten(PARAMS).items():
            np.testing.assert_array_equal(again[path], leaf)


def test_the_image_tower_says_which_size_it_reads():
    image = jnp.zeros((1, 20, 16, 3))
    with pytest.raises(ValueError, match=r"reads images of \(16, 16, 3\), got \(20, 16, 3\)"):
        apply(ClipImage(tiny.IMAGE_TOWER), PARAMS["image"], image)
