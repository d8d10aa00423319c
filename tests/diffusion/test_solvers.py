"""Every sampler against what is known of its steps: recorded runs and published formulas."""

import math
from collections import Counter

import mixture
import numpy as np
import pytest
from golden_rule import golden
from golden_samplers import (
    ATOL,
    RTOL,
    diffusers_trajectory,
    ldm_trajectory,
    openai_trajectory,
    rtol_of,
)
from mixture import EVEN, even

from sdjax.diffusion import solvers
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.solvers import Churn, Level
from sdjax.diffusion.solvers.exponential import singlestep_orders
from sdjax.diffusion.solvers.maps import EPS, NOISE, X0, X, lagrange

# Recorded runs

CASES = {case["id"]: case for case in golden("scheduler_trajectories")["cases"]}


def test_every_published_scheduler_is_among_the_recorded():
    count = Counter(case["scheduler"] for case in CASES.values())
    assert len(count) == 15 and sum(count.values()) == 104


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_trajectory_is_followed(name):
    case = CASES[name]
    found = diffusers_trajectory(case)["x_after_step"]
    np.testing.assert_allclose(found, case["x_after_step"], rtol=rtol_of(case), atol=ATOL)


@pytest.mark.parametrize(
    ("file", "replay"),
    [("ldm_sampler", ldm_trajectory), ("openai_gaussian_diffusion", openai_trajectory)],
)
def test_original_code_is_followed(file, replay):
    for case in golden(f"{file}_trajectories")["cases"]:
        for name, found in replay(case).items():
            np.testing.assert_allclose(found, case[name], rtol=RTOL, atol=ATOL, err_msg=case["id"])


# Formulas

LEVELS = [(0.0047, 0.02), (0.05, 0.3), (0.3, 0.31), (0.9, 0.999)]
EVERY_PAIR = pytest.mark.parametrize("alpha_bars", LEVELS)


def levels_of(*alpha_bars: float) -> list[Level]:
    return [Level(500.0 - k, ab**0.5, (1 - ab) ** 0.5) for k, ab in enumerate(alpha_bars)]


def next_x(call, level, opinion=(0.7, -1.3)):
    """(what is certain, the spread of noise) of the next x for one (x0, eps)."""
    x0, eps = opinion
    x = level.alpha * x0 + level.sigma * eps
    row = call.state[0]
    return row @ (x * X + x0 * X0 + eps * EPS), row @ NOISE


@EVERY_PAIR
def test_ddim_with_eta_one_is_ddpm_in_mean_and_variance(alpha_bars):
    levels = levels_of(*alpha_bars, 1.0)  # two steps: the last of DDPM is without noise
    found = [next_x(build(levels)[0], levels[0]) for build in (
        lambda levels: solvers.ddim(levels, 1.0), solvers.ddpm)]  # fmt: skip
    np.testing.assert_allclose(*found, atol=1e-12)


@EVERY_PAIR
def test_ddpm_samples_the_posterior_of_bayes(alpha_bars):
    # q(x' | x, x0) is proportional to q(x' | x0) q(x | x'): precisions add up.
    here, there, _ = levels = levels_of(*alpha_bars, 1.0)
    x = here.alpha * 0.7 - here.sigma * 1.3
    mean, deviation = next_x(solvers.ddpm(levels)[0], here)
    ratio = (here.alpha / there.alpha) ** 2
    precision = 1 / there.sigma**2 + ratio / (1 - ratio)
    pull = there.alpha / there.sigma**2 * 0.7 + math.sqrt(ratio) / (1 - ratio) * x
    assert (mean, deviation) == pytest.approx((pull / precision, precision**-0.5), rel=1e-9)


def test_learned_variance_lies_between_small_and_large():
    levels = levels_of(0.05, 0.3, 0.6, 1.0)
    small, large, learned = (solvers.ddpm(levels, kind) for kind in ("small", "large", "learned"))
    for a, b, c in list(zip(small, large, learned, strict=True))[:-1]:
        bounds = np.exp(0.5 * np.array(c.log_variance))
        np.testing.assert_allclose(bounds, [a.state[0] @ NOISE, b.state[0] @ NOISE])
        assert c.state[0] @ NOISE == 1
    assert [calls[-1].state[0] @ NOISE for calls in (small, large, learned)] == [0, 0, 0]


@EVERY_PAIR
def test_a_step_without_noise_keeps_the_opinion(alpha_bars):
    here, there = levels_of(*alpha_bars)
    wanted = there.alpha * 0.7 - there.sigma * 1.3
    for calls in (
        solvers.ddim([here, there]),
        solvers.euler_churn([here, there], EVEN.at_spread),
    ):
        assert next_x(calls[0], here) == pytest.approx((wanted, 0.0))
    for order in (1, 2, 3):
        calls = solvers.dpm_multistep([here, there], order)
        assert next_x(calls[0], here) == pytest.approx((wanted, 0.0))
    back = solvers.ddim_inverse([here, there])[0]
    assert (back.level.alpha, back.level.sigma) == (there.alpha, there.sigma)
    assert back.level.timestep == here.timestep
    assert next_x(back, there)[0] == pytest.approx(here.alpha * 0.7 - here.sigma * 1.3)


def test_there_and_back_again():
    # With the exact eps of each level DDIM and its inverse meet as the steps get short.
    levels = even(400)
    x = np.linspace(-2, 2, 5)
    there = mixture.run(solvers.ddim(levels), x)
    np.testing.assert_allclose(mixture.run(solvers.ddim_inverse(levels), there), x, atol=0.03)


@pytest.mark.parametrize("name", ["euler", "euler a", "ddpm"])
def test_noise_leads_back_to_the_level(name):
    # Of pure noise, x0 = 0 and eps = 1, the next x has the spread of its level.
    build, levels = SAMPLERS[name].build, even(6)
    if name == "ddpm":
        levels = [level for level in levels if level.sigma > 0]
    calls = build(levels, EVEN, 0.7 if name == "euler" else 0.0)
    for call, following in zip(calls[:-1], calls[1:], strict=True):
        mean, deviation = next_x(call, call.level, (0.0, 1.0))
        assert math.hypot(mean, deviation) == pytest.approx(following.level.sigma, rel=1e-9)


@pytest.mark.parametrize("build", [solvers.euler_churn, solvers.heun])
def test_churn_raises_the_level_of_every_step_but_the_first(build):
    levels = even(4)
    churn = Churn(0.2, least=levels[3].spread * 1.01, noise=1.5)  # not the last step
    plain, calls = build(levels, EVEN.at_spread), build(levels, EVEN.at_spread, churn)
    found = [b.level.spread / a.level.spread for a, b in zip(plain, calls, strict=True)]
    raised = {solvers.euler_churn: [1, 1.2, 1.2, 1], solvers.heun: [1, 1, 1.2, 1, 1.2, 1, 1, 1]}
    assert found == pytest.approx(raised[build])
    noise = [call.state[0] @ NOISE / call.level.alpha for call in calls]
    assert np.count_nonzero(noise) == 2
    call = calls[1 if build is solvers.heun else 0]  # at the end of the step before
    wanted = 1.5 * levels[1].spread * math.sqrt(1.2**2 - 1) * EVEN.at_spread(
        1.2 * levels[1].spread
    ).alpha  # fmt: skip
    assert call.state[0] @ NOISE == pytest.approx(wanted)


@pytest.mark.parametrize("build", [solvers.euler_churn, solvers.heun])
def test_early_churn_looks_before_the_noise(build):
    levels = even(3)
    plain = build(levels, EVEN.at_spread)
    calls = build(levels, EVEN.at_spread, Churn(0.2, early=True))
    assert [call.level for call in calls] == [call.level for call in plain]
    # From pure noise the next x has the spread of its level, and all of the new noise is in it.
    mean, deviation = next_x(calls[0], levels[0], (0.0, 1.0))
    up = levels[0].spread * math.sqrt(1.2**2 - 1)
    assert deviation == pytest.approx(levels[1].alpha * up)
    down = levels[0].spread + levels[1].spread - 1.2 * levels[0].spread
    assert mean == pytest.approx(levels[1].alpha * down)


# k-diffusion's own samplers, in its words: x0 + s eps, t = -log s


def stochastic_step(name, levels, x, opinions, noises):
    """x / alpha at the last level by our calls, with these opinions x0 and noises."""
    calls = SAMPLERS[name].build(levels, EVEN, 0.0)
    column = np.zeros(solvers.SLOTS)
    column[0] = x * levels[0].alpha
    for call, x0, noise in zip(calls, opinions, noises, strict=True):
        eps = (column[0] - call.level.alpha * x0) / call.level.sigma
        column = call.state @ [*column, x0, eps, noise]
    return column[0] / levels[-1].alpha


def down_and_up(s, s_next):
    up = min(s_next, math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
    return math.sqrt(s_next**2 - up**2), up


def test_dpm_plus_plus_2s_a_in_the_words_of_k_diffusion():
    levels = [EVEN.at_time(0.3), EVEN.at_time(0.6)]
    s, s_next = (level.spread for level in levels)
    x, (first, second), noise = 1.7, (0.4, -0.2), 0.9
    down, up = down_and_up(s, s_next)
    h = math.log(s / down)
    wanted = math.exp(-h) * x - math.expm1(-h) * second + up * noise
    found = stochastic_step("dpm++ 2s a", levels, x, (first, second), (5.0, noise))
    assert found == pytest.approx(wanted)
    middle = SAMPLERS["dpm++ 2s a"].build(levels, EVEN, 0.0)[1].level.spread
    assert middle == pytest.approx(math.sqrt(s * down))


def test_dpm_plus_plus_sde_in_the_words_of_k_diffusion():
    levels = [EVEN.at_time(0.3), EVEN.at_time(0.6)]
    s, s_next = (level.spread for level in levels)
    x, (first, second), (early, late) = 1.7, (0.4, -0.2), (0.9, -0.6)
    middle = math.sqrt(s * s_next)
    calls = SAMPLERS["dpm++ sde"].build(levels, EVEN, 0.0)
    assert calls[1].level.spread == pytest.approx(middle)
    down, up = down_and_up(s, middle)
    half = math.exp(-math.log(s / down)) * x - math.expm1(-math.log(s / down)) * first + up * early
    row = calls[0].state[0] / calls[1].level.alpha
    x0, eps = first, (x - first) / s
    assert row @ (levels[0].alpha * x * X + x0 * X0 + eps * EPS + early * NOISE) == pytest.approx(
        half
    )
    # The Brownian path: the increments of both halves, in their own sizes, over the whole.
    path = early * math.sqrt(s - middle) + late * math.sqrt(middle - s_next)
    down, up = down_and_up(s, s_next)
    h = math.log(s / down)
    noise = path / math.sqrt(s - s_next)
    wanted = math.exp(-h) * x - math.expm1(-h) * second + up * noise
    found = stochastic_step("dpm++ sde", levels, x, (first, second), (early, late))
    assert found == pytest.approx(wanted)


def test_dpm_plus_plus_3m_sde_in_the_words_of_k_diffusion():
    levels = [EVEN.at_time(time) for time in (0.1, 0.25, 0.5, 0.6)]
    s = [level.spread for level in levels]
    opinions, noises = (0.4, -0.2, 0.7), (0.3, -0.8, 0.5)
    x, h_1, h_2 = 1.7, None, None
    for i, (denoised, noise) in enumerate(zip(opinions, noises, strict=True)):
        h = math.log(s[i] / s[i + 1])
        x = math.exp(-2 * h) * x - math.expm1(-2 * h) * denoised
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        phi_3 = phi_2 / (2 * h) - 0.5
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0 = (denoised - opinions[i - 1]) / r0
            d1_1 = (opinions[i - 1] - opinions[i - 2]) / r1
            x += phi_2 * (d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1))
            x -= phi_3 * (d1_0 - d1_1) / (r0 + r1)
        elif h_1 is not None:
            x += phi_2 * (denoised - opinions[i - 1]) / (h_1 / h)
        x += noise * s[i + 1] * math.sqrt(-math.expm1(-2 * h))
        h_1, h_2 = h, h_1
    found = stochastic_step("dpm++ 3m sde", levels, 1.7, opinions, noises)
    assert found == pytest.approx(x)


def test_orders_of_single_steps():
    assert singlestep_orders(4, 1) == [1, 1, 1, 1]
    assert singlestep_orders(5, 2) == [1, 2, 1, 2, 1]
    assert singlestep_orders(6, 2) == [1, 2, 1, 2, 1, 1]
    assert singlestep_orders(6, 3) == [1, 2, 3, 1, 2, 1]
    assert singlestep_orders(7, 3) == [1, 2, 3, 1, 2, 3, 1]
    assert singlestep_orders(8, 3) == [1, 2, 3, 1, 2, 3, 1, 1]


def test_lagrange_by_hand():
    polynomial = lagrange([0.0, -1.0, -3.0], 1)
    assert [polynomial(node) for node in (0.0, -1.0, -3.0)] == pytest.approx([0, 1, 0])
