"""Known pixels are noised as the forward process noises them; the rest is drawn to fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import Schedule
from sdjax.diffusion.inpainting import inpainting_plan, keep_known, repaint, shrink_known
from sdjax.diffusion.limits import NO_LIMITS
from sdjax.diffusion.loop import begin, image_keys, initial_noise, sample
from sdjax.diffusion.solvers.maps import EPS, NOISE, X0, X
from sdjax.diffusion.times import END, visited

SCHEDULE = Schedule("cosine")
LEVELS = visited(SCHEDULE, 12, "trailing", "ddim", exact=True)


@pytest.mark.parametrize(("jump", "repeats"), [(1, 1), (1, 3), (5, 2), (12, 2)])
def test_known_pixels_are_as_noisy_as_the_level_where_they_are(jump, repeats):
    calls = repaint(LEVELS, jump, repeats)
    assert len(calls) == 12 * repeats
    for call, there in zip(calls, [*(call.level for call in calls[1:]), END], strict=True):
        here, row = call.level, call.state[0]
        data = row @ X0 + here.alpha * (row @ X)
        noise = np.hypot(row @ EPS + here.sigma * (row @ X), row @ NOISE)
        np.testing.assert_allclose([data, noise], [there.alpha, there.sigma], atol=1e-7)


def test_stretches_are_walked_again_from_where_they_began():
    times = [call.level.timestep for call in repaint(LEVELS, 5, 2)]
    walked = [level.timestep for level in LEVELS[:-1]]
    first, second, third = walked[:5], walked[5:10], walked[10:]
    assert times == [*first, *first, *second, *second, *third, *third]


CORRELATION = 0.9


def pairs(prediction, repeats, count=2000):
    """Two pixels that were normal with a correlation: the first is 1.5, the second drawn."""
    covariance = np.array([[1, CORRELATION], [CORRELATION, 1]])
    plan = inpainting_plan(SCHEDULE, 50, repeats, 5, (200,), NO_LIMITS)
    calls = plan.calls
    image = jnp.tile(jnp.array([1.5, -7.0]), (count, 1))[:, :, None, None]
    known = jnp.tile(jnp.array([1.0, 0.0]), (count, 1))[:, :, None, None]

    def best(x, timesteps):
        row = jnp.argmax(calls.active & (calls.timestep == timesteps[0]))
        a, s = calls.alpha[row], calls.sigma[row]
        x0 = jnp.einsum(
            "ij,bjkl->bikl",
            a * covariance @ jnp.linalg.inv(a**2 * covariance + s**2 * jnp.eye(2)),
            x,
        )
        eps = (x - a * x0) / s
        output = {"eps": eps, "v": a * eps - s * x0, "x0": x0}[prediction]
        return jnp.concatenate([output, output], -1)  # a variance, too, which no one reads

    keys = image_keys(jnp.arange(count))
    denoise = keep_known(best, plan, image, known, prediction)
    first = begin(plan, initial_noise(keys, (2, 1, 1)))
    return np.asarray(sample(denoise, plan, first, keys, prediction=prediction)[0])[:, :, 0, 0]


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_rest_is_drawn_to_fit(prediction):
    found = pairs(prediction, 4)
    np.testing.assert_allclose(found[:, 0], 1.5, atol=1e-3)
    assert found[:, 1].mean() == pytest.approx(CORRELATION * 1.5, abs=0.15)
    assert found[:, 1].std() == pytest.approx(np.sqrt(1 - CORRELATION**2), abs=0.15)


def test_going_back_and_forth_fits_better():
    wanted = CORRELATION * 1.5
    once, often = (abs(pairs("v", repeats)[:, 1].mean() - wanted) for repeats in (1, 4))
    assert often < 0.6 * once


def test_the_least_of_a_learned_variance_is_told_where_pixels_are_known():
    plan = inpainting_plan(SCHEDULE, 5, 1, 1, (10,), NO_LIMITS)
    known = jnp.zeros((1, 2, 2, 1)).at[0, 0].set(1)

    def network(x, timesteps):
        return jnp.full((*x.shape[:-1], 6), 0.5)

    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 3))
    time = plan.calls.timestep[:1]
    found = keep_known(network, plan, jnp.zeros_like(x), known, "eps")(x, time)
    assert (found[0, 1] == 0.5).all() and (found[0, 0, :, 3:] == -1).all()
    np.testing.assert_allclose(found[0, 0, :, :3], x[0, 0] / plan.calls.sigma[0], rtol=1e-5)


def test_a_small_pixel_is_known_where_all_of_it_is():
    known = np.ones((8, 8))
    known[3, 5] = 0
    small = shrink_known(known, 4)
    np.testing.assert_array_equal(small, [[1, 0], [1, 1]])


@pytest.mark.parametrize("name", ["repeats", "jump"])
def test_numbers_out_of_range_are_refused(name):
    numbers = {"repeats": 1, "jump": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        inpainting_plan(SCHEDULE, 5, max_calls=(10,), limits=NO_LIMITS, **numbers)
