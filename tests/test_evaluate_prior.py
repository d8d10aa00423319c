"""The scores of a prior."""

import numpy as np

from sdjax.evaluate_prior import candidate_rows, prior_scores


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
