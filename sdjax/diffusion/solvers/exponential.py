"""Exponential integrators in lambda = log(alpha / sigma): DPM-Solver and DPM-Solver++."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sdjax.diffusion.solvers.maps import (
    ANCHOR,
    EPS,
    M1,
    M2,
    NOISE,
    NOTHING,
    X0,
    Algorithm,
    Call,
    Level,
    Vector,
    X,
    pairs,
    root,
    state,
)


def dpm_multistep(
    levels: Sequence[Level],
    order: int = 2,
    algorithm: Algorithm = "dpm++",
    *,
    correction: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    published: bool = True,
) -> list[Call]:
    """DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) and DPM-Solver, multistep ("2M").

    "dpm++" integrates x0, "dpm" eps, "sde-dpm++" x0 with fresh noise. The paper has orders 1 and 2
    for x0. Order 3, and the multistep form for eps (arXiv 2206.00927 has single steps alone), are
    those of its authors' code, LuChengTHU/dpm-solver, which also lets the first steps have lower
    orders, and the last, too.

    Args:
        levels: of the steps.
        order: 1, 2 or 3.
        algorithm: see above; "dpm" must end with noise.
        correction: how order 2 weighs the slope of the network's opinion: "heun" as the integral
            says, "midpoint" by half the weight of the opinion itself, equal to that order.
        lower_order_final: the last two steps of a run of less than 15 have orders 2 and 1. A last
            step to a level without noise always has order 1.
        published: of "order" 3, which as published weighs the second difference by half of what
            the integral says, and so converges with order 2. False weighs it in full.
    """
    steps = len(levels) - 1
    few = lower_order_final and steps < 15
    newest = EPS if algorithm == "dpm" else X0
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        used = min(order, i + 1)
        if i == steps - 1 and (few or there.sigma == 0):
            used = 1
        elif i == steps - 2 and few:
            used = min(used, 2)
        whole = exponential(here, there, algorithm)
        x = whole.keep * X + whole.flat * newest + whole.noise * NOISE
        if used > 1:
            slope, bend = _differences((newest, M1, M2)[:used], levels[: i + 2])
            flat = whole.flat / 2 if (used, correction) == (2, "midpoint") else whole.slope
            x = x + flat * slope + (1 if published else 2) * whole.bend * bend
        calls.append(Call(here, state(x, memory=(newest, M1))))
    return calls


def dpm_singlestep(
    levels: Sequence[Level], order: int = 2, algorithm: Literal["dpm++", "dpm"] = "dpm++"
) -> list[Call]:
    """DPM-Solver++ 2S (arXiv 2211.01095) and DPM-Solver (arXiv 2206.00927), single-step.

    Order 3 for x0 is that of the authors' code, LuChengTHU/dpm-solver.
    The levels are taken in groups of `order`: within a group each step starts at the group's first
    level anew, with one order more. So a call of the network is counted as a step.
    """
    newest = EPS if algorithm == "dpm" else X0
    calls = []
    for i, used in enumerate(singlestep_orders(len(levels) - 1, order)):
        start, here, there = levels[i - used + 1], levels[i], levels[i + 1]
        whole = exponential(start, there, algorithm)
        if used == 1:
            x = whole.keep * X + whole.flat * newest
            calls.append(Call(here, state(x, anchor=X, memory=(newest,))))
            continue
        h = there.log_snr - start.log_snr
        slope = (newest - M1) * h / (here.log_snr - start.log_snr)  # M1: at the group's first
        weight = whole.flat / 2 if used == 2 else whole.slope
        calls.append(Call(here, state(whole.keep * ANCHOR + whole.flat * M1 + weight * slope)))
    return calls


def singlestep_orders(steps: int, order: int) -> list[int]:
    """The order of each step: 1, 2, 1, 2, ... for order 2; the last has order 1.

    The last group is cut short, so that there are as many steps as asked for.
    """
    groups = (steps - 1) // order
    rest = steps - groups * order
    return [*range(1, order + 1)] * groups + [*range(1, rest), 1]


class Exponential(NamedTuple):
    """x' = keep x + flat D0 + slope D1 + bend D2 + noise, for opinions D0 + D1 u + D2 u^2 / 2.

    u runs from 0 to 1 over the step, evenly in lambda.
    """

    keep: float
    flat: float
    slope: float
    bend: float
    noise: float


def exponential(here: Level, there: Level, algorithm: Algorithm) -> Exponential:
    """The exact weights of one step for an opinion that is a parabola in lambda.

    The integral of equation 3.4 in arXiv 2206.00927, and the same for x0 (arXiv 2211.01095).
    """
    h = there.log_snr - here.log_snr
    noise = 0.0
    if algorithm == "dpm":
        keep, scale, z = there.alpha / here.alpha, -there.sigma, h
    else:
        keep, scale, z = there.sigma / here.sigma, -there.alpha, -h
    if algorithm == "sde-dpm++":
        keep, z = keep * math.exp(-h), -2 * h
        noise = there.sigma * root(-math.expm1(z))
    flat = scale * math.expm1(z)
    if math.isinf(z):  # to a level without noise, where every solver takes a step of order 1
        return Exponential(keep, flat, math.nan, math.nan, noise)
    slope = scale * (math.expm1(z) / z - 1)
    bend = scale * ((math.expm1(z) - z) / z**2 - 0.5)
    return Exponential(keep, flat, slope, bend, noise)


def _differences(opinions: Sequence[Vector], levels: Sequence[Level]) -> tuple[Vector, Vector]:
    """Divided differences, in units of the step from levels[-2] to levels[-1].

    `opinions` are those at levels[-2], levels[-3], ...; the second difference is 0 for two of them.
    """
    here, there = levels[-2], levels[-1]
    h = there.log_snr - here.log_snr
    before = [
        (levels[-2 - k].log_snr - levels[-3 - k].log_snr) / h for k in range(len(opinions) - 1)
    ]
    first = [(opinions[k] - opinions[k + 1]) / r for k, r in enumerate(before)]
    if len(first) == 1:
        return first[0], NOTHING
    r0, r1 = before
    difference = first[0] - first[1]
    return first[0] + r0 / (r0 + r1) * difference, difference / (r0 + r1)
