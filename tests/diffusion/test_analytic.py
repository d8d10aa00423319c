"""Analytic-DPM on Gaussian data, where the best network and the answer are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import Schedule
from sdjax.diffusion.analytic import analytic_plan, mean_squared_error
from sdjax.diffusion.loop import begin, image_keys, initial_noise, sample
from sdjax.diffusion.samplers import sampling_plan
from sdjax.diffusion.schedule import alpha_bars

SCHEDULE = Schedule("cosine", prediction="x0")
VARIANCE = 0.3
TABLE = alpha_bars(SCHEDULE)
BEST_ERROR = VARIANCE * (1 - TABLE) / (TABLE * VARIANCE + 1 - TABLE)  # Var[x0 | x]


def best(x, time):
    """E[x0 | x] for x0 of mean 0."""
    ab = jnp.asarray(TABLE, jnp.float32)[time.astype(int)][:, None, None, None]
    return ab**0.5 * VARIANCE / (ab * VARIANCE + 1 - ab) * x


@pytest.mark.parametrize("time", [0, 300, 700, 999])
def test_the_error_of_the_best_network_is_the_variance_it_leaves(time):
    x0 = VARIANCE**0.5 * jax.random.normal(jax.random.key(0), (2000, 1, 1, 8))
    error = mean_squared_error(best, SCHEDULE, x0, jax.random.key(1), jnp.float32(time))
    np.testing.assert_allclose(error, BEST_ERROR[time], rtol=0.05)


def test_the_paper_s_form_is_the_same_for_the_best_network():
    # eps of the best network is sigma x / (alpha^2 V + sigma^2), where x has that variance.
    mean_square = (1 - TABLE) / (TABLE * VARIANCE + 1 - TABLE)
    paper = (1 - TABLE) / TABLE * (1 - mean_square)
    np.testing.assert_allclose(paper[:-1], BEST_ERROR[:-1], rtol=1e-6)


@jax.jit
def drawn_variance(plan):
    keys = image_keys(jnp.arange(4000))
    x = begin(plan, initial_noise(keys, (1, 1, 4)))
    return jnp.var(sample(best, plan, x, keys, prediction="x0")[0])


@pytest.mark.parametrize("steps", [4, 10])
def test_few_steps_keep_the_spread_of_the_data(steps):
    times = np.arange(1000.0)
    analytic = float(drawn_variance(analytic_plan(SCHEDULE, steps, times, BEST_ERROR)))
    small = sampling_plan(SCHEDULE, steps, sampler="ddpm", spacing="linspace")
    plain = float(drawn_variance(small))
    # The last step adds no noise: a little is missing from the best variance, too.
    assert abs(analytic / VARIANCE - 1) < 0.03
    assert plain < 0.9 * analytic


def test_a_perfect_network_leaves_nothing_to_add():
    times = np.array([0.0, 999.0])
    plan = analytic_plan(SCHEDULE, 8, times, np.zeros(2), max_calls=10)
    small = sampling_plan(SCHEDULE, 8, 10, sampler="ddpm", spacing="linspace")
    assert plan.count == 8
    for ours, theirs in zip(jax.tree.leaves(plan), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
