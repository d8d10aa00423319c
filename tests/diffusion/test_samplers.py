"""The table of samplers, their names, the times they visit, and the padded plan."""

from pathlib import Path

import numpy as np
import pytest
from golden_rule import golden
from golden_tables import TABLES, table_cases

from sdjax.config import Schedule
from sdjax.diffusion.samplers import ALIASES, SAMPLERS, find_sampler, sampling_plan, table
from sdjax.diffusion.schedule import alpha_bars
from sdjax.diffusion.solvers import ddim
from sdjax.diffusion.times import ldm_timesteps, openai_timesteps, timesteps, visited
from sdjax.presets import SD_SCHEDULE

README = Path(__file__).parents[2] / "README.md"

# Names


def test_the_readme_holds_the_table():
    assert table() in README.read_text(), "put sdjax.diffusion.samplers.table() into README.md"


def test_aliases_mean_samplers_in_any_case():
    for alias, (name, _) in ALIASES.items():
        assert name in SAMPLERS and alias not in SAMPLERS
        assert find_sampler(alias.upper())[0] is SAMPLERS[name]
    assert find_sampler("DPM++ 2M Karras") == (SAMPLERS["dpm++ 2m"], "karras")
    assert find_sampler("k_lms") == (SAMPLERS["lms"], "linspace")
    assert find_sampler("plms", "trailing") == (SAMPLERS["plms"], "trailing")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "eular"}, "unknown sampler 'eular': choose among ddim, .*k_lms"),
        ({"spacing": "wide"}, "unknown spacing 'wide': choose among leading, trailing"),
        ({"sampler": "lms karras", "spacing": "leading"}, "means the spacing 'karras'"),
        ({"sampler": "lms", "eta": 0.5}, "lms takes no eta, got 0.5: .*choose ddim, euler, heun"),
        ({"sampler": "dpm 2m", "end": "data"}, "dpm 2m must end with noise"),
        ({"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
        ({"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"strength": 0.05}, "strength 0.05 leaves none of 10 steps"),
        ({"max_calls": 9}, "10 calls of the network do not fit into 9"),
        ({"max_calls": (4, 9)}, "10 calls of the network do not fit into 9"),
    ],
)
def test_bad_names_and_numbers_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        sampling_plan(SD_SCHEDULE, 10, **arguments)


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
    with pytest.raises(ValueError, match="no whole stride visits 37 of 100 times"):
        openai_timesteps(100, "ddim37")


def test_times_by_hand_make_a_plan():
    # Asked for 30 steps, the original code of latent diffusion takes 31.
    times = ldm_timesteps(1000, 30, "uniform")
    plan = sampling_plan(SD_SCHEDULE, times, sampler="plms")
    assert plan.count == len(times) + 1 == 32
    np.testing.assert_array_equal(plan.calls.timestep[-3:], times[2::-1])
    short = sampling_plan(SD_SCHEDULE, openai_timesteps(1000, "fast27"), end="data")
    assert short.count == 27 and short.calls.timestep[0] == 997


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
        assert whole.dtype == (bool if field == "active" else np.float32)
        np.testing.assert_array_equal(whole[:count], unpadded)
        assert np.isfinite(whole).all()
    assert (plan.calls.sigma[count:] == 1).all() and (plan.calls.alpha[count:] == 1).all()


def test_calls_per_step():
    for name, sampler in SAMPLERS.items():
        warm_up = {"plms": 1, "pndm": 9}.get(name, 0)
        last = 1 if sampler.calls == 2 else 0  # whose last step is one of Euler
        plan = sampling_plan(SD_SCHEDULE, 20, sampler=name)
        assert plan.count == 20 * sampler.calls + warm_up - last, name


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
        assert all(np.isfinite(values).all() for values in plan.calls), name
        if not sampler.inverse:
            assert plan.calls.alpha[0] == (0 if sampler.exact else np.float32(2.0**-12)), name
