"""Polynomials through earlier opinions of the network: DEIS and UniPC."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sdjax.diffusion.solvers.exponential import exponential
from sdjax.diffusion.solvers.maps import (
    ANCHOR,
    EPS,
    M1,
    M2,
    M3,
    X0,
    Algorithm,
    Call,
    Level,
    Vector,
    X,
    lagrange,
    pairs,
    state,
)


def deis(levels: Sequence[Level], order: int = 2) -> list[Call]:
    """DEIS (Zhang & Chen 2022, arXiv 2204.13902) in log s ("log rho"), orders 1 to 3.

    x' / alpha' = x / alpha + sum of eps_j times the integral over s of a Lagrange polynomial in
    log s. The first steps have lower orders, and the last ones of a run of less than 15. The run
    must end with noise, since log s is infinite without.
    """
    steps = len(levels) - 1
    calls = []
    for i, (here, there) in enumerate(pairs(levels)):
        used = min(order, i + 1)
        if steps < 15:
            used = min(used, steps - i)
        # The newest first, from here: the integral is that of e^y p(y) in y = log(s / s_here).
        nodes = [math.log(s.spread / here.spread) for s in levels[i - used + 1 : i + 1][::-1]]
        end = math.log(there.spread / here.spread)
        x = X / here.alpha
        for j, slope in enumerate((EPS, M1, M2)[:used]):
            x = x + here.spread * _integral(lagrange(nodes, j), end) * slope
        calls.append(Call(here, state(there.alpha * x, memory=(EPS, M1))))
    return calls


def _integral(polynomial: np.polynomial.Polynomial, end: float) -> float:
    """The integral of e^y p(y) from 0 to `end`."""
    # By parts: its antiderivative is e^y q(y), q = p - p' + p'' - ...
    antiderivative, term = polynomial, polynomial
    for _ in range(polynomial.degree()):
        term = -term.deriv()
        antiderivative = antiderivative + term
    return math.exp(end) * antiderivative(end) - antiderivative(0.0)


def unipc(
    levels: Sequence[Level],
    order: int = 2,
    *,
    variant: Literal["bh1", "bh2"] = "bh2",
    predict: Literal["x0", "eps"] = "x0",
    lower_order_final: bool = True,
) -> list[Call]:
    """UniPC (Zhao et al. 2023, arXiv 2302.04867), orders 1 to 3.

    Each call first corrects the step that led to it, from the step's start in ANCHOR, and then
    predicts the next; the corrector makes a step one order better than `order`.

    Args:
        levels: of the steps.
        order: of the predictor.
        variant: B(h) is h ("bh1") or e^h - 1 ("bh2").
        predict: what is integrated; with "eps" the run must end with noise.
        lower_order_final: the last steps have orders .. 2, 1; without, the run must end with noise.
    """
    steps = len(levels) - 1
    newest = X0 if predict == "x0" else EPS
    algorithm = "dpm++" if predict == "x0" else "dpm"
    old = (M1, M2, M3)
    calls = []
    corrected, used = X, 0
    for i, here in enumerate(levels[:-1]):
        if i > 0:
            until = levels[: i + 1]
            corrected = _unipc(ANCHOR, old[:used], until, algorithm, variant, ahead=newest)
        used = min(order, i + 1)
        if lower_order_final:
            used = min(used, steps - i)
        x = _unipc(corrected, (newest, *old[: used - 1]), levels[: i + 2], algorithm, variant)
        calls.append(Call(here, state(x, anchor=corrected, memory=(newest, M1, M2))))
    return calls


def _unipc(
    x: Vector,
    opinions: Sequence[Vector],
    levels: Sequence[Level],
    algorithm: Algorithm,
    variant: str,
    ahead: Vector | None = None,
) -> Vector:
    """One step from levels[-2] to levels[-1], from opinions at levels[-2], levels[-3], ...

    The corrector knows the opinion `ahead`, at levels[-1], as well.
    """
    here, there = levels[-2], levels[-1]
    whole = exponential(here, there, algorithm)
    flat, *behind = opinions
    result = whole.keep * x + whole.flat * flat
    h = there.log_snr - here.log_snr
    ratios = [(levels[-3 - k].log_snr - here.log_snr) / h for k in range(len(behind))]
    slopes = [(opinion - flat) / r for opinion, r in zip(behind, ratios, strict=True)]
    if ahead is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, ahead - flat]
    if not slopes:
        return result
    z = -h if algorithm == "dpm++" else h
    b = z if variant == "bh1" else math.expm1(z)
    weights = whole.flat / math.expm1(z) * b * _unipc_weights(ratios, z, b)
    return result + np.tensordot(weights, np.stack(slopes), axes=1)


def _unipc_weights(ratios: Sequence[float], z: float, b: float) -> np.ndarray:
    """Solve sum_k w_k r_k^(n-1) = n! phi_{n+1}(z) / B for n = 1, 2, ...

    phi_1(z) = (e^z - 1) / z and phi_{n+1}(z) = (phi_n(z) - 1 / n!) / z; the first line of the loop
    has z phi_2(z), and so on.
    """
    if len(ratios) == 1:
        return np.array([0.5])  # as published: the same to the order that counts
    phi, factorial, right = math.expm1(z) / z - 1, 1, []
    for n in range(1, len(ratios) + 1):
        right.append(phi * factorial / b)
        factorial *= n + 1
        phi = phi / z - 1 / factorial
    return np.linalg.solve(np.vander(ratios, increasing=True).T, right)
