"""Principal components, buckets, and the dot product's token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.image.codes import (
    count_components,
    decode,
    draw_dot,
    encode,
    encode_dot,
    fit_codebook,
    principal_components,
)

RNG = np.random.default_rng(0)
DEVIATIONS = np.array([2.0, 1.0, 0.5, 0.1, 0.05])
ROTATION = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
IMAGES = (3 + RNG.normal(size=(4000, 5)) * DEVIATIONS @ ROTATION).astype(np.float32)
TEXTS = RNG.normal(size=(4000, 5)).astype(np.float32)


def test_components_come_by_falling_variance_and_are_those_of_the_data():
    mean, vectors, variances = principal_components(IMAGES)
    np.testing.assert_allclose(mean, IMAGES.mean(0), atol=1e-5)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(variances, DEVIATIONS**2, rtol=0.1)
    assert (np.diff(variances) < 0).all()
    np.testing.assert_allclose(np.abs(vectors[0] @ ROTATION[0]), 1, atol=1e-2)


def test_as_many_components_as_leave_out_less_than_one_percent():
    assert count_components(DEVIATIONS**2) == 3  # the last two hold 0.24%
    assert count_components(np.ones(50)) == 50
    assert count_components(np.array([1.0, 0.0])) == 1


def test_what_is_lost_is_small_and_shrinks_with_buckets():
    spread = np.var(IMAGES, axis=0).sum()
    lost = []
    for codes, buckets in ((3, 8), (3, 64), (5, 512)):
        book = fit_codebook(IMAGES, TEXTS, codes, buckets)
        again = decode(book, encode(book, jnp.asarray(IMAGES)))
        lost.append(float(np.mean(np.sum((again - IMAGES) ** 2, axis=1)) / spread))
    assert lost[0] < 0.08 and lost[1] < 0.01 and lost[2] < 1e-3


def test_buckets_hold_equally_many_and_stand_for_their_mean():
    book = fit_codebook(IMAGES, TEXTS, 2, 16)
    codes = np.asarray(encode(book, jnp.asarray(IMAGES)))
    assert (np.abs(np.bincount(codes[:, 0]) - 250) <= 2).all()
    values = (IMAGES - np.asarray(book.mean)) @ np.asarray(book.components).T
    np.testing.assert_allclose(book.centres[1, 5], values[codes[:, 1] == 5, 1].mean(), atol=1e-4)


def test_a_code_decoded_is_coded_as_before():
    book = fit_codebook(IMAGES, TEXTS, 5, 32)
    codes = jax.random.randint(jax.random.key(0), (100, 5), 0, 32)
    np.testing.assert_array_equal(encode(book, decode(book, codes)), codes)


def test_equal_values_leave_empty_buckets_without_harm():
    book = fit_codebook(np.ones((40, 3), np.float32), np.ones((40, 3), np.float32), 2, 8)
    assert all(np.isfinite(part).all() for part in book)


def test_too_few_embeddings_are_refused():
    with pytest.raises(ValueError, match="5 embeddings do not fill 16 buckets"):
        fit_codebook(IMAGES[:5], TEXTS[:5], 2, 16)


def test_the_dot_product_is_drawn_from_its_top_half_evenly():
    book = fit_codebook(IMAGES, TEXTS, 2, 8)
    dots = np.sum(IMAGES * TEXTS, axis=1)
    tokens = np.asarray(encode_dot(book, jnp.asarray(IMAGES), jnp.asarray(TEXTS)))
    assert (np.abs(np.bincount(tokens) - 500) <= 2).all()
    assert dots[tokens >= 4].min() >= np.median(dots) >= dots[tokens < 4].max()
    drawn = np.asarray(draw_dot(jax.random.split(jax.random.key(0), 2000), 8))
    assert (np.bincount(drawn, minlength=8)[:4] == 0).all()
    assert (np.abs(np.bincount(drawn)[4:] - 500) < 80).all()
