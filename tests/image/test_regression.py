"""Kernel ridge regression: against the same sums written out, and by leaving pairs out for real."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_priors as priors

from sdjax.image import codes
from sdjax.image import regression as module
from sdjax.image.regression import (
    RIDGE,
    fit_regression,
    guess,
    guesses_without,
    log_chances,
)

IMAGES, TEXTS = priors.unit_rows(3, 64), priors.unit_rows(4, 64)


def test_whitened_texts_spread_alike_in_all_directions():
    texts = priors.unit_rows(6, 500) * np.linspace(0.1, 2, 12) + 3.0
    found, _ = fit_regression(priors.unit_rows(7, 500), texts)
    np.testing.assert_allclose(np.cov(found.texts.T, bias=True), np.eye(12) / 12, atol=1e-4)
    np.testing.assert_allclose(found.texts.mean(0), 0, atol=1e-5)


def test_directions_in_which_texts_hardly_spread_are_not_blown_up():
    texts = priors.unit_rows(6, 500) * np.array([1.0] * 11 + [1e-6])
    found, _ = fit_regression(priors.unit_rows(7, 500), texts)
    spread = np.std(found.texts, axis=0)
    assert spread.min() < 1e-3 and abs(np.sum(spread**2) - 1) < 1e-3


def test_a_guess_is_a_sum_over_the_texts_of_training():
    found, _ = fit_regression(IMAGES, TEXTS)
    x = np.asarray(found.texts, np.float64)
    kernel = np.exp(-np.sum((x[:, None] - x) ** 2, axis=-1))
    mean = IMAGES.mean(0)
    wanted = mean + kernel @ np.linalg.solve(kernel + RIDGE * np.eye(64), IMAGES - mean)
    np.testing.assert_allclose(guess(found, jnp.asarray(TEXTS)), wanted, atol=1e-5)


def test_far_from_all_texts_the_guess_is_the_mean():
    found, _ = fit_regression(IMAGES, TEXTS)
    np.testing.assert_allclose(
        guess(found, jnp.asarray(100 + TEXTS[:2]))[0], IMAGES.mean(0), atol=1e-6
    )


def test_leaving_a_pair_out_is_fitting_without_it(monkeypatch):
    """By a regression of the other pairs in the same whitened space; another text for the pair."""
    monkeypatch.setattr(module, "BLOCK", 2)
    found, inverse = fit_regression(IMAGES, TEXTS)
    texts = np.stack([TEXTS[5], priors.unit_rows(9, 1)[0], TEXTS[60]])
    left_out = np.array([5, 5, 60])
    got = guesses_without(found, inverse, texts, left_out)
    white = (texts - np.asarray(found.text_mean)) @ np.asarray(found.whitening)
    for i, out in enumerate(left_out):
        kept = np.arange(64) != out
        x = np.asarray(found.texts, np.float64)[kept]
        kernel = np.exp(-np.sum((x[:, None] - x) ** 2, axis=-1))
        weights = np.linalg.solve(kernel + RIDGE * np.eye(63), (IMAGES - IMAGES.mean(0))[kept])
        wanted = IMAGES.mean(0) + np.exp(-np.sum((white[i] - x) ** 2, axis=-1)) @ weights
        np.testing.assert_allclose(got[i], wanted, atol=1e-5)


def test_the_covariance_is_of_what_is_wrong_with_each_pair_left_out():
    found, inverse = fit_regression(IMAGES, TEXTS)
    errors = IMAGES - guesses_without(found, inverse, TEXTS, np.arange(64))
    np.testing.assert_allclose(found.covariance, errors.T @ errors / 64, atol=1e-5)


def test_chances_about_a_guess():
    """Those of codes of pictures that lie about it as they did in training, but for surprises."""
    found, book = priors.regression(), priors.book()
    guesses = guess(found, jnp.asarray(TEXTS[:1]))
    chances = np.exp(log_chances(found, book, guesses))
    np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-5)
    noise = np.random.default_rng(0).multivariate_normal(np.zeros(12), found.covariance, 20_000)
    written = np.asarray(codes.encode(book, jnp.asarray(guesses + noise, jnp.float32)))
    counted = np.stack([np.bincount(column, minlength=8) for column in written.T]) / 20_000
    np.testing.assert_allclose(chances[0], 0.99 * counted + 0.01 / 8, atol=0.015)
    far = log_chances(found, book, guesses + 100.0)
    assert np.isfinite(far).all() and far.min() > np.log(0.01 / 8) - 1e-3


def test_directions_do_not_depend_on_the_signs_that_a_solver_gives(monkeypatch):
    found, _ = fit_regression(IMAGES, TEXTS)

    def flipped(x):
        mean, components, variances = codes.principal_components(x)
        return mean, -components, variances

    monkeypatch.setattr(module, "principal_components", flipped)
    again, _ = fit_regression(IMAGES, TEXTS)
    np.testing.assert_array_equal(again.whitening, found.whitening)
    np.testing.assert_array_equal(again.texts, found.texts)


def test_a_single_pair_is_refused():
    with pytest.raises(ValueError, match="at least two pairs, got 1"):
        fit_regression(IMAGES[:1], TEXTS[:1])
