"""Betas, alpha-bar and timestep lists against the recorded tables, and the padded plan."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from golden_rule import golden

from sdjax.config import Schedule
from sdjax.diffusion.schedule import (
    add_noise,
    alpha_bars,
    betas,
    leading_timesteps,
    make_plan,
    trailing_timesteps,
)
from sdjax.presets import SD_SCHEDULE

TABLES = golden("schedule_tables")
COSINE = Schedule(betas="cosine")


def named_schedule(name):
    """The Schedule that a key of the golden file describes: "sd (0.00085,0.012,scaled_linear)"."""
    found = re.search(r"\(([\d.]+),([\d.]+),(\w+)\)", name)
    return Schedule(found[3], float(found[1]), float(found[2])) if found else COSINE


def picked(table, values):
    """Stored numbers, and ours at the same indices."""
    indices = [int(i) for i in table]
    return values[indices], np.array(list(table.values()))


@pytest.mark.parametrize("name", TABLES["schedules"])
def test_tables_equal_the_recorded_ones_in_float64(name):
    stored, schedule = TABLES["schedules"][name], named_schedule(name)
    alpha_bar = alpha_bars(schedule)
    assert alpha_bar.dtype == betas(schedule).dtype == np.float64
    np.testing.assert_allclose(*picked(stored["betas"], betas(schedule)), rtol=1e-13)
    np.testing.assert_allclose(*picked(stored["alphas_cumprod"], alpha_bar), rtol=1e-13)
    sigmas = np.sqrt((1 - alpha_bar) / alpha_bar)
    stored_sigmas = stored["sigma_vp_to_ve sqrt((1-ac)/ac)"]
    np.testing.assert_allclose(*picked(stored_sigmas, sigmas), rtol=1e-13)
    assert alpha_bar.sum() == pytest.approx(stored["sum_alphas_cumprod"], rel=1e-12)


@pytest.mark.parametrize(("name", "schedule"), [("sd", SD_SCHEDULE), ("cosine", COSINE)])
def test_tables_are_near_the_float32_ones_of_others(name, schedule):
    ours, theirs = picked(TABLES["diffusers_float32_check"][name], alpha_bars(schedule))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("name", TABLES["schedules"])
def test_alpha_bar_falls_from_one_to_zero(name):
    alpha_bar = alpha_bars(named_schedule(name))
    assert (np.diff(alpha_bar) < 0).all()
    assert 1 > alpha_bar[0] > 0.99 and 0.01 > alpha_bar[-1] > 0


def test_a_shorter_schedule_keeps_its_ends():
    short = betas(Schedule("linear", 0.1, 0.3, train_steps=3))
    np.testing.assert_allclose(short, [0.1, 0.2, 0.3], rtol=1e-12)
    np.testing.assert_allclose(betas(Schedule("scaled_linear", 0.01, 0.09, train_steps=3))[1], 0.04)


# Timesteps

LISTS = [
    (name, *re.fullmatch(r"(\w+)\|(\w+)\|off(\d)\|(\d+)", name).groups()[1:])
    for name in TABLES["timesteps"]
    if name.startswith(("DDIM", "DDPM")) and "linspace" not in name
]


@pytest.mark.parametrize(("name", "spacing", "offset", "steps"), LISTS)
def test_timesteps_equal_the_recorded_ones(name, spacing, offset, steps):
    if spacing == "leading":
        found = leading_timesteps(SD_SCHEDULE, int(steps), int(offset))
    else:
        found = trailing_timesteps(SD_SCHEDULE, int(steps))
    np.testing.assert_array_equal(found, TABLES["timesteps"][name]["timesteps"])


def test_leading_times_are_those_of_latent_diffusion():
    key = "ldm_make_ddim_timesteps (ascending, as used by LDM DDIM/PLMS samplers)"
    lists = {int(n): times for n, times in TABLES[key]["uniform"].items() if len(times) == int(n)}
    assert len(lists) >= 4
    for steps, times in lists.items():
        np.testing.assert_array_equal(leading_timesteps(SD_SCHEDULE, steps)[::-1], times)


def test_every_number_of_steps_gives_that_many_falling_times():
    for steps in range(1, 1001):
        trailing = trailing_timesteps(SD_SCHEDULE, steps)
        assert len(trailing) == steps and trailing[0] == 999 and trailing[-1] >= 0
        assert (np.diff(trailing) < 0).all()
        leading = leading_timesteps(SD_SCHEDULE, min(steps, 999))
        assert leading[-1] == 1 and leading[0] <= 999 and (np.diff(leading) < 0).all()


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    words = f"steps must be between 1 and 1000, got {steps}"
    with pytest.raises(ValueError, match=words):
        trailing_timesteps(SD_SCHEDULE, steps)
    with pytest.raises(ValueError, match=words):
        leading_timesteps(SD_SCHEDULE, steps, offset=0)
    with pytest.raises(ValueError, match="steps must be between 1 and 999, got 1000"):
        leading_timesteps(SD_SCHEDULE, 1000)


# The plan


def test_a_plan_reads_the_tables():
    times = leading_timesteps(SD_SCHEDULE, 4)
    plan = make_plan(SD_SCHEDULE, times, 4)
    table = alpha_bars(SD_SCHEDULE).astype(np.float32)
    np.testing.assert_array_equal(plan.timestep, [751, 501, 251, 1])
    np.testing.assert_array_equal(plan.alpha_bar, table[[751, 501, 251, 1]])
    np.testing.assert_array_equal(plan.alpha_bar_next, table[[501, 251, 1, 0]])
    assert plan.active.all()
    ending = make_plan(SD_SCHEDULE, times, 4, 1.0)
    np.testing.assert_array_equal(ending.alpha_bar_next[:3], plan.alpha_bar_next[:3])
    assert ending.alpha_bar_next[3] == 1


def test_padding_is_inactive_finite_and_keeps_the_shape():
    short = make_plan(SD_SCHEDULE, trailing_timesteps(SD_SCHEDULE, 3), 3, 1.0)
    plan = make_plan(SD_SCHEDULE, trailing_timesteps(SD_SCHEDULE, 3), 8, 1.0)
    np.testing.assert_array_equal(plan.active, [True] * 3 + [False] * 5)
    for field, whole, unpadded in zip(plan._fields, plan, short, strict=True):
        assert whole.shape == (8,)
        assert whole.dtype == (bool if field == "active" else np.float32)
        np.testing.assert_array_equal(whole[:3], unpadded)
    for values in plan:
        assert np.isfinite(values).all()
    padding = plan.alpha_bar[3:]
    assert ((padding > 0) & (padding < 1)).all()


def test_too_many_steps_do_not_fit():
    with pytest.raises(ValueError, match="21 steps do not fit into max_steps 20"):
        make_plan(SD_SCHEDULE, trailing_timesteps(SD_SCHEDULE, 21), 20)


# The forward process


def test_noise_is_mixed_in_by_hand():
    x0, noise = jnp.full((2, 1, 1, 1), 2.0), jnp.full((2, 1, 1, 1), -1.0)
    noisy = add_noise(x0, noise, jnp.array([0.36, 1.0]))
    np.testing.assert_allclose(noisy.ravel(), [0.6 * 2 - 0.8, 2.0], rtol=1e-6)


def test_step_by_step_is_the_same_as_at_once():
    # q(x_t | x_{t-1}) repeated: the mean is multiplied and the variance grows as DDPM says.
    mean, variance = 1.0, 0.0
    for beta in betas(SD_SCHEDULE):
        mean, variance = mean * np.sqrt(1 - beta), variance * (1 - beta) + beta
    alpha_bar = alpha_bars(SD_SCHEDULE)[-1]
    np.testing.assert_allclose([mean**2, variance], [alpha_bar, 1 - alpha_bar], rtol=1e-10)
