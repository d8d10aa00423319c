"""Samplers without memory: a step knows nothing of the steps before it.

In x / alpha and s = sigma / alpha the probability-flow ODE is d(x / alpha) = eps ds (arXiv
2206.00364, equation 1 with the schedule s(t) = t), so Euler's method is DDIM without noise.
"""

import math
from collections.abc import Sequence
from typing import Literal

from sdjax.diffusion.solvers.maps import (
    ANCHOR,
    EPS,
    M1,
    NOISE,
    NOTHING,
    X0,
    At,
    Call,
    Level,
    Vector,
    X,
    pairs,
    root,
    state,
    transfer,
)

MOST_CHURN = math.sqrt(2) - 1
"""The largest gamma of arXiv 2206.00364, algorithm 2."""


def ddim(levels: Sequence[Level], eta: float = 0.0) -> list[Call]:
    """DDIM (Song et al. 2020, arXiv 2010.02502, equation 12); with eta 0 Euler's method.

    x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise, with
    s = eta (sigma' / sigma) sqrt(1 - alpha^2 / alpha'^2) (equation 16).
    """
    calls = []
    for here, there in pairs(levels):
        s = eta * there.sigma / here.sigma * root(1 - (here.alpha / there.alpha) ** 2)
        x = there.alpha * X0 + root(there.sigma**2 - s**2) * EPS + s * NOISE
        calls.append(Call(here, state(x)))
    return calls


def ddim_inverse(levels: Sequence[Level]) -> list[Call]:
    """DDIM from data to noise, along the `levels` of a run from noise to data.

    Equation 13 of arXiv 2010.02502 the other way. The network looks at the less noisy end of each
    step, but is told the time of the noisier, where `ddim` looked.
    """
    calls = []
    for noisy, clean in reversed(pairs(levels)):
        here = Level(noisy.timestep, clean.alpha, clean.sigma)
        calls.append(Call(here, state(noisy.alpha * X0 + noisy.sigma * EPS)))
    return calls


def ddpm(
    levels: Sequence[Level], variance: Literal["small", "large", "learned"] = "small"
) -> list[Call]:
    """DDPM (Ho et al. 2020, arXiv 2006.11239, equation 7), between any two levels.

    The mean of q(x' | x, x0), and noise of variance: "small" beta_tilde = beta sigma'^2 / sigma^2,
    "large" beta = 1 - alpha^2 / alpha'^2, "learned" between them as the network says (Nichol &
    Dhariwal 2021, arXiv 2102.09672, equation 15). The last step adds none.
    """
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        keep = (here.alpha / there.alpha) ** 2  # 1 - beta
        shrink = (there.sigma / here.sigma) ** 2
        beta, small = 1 - keep, (1 - keep) * shrink
        mean = there.alpha * beta / here.sigma**2 * X0 + math.sqrt(keep) * shrink * X
        deviation = {"small": root(small), "large": root(beta), "learned": 1.0}[variance]
        noise = NOTHING if i == len(levels) - 2 else deviation * NOISE
        bounds = (math.log(max(small, 1e-20)), math.log(beta)) if variance == "learned" else None
        calls.append(Call(here, state(mean + noise), bounds))
    return calls


def euler_ancestral(levels: Sequence[Level]) -> list[Call]:
    """Euler to a level below the next, then noise up to it (k-diffusion, "Euler a").

    s_up^2 = s'^2 (s^2 - s'^2) / s^2 and s_down^2 = s'^2 - s_up^2.
    """
    calls = []
    for here, there in pairs(levels):
        down, up = ancestral(here, there)
        calls.append(Call(here, state(_line(X, EPS, here, there, down) + there.alpha * up * NOISE)))
    return calls


def euler_churn(levels: Sequence[Level], at: At, churn: float) -> list[Call]:
    """Euler with noise added before each step but the first (arXiv 2206.00364, algorithm 2).

    Without the algorithm's correction, which is in `heun`. As in the paper the network looks where
    the noise has led; diffusers lets it look before. Noise goes in at the end of the step before.

    Args:
        levels: of the steps.
        at: see `At`.
        churn: gamma, 0 to `MOST_CHURN`: the noise level grows by 1 + gamma.
    """
    return [
        Call(here, state(_lifted(_line(X, EPS, here, there), there, following)))
        for here, there, following in _churned(levels, at, churn)
    ]


def heun(levels: Sequence[Level], at: At, churn: float = 0.0) -> list[Call]:
    """Heun's method, order 2 (arXiv 2206.00364, algorithms 1 and 2); the last step is Euler's.

    Args:
        levels: of the steps.
        at: see `At`.
        churn: as in `euler_churn`.
    """
    calls = []
    for here, there, following in _churned(levels, at, churn):
        calls.append(Call(here, state(_line(X, EPS, here, there), anchor=X, memory=(EPS,))))
        if there.sigma > 0:
            x = _line(ANCHOR, (M1 + EPS) / 2, here, there)
            calls.append(Call(there, state(_lifted(x, there, following))))
    return calls


def dpm2(levels: Sequence[Level], at: At) -> list[Call]:
    """The midpoint rule in log s, order 2 (k-diffusion, after DPM-Solver-2 of arXiv 2206.00927)."""
    calls = []
    for here, there in pairs(levels):
        calls += _midpoint(here, there, there.spread, 0.0, at)
    return calls


def dpm2_ancestral(levels: Sequence[Level], at: At) -> list[Call]:
    """`dpm2` to a level below the next, then noise up to it."""
    calls = []
    for here, there in pairs(levels):
        calls += _midpoint(here, there, *ancestral(here, there), at)
    return calls


def ancestral(here: Level, there: Level) -> tuple[float, float]:
    """(s_down, s_up): the spread to go down to, and that of the noise that leads up again."""
    s, s_next = here.spread, there.spread
    up = min(s_next, s_next * root(s**2 - s_next**2) / s)
    return root(s_next**2 - up**2), up


def _line(x: Vector, eps: Vector, here: Level, there: Level, spread: float | None = None) -> Vector:
    """`transfer`, or only to another spread, but in the scale of `there`."""
    if spread is None:
        return transfer(x, eps, here, there)
    return there.alpha * (x / here.alpha + (spread - here.spread) * eps)


def _churned(levels: Sequence[Level], at: At, churn: float) -> list[tuple[Level, Level, Level]]:
    """(where a step begins, where it ends, where the next begins): higher by churn."""
    begins = [at(level.spread * (1 + churn)) if churn else level for level in levels[1:-1]]
    return list(zip([levels[0], *begins], levels[1:], [*begins, levels[-1]], strict=True))


def _lifted(x: Vector, here: Level, there: Level) -> Vector:
    """With noise from `here` up to `there`."""
    noise = root(there.spread**2 - here.spread**2)
    return there.alpha * (x / here.alpha + noise * NOISE)


def _midpoint(here: Level, there: Level, down: float, up: float, at: At) -> list[Call]:
    if down == 0:
        return [Call(here, state(_line(X, EPS, here, there)))]
    middle = at(math.sqrt(here.spread * down))
    first = Call(here, state(_line(X, EPS, here, middle), anchor=X))
    x = _line(ANCHOR, EPS, here, there, down) + there.alpha * up * NOISE
    return [first, Call(middle, state(x))]
