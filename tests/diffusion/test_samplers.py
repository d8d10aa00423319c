"""Every recorded DDIM and DDPM trajectory that the steps can express, and their formulas.

A recorded case replaces the network by m = 0.1 x + 0.01 sin(t) and the normal draws by a known
wave. Not expressed, because sdjax has no such option: zero-terminal-SNR schedules, dynamic
thresholding, and variances other than the posterior's.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_replay import NotSupported
from golden_rule import golden
from golden_samplers import check_diffusers, diffusers_trajectory, levels_of, schedule_of

from sdjax.diffusion.samplers import STEPS, ddim_step, ddpm_step
from sdjax.diffusion.schedule import (
    Plan,
    leading_timesteps,
    make_plan,
    trailing_timesteps,
)


def supported(case):
    try:
        check_diffusers(case)
    except NotSupported:
        return False
    return True


CASES = {case["id"]: case for case in golden("scheduler_trajectories")["cases"] if supported(case)}


def test_most_recorded_cases_are_replayed():
    count = Counter(case["scheduler"] for case in CASES.values())
    assert count == {"DDIMScheduler": 14, "DDIMInverseScheduler": 1, "DDPMScheduler": 8}


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_trajectory_is_followed(name):
    case = CASES[name]
    found = diffusers_trajectory(case)["x_after_step"]
    np.testing.assert_allclose(found, case["x_after_step"], rtol=1e-4)


def follows_its_list(case):
    """Not DDIM with trailing or linspace spacing: there the reference jumps off its own list."""
    here, following = levels_of(case)
    return np.array_equal(following[:-1], here[1:]) and case["scheduler"] != "DDIMInverseScheduler"


@pytest.mark.parametrize("name", [name for name in CASES if follows_its_list(CASES[name])])
def test_the_plan_has_the_recorded_levels(name):
    case = CASES[name]
    here, following = levels_of(case)
    schedule, steps = schedule_of(case["config"]), case["num_inference_steps"]
    spacing = case["config"].get("timestep_spacing", "leading")
    if spacing == "leading":
        times = leading_timesteps(schedule, steps, case["config"].get("steps_offset", 0))
    elif spacing == "trailing":
        times = trailing_timesteps(schedule, steps)
    else:
        times = np.array(case["timesteps"], int)
    plan = make_plan(schedule, times, steps, float(following[-1]))
    np.testing.assert_array_equal(plan.timestep, case["timesteps"])
    np.testing.assert_array_equal(plan.alpha_bar, here.astype(np.float32))
    np.testing.assert_array_equal(plan.alpha_bar_next, following.astype(np.float32))


# Formulas

LEVELS = [(0.0047, 0.02), (0.05, 0.3), (0.3, 0.31), (0.9, 0.999), (0.99, 1.0)]


def opinion(alpha_bar, alpha_bar_next):
    """Random x0 and eps, their x, and the step's info."""
    key_x0, key_eps = jax.random.split(jax.random.key(0))
    x0, eps = (jax.random.normal(key, (2, 3, 3, 4)) for key in (key_x0, key_eps))
    info = Plan(*jnp.float32([500.0, alpha_bar, alpha_bar_next]), jnp.array(True))
    return jnp.sqrt(info.alpha_bar) * x0 + jnp.sqrt(1 - info.alpha_bar) * eps, x0, eps, info


@pytest.mark.parametrize("pair", LEVELS)
def test_ddim_with_eta_one_is_ddpm_in_mean_and_variance(pair):
    x, x0, eps, info = opinion(*pair)
    means, draws = [], []
    for step in (ddim_step, ddpm_step):
        means.append(step(x, x0, eps, info, jnp.float32(1), jnp.zeros_like(x)))
        draws.append(step(x, x0, eps, info, jnp.float32(1), jnp.ones_like(x)) - means[-1])
    np.testing.assert_allclose(*means, atol=3e-5)
    np.testing.assert_allclose(*draws, atol=3e-5)


@pytest.mark.parametrize("pair", LEVELS)
def test_ddim_keeps_the_opinion_when_it_is_deterministic(pair):
    x, x0, eps, info = opinion(*pair)
    found = ddim_step(x, x0, eps, info, jnp.float32(0), jnp.full_like(x, 7.0))
    ab = info.alpha_bar_next
    np.testing.assert_allclose(found, jnp.sqrt(ab) * x0 + jnp.sqrt(1 - ab) * eps, atol=1e-6)


@pytest.mark.parametrize("pair", LEVELS)
def test_ddpm_samples_the_posterior_of_bayes(pair):
    # q(x' | x, x0) is proportional to q(x' | x0) q(x | x'): precisions add up.
    x, x0, eps, info = opinion(*pair)
    ab, ab_next = np.float64(info.alpha_bar), np.float64(info.alpha_bar_next)
    if ab_next == 1:
        expected_mean, expected_std = x0, 0.0
    else:
        ratio = ab / ab_next
        precision = 1 / (1 - ab_next) + ratio / (1 - ratio)
        pull = np.sqrt(ab_next) / (1 - ab_next) * x0 + np.sqrt(ratio) / (1 - ratio) * x
        expected_mean, expected_std = pull / precision, precision**-0.5
    mean = ddpm_step(x, x0, eps, info, jnp.float32(0), jnp.zeros_like(x))
    std = ddpm_step(x, x0, eps, info, jnp.float32(0), jnp.ones_like(x)) - mean
    np.testing.assert_allclose(mean, expected_mean, atol=1e-4)
    np.testing.assert_allclose(std, np.full_like(std, expected_std), atol=1e-4)


@pytest.mark.parametrize("name", STEPS)
def test_the_last_step_of_a_plan_that_ends_at_one_is_the_opinion(name):
    x, x0, eps, info = opinion(0.9, 1.0)
    found = STEPS[name](x, x0, eps, info, jnp.float32(1), jnp.ones_like(x))
    np.testing.assert_allclose(found, x0, atol=1e-6)
