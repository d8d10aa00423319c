"""The scores of a prior."""

import numpy as np
import pytest
import tiny_priors

from sdjax import evaluate_prior
from sdjax.evaluate_prior import candidate_rows, evaluate_priors, margins, prior_scores
from sdjax.pipelines.models import Model


def unit_rows(count):
    x = np.random.default_rng(0).normal(size=(count, 6))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_true_picture_is_first_among_different_candidates():
    rows = candidate_rows(60, seed=0)
    assert rows.shape == (60, 50)
    np.testing.assert_array_equal(rows[:, 0], np.arange(60))
    assert all(len(set(row)) == 50 for row in rows)
    assert set(rows[:, 1:].ravel()) == set(range(60))
    np.testing.assert_array_equal(rows, candidate_rows(60, seed=0))


def test_the_truth_scores_best_and_its_opposite_worst():
    images, rows = unit_rows(60), candidate_rows(60, seed=1)
    best = prior_scores(images, images, rows)
    np.testing.assert_allclose(list(best.values()), [1, 1, 1, 1])
    worst = prior_scores(-images, images, rows)
    np.testing.assert_allclose(list(worst.values()), [-1, 60, 0, 0])


def test_ranks_count_from_one_those_that_are_nearer():
    images, rows = unit_rows(60), candidate_rows(60, seed=1)
    wrong = images[np.roll(np.arange(60), 1)]  # the answer is the picture before
    found = prior_scores(wrong, images, rows)
    order = np.argsort(-wrong @ images.T, axis=1)
    ranks = 1 + np.argmax(order == np.arange(60)[:, None], axis=1)
    assert found["rank"] == np.mean(ranks) and found["top_1"] == 0
    first = [max(row, key=lambda j, i=i: wrong[i] @ images[j]) for i, row in enumerate(rows)]
    assert found["top_1_of_50"] == np.mean(np.array(first) == np.arange(60))


def test_margins_are_of_each_picture_with_itself():
    better = {"cosine": np.array([0.5, 0.9, 0.7]), "rank": np.array([1.0, 1.0, 4.0])}
    plain = {"cosine": np.array([0.4, 0.6, 0.5]), "rank": np.array([2.0, 1.0, 9.0])}
    found = margins(better, plain)
    np.testing.assert_allclose(found["cosine"], (0.2, 0.1 / 3**0.5))
    np.testing.assert_allclose(found["rank"], (-2.0, 7**0.5 / 3**0.5))


def test_a_prior_trained_with_another_clip_is_not_judged_by_the_bundled_one(monkeypatch):
    params = {"prior": tiny_priors.DIFFUSION_PARAMS}
    model = Model("tiny", tiny_priors.DIFFUSION, params, {"training": {"clip": "0"}})
    monkeypatch.setattr(evaluate_prior, "read_model", lambda _: model)
    with pytest.raises(ValueError, match="here was trained with another CLIP than the bundled one"):
        evaluate_priors("here")


def test_answers_that_are_no_numbers_do_not_win():
    images = np.eye(60, dtype=np.float32)
    answers = images.copy()
    answers[3] = np.nan
    with pytest.raises(FloatingPointError, match="answers hold NaN"):
        prior_scores(answers, images, candidate_rows(60, 0))
