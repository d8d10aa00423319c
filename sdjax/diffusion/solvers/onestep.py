"""Samplers without memory: a step knows nothing of the steps before it.

In x / alpha and s = sigma / alpha the probability-flow ODE is d(x / alpha) = eps ds (arXiv
2206.00364, equation 1 with the schedule s(t) = t), so Euler's method is DDIM without noise.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

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


class Churn(NamedTuple):
    """Noise that is added before a step (arXiv 2206.00364, algorithm 2)."""

    gamma: float = 0.0  # 0 to `MOST_CHURN`: the noise level of a step grows by 1 + gamma
    least: float = 0.0  # S_tmin and S_tmax: sigma / alpha of the steps that are churned
    most: float = math.inf
    noise: float = 1.0  # S_noise: the new noise is so much larger
    early: bool = False  # the network looks before the noise goes in: diffusers, not the paper


NO_CHURN = Churn()


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


def euler_churn(levels: Sequence[Level], at: At, churn: Churn = NO_CHURN) -> list[Call]:
    """Euler with noise added before each step (arXiv 2206.00364, algorithm 2).

    Without the algorithm's correction, which is in `heun`. The noise before a step goes in at the
    end of the step before, so that the network looks where it has led; and the first step has none.

    Args:
        levels: of the steps.
        at: see `At`.
        churn: see `Churn`; with `early` noise goes in where a step begins, and in the first, too.
    """
    calls = []
    for look, here, there, following in _churned(levels, at, churn):
        x = _line(_lifted(X, look, here, churn), EPS, here, there)
        calls.append(Call(look, state(_lifted(x, there, following, churn))))
    return calls


def heun(levels: Sequence[Level], at: At, churn: Churn = NO_CHURN) -> list[Call]:
    """Heun's method, order 2 (arXiv 2206.00364, algorithms 1 and 2); the last step is Euler's.

    Args:
        levels: of the steps.
        at: see `At`.
        churn: as in `euler_churn`.
    """
    calls = []
    for look, here, there, following in _churned(levels, at, churn):
        x = _lifted(X, look, here, churn)
        calls.append(Call(look, state(_line(x, EPS, here, there), anchor=x, memory=(EPS,))))
        if there.sigma > 0:
            x = _line(ANCHOR, (M1 + EPS) / 2, here, there)
            calls.append(Call(there, state(_lifted(x, there, following, churn))))
    return calls


def dpm2(levels: Sequence[Level], at: At) -> list[Call]:
    """The midpoint rule in log s, order 2 (k-diffusion, after DPM-Solver-2 of arXiv 2206.00927)."""
    calls = []
    for here, there in pairs(levels):
        calls += _midpoint(here, there, there.spread, 0.0, at)
    return calls


def dpm2_ancestral(
    levels: Sequence[Level], at: At, predict: Literal["x0", "eps"] = "eps"
) -> list[Call]:
    """`dpm2` to a level below the next, then noise up to it.

    What is taken from the middle for the whole step is eps, or x0: k-diffusion's "DPM++ 2S a".
    """
    calls = []
    for here, there in pairs(levels):
        calls += _midpoint(here, there, *ancestral(here, there), at, predict)
    return calls


def dpmpp_sde(levels: Sequence[Level], at: At) -> list[Call]:
    """k-diffusion's "DPM++ SDE": the midpoint rule for x0, with noise in the half step, too.

    The noise of the whole step begins with that of the half: both are of one Brownian path, whose
    variance is s.
    """
    calls = []
    for here, there in pairs(levels):
        if there.sigma == 0:
            calls.append(Call(here, state(_line(X, EPS, here, there))))
            continue
        middle = at(math.sqrt(here.spread * there.spread))
        down, up = ancestral(here, middle)
        x = _line(X, EPS, here, middle, down) + middle.alpha * up * NOISE
        calls.append(Call(here, state(x, anchor=X, memory=(NOISE,))))
        down, up = ancestral(here, there)
        share = (here.spread - middle.spread) / (here.spread - there.spread)
        noise = root(share) * M1 + root(1 - share) * NOISE
        x = _line(ANCHOR, _towards_x0(here), here, there, down) + there.alpha * up * noise
        calls.append(Call(middle, state(x)))
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


def _towards_x0(here: Level) -> Vector:
    """The eps of the line from the ANCHOR, which is at `here`, to x0."""
    return (ANCHOR - here.alpha * X0) / here.sigma


def _churned(
    levels: Sequence[Level], at: At, churn: Churn
) -> list[tuple[Level, Level, Level, Level]]:
    """Of each step: where the network looks, its begin and end, and where the next x is due."""

    def lifted(level: Level) -> Level:
        if churn.gamma == 0 or not churn.least <= level.spread <= churn.most:
            return level
        return at(level.spread * (1 + churn.gamma))

    begins = [lifted(level) for level in levels[:-1]]
    if churn.early:
        return list(zip(levels[:-1], begins, levels[1:], levels[1:], strict=True))
    begins[0] = levels[0]
    return list(zip(begins, begins, levels[1:], [*begins[1:], levels[-1]], strict=True))


def _lifted(x: Vector, here: Level, there: Level, churn: Churn) -> Vector:
    """With noise from `here` up to `there`."""
    if there is here:
        return x
    noise = churn.noise * root(there.spread**2 - here.spread**2)
    return there.alpha * (x / here.alpha + noise * NOISE)


def _midpoint(
    here: Level, there: Level, down: float, up: float, at: At, predict: str = "eps"
) -> list[Call]:
    """To the spread `down` with what is found half way, then noise `up`."""
    if down == 0:
        return [Call(here, state(_line(X, EPS, here, there)))]
    middle = at(math.sqrt(here.spread * down))
    first = Call(here, state(_line(X, EPS, here, middle), anchor=X))
    eps = EPS if predict == "eps" else _towards_x0(here)
    x = _line(ANCHOR, eps, here, there, down) + there.alpha * up * NOISE
    return [first, Call(middle, state(x))]
