"""The bound is what its definition says: divergences of normals, probabilities that sum to 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import config
from sdjax.diffusion.schedule import alpha_bars, betas
from sdjax.diffusion.variational import bound_terms, reverse_steps

SCHEDULES = [config.Schedule("cosine"), config.Schedule("linear", 0.0001, 0.02)]


def pictures(count, seed, values=256):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, values, (count, 4, 4, 3)) / 127.5 - 1, jnp.float32)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_later_terms_are_divergences_of_normal_distributions(schedule):
    time = np.array([1, 2, 30, 500, 998])
    x0, guess = pictures(5, 0), pictures(5, 1)
    share = jnp.tanh(3 * pictures(5, 2))
    found = bound_terms(reverse_steps(schedule), jnp.asarray(time), x0, guess, share)
    ab, beta = alpha_bars(schedule), betas(schedule)
    for i, t in enumerate(time):
        # DDPM's equation 7, with the mean of x_t that both sides share left out.
        pull = np.sqrt(ab[t - 1]) * beta[t] / (1 - ab[t])
        true = beta[t] * (1 - ab[t - 1]) / (1 - ab[t])
        v = (np.asarray(share[i], np.float64) + 1) / 2
        learned = np.exp(v * np.log(beta[t]) + (1 - v) * np.log(true))
        gap = pull * np.asarray(x0[i] - guess[i], np.float64)
        nats = 0.5 * (np.log(learned / true) + (true + gap**2) / learned - 1)
        assert found[i].item() == pytest.approx(nats.mean() / np.log(2), rel=1e-3)


def test_the_first_term_is_the_code_length_of_pixels():
    values = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32)[:, None, None, None]
    steps = reverse_steps(config.Schedule("linear", 0.001, 0.02))  # wide enough for a few values
    for mean in (-1.2, 0.3017, 1.0):
        for share in (-1.0, 1.0):
            same = jnp.full_like(values, mean), jnp.full_like(values, share)
            bits = bound_terms(steps, jnp.zeros(256, int), values, *same)
            probabilities = 2.0**-bits
            assert probabilities.sum().item() == pytest.approx(1, abs=1e-4)
            likeliest = values[probabilities.argmax()].item()
            assert likeliest == pytest.approx(np.clip(mean, -1, 1), abs=1 / 255)


def test_the_true_step_costs_nothing_and_another_variance_does():
    x0, time = pictures(3, 0), jnp.array([1, 10, 40])
    steps = reverse_steps(SCHEDULES[0])
    right = bound_terms(steps, time, x0, x0, jnp.full_like(x0, -1.0))
    np.testing.assert_allclose(right, 0, atol=1e-6)
    for share in (-1.3, -0.5):
        assert (bound_terms(steps, time, x0, x0, jnp.full_like(x0, share)) > 1e-7).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_slopes_are_finite_however_wrong_the_guess(schedule):
    time = jnp.array([0, 0, 1, 500, 999])
    x0, steps = pictures(5, 0), reverse_steps(schedule)
    wrong = 30 * pictures(5, 1)

    def total(guess, share):
        return bound_terms(steps, time, x0, guess, share).sum()

    for guess in (x0, wrong):
        for share in (jnp.full_like(x0, 3.0), jnp.full_like(x0, -1.0)):
            for slope in jax.jit(jax.grad(total, argnums=(0, 1)))(guess, share):
                assert jnp.isfinite(slope).all()
