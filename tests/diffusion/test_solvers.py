"""Every sampler against what is known: recorded runs, orders, mean and covariance."""

import math
from collections import Counter
from typing import get_args

import jax
import jax.numpy as jnp
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

from sdjax.diffusion import solvers
from sdjax.diffusion.limits import NO_LIMITS
from sdjax.diffusion.loop import begin, image_keys, initial_noise, sample
from sdjax.diffusion.samplers import SAMPLERS, Plan, sampling_plan
from sdjax.diffusion.solvers import Call, Churn, Level
from sdjax.diffusion.solvers.exponential import singlestep_orders
from sdjax.diffusion.solvers.maps import EPS, NOISE, X0, X, lagrange
from sdjax.diffusion.times import END, End, Levels, Spacing, of_spread, visited
from sdjax.presets import SD_SCHEDULE

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


# Orders of convergence, on a mixture of Gaussians whose ODE is solved exactly

MOST, LEAST = 3.0, 0.1
"""Sigma / alpha at both ends."""


class Even(Levels):
    """Levels by a time from 0 to 1 that is even in log(sigma / alpha)."""

    def __init__(self):
        pass

    def at_time(self, time):
        return of_spread(float(MOST ** (1 - time) * LEAST**time), float(time))

    def at_spread(self, spread):
        return of_spread(float(spread), 0.0)


EVEN = Even()


def graded(steps: int) -> list[Level]:
    """Even steps of 1 / steps; at both ends ever shorter ones, down to 1 / steps^2.

    Multistep samplers begin, and some end, with steps of lower order: here these count for nothing.
    """
    short = 2.0 ** -np.arange(round(math.log2(steps)), 0, -1)
    sizes = np.concatenate([short, np.ones(steps - 2), short[::-1]])
    times = np.append(0, np.cumsum(sizes)) / sizes.sum()
    return [EVEN.at_time(time) for time in times]


def even(steps: int) -> list[Level]:
    return [EVEN.at_time(k / steps) for k in range(steps + 1)]


def error(build, levels: list[Level]) -> float:
    """The largest, of points over the whole range."""
    x = np.linspace(-2, 2, 9)
    calls = build(levels)
    first, last = levels[0], levels[-1]
    if calls[0].level.sigma == last.sigma:  # the inverse
        first, last = last, first
    wanted = mixture.carried(x, first, last)
    return np.abs(mixture.run(calls, x) - wanted).max()


def slopes(build, levels, counts) -> list[float]:
    errors = [error(build, levels(count)) for count in counts]
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


DETERMINISTIC = [name for name, sampler in SAMPLERS.items() if sampler.order is not None]
EVEN_ONLY = ("plms", "pndm")  # their weights are those of even steps


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_sampler_has_its_order(name):
    sampler = SAMPLERS[name]

    def build(levels):
        if name == "pndm":
            middles = [EVEN.at_time((k + 0.5) / (len(levels) - 1)) for k in range(3)]
            return solvers.pndm(levels, middles)
        return sampler.build(levels, EVEN, 0.0)

    levels = even if name in EVEN_ONLY else graded
    most = name.startswith("unipc 3")
    counts = (16, 32, 64) if most else (64, 128, 256)  # then rounding counts
    found = slopes(build, levels, counts)
    if most:
        assert min(found) > sampler.order
    else:
        assert found == pytest.approx([sampler.order] * 2, abs=0.25)


def test_a_third_order_is_third_with_the_whole_second_difference():
    for algorithm in ("dpm++", "dpm"):
        for published, order in ((True, 2), (False, 3)):
            found = slopes(
                lambda levels, a=algorithm, p=published: solvers.dpm_multistep(
                    levels, 3, a, published=p
                ),
                graded,
                (64, 128, 256),
            )
            assert found == pytest.approx([order] * 2, abs=0.25)


@pytest.mark.parametrize("correction", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpm++", "dpm"])
def test_both_corrections_have_order_two(algorithm, correction):
    found = slopes(
        lambda levels: solvers.dpm_multistep(levels, 2, algorithm, correction=correction),
        even,
        (64, 128, 256),
    )
    assert found == pytest.approx([2, 2], abs=0.15)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("order", [1, 2])
def test_unipc_gains_an_order_by_correction(order, predict, variant):
    found = slopes(
        lambda levels: solvers.unipc(levels, order, variant=variant, predict=predict),
        graded,
        (64, 128, 256),
    )
    assert found == pytest.approx([order + 1] * 2, abs=0.15)


# Mean and covariance of samplers that draw noise

STOCHASTIC = {
    **{name: {} for name, sampler in SAMPLERS.items() if sampler.order is None},
    "ddim": {"eta": 1.0},
    "euler": {"eta": 0.3},
    "heun": {"eta": 0.3},
}
LOG_SPREAD = jnp.asarray(Levels(SD_SCHEDULE).log_spread, jnp.float32)


@jax.jit
def drawn(plan, keys):
    def best(x, timesteps):
        spread = jnp.exp(jnp.interp(timesteps[0], jnp.arange(1000.0), LOG_SPREAD))
        return mixture.best_eps_2d(x, spread)

    x = begin(plan, initial_noise(keys, (1, 1, 2)))
    return sample(best, plan, x, keys, prediction="eps")[0]


@jax.jit
def drawn_learned(plan, keys):
    def best(x, timesteps):
        spread = jnp.exp(jnp.interp(timesteps[0], jnp.arange(1000.0), LOG_SPREAD))
        half_way = jnp.zeros_like(x)  # between the ends of the variance
        return jnp.concatenate([mixture.best_eps_2d(x, spread), half_way], -1)

    x = begin(plan, initial_noise(keys, (1, 1, 2)))
    return sample(best, plan, x, keys, prediction="eps")[0]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_sampler_draws_the_right_mean_and_covariance(name):
    sampler = SAMPLERS[name]
    steps = 200 // sampler.calls
    spacing = "trailing" if sampler.convention == "ddim" else "linspace"
    plan = sampling_plan(
        SD_SCHEDULE,
        steps,
        200,
        sampler=name,
        spacing=spacing,
        end="data",
        limits=NO_LIMITS,
        **STOCHASTIC[name],
    )
    draw = drawn_learned if sampler.learned else drawn
    points = np.asarray(draw(plan, image_keys(jnp.arange(8192))))[:, 0, 0]
    mean, covariance = mixture.moments()
    np.testing.assert_allclose(points.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(points.T), covariance, atol=0.03)


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


# Every sampler with every spacing

X0_SAID, EPS_SAID, NOISE_DRAWN = 0.7, 1.3, 0.5


def certain(calls: list[Call]) -> float:
    """The last x, if the network says one x0 all the time and the start is X0_SAID, EPS_SAID."""
    level = calls[0].level
    column = np.zeros(solvers.SLOTS)
    column[0] = level.alpha * X0_SAID + level.sigma * EPS_SAID
    for call in calls:
        eps = EPS_SAID  # PNDM looks at an end without noise, too
        if call.level.sigma:
            eps = (column[0] - call.level.alpha * X0_SAID) / call.level.sigma
        column = call.state @ [*column, X0_SAID, eps, NOISE_DRAWN]
    return column[0]


def as_calls(plan: Plan) -> list[Call]:
    """What the loop sees."""
    columns = (np.asarray(values, np.float64) for values in plan.calls[:4])
    rows = zip(*columns, strict=True)
    return [Call(Level(t, alpha, sigma), matrix) for t, alpha, sigma, matrix in rows]


def lands(name: str, steps: int, spacing: str, end: End | None) -> None:
    """The run is finite, has as many calls as it should, and ends where it says."""
    sampler, case = SAMPLERS[name], f"{name}, {spacing}, {steps} steps, end {end}"
    plan = sampling_plan(SD_SCHEDULE, steps, sampler=name, spacing=spacing, end=end)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plan.calls)), case
    like_sd = sampler.convention == "ddim" and spacing == "leading"
    end = end or sampler.end or ("first" if sampler.inverse or like_sd else "data")
    levels = visited(SD_SCHEDULE, steps, spacing, sampler.convention, end="data")
    at_zero = math.isclose(levels[-2].sigma, FIRST.sigma)
    made = steps - (end == "first" and at_zero)
    warm_up = {"plms": int(made > 1), "pndm": 3 * min(made, 3)}.get(name, 0)
    euler = int(sampler.calls == 2 and end == "data")  # of one call, the last step
    assert plan.count == made * sampler.calls + warm_up - euler, case
    last = END if end == "data" else FIRST
    if sampler.inverse:
        last = levels[0]
    found, away = certain(as_calls(plan)), last.alpha * X0_SAID
    loose = 20 if name == "pndm" else 1  # long Runge-Kutta steps magnify the rounding of the plan
    if not last.sigma:
        assert found == pytest.approx(X0_SAID, abs=1e-4 * loose), case
    elif sampler.order is None:
        assert 0.3 < (found - away) / last.sigma < 2, case
    else:
        assert (found - away) / last.sigma == pytest.approx(EPS_SAID, abs=0.01 * loose), case


FIRST = Levels(SD_SCHEDULE).at_time(0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_every_sampler_ends_where_it_says_with_every_spacing(name, spacing):
    sampler = SAMPLERS[name]
    for steps in (1, 2, 3, 8):
        for end in (None, "first", "data"):
            if sampler.end not in (None, end) and end or (sampler.inverse and end == "data"):
                continue
            if steps == 1 and spacing == "linspace" and sampler.convention != "multistep":
                if end == "first" or sampler.inverse:  # one step that would begin at time 0
                    with pytest.raises(ValueError, match="no step is left"):
                        sampling_plan(SD_SCHEDULE, 1, sampler=name, spacing=spacing, end=end)
                    continue
            lands(name, steps, spacing, end)


@pytest.mark.parametrize("name", [name for name, one in SAMPLERS.items() if one.end == "first"])
def test_so_many_trailing_steps_that_the_last_begins_where_the_run_ends(name):
    for steps in (666, 667):
        lands(name, steps, "trailing", None)
