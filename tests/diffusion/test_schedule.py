"""Betas and alpha-bar against the recorded tables, and the forward process."""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from golden_rule import golden

from sdjax.config import Schedule
from sdjax.diffusion.schedule import add_noise, alpha_bars, betas
from sdjax.presets import SD_SCHEDULE
from sdjax.weights.config_json import from_json, to_json

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


# Zero terminal signal-to-noise ratio, and betas by hand


@pytest.mark.parametrize("name", TABLES["schedules"])
def test_the_last_time_may_be_noise_alone(name):
    stored = TABLES["schedules"][name]["zero_terminal_snr_alphas_cumprod"]
    schedule = replace(named_schedule(name), zero_snr=True, prediction="v")
    ours, theirs = picked(stored, alpha_bars(schedule))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert alpha_bars(schedule)[-1] == 0 and betas(schedule)[-1] == 1
    np.testing.assert_allclose(alpha_bars(schedule)[0], alpha_bars(named_schedule(name))[0])
    np.testing.assert_allclose(np.cumprod(1 - betas(schedule)), alpha_bars(schedule), atol=1e-12)


def test_eps_says_nothing_where_there_is_only_noise():
    with pytest.raises(ValueError, match="cannot predict eps.*choose v or x0"):
        replace(SD_SCHEDULE, zero_snr=True)


def test_betas_may_be_given():
    given = tuple(betas(Schedule("linear", 0.1, 0.3, train_steps=5)).tolist())
    schedule = Schedule(given, train_steps=5)
    np.testing.assert_array_equal(betas(schedule), given)
    np.testing.assert_allclose(alpha_bars(schedule)[1], (1 - given[0]) * (1 - given[1]))
    assert from_json(Schedule, to_json(schedule)) == schedule
    hash(schedule)
    with pytest.raises(ValueError, match="2 betas for 1000 train_steps"):
        Schedule((0.1, 0.2))


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
