"""Every sampler with every spacing ends where it says, after as many calls as it says."""

import math
from typing import get_args

import jax
import numpy as np
import pytest

from sdjax.diffusion import solvers
from sdjax.diffusion.samplers import SAMPLERS, Plan, sampling_plan
from sdjax.diffusion.solvers import Call, Level
from sdjax.diffusion.times import END, End, Levels, Spacing, visited
from sdjax.presets import SD_SCHEDULE

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
