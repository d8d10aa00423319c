"""From a picture to the noise that DDIM draws it from.

DDIM without noise walks an ordinary differential equation, which can be walked backwards: every
picture has a noise x_T of its own (arXiv 2010.02502, section 4.3). One step takes x at one level to
x' at a less noisy one,

    x' = (a' / a) x + (s' - (a' / a) s) eps(x),

and going back means to solve this for x, which is also inside eps. The usual inversion ("ddim
inverse") takes eps(x') instead, with an error in every step that a reconstruction shows. Here the
equation is solved by repeating

    x <- (a / a') x' + (s - (a / a') s') eps(x),

which is the usual inversion the first time. Were the data normal with variance 1, a repetition
would leave the share s (s - (a / a') s') of the error: little, but where there is more noise than
data. There the same equation is written with the network's opinion of the data,

    x <- (s / s') x' + (a - (s / s') a') x0(x),

which leaves the share a ((s / s') a' - a).
"""

from collections.abc import Sequence

import numpy as np

from sdjax.config import Schedule
from sdjax.diffusion.samplers import Plan, make_plan
from sdjax.diffusion.solvers import Call, Level, ddim, pairs
from sdjax.diffusion.solvers.maps import ANCHOR, EPS, X0, X, state, transfer
from sdjax.diffusion.times import Levels, check_whole

MOST_SPREAD = 50.0
"""Sigma / alpha where the way ends: 2% of the picture is left in its noise, which nobody sees.
Further on the smallest error of the noise would be a large one of the picture."""


def inversion_levels(schedule: Schedule, steps: int) -> list[Level]:
    """`steps` + 1 levels from almost nothing but noise to the schedule's time 0.

    The way ends there and not at the data, because the last step to the data cannot be undone: it
    takes noise away, which is then nowhere. The picture itself is taken for x at time 0, whose
    noise nobody sees. The levels are even in time and in log(sigma / alpha), half of each: where
    the noise is small, steps that are even in time alone would be too long to be undone.

    Raises:
        ValueError: if the steps are out of range.
    """
    check_whole("steps", steps)
    levels = Levels(schedule)
    logs = levels.log_spread[levels.log_spread <= np.log(MOST_SPREAD)]
    times = np.arange(len(logs))
    if not 1 <= steps <= times[-1]:
        raise ValueError(f"steps must be between 1 and {times[-1]}, got {steps}")
    progress = times / times[-1] + (logs - logs[0]) / (logs[-1] - logs[0])
    found = np.interp(np.linspace(2, 0, steps + 1), progress, times)
    return [levels.at_time(float(time)) for time in found]


def ddim_fixed_point(levels: Sequence[Level], repeats: int) -> list[Call]:
    """The calls from data to noise along the `levels` of a run from noise to data.

    The first call of a step is that of `solvers.ddim_inverse`; the others look again, where the
    last one has led, from the anchor x' where the step began.
    """
    calls = []
    for noisy, clean in reversed(pairs(levels)):
        first = Level(noisy.timestep, clean.alpha, clean.sigma)
        calls.append(Call(first, state(noisy.alpha * X0 + noisy.sigma * EPS, anchor=X)))
        if noisy.alpha * clean.alpha > noisy.sigma * clean.sigma:
            x = transfer(ANCHOR, EPS, clean, noisy)
        else:
            ratio = noisy.sigma / clean.sigma
            x = ratio * ANCHOR + (noisy.alpha - ratio * clean.alpha) * X0
        calls += (repeats - 1) * [Call(noisy, state(x))]
    return calls


def inversion_plan(schedule: Schedule, steps: int, repeats: int, max_calls: Sequence[int]) -> Plan:
    """From a picture to its noise.

    Args:
        schedule: of training.
        steps: of DDIM; see `inversion_levels`.
        repeats: calls of the network for each step.
        max_calls: static lengths of a plan, of which the first that holds it is taken.

    Raises:
        ValueError: if the steps are out of range, or the calls do not fit.
    """
    check_whole("repeats", repeats)
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    calls = ddim_fixed_point(inversion_levels(schedule, steps), repeats)
    return make_plan(calls, max_calls, (1.0, 0.0))


def reconstruction_plan(
    schedule: Schedule, steps: int, max_calls: Sequence[int], eta: float = 0.0
) -> Plan:
    """From the noise that `inversion_plan` found back to its picture; with eta, to one like it.

    Raises:
        ValueError: if the steps or eta are out of range, or the calls do not fit.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    return make_plan(ddim(inversion_levels(schedule, steps), eta), max_calls, (0.0, 1.0))
