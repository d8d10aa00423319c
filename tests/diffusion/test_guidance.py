"""Classifier-free guidance by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.guidance import guide, guide_doubled, rescale

U = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
C = jax.random.normal(jax.random.key(1), (2, 3, 3, 4))


def test_a_number_by_hand():
    assert guide(jnp.array(1.0), jnp.array(3.0), jnp.array(7.5)) == 1 + 7.5 * 2


def test_zero_one_and_in_between():
    np.testing.assert_array_equal(guide(U, C, jnp.array(0.0)), U)
    np.testing.assert_allclose(guide(U, C, jnp.array(1.0)), C, atol=1e-6)
    np.testing.assert_allclose(guide(U, C, jnp.array(0.5)), (U + C) / 2, atol=1e-6)
    np.testing.assert_allclose(guide(C, C, jnp.array(9.0)), C, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5])
def test_the_form_of_the_paper(scale):
    w = scale - 1
    expected = (1 + w) * C - w * U
    np.testing.assert_allclose(guide(U, C, jnp.array(scale)), expected, atol=1e-5)


def test_the_first_half_of_a_batch_is_unconditional():
    guided = guide_doubled(jnp.concatenate([U, C]), jnp.array(3.0))
    np.testing.assert_array_equal(guided, guide(U, C, jnp.array(3.0)))


def test_rescaling_keeps_the_spread_of_the_conditional_output():
    guided = guide(U, C, jnp.array(7.5))
    np.testing.assert_array_equal(rescale(guided, C, jnp.array(0.0)), guided)
    whole = rescale(guided, C, jnp.array(1.0))
    np.testing.assert_allclose(jnp.std(whole, (1, 2, 3)), jnp.std(C, (1, 2, 3)), rtol=1e-5)
    some = rescale(guided, C, jnp.array(0.7))
    np.testing.assert_allclose(some, 0.7 * whole + 0.3 * guided, rtol=1e-4)
    both = guide_doubled(jnp.concatenate([U, C]), jnp.array(7.5), jnp.array(0.7))
    np.testing.assert_allclose(both, some, rtol=1e-5)


def test_rescaling_a_constant_changes_nothing_and_has_a_gradient():
    flat = jnp.ones((1, 2, 2, 1))
    np.testing.assert_allclose(rescale(flat, flat, jnp.array(0.7)), flat, rtol=1e-5)
    gradient = jax.grad(lambda x: rescale(x, flat, jnp.array(0.7)).sum())(flat)
    assert np.isfinite(gradient).all()
