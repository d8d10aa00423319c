"""The table of samplers, their names, the times they visit, and the padded plan."""

import inspect
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_rule import golden
from golden_tables import TABLES, table_cases

from sdjax.config import Schedule
from sdjax.diffusion.limits import Limits
from sdjax.diffusion.samplers import (
    ALIASES,
    SAMPLERS,
    default_spacing,
    find_sampler,
    sampling_plan,
    table,
)
from sdjax.diffusion.schedule import alpha_bars
from sdjax.diffusion.solvers import SLOTS, Churn, ddim
from sdjax.diffusion.solvers.onestep import MOST_CHURN
from sdjax.diffusion.times import ldm_timesteps, openai_timesteps, timesteps, visited
from sdjax.presets import SD_SCHEDULE

README = Path(__file__).parents[2] / "README.md"

# Names


def test_the_readme_holds_the_table():
    assert table() in README.read_text(), "put sdjax.diffusion.samplers.table() into README.md"


@pytest.mark.parametrize(("name", "near"), [("eulr", "euler"), ("dpmp_2m", "dpmpp_2m")])
def test_a_name_with_a_slip_is_told_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"unknown sampler .*\. Did you mean {near}\?$"):
        find_sampler(name)


def test_aliases_mean_samplers_in_any_case():
    for alias, (name, _) in ALIASES.items():
        assert name in SAMPLERS and alias not in SAMPLERS
        assert find_sampler(alias.upper())[0] is SAMPLERS[name]
    assert find_sampler("DPM++ 2M Karras") == (SAMPLERS["dpm++ 2m"], "karras")
    assert find_sampler("k_lms") == (SAMPLERS["lms"], "linspace")
    assert find_sampler("plms", "trailing") == (SAMPLERS["plms"], "trailing")
    assert find_sampler("unclip")[1] == find_sampler("UNCLIP prior")[1] == "linspace"
    assert find_sampler("unclip", "trailing")[1] == "trailing"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "eular"}, "unknown sampler 'eular': choose among ddim, .*k_lms"),
        ({"spacing": "wide"}, "unknown spacing 'wide': choose among leading, trailing"),
        ({"sampler": "lms karras", "spacing": "leading"}, "means the spacing 'karras'"),
        ({"sampler": "lms", "eta": 0.5}, "lms takes no eta, got 0.5: .*choose ddim, euler, heun"),
        ({"sampler": "dpm 2m", "end": "data"}, "dpm 2m must end at 'first', not at 'data'"),
        ({"sampler": "ddpm", "end": "first"}, "ddpm must end at 'data', not at 'first'"),
        ({"sampler": "lms", "eta": Churn(0.1)}, "lms cannot take Churn.*for euler and heun"),
        ({"sampler": "heun", "eta": Churn(0.5)}, "heun cannot take .*gamma is from 0 to 0.41"),
        ({"sampler": "heun", "eta": Churn(0.1, noise=-1)}, "heun cannot take .*noise at least 0"),
        ({"sampler": "heun", "eta": Churn(0.1, least=2, most=1)}, "heun cannot .*from 0 to most"),
        ({"limits": Limits(-1.0)}, "limits: clip must be above 0, got -1.0"),
        ({"limits": Limits(quantile=2.0)}, "quantile must be above 0, at most 1, got 2.0"),
        ({"limits": Limits(most=0.5)}, "most must be at least 1, got 0.5"),
        ({"limits": Limits(agree=-0.1)}, "agree must be between 0 and 1, got -0.1"),
        ({"offset": 1, "spacing": "trailing"}, "offset 1 is added .*, not to the spacing 'trail"),
        ({"offset": 1, "steps": [500, 1]}, "offset 1 is added .*, not to times by hand"),
        ({"spacing": "karras", "steps": [500, 1]}, "'karras' does nothing beside times by hand"),
        ({"sampler": "lms karras", "steps": [500, 1]}, "does nothing beside times by hand"),
        ({"start": "ldm"}, "start 'ldm' .* begins with noise alone, as no strength is given"),
        (
            {"start": "ldm", "strength": 0.5, "sampler": "ddim inverse"},
            "start 'ldm' .* begins with one without noise",
        ),
        ({"offset": -1}, "offset must be between 0 and 99 for 10 steps, got -1"),
        ({"offset": 100}, "offset must be between 0 and 99 for 10 steps, got 100"),
        ({"steps": []}, "no step is left"),
        ({"steps": [500, 1, 500]}, "the times of the steps must differ, got .*500.0, 1.0, 500.0"),
        ({"steps": [500, -1]}, "times must be between 0 and 999, got -1"),
        ({"steps": [999.5, 1]}, "times must be between 0 and 999, got 999.5"),
        ({"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
        ({"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"strength": 0.05}, "strength 0.05 leaves none of 10 steps"),
        ({"max_calls": 0}, "10 calls of the network do not fit into 0"),
        ({"max_calls": np.int64(9)}, "10 calls of the network do not fit into 9"),
        ({"max_calls": 9}, "10 calls of the network do not fit into 9"),
        ({"max_calls": (4, 9)}, "10 calls of the network do not fit into 9"),
    ],
)
def test_bad_names_and_numbers_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        sampling_plan(SD_SCHEDULE, **{"steps": 10, **arguments})


def test_unknown_words_are_refused():
    unchecked = inspect.unwrap(sampling_plan)  # without the types that are checked in tests alone
    with pytest.raises(ValueError, match="'noise' is unknown: choose data or first"):
        unchecked(SD_SCHEDULE, 10, end="noise")
    with pytest.raises(ValueError, match="'sd' is unknown: choose diffusers or ldm"):
        unchecked(SD_SCHEDULE, 10, start="sd")
    with pytest.raises(ValueError, match="unknown kind of times 'quadratic': .*uniform or quad"):
        inspect.unwrap(ldm_timesteps)(1000, 10, "quadratic")


def test_fractions_of_steps_are_refused():
    unchecked = inspect.unwrap(visited)
    for name, numbers in (("steps", (10.0, 1)), ("offset", (10, 1.5))):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got 1"):
            unchecked(SD_SCHEDULE, numbers[0], "leading", "ddim", offset=numbers[1])


# Times

CONTENT = golden("schedule_tables")
LISTS = ("timesteps", "special_sigmas_10_steps", "openai_space_timesteps")


@pytest.mark.parametrize("section", [*LISTS, "ldm_make_ddim_timesteps"])
def test_recorded_lists_are_ours(section):
    function, limits = TABLES[section]
    cases = [(name, stored) for where, name, stored in table_cases(CONTENT) if where == section]
    assert cases
    for name, stored in cases:
        ours, theirs = function(name, stored)
        for key, values in theirs.items():
            np.testing.assert_allclose(ours[key], values, err_msg=name, **{"rtol": 0, **limits})


def test_every_number_of_steps_gives_that_many_falling_times():
    for convention in ("ddim", "sigma", "multistep"):
        for spacing in ("leading", "trailing", "linspace"):
            for steps in [*range(1, 60), 250, 499, 500, 501, 997, 998]:
                times = timesteps(1000, steps, spacing, convention)
                assert len(times) == steps and times[0] <= 999 and times[-1] >= 0
                assert (np.diff(times) < 0).all()


@pytest.mark.parametrize(
    ("spacing", "convention", "most"),
    [
        ("leading", "ddim", 999),
        ("leading", "multistep", 998),
        ("linspace", "multistep", 999),
        ("trailing", "multistep", 1000),
        ("linspace", "sigma", 1000),
    ],
)
def test_impossible_numbers_of_steps_are_refused(spacing, convention, most):
    assert len(timesteps(1000, most, spacing, convention)) == most
    for steps in (-1, 0, most + 1):
        with pytest.raises(ValueError, match=f"steps must be between 1 and {most}, got {steps}"):
            timesteps(1000, steps, spacing, convention)
    with pytest.raises(ValueError, match="steps must be between 1 and 1000, got 0"):
        visited(SD_SCHEDULE, 0, "karras", "sigma")


@pytest.mark.parametrize("spacing", ["karras", "exponential", "log-snr"])
def test_spacings_of_noise_levels(spacing):
    spreads = np.array([level.spread for level in visited(SD_SCHEDULE, 9, spacing, "sigma")])
    ab = alpha_bars(SD_SCHEDULE)
    ends = np.sqrt((1 - ab) / ab)[[-1, 0]]
    np.testing.assert_allclose(spreads[[0, -2, -1]], [*ends, 0], rtol=1e-9)
    even = spreads[:-1] ** (1 / 7) if spacing == "karras" else np.log(spreads[:-1])
    np.testing.assert_allclose(np.diff(even), np.diff(even)[0], rtol=1e-6)


def test_impossible_sections_are_refused():
    with pytest.raises(ValueError, match="a section of 3 times cannot have 4 steps"):
        openai_timesteps(6, [4, 1])
    with pytest.raises(ValueError, match="a section of 50 times cannot have -3 steps"):
        openai_timesteps(100, [-3, 5])
    with pytest.raises(ValueError, match="no whole stride visits 37 of 100 times"):
        openai_timesteps(100, "ddim37")
    with pytest.raises(ValueError, match="no sections"):
        openai_timesteps(100, [])
    for words in ("ddim", "10,,5", "fast", ""):
        with pytest.raises(ValueError, match=f"unknown sections '{words}': write such as"):
            openai_timesteps(100, words)
    for steps in (0, 2000):
        with pytest.raises(ValueError, match=f"steps must be between 1 and 1000, got {steps}"):
            ldm_timesteps(1000, steps, "uniform")


def test_times_by_hand_make_a_plan():
    # Asked for 30 steps, the original code of latent diffusion takes 31.
    times = ldm_timesteps(1000, 30, "uniform")
    plan = sampling_plan(SD_SCHEDULE, times, sampler="plms")
    assert plan.count == len(times) + 1 == 32
    np.testing.assert_array_equal(plan.calls.timestep[-3:], times[2::-1])
    short = sampling_plan(SD_SCHEDULE, openai_timesteps(1000, "fast27"), end="data")
    assert short.count == 27 and short.calls.timestep[0] == 997


def test_times_by_hand_that_come_to_zero_end_where_they_can():
    assert openai_timesteps(1000, "25")[0] == 0
    for name in ("ddim", "plms", "ddpm learned", "euler"):  # as they were published: at data
        plan = sampling_plan(SD_SCHEDULE, openai_timesteps(1000, "25"), sampler=name)
        assert plan.count == 25 + (name == "plms")
        assert plan.calls.timestep[-1] == 0 and abs(last_sigma(plan)) < 1e-5
    # Where a run must end at time 0, no step begins there.
    plan = sampling_plan(SD_SCHEDULE, [0, 250, 900], sampler="dpm 2m")
    np.testing.assert_array_equal(plan.calls.timestep, [900, 250])
    plan = sampling_plan(SD_SCHEDULE, [0, 250, 900], sampler="ddim", end="first")
    np.testing.assert_array_equal(plan.calls.timestep, [900, 250])
    assert last_sigma(plan) == pytest.approx(np.sqrt(1 - alpha_bars(SD_SCHEDULE)[0]))


def last_sigma(plan):
    """Noise of the last x, if eps is 1 and x0 is 0 all the time."""
    column = np.zeros(SLOTS)
    column[0] = plan.calls.sigma[0]
    for matrix in np.asarray(plan.calls.state):
        column = matrix @ [*column, 0, 1, 0]
    return column[0]


def test_leading_times_by_offset():
    for offset in (0, 1, 7):
        plan = sampling_plan(SD_SCHEDULE, 4, sampler="ddpm", offset=offset)
        np.testing.assert_array_equal(plan.calls.timestep, np.array([750, 500, 250, 0]) + offset)
        # The published DDPM ends without noise, whatever the offset.
        np.testing.assert_allclose(plan.calls.state[-1, 0], np.eye(9)[6], atol=1e-7)
    assert last_sigma(sampling_plan(SD_SCHEDULE, 4, offset=1)) > 0.02
    assert last_sigma(sampling_plan(SD_SCHEDULE, 4, offset=0)) < 1e-5  # already at time 0
    assert sampling_plan(SD_SCHEDULE, 1000, offset=0).calls.timestep[0] == 999


# The plan


def test_a_plan_reads_the_tables():
    plan = sampling_plan(SD_SCHEDULE, 4)
    ab = alpha_bars(SD_SCHEDULE)
    np.testing.assert_array_equal(plan.calls.timestep, [751, 501, 251, 1])
    signal = np.sqrt(ab[[751, 501, 251, 1]]).astype(np.float32)
    np.testing.assert_array_equal(plan.calls.alpha, signal)
    levels = visited(SD_SCHEDULE, 4, "leading", "ddim", end="first")
    assert levels[-1].alpha == np.sqrt(ab[0])
    rows = np.stack([call.state for call in ddim(levels)]).astype(np.float32)
    np.testing.assert_array_equal(plan.calls.state, rows)
    assert plan.calls.active.all() and plan.count == 4
    np.testing.assert_array_equal(plan.start, [0, 1])


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ddpm learned"])
def test_padding_is_inactive_finite_and_keeps_the_shape(sampler):
    short = sampling_plan(SD_SCHEDULE, 3, sampler=sampler)
    plan = sampling_plan(SD_SCHEDULE, 3, (2, 8, 100), sampler=sampler)
    count = short.count
    np.testing.assert_array_equal(plan.calls.active, np.arange(8) < count)
    for field, whole, unpadded in zip(plan.calls._fields, plan.calls, short.calls, strict=True):
        if field == "log_variance" and sampler != "ddpm learned":
            assert whole is unpadded is None
            continue
        assert whole.dtype == (bool if field == "active" else np.float32)
        np.testing.assert_array_equal(whole[:count], unpadded)
        assert np.isfinite(whole).all()
    assert (plan.calls.sigma[count:] == 1).all() and (plan.calls.alpha[count:] == 1).all()


def test_calls_of_a_run():
    words = {1: "N", 2: "2N - 1"}
    for name, sampler in SAMPLERS.items():
        more = {"plms": 1, "pndm": 9}.get(name, 0)
        last = sampler.calls - 1  # whose last step is one of Euler
        plan = sampling_plan(SD_SCHEDULE, 20, sampler=name)
        assert plan.count == 20 * sampler.calls + more - last, name
        assert sampler.of_steps == (f"N + {more}" if more else words[sampler.calls]), name


# Churn and limits


def test_churn_is_a_share_of_the_most_or_said_in_full():
    for name in ("euler", "heun"):
        share, full = (
            sampling_plan(SD_SCHEDULE, 6, sampler=name, eta=eta).calls
            for eta in (0.5, Churn(0.5 * MOST_CHURN))
        )
        np.testing.assert_array_equal(share.state, full.state)
        some = sampling_plan(SD_SCHEDULE, 6, sampler=name, eta=Churn(0.2, most=2.0)).calls
        plain = sampling_plan(SD_SCHEDULE, 6, sampler=name).calls
        spreads, usual = (np.asarray(calls.sigma / calls.alpha) for calls in (some, plain))
        here = (
            (np.arange(len(usual)) % SAMPLERS[name].calls == 0) & (usual < 2) & (usual < usual[0])
        )
        np.testing.assert_allclose(spreads, np.where(here, 1.2, 1) * usual, rtol=1e-5)


def test_unclip_brings_its_clipping():
    for name, clip in (("unclip", 1), ("unclip prior", 5), ("ddim", np.inf)):
        assert sampling_plan(SD_SCHEDULE, 4, sampler=name).limits.clip == clip
        given = sampling_plan(SD_SCHEDULE, 4, sampler=name, limits=Limits(2.0))
        assert given.limits.clip == 2
    decoder, learned = (
        sampling_plan(SD_SCHEDULE, 4, sampler=name, spacing="linspace").calls
        for name in ("unclip", "ddpm learned")
    )
    jax.tree.map(np.testing.assert_array_equal, decoder, learned)


def test_x0_says_nothing_about_noise_where_there_is_none():
    schedule = replace(SD_SCHEDULE, prediction="x0")
    assert sampling_plan(schedule, 10, sampler="ddim inverse").calls.sigma[0] > 0
    with pytest.raises(ValueError, match="the noise where there is none.*take end 'first'"):
        sampling_plan(schedule, 10, sampler="ddim inverse", end="data")


# Where a run begins


def test_the_family_of_sigma_starts_from_noise_of_its_own_size():
    for sampler, spacing, wanted in [
        ("euler", "linspace", np.sqrt(1 - alpha_bars(SD_SCHEDULE)[-1])),
        ("euler", "leading", 1.0),
        ("ddim", "trailing", 1.0),
        ("dpm++ 2m", "karras", 1.0),
    ]:
        plan = sampling_plan(SD_SCHEDULE, 10, sampler=sampler, spacing=spacing)
        np.testing.assert_allclose(plan.start, [0, wanted], rtol=1e-6)


@pytest.mark.parametrize(("start", "noisy"), [("diffusers", 601), ("ldm", 701)])
def test_two_conventions_of_img2img(start, noisy):
    plan = sampling_plan(SD_SCHEDULE, 10, strength=0.75, start=start)
    np.testing.assert_array_equal(plan.calls.timestep, [601, 501, 401, 301, 201, 101, 1])
    ab = alpha_bars(SD_SCHEDULE)[noisy]
    np.testing.assert_allclose(plan.start, np.sqrt([ab, 1 - ab]), rtol=1e-6)


def test_a_strength_of_one_still_begins_with_the_image():
    whole = sampling_plan(SD_SCHEDULE, 10, strength=1.0)
    assert whole.count == 10 and whole.start[0] > 0


def test_the_inverse_begins_with_the_image_itself():
    plan = sampling_plan(SD_SCHEDULE, 10, sampler="ddim inverse")
    np.testing.assert_array_equal(plan.start, [1, 0])
    np.testing.assert_array_equal(plan.calls.timestep, np.arange(1, 1000, 100))


def test_zero_snr_is_taken_as_it_is_or_as_nearly_zero():
    schedule = Schedule("scaled_linear", prediction="v", zero_snr=True)
    for name, sampler in SAMPLERS.items():
        plan = sampling_plan(schedule, 10, sampler=name, spacing="trailing")
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plan.calls)), name
        if not sampler.inverse:
            assert plan.calls.alpha[0] == (0 if sampler.exact else np.float32(2.0**-12)), name


def test_zero_snr_means_trailing_times():
    schedule = Schedule("scaled_linear", prediction="v", zero_snr=True)
    for name in ("ddim", "euler", "dpm++ 2m"):
        assert sampling_plan(schedule, 10, sampler=name).calls.timestep[0] == 999
    assert default_spacing(schedule) == "trailing" and default_spacing(SD_SCHEDULE) == "leading"
    # Who asks for others gets them.
    assert sampling_plan(schedule, 10, spacing="leading").calls.timestep[0] == 901
