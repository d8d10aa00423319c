"""Which noise levels a run visits: the spacing of its steps.

Two questions are apart: how the times are spaced (`Spacing`), and by which published convention a
sampler rounds and counts them (`Convention`). All times are of a schedule with T training steps;
time 0 is the least noisy.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from sdjax.config import Schedule
from sdjax.diffusion.schedule import alpha_bars
from sdjax.diffusion.solvers import Level

Spacing = Literal["leading", "trailing", "linspace", "karras", "exponential", "log-snr"]
"""Of times: "leading" multiples of T / N, "trailing" the same counted from the end, "linspace" both
ends included. Of noise levels, between the schedule's own ends: "karras" (arXiv 2206.00364,
equation 5), "exponential" and "log-snr", both even in log(sigma / alpha), which differ in how they
round times. Elsewhere "linspace" is also called uniform, and "log-snr" log-linear."""

End = Literal["data", "first"]
"""Without noise, or at the schedule's time 0, its least noisy."""

Times = Sequence[float | int] | np.ndarray
"""Times by hand, in any order."""

Convention = Literal["ddim", "sigma", "multistep"]
"""How the code that published a sampler chooses times: DDIM, DDPM and PNDM; the family of
k-diffusion, whose times may be fractions; the solvers in log-SNR, which place N + 1 points. Each
step leads to the next time: those of diffusers' DDIM and PNDM go down by T // N, which is the same
for "leading" times alone."""

LEAST_ALPHA_BAR = 2.0**-24
"""Of times without signal, as in diffusers."""

KARRAS_RHO = 7.0
"""The exponent of equation 5 in arXiv 2206.00364."""


class Levels:
    """The noise levels of a schedule, at whole times and between them.

    Args:
        schedule: of training.
        exact: a schedule whose last time has no signal keeps it so; else `LEAST_ALPHA_BAR`
            stands there, because most samplers divide by alpha.
    """

    def __init__(self, schedule: Schedule, exact: bool = False) -> None:
        alpha_bar = alpha_bars(schedule)
        spread = np.sqrt((1 - alpha_bar) / np.maximum(alpha_bar, LEAST_ALPHA_BAR))
        if not exact:
            alpha_bar = np.where(alpha_bar == 0, LEAST_ALPHA_BAR, alpha_bar)
        self.alpha, self.sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        self.log_spread = np.log(spread)

    def at_time(self, time: float | int) -> Level:
        """The level of a time from 0 to T - 1; between whole ones sigma / alpha is interpolated."""
        if not 0 <= time <= len(self.alpha) - 1:
            raise ValueError(f"times must be between 0 and {len(self.alpha) - 1}, got {time}")
        whole = round(time)
        if whole == time:
            return Level(time, float(self.alpha[whole]), float(self.sigma[whole]))
        spread = np.interp(time, np.arange(len(self.alpha)), np.exp(self.log_spread))
        return of_spread(float(spread), time)

    def at_spread(self, spread: float) -> Level:
        """The level of a given sigma / alpha; its time is interpolated in the logarithm."""
        time = np.interp(math.log(spread), self.log_spread, np.arange(len(self.alpha)))
        return of_spread(spread, float(time))


END = Level(0.0, 1.0, 0.0)
"""Data, without noise."""


def of_spread(spread: float, time: float | int) -> Level:
    """The level whose sigma / alpha is `spread`."""
    alpha = 1 / math.sqrt(1 + spread**2)
    return Level(time, alpha, spread * alpha)


def check_whole(name: str, value: Any) -> None:
    """Refuse what is no whole number."""
    if not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")


def visited(
    schedule: Schedule,
    steps: int | Times,
    spacing: Spacing,
    convention: Convention,
    *,
    offset: int = 1,
    end: End | None = "data",
    exact: bool = False,
) -> list[Level]:
    """The levels of a run, from noise to data: one more than steps.

    Args:
        schedule: of training.
        steps: at least 1; or the times where they begin, and the next three do not matter.
        spacing: see `Spacing`.
        convention: see `Convention`.
        offset: added to the times of "leading"; Stable Diffusion has 1.
        end: see `End`. A step that would begin at time 0 is left out where the run ends there:
            it would change nothing. None is "data" for such times, else "first".
        exact: see `Levels`.

    Raises:
        ValueError: if `steps` or `offset` is out of range.
    """
    levels = Levels(schedule, exact)
    check_whole("offset", offset)
    if not np.iterable(steps):
        check_whole("steps", steps)
    if not isinstance(steps, (int, np.integer)):
        found = [levels.at_time(float(time)) for time in sorted(steps, reverse=True)]
        if len({level.timestep for level in found}) != len(steps):
            raise ValueError(f"the times of the steps must differ, got {[*map(float, steps)]}")
    elif spacing in ("leading", "trailing", "linspace"):
        times = timesteps(schedule.train_steps, steps, spacing, convention, offset)
        found = [levels.at_time(float(time)) for time in times]
    else:
        found = _even(levels, steps, spacing, convention)
    first = levels.at_time(0)
    arrived = bool(found) and math.isclose(found[-1].sigma, first.sigma)
    if end is None:
        end = "data" if arrived else "first"
    if end == "first" and arrived:
        found.pop()
    if not found:
        raise ValueError("no step is left: take more of them, times above 0, or end at data")
    return [*found, END if end == "data" else first]


def _even(levels: Levels, steps: int, spacing: Spacing, convention: Convention) -> list[Level]:
    """The levels of steps that are even in some function of sigma / alpha."""
    train_steps = len(levels.alpha)
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be between 1 and {train_steps}, got {steps}")
    most, least = np.exp(levels.log_spread[[-1, 0]])
    if spacing == "karras":
        ramp = np.linspace(most ** (1 / KARRAS_RHO), least ** (1 / KARRAS_RHO), steps)
        spreads = ramp**KARRAS_RHO
    else:
        spreads = np.exp(np.linspace(math.log(most), math.log(least), steps))
    found = [levels.at_spread(float(spread)) for spread in spreads]
    if convention != "multistep":
        return found

    def whole(time: float) -> int:
        """Published code rounds times, but cuts "exponential" ones off, computed a little low."""
        return max(math.floor(time - 1e-6), 0) if spacing == "exponential" else round(time)

    return [replace(level, timestep=whole(level.timestep)) for level in found]


def timesteps(
    train_steps: int, steps: int, spacing: str, convention: Convention, offset: int = 1
) -> np.ndarray:
    """Times of "leading", "trailing" or "linspace", decreasing; fractions only in "sigma".

    Raises:
        ValueError: if there are not as many times as steps.
    """
    leading = spacing == "leading"
    one_more = convention == "multistep" and spacing != "trailing"
    most = train_steps - one_more - (leading and offset > 0)
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be between 1 and {most}, got {steps}")
    points = steps + one_more
    if leading:
        stride = train_steps // points
        room = train_steps - 1 - (points - 1) * stride
        if not 0 <= offset <= room:
            raise ValueError(f"offset must be between 0 and {room} for {steps} steps, got {offset}")
        return (np.arange(points) * stride)[::-1][:steps] + float(offset)
    if spacing == "trailing":
        return np.round(np.arange(train_steps, 0, -train_steps / steps))[:steps] - 1
    times = np.linspace(0, train_steps - 1, points)[::-1][:steps]
    return times if convention == "sigma" else np.round(times)


def ldm_timesteps(train_steps: int, steps: int, kind: Literal["uniform", "quad"]) -> np.ndarray:
    """Times of the original latent-diffusion code, increasing.

    "uniform" may give more times than asked for: 31 for 30 of 1000.

    Raises:
        ValueError: for an unknown kind, or if `steps` is out of range.
    """
    if kind not in ("uniform", "quad"):
        raise ValueError(f"unknown kind of times {kind!r}: choose uniform or quad")
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must be between 1 and {train_steps}, got {steps}")
    if kind == "uniform":
        return np.arange(0, train_steps, train_steps // steps) + 1
    return np.floor(np.linspace(0, math.sqrt(0.8 * train_steps), steps) ** 2).astype(int) + 1


def openai_timesteps(train_steps: int, sections: str | Sequence[int]) -> np.ndarray:
    """Times of the original code of OpenAI ("respacing"), increasing.

    Args:
        train_steps: T.
        sections: numbers of steps in equal sections of [0, T), as a list or as "10,15,20"; "ddimN"
            for N times at a whole stride; "fast27" for GLIDE's own choice of 27.

    Raises:
        ValueError: if a section is too short, no whole stride gives N times, or the words are
            others.
    """
    if isinstance(sections, str):
        if not re.fullmatch(r"ddim\d+|fast27|\d+(,\d+)*", sections):
            raise ValueError(
                f"unknown sections {sections!r}: write such as '10,15,20', 'ddim50' or 'fast27'"
            )
        if sections.startswith("ddim"):
            return _whole_stride(train_steps, int(sections[4:]))
        if sections == "fast27":
            times = openai_timesteps(train_steps, "10,10,3,2,2")
            return np.append(times[:-1], train_steps - 3)
        sections = [int(count) for count in sections.split(",")]
    if not sections:
        raise ValueError("no sections: give the number of steps of at least one")
    size, longer = divmod(train_steps, len(sections))
    times, start = [], 0
    for i, count in enumerate(sections):
        length = size + (i < longer)
        if not 0 <= count <= length:
            raise ValueError(f"a section of {length} times cannot have {count} steps")
        stride = 1 if count <= 1 else (length - 1) / (count - 1)
        position = 0.0
        for _ in range(count):
            times.append(start + round(position))
            position += stride  # added up, as there: a product would round elsewhere
        start += length
    return np.array(times)


def _whole_stride(train_steps: int, count: int) -> np.ndarray:
    for stride in range(1, train_steps):
        if len(range(0, train_steps, stride)) == count:
            return np.arange(0, train_steps, stride)
    raise ValueError(f"no whole stride visits {count} of {train_steps} times")
