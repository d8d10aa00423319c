"""Arcs keep lengths and angles, and end where they should."""

import numpy as np
import pytest

from sdjax.diffusion.spherical import mean_direction, slerp, text_difference, unit

RNG = np.random.default_rng(0)
A, B = (unit(RNG.normal(size=16)) for _ in range(2))


def angle(a, b):
    return np.arccos(np.clip(unit(a) @ unit(b), -1, 1))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_an_arc_is_walked_evenly_and_stays_on_the_sphere(share):
    found = slerp(A, B, share)
    np.testing.assert_allclose(np.linalg.norm(found), 1, rtol=1e-12)
    np.testing.assert_allclose(angle(A, found), share * angle(A, B), atol=1e-7)
    np.testing.assert_allclose(angle(found, B), (1 - share) * angle(A, B), atol=1e-7)


def test_noise_between_noises_is_as_large():
    noises = RNG.normal(size=(2, 32, 32, 3))
    middle = slerp(*noises, 0.5)
    assert middle.shape == (32, 32, 3)
    assert middle.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(slerp(*noises, 0.0), noises[0])
    np.testing.assert_allclose(slerp(*noises, 1.0), noises[1], rtol=1e-12)


def test_ends_that_are_the_same_or_opposite():
    np.testing.assert_allclose(slerp(A, A, 0.3), A, atol=1e-12)
    assert np.isfinite(slerp(A, -A, 0.3)).all()


def test_the_difference_of_texts_is_a_direction():
    found = text_difference(A, B)
    np.testing.assert_allclose(np.linalg.norm(found), 1)
    np.testing.assert_allclose(found * np.linalg.norm(A - B), A - B)
    with pytest.raises(ValueError, match="mean the same"):
        text_difference(A, A)


def test_the_mean_of_two_is_the_middle_of_their_arc():
    np.testing.assert_allclose(mean_direction(np.stack([A, B]), np.ones(2)), slerp(A, B, 0.5))
    np.testing.assert_allclose(mean_direction(np.stack([A, B]), np.array([2.0, 0.0])), A)
    with pytest.raises(ValueError, match="cancel out"):
        mean_direction(np.stack([A, -A]), np.ones(2))


def test_small_numbers_stay_small():
    a, b = A.astype(np.float32), B.astype(np.float32)
    assert {slerp(a, b, 0.3).dtype, text_difference(a, b).dtype} == {np.dtype("float32")}
