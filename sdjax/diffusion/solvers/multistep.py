"""Samplers that remember earlier slopes: LMS in the noise level, PNDM and PLMS in time."""

from collections.abc import Sequence

import numpy as np

from sdjax.diffusion.solvers.maps import (
    ANCHOR,
    EPS,
    M1,
    M2,
    M3,
    M4,
    Call,
    Level,
    X,
    lagrange,
    pairs,
    state,
    transfer,
)

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest slope and of those before it, for even steps."""


def lms(levels: Sequence[Level], order: int = 4) -> list[Call]:
    """Adams-Bashforth in s = sigma / alpha on uneven steps (k-diffusion, "LMS").

    x' / alpha' = x / alpha + sum over up to `order` newest eps_j of the integral from s to s' of
    the Lagrange polynomial of s_j. The first steps have lower orders.
    """
    spreads = [level.spread for level in levels]
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        used = min(i + 1, order)
        h = there.spread - here.spread  # nodes in units of the step: digits are not lost
        known = [(s - here.spread) / h for s in spreads[i - used + 1 : i + 1][::-1]]
        x = X / here.alpha
        for j, slope in enumerate((EPS, M1, M2, M3)[:used]):
            x = x + h * lagrange(known, j).integ()(1.0) * slope
        calls.append(Call(here, state(there.alpha * x, memory=(EPS, M1, M2))))
    return calls


def plms(levels: Sequence[Level]) -> list[Call]:
    """PLMS (PNDM without Runge-Kutta, arXiv 2202.09778), as Stable Diffusion uses it.

    The weights of Adams-Bashforth, order 4, in DDIM's `transfer`; order 2 in all, because these
    weights are those of even steps. The first step is taken twice.
    """
    first, *rest = pairs(levels)
    return plms_along([first, first, *rest] if rest else [first])


def plms_along(steps: Sequence[tuple[Level, Level]]) -> list[Call]:
    """`plms` by (from, to) of each step: diffusers' need not follow one another.

    The second is the first again, now with the mean of the slopes at both ends.
    """
    calls = []
    for i, (here, there) in enumerate(steps):
        if i == 0:
            x = transfer(X, EPS, here, there)
            calls.append(Call(here, state(x, anchor=X, memory=(EPS,))))
        elif i == 1:
            calls.append(Call(there, state(transfer(ANCHOR, (EPS + M1) / 2, here, there))))
        else:
            calls.append(_adams_bashforth(i - 1, here, there))
    return calls


def pndm(levels: Sequence[Level], middles: Sequence[Level]) -> list[Call]:
    """PNDM (Liu et al. 2022, arXiv 2202.09778): three pseudo Runge-Kutta steps, then as PLMS.

    Args:
        levels: of the steps.
        middles: the levels half way, in time, of the first three steps.
    """
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        if i >= 3:
            calls.append(_adams_bashforth(i, here, there))
            continue
        middle = middles[i]
        # The slopes of the steps so far are in M1, M2 and M3; M4 adds up those of this step.
        more = (M1, M2, M3, M4 + EPS / 3)
        calls += [
            Call(here, state(transfer(X, EPS, here, middle), X, (EPS, M1, M2, EPS / 6))),
            Call(middle, state(transfer(ANCHOR, EPS, here, middle), memory=more)),
            Call(middle, state(transfer(ANCHOR, EPS, here, there), memory=more)),
            Call(there, state(transfer(ANCHOR, M4 + EPS / 6, here, there))),
        ]
    return calls


def _adams_bashforth(i: int, here: Level, there: Level) -> Call:
    """Step i of PLMS, with the slopes of the steps before it in memory."""
    weights = ADAMS_BASHFORTH[min(i, 3)]
    eps = np.tensordot(weights, np.stack([EPS, M1, M2, M3])[: len(weights)], axes=1)
    return Call(here, state(transfer(X, eps, here, there), memory=(EPS, M1, M2)))
