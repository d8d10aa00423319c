"""Samplers as tables: each call of the network is followed by one linear map.

Every published sampler of a diffusion model turns its noisy picture, what it remembers of earlier
calls, the network's newest opinion and fresh noise into the next noisy picture *linearly*, with
coefficients that depend on the noise levels alone. So a sampler is here a function that computes
these coefficients, in float64 and before the loop: a `Map` for each call. The loop multiplies.

The state is a column of `SLOTS` images: the point `X` where the network looks next, an `ANCHOR`
where a step began, and four memories `M1` .. `M4`. Beside it the loop provides the network's `X0`
and `EPS` at X, and standard normal `NOISE`. Coefficients are written as vectors over these names:

    X_next = alpha_next * X0 + sigma_next * EPS          # one step of DDIM

All states are variance preserving, x = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1. Papers that
write x = x0 + s eps (Karras et al. 2022, arXiv 2206.00364) mean our x / alpha and s = sigma / alpha.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

X, ANCHOR, M1, M2, M3, M4, X0, EPS, NOISE = np.eye(9)
SLOTS = 6
NOTHING = np.zeros(9)
Vector = np.ndarray


@dataclass(frozen=True)
class Level:
    """A point in time: x = alpha x0 + sigma eps."""

    timestep: float  # what the network is told; of no use at the end
    alpha: float
    sigma: float

    @property
    def spread(self) -> float:
        """Sigma / alpha: the noise level of arXiv 2206.00364."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """Lambda = log(alpha / sigma) (half the log-SNR; arXiv 2206.00927); inf at the end."""
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)


class Call(NamedTuple):
    """One call of the network and what follows it."""

    level: Level  # where the network looks
    state: np.ndarray  # [SLOTS, 9]: the next state over (X, ANCHOR, M1 .. M4, X0, EPS, NOISE)
    log_variance: tuple[float, float] | None = None  # least and most, where the network chooses


At = Callable[[float], Level]
"""The level of a given spread, for samplers that look between the levels of a plan."""


def state(
    x: Vector, anchor: Vector = ANCHOR, memory: Sequence[Vector] = (M1, M2, M3, M4)
) -> Vector:
    """The map of one call. What is not given stays as it is."""
    filled = [*memory, *([NOTHING] * (4 - len(memory)))]
    return np.stack([x, anchor, *filled])


def transfer(x: Vector, eps: Vector, here: Level, there: Level) -> Vector:
    """Along the straight line of `eps` (DDIM, arXiv 2010.02502, equation 13).

    x' / alpha' = x / alpha + (sigma' / alpha' - sigma / alpha) eps
    """
    ratio = there.alpha / here.alpha
    return ratio * x + (there.sigma - ratio * here.sigma) * eps


# Samplers with one call per step and no memory


def ddim(levels: Sequence[Level], eta: float = 0.0) -> list[Call]:
    """DDIM (Song et al. 2020, arXiv 2010.02502, equation 12); eta 0 is Euler's method.

    x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise, with
    s = eta (sigma' / sigma) sqrt(1 - alpha^2 / alpha'^2) (equation 16).
    """
    return [Call(here, state(_ddim(here, there, eta))) for here, there in zip(levels, levels[1:])]


def _ddim(here: Level, there: Level, eta: float) -> Vector:
    s = eta * there.sigma / here.sigma * _sqrt(1 - (here.alpha / there.alpha) ** 2)
    return there.alpha * X0 + _sqrt(there.sigma**2 - s**2) * EPS + s * NOISE


def ddpm(
    levels: Sequence[Level], variance: Literal["small", "large", "learned"] = "small"
) -> list[Call]:
    """DDPM (Ho et al. 2020, arXiv 2006.11239, equation 7), between any two levels.

    The mean of q(x' | x, x0), and noise of variance: "small" beta_tilde = beta sigma'^2 / sigma^2,
    "large" beta = 1 - alpha^2 / alpha'^2, "learned" between them as the network says (Nichol &
    Dhariwal 2021, arXiv 2102.09672, equation 15). The last step adds none.
    """
    calls = []
    for i, (here, there) in enumerate(zip(levels, levels[1:])):
        keep = (here.alpha / there.alpha) ** 2  # 1 - beta
        beta, small = 1 - keep, (1 - keep) * (there.sigma / here.sigma) ** 2
        mean = there.alpha * beta / here.sigma**2 * X0
        mean = mean + math.sqrt(keep) * (there.sigma / here.sigma) ** 2 * X
        last = i == len(levels) - 2
        if last or variance == "learned":
            noise = NOTHING if last else NOISE
        else:
            noise = math.sqrt(small if variance == "small" else beta) * NOISE
        bounds = (math.log(max(small, 1e-20)), math.log(beta)) if variance == "learned" else None
        calls.append(Call(here, state(mean + noise), bounds))
    return calls


# Samplers of the ODE dx = eps ds in x / alpha, with s = sigma / alpha


def euler_ancestral(levels: Sequence[Level]) -> list[Call]:
    """Euler to a level below the next, then noise up to it (k-diffusion, "Euler a").

    s_up^2 = s'^2 (s^2 - s'^2) / s^2 and s_down^2 = s'^2 - s_up^2.
    """
    calls = []
    for here, there in pairs(levels):
        down, up = _ancestral(here, there)
        calls.append(Call(here, state(_line(X, EPS, here, there, down) + there.alpha * up * NOISE)))
    return calls


def heun(levels: Sequence[Level]) -> list[Call]:
    """Heun's method, order 2 (arXiv 2206.00364, algorithm 1); the last step is Euler's."""
    calls = []
    for here, there in pairs(levels):
        calls.append(Call(here, state(_line(X, EPS, here, there), anchor=X, memory=(EPS,))))
        if there.sigma > 0:
            mean = (M1 + EPS) / 2
            calls.append(Call(there, state(_line(ANCHOR, mean, here, there))))
    return calls


def dpm2(levels: Sequence[Level], at: At) -> list[Call]:
    """The midpoint rule in log s, order 2 (DPM-Solver-2, arXiv 2206.00927, algorithm 1)."""
    calls = []
    for here, there in pairs(levels):
        calls += _midpoint(here, there, there.spread, 0.0, at)
    return calls


def dpm2_ancestral(levels: Sequence[Level], at: At) -> list[Call]:
    """`dpm2` to a level below the next, then noise up to it."""
    calls = []
    for here, there in pairs(levels):
        calls += _midpoint(here, there, *_ancestral(here, there), at)
    return calls


def lms(levels: Sequence[Level], order: int = 4) -> list[Call]:
    """Adams-Bashforth in s on uneven steps, with up to `order` values of eps (k-diffusion)."""
    spreads = [level.spread for level in levels]
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        used = min(i + 1, order)
        known = spreads[i - used + 1 : i + 1][::-1]  # the newest first
        eps = sum(
            _lagrange_integral(known, j, spreads[i], spreads[i + 1]) * slope
            for j, slope in enumerate((EPS, M1, M2, M3)[:used])
        )
        x = there.alpha * (X / here.alpha + eps)
        calls.append(Call(here, state(x, memory=(EPS, M1, M2))))
    return calls


def _ancestral(here: Level, there: Level) -> tuple[float, float]:
    s, s_next = here.spread, there.spread
    up = min(s_next, s_next * _sqrt(s**2 - s_next**2) / s)
    return _sqrt(s_next**2 - up**2), up


def _line(x: Vector, eps: Vector, here: Level, there: Level, spread: float | None = None) -> Vector:
    """Along the straight line of `eps` from `here` to `there`, or to another spread on the way."""
    s = there.spread if spread is None else spread
    return there.alpha * (x / here.alpha + (s - here.spread) * eps)


def _midpoint(here: Level, there: Level, down: float, up: float, at: At) -> list[Call]:
    if down == 0:
        return [Call(here, state(_line(X, EPS, here, there)))]
    middle = at(math.sqrt(here.spread * down))
    first = Call(here, state(_line(X, EPS, here, middle), anchor=X))
    x = _line(ANCHOR, EPS, here, there, down) + there.alpha * up * NOISE
    return [first, Call(middle, state(x))]


def _lagrange_integral(nodes: Sequence[float], j: int, start: float, end: float) -> float:
    """The integral of the j-th Lagrange polynomial over `nodes`."""
    polynomial = np.polynomial.Polynomial([1.0])
    for k, node in enumerate(nodes):
        if k != j:
            polynomial *= np.polynomial.Polynomial([-node, 1.0]) / (nodes[j] - node)
    integral = polynomial.integ()
    return integral(end) - integral(start)


# Pseudo linear multistep (PNDM, Liu et al. 2022, arXiv 2202.09778)

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest slope and of those before it, for even steps."""


def plms(levels: Sequence[Level]) -> list[Call]:
    """PLMS, order 4 (equation 12), as Stable Diffusion uses it.

    The first step is taken twice, the second time with the mean of the slopes at both ends (pseudo
    improved Euler, equation 22).
    """
    first, second = levels[0], levels[1]
    calls = [Call(first, state(transfer(X, EPS, first, second), anchor=X, memory=(EPS,)))]
    if len(levels) > 2:
        x = transfer(ANCHOR, (EPS + M1) / 2, first, second)
        calls.append(Call(second, state(x)))
    return calls + [_adams_bashforth(i, levels) for i in range(1, len(levels) - 1)]


def pndm(levels: Sequence[Level], middles: Sequence[Level]) -> list[Call]:
    """PNDM: three steps of pseudo Runge-Kutta (equation 13), then PLMS; order 4.

    Args:
        levels: of the steps.
        middles: the levels half way, in time, between each and the next.
    """
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        if i >= 3:
            calls.append(_adams_bashforth(i, levels))
            continue
        middle = middles[i]
        total = M4  # of the slopes so far; the old ones are in M1, M2 and M3
        old = (EPS, M1, M2)
        calls += [
            Call(here, state(transfer(X, EPS, here, middle), X, (*old, EPS / 6))),
            Call(
                middle,
                state(transfer(ANCHOR, EPS, here, middle), memory=(M1, M2, M3, M4 + EPS / 3)),
            ),
            Call(
                middle, state(transfer(ANCHOR, EPS, here, there), memory=(M1, M2, M3, M4 + EPS / 3))
            ),
            Call(there, state(transfer(ANCHOR, total + EPS / 6, here, there))),
        ]
    return calls


def _adams_bashforth(i: int, levels: Sequence[Level]) -> Call:
    """Step i of PLMS, with the slopes of the steps before it in memory."""
    weights = ADAMS_BASHFORTH[min(i, 3)]
    eps = sum(w * slope for w, slope in zip(weights, (EPS, M1, M2, M3)))
    return Call(levels[i], state(transfer(X, eps, levels[i], levels[i + 1]), memory=(EPS, M1, M2)))


# Exponential integrators in lambda = log(alpha / sigma)

Algorithm = Literal["dpm++", "dpm", "sde-dpm++"]


def dpm_multistep(
    levels: Sequence[Level],
    order: int = 2,
    algorithm: Algorithm = "dpm++",
    *,
    correction: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> list[Call]:
    """DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095, algorithm 2) and DPM-Solver, multistep.

    "dpm++" integrates x0, "dpm" eps (arXiv 2206.00927), "sde-dpm++" x0 with noise. `correction` is
    how the second order weighs the slope of the network's opinion.

    Args:
        levels: of the steps.
        order: 1, 2 or 3; the first steps have lower orders.
        algorithm: see above.
        correction: see above.
        lower_order_final: the last two steps of a run of less than 15 have orders 2 and 1.
        euler_at_final: the last step has order 1 in any case.
    """
    steps = len(levels) - 1
    few = lower_order_final and steps < 15
    newest = EPS if algorithm == "dpm" else X0
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        used = min(order, i + 1)
        if i == steps - 1 and (euler_at_final or few or there.sigma == 0):
            used = 1
        elif i == steps - 2 and few:
            used = min(used, 2)
        whole = _exponential(here, there, algorithm)
        x = whole.keep * X + whole.flat * newest + whole.noise * NOISE
        if used > 1:
            slope, bend = _differences((newest, M1, M2)[:used], levels[: i + 2])
            flat = whole.flat / 2 if (used, correction) == (2, "midpoint") else whole.slope
            x = x + flat * slope + whole.bend * bend
        calls.append(Call(here, state(x, memory=(newest, M1))))
    return calls


def dpm_singlestep(
    levels: Sequence[Level], order: int = 2, algorithm: Literal["dpm++", "dpm"] = "dpm++"
) -> list[Call]:
    """DPM-Solver++ 2S and DPM-Solver, single-step (arXiv 2211.01095, algorithm 1).

    The levels are taken in groups of `order`: within a group each step starts at the group's first
    level anew, with one order more. The groups at the end are shorter, so that the last step has
    order 1 wherever the last level is without noise.
    """
    newest = EPS if algorithm == "dpm" else X0
    calls = []
    for i, used in enumerate(singlestep_orders(len(levels) - 1, order)):
        start, here, there = levels[i - used + 1], levels[i], levels[i + 1]
        whole = _exponential(start, there, algorithm)
        if used == 1:
            x = whole.keep * X + whole.flat * newest
            calls.append(Call(here, state(x, anchor=X, memory=(newest,))))
            continue
        first = (M1, M2)[used - 2]  # opinion at the group's first level
        h = there.log_snr - start.log_snr
        slope = (newest - first) * h / (here.log_snr - start.log_snr)
        weight = whole.flat / 2 if used == 2 else whole.slope
        x = whole.keep * ANCHOR + whole.flat * first + weight * slope
        calls.append(Call(here, state(x, memory=(newest, M1))))
    return calls


def singlestep_orders(steps: int, order: int) -> list[int]:
    """The order of each step: 1, 2, 1, 2, ... and 1 for the last."""
    if order == 1:
        return [1] * steps
    if order == 2:
        return [1, 2] * (steps // 2 - 1 + steps % 2) + ([1] if steps % 2 else [1, 1])
    groups = [1, 2, 3] * ((steps - 1) // 3)
    return (
        groups + {0: [1, 2, 1], 1: [1], 2: [1, 2]}[steps % 3] if steps % 3 else groups + [1, 2, 1]
    )


class _Exponential(NamedTuple):
    """x' = keep x + flat D0 + slope D1 + bend D2 + noise, for opinions D0 + D1 t + D2 t^2 / 2."""

    keep: float
    flat: float
    slope: float
    bend: float
    noise: float


def _exponential(here: Level, there: Level, algorithm: Algorithm) -> _Exponential:
    """The exact weights of one step (arXiv 2206.00927, equation 3.4; arXiv 2211.01095, 9)."""
    h = there.log_snr - here.log_snr
    noise = 0.0
    if algorithm == "dpm":
        keep, scale, z = there.alpha / here.alpha, -there.sigma, h
    else:
        keep, scale, z = there.sigma / here.sigma, -there.alpha, -h
    if algorithm == "sde-dpm++":
        keep, z = keep * math.exp(-h), -2 * h
        noise = there.sigma * _sqrt(-math.expm1(z))
    flat = scale * math.expm1(z)
    if math.isinf(z):  # to a level without noise
        return _Exponential(keep, flat, scale * -1, scale * -0.5, noise)
    slope = scale * (math.expm1(z) / z - 1)
    bend = scale * ((math.expm1(z) - z) / z**2 - 0.5)
    return _Exponential(keep, flat, slope, bend, noise)


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


def deis(levels: Sequence[Level], order: int = 2, lower_order_final: bool = True) -> list[Call]:
    """DEIS (Zhang & Chen 2022, arXiv 2204.13902) in log s ("log rho"), orders 1 to 3.

    x' / alpha' = x / alpha + sum of eps_j times the integral over s of a Lagrange polynomial in
    log s.
    """
    steps = len(levels) - 1
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        used = min(order, i + 1)
        if lower_order_final and steps < 15:
            used = min(used, steps - i)
        logs = [math.log(level.spread) for level in levels[i - used + 1 : i + 1]][::-1]
        eps = sum(
            _log_lagrange_integral(logs, j, here.spread, there.spread) * slope
            for j, slope in enumerate((EPS, M1, M2)[:used])
        )
        x = there.alpha * (X / here.alpha + eps)
        calls.append(Call(here, state(x, memory=(EPS, M1))))
    return calls


def _log_lagrange_integral(nodes: Sequence[float], j: int, start: float, end: float) -> float:
    """The integral over s of the j-th Lagrange polynomial in log s."""
    polynomial = np.polynomial.Polynomial([1.0])
    for k, node in enumerate(nodes):
        if k != j:
            polynomial *= np.polynomial.Polynomial([-node, 1.0]) / (nodes[j] - node)
    # By parts: the antiderivative of p(log s) is s q(log s), q = p - p' + p'' - ...
    antiderivative, term = polynomial, polynomial
    for _ in nodes[1:]:
        term = -term.deriv()
        antiderivative = antiderivative + term

    def at(s: float) -> float:
        return s * antiderivative(math.log(s)) if s > 0 else 0.0

    return at(end) - at(start)


def unipc(
    levels: Sequence[Level],
    order: int = 2,
    *,
    variant: Literal["bh1", "bh2"] = "bh2",
    predict: Literal["x0", "eps"] = "x0",
    lower_order_final: bool = True,
) -> list[Call]:
    """UniPC (Zhao et al. 2023, arXiv 2302.04867, algorithms 5 to 8), orders 1 to 3.

    Each call first corrects the step that led to it, from the step's start in ANCHOR, and then
    predicts the next. B(h) is h ("bh1") or e^h - 1 ("bh2").
    """
    steps = len(levels) - 1
    newest = X0 if predict == "x0" else EPS
    algorithm = "dpm++" if predict == "x0" else "dpm"
    old = (M1, M2, M3)
    calls = []
    corrected, last_order = X, 0
    for i, here in enumerate(levels[:-1]):
        if i > 0:
            opinions = (newest, *old[:last_order])
            corrected = _unipc(ANCHOR, opinions, levels[: i + 1], algorithm, variant, corrects=True)
        used = min(order, i + 1)
        if lower_order_final:
            used = min(used, steps - i)
        opinions = (newest, *old[: used - 1])
        x = _unipc(corrected, opinions, levels[: i + 2], algorithm, variant, corrects=False)
        calls.append(Call(here, state(x, anchor=corrected, memory=(newest, M1, M2))))
        last_order = used
    return calls


def _unipc(
    x: Vector,
    opinions: Sequence[Vector],
    levels: Sequence[Level],
    algorithm: Algorithm,
    variant: str,
    *,
    corrects: bool,
) -> Vector:
    """One step from levels[-2] to levels[-1].

    `opinions` are at levels[-2], levels[-3], ... for the predictor; the corrector's begin with the
    one at levels[-1].
    """
    here, there = levels[-2], levels[-1]
    whole = _exponential(here, there, algorithm)
    h = there.log_snr - here.log_snr
    z = -h if algorithm == "dpm++" else h
    ahead, behind = (opinions[:1], opinions[1:]) if corrects else ((), opinions)
    flat = behind[0]
    result = whole.keep * x + whole.flat * flat
    ratios = [(levels[-2 - k].log_snr - here.log_snr) / h for k in range(1, len(behind))]
    slopes = [(m - flat) / r for m, r in zip(behind[1:], ratios)]
    if corrects:
        ratios, slopes = [*ratios, 1.0], [*slopes, ahead[0] - flat]
    if not slopes:
        return result
    b = z if variant == "bh1" else math.expm1(z)
    scale = whole.flat / math.expm1(z)
    weights = _unipc_weights(ratios, z, b)
    return result + scale * b * sum(w * slope for w, slope in zip(weights, slopes))


def _unipc_weights(ratios: Sequence[float], z: float, b: float) -> np.ndarray:
    """Solve sum_k w_k r_k^(n-1) = n! phi_{n+1}(z) / B, n = 1 .. (equation 11)."""
    if len(ratios) == 1:
        return np.array([0.5])
    phi, factorial, right = math.expm1(z) / z - 1, 1, []
    for n in range(1, len(ratios) + 1):
        right.append(phi * factorial / b)
        factorial *= n + 1
        phi = phi / z - 1 / factorial
    return np.linalg.solve(np.vander(ratios, increasing=True).T, right)


def pairs(levels: Sequence[Level]) -> zip:
    """(level, next level) of each step."""
    return zip(levels[:-1], levels[1:], strict=True)


def _sqrt(value: float) -> float:
    return math.sqrt(max(value, 0.0))
