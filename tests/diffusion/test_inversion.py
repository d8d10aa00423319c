"""DDIM backwards is the inverse of DDIM, to any precision, with the best network of a mixture."""

import numpy as np
import pytest
from mixture import run

from sdjax.config import Schedule
from sdjax.diffusion import inversion, solvers

POINTS = np.linspace(-1.5, 1.2, 28)
SCHEDULES = [Schedule("cosine"), Schedule("linear", 1e-4, 0.02)]


def lost(schedule, steps, repeats):
    """The largest difference after going to the noise and back."""
    levels = inversion.inversion_levels(schedule, steps)
    noise = run(inversion.ddim_fixed_point(levels, repeats), POINTS)
    assert np.abs(noise).max() < 4 and noise.std() > 0.5
    return np.abs(run(solvers.ddim(levels), noise) - POINTS).max()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_repeat_brings_it_closer(schedule):
    losses = [lost(schedule, 50, repeats) for repeats in (1, 2, 4, 8, 16)]
    for more, fewer in zip(losses, losses[1:], strict=False):
        assert fewer < 0.5 * more
    assert losses[-1] < 1e-6


def test_one_call_a_step_is_the_usual_inversion():
    levels = inversion.inversion_levels(SCHEDULES[0], 10)
    usual = run(solvers.ddim_inverse(levels), POINTS)
    np.testing.assert_allclose(run(inversion.ddim_fixed_point(levels, 1), POINTS), usual)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_fall_from_almost_noise_to_the_first(schedule):
    levels = inversion.inversion_levels(schedule, 40)
    times, spreads = [x.timestep for x in levels], np.array([x.spread for x in levels])
    assert (len(times), times[-1]) == (41, 0)
    assert 45 < spreads[0] <= inversion.MOST_SPREAD
    assert (np.diff(times) < 0).all()
    # No step near the data is too long: the equation is solved fast.
    small = spreads < 1
    assert (spreads[:-1][small[:-1]] / spreads[1:][small[:-1]]).max() < 1.7


def test_plans_have_their_calls():
    there = inversion.inversion_plan(SCHEDULES[0], 10, 3, (50, 100))
    back = inversion.reconstruction_plan(SCHEDULES[0], 10, (50, 100))
    assert (there.count, back.count) == (30, 10)
    assert there.calls.active.shape == (50,)
    np.testing.assert_array_equal(there.start, [1, 0])
    np.testing.assert_array_equal(back.start, [0, 1])
    assert (np.asarray(back.calls.state)[:, 0, -1] == 0).all()
    noisy = inversion.reconstruction_plan(SCHEDULES[0], 10, (50,), eta=1.0)
    assert (np.asarray(noisy.calls.state)[:10, 0, -1] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1), "steps must be between 1 and 986, got 0"), ((10, 0), "repeats must be at least 1")],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        inversion.inversion_plan(SCHEDULES[0], *arguments, (50,))


def test_eta_out_of_range_is_refused():
    with pytest.raises(ValueError, match="eta must be between 0 and 1, got 2.0"):
        inversion.reconstruction_plan(SCHEDULES[0], 10, (50,), eta=2.0)
