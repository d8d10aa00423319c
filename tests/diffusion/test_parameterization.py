"""eps, v and x0: numbers by hand and round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.parameterization import split, target

KINDS = ("eps", "v", "x0")
# a = 0.6, s = 0.8, x0 = 2, eps = -1: x = 1.2 - 0.8 = 0.4 and v = a eps - s x0 = -0.6 - 1.6.
BY_HAND = {"eps": -1.0, "v": -2.2, "x0": 2.0}


def one(value):
    return jnp.full((1, 1, 1, 1), value)


def levels(alpha_bar):
    """(alpha, sigma) of an alpha-bar."""
    return jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)


def example(alpha_bar):
    """Random x0 and eps [3, 2, 2, 4], and the x between them."""
    key_x0, key_eps = jax.random.split(jax.random.key(0))
    x0 = jax.random.normal(key_x0, (3, 2, 2, 4))
    eps = jax.random.normal(key_eps, (3, 2, 2, 4))
    ab = alpha_bar if alpha_bar.ndim == 0 else alpha_bar[:, None, None, None]
    return x0, eps, jnp.sqrt(ab) * x0 + jnp.sqrt(1 - ab) * eps


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_by_hand(kind):
    alpha_bar = jnp.array(0.36)
    wanted = target(one(2.0), one(-1.0), alpha_bar, kind)
    assert wanted.item() == pytest.approx(BY_HAND[kind], rel=1e-6)
    x0, eps = split(one(BY_HAND[kind]), one(0.4), jnp.array(0.6), jnp.array(0.8), kind)
    assert x0.item() == pytest.approx(2.0, rel=1e-6)
    assert eps.item() == pytest.approx(-1.0, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha_bar", [0.3, [0.9, 0.5, 0.05]], ids=["scalar", "per image"])
def test_the_target_splits_into_what_it_was_made_of(kind, alpha_bar):
    alpha_bar = jnp.asarray(alpha_bar)
    x0, eps, x = example(alpha_bar)
    found = split(target(x0, eps, alpha_bar, kind), x, *levels(alpha_bar), kind)
    np.testing.assert_allclose(found[0], x0, atol=5e-6)
    np.testing.assert_allclose(found[1], eps, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_any_output_can_be_said_in_another_way(kind, other):
    alpha_bar = jnp.array([0.8, 0.4, 0.1])
    _, output, x = example(alpha_bar)
    x0, eps = split(output, x, *levels(alpha_bar), kind)
    again = split(target(x0, eps, alpha_bar, other), x, *levels(alpha_bar), other)
    np.testing.assert_allclose(again[0], x0, atol=2e-5)
    np.testing.assert_allclose(again[1], eps, atol=2e-5)
    ab = alpha_bar[:, None, None, None]
    np.testing.assert_allclose(jnp.sqrt(ab) * x0 + jnp.sqrt(1 - ab) * eps, x, atol=5e-6)


def test_v_is_a_rotation():
    # With a = cos p and s = sin p: |v|^2 + |x|^2 = |x0|^2 + |eps|^2.
    alpha_bar = jnp.array(0.7)
    x0, eps, x = example(alpha_bar)
    v = target(x0, eps, alpha_bar, "v")
    np.testing.assert_allclose(v**2 + x**2, x0**2 + eps**2, rtol=1e-5)
