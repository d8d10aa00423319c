"""The vocabulary of samplers: noise levels, the slots of the state, and the map after a call.

The state is a column of `SLOTS` images: the point `X` where the network looks next, an `ANCHOR`
where a step began, and four memories `M1` .. `M4`. Beside it the loop provides the network's `X0`
and `EPS` at X, and standard normal `NOISE`. Coefficients are written as vectors over these names:

    X_next = alpha_next * X0 + sigma_next * EPS          # one step of DDIM

All states are variance preserving: x = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1. Papers that
write x = x0 + s eps (Karras et al. 2022, arXiv 2206.00364) mean our x / alpha, s = sigma / alpha.
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
"""Coefficients over (X, ANCHOR, M1 .. M4, X0, EPS, NOISE)."""

Algorithm = Literal["dpm++", "dpm", "sde-dpm++"]
"""What an exponential integrator takes to be smooth: x0, eps, or x0 with fresh noise."""


@dataclass(frozen=True)
class Level:
    """A point in time: x = alpha x0 + sigma eps."""

    timestep: float | int  # what the network is told; of no use at the end
    alpha: float
    sigma: float

    @property
    def spread(self) -> float:
        """Sigma / alpha: the noise level of arXiv 2206.00364."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """Lambda = log(alpha / sigma) of arXiv 2206.00927, half the logarithm of the SNR."""
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
) -> np.ndarray:
    """The map of one call. An anchor and memories that are not given stay as they are."""
    return np.stack([x, anchor, *memory, *([NOTHING] * (4 - len(memory)))])


def pairs(levels: Sequence[Level]) -> list[tuple[Level, Level]]:
    """(level, next level) of each step."""
    return list(zip(levels[:-1], levels[1:], strict=True))


def transfer(x: Vector, eps: Vector, here: Level, there: Level) -> Vector:
    """Along the straight line of `eps` (DDIM, arXiv 2010.02502, equation 13).

    x' / alpha' = x / alpha + (sigma' / alpha' - sigma / alpha) eps
    """
    ratio = there.alpha / here.alpha
    return ratio * x + (there.sigma - ratio * here.sigma) * eps


def lagrange(nodes: Sequence[float], j: int) -> np.polynomial.Polynomial:
    """The polynomial that is 1 at nodes[j] and 0 at the others."""
    polynomial = np.polynomial.Polynomial([1.0])
    for k, node in enumerate(nodes):
        if k != j:
            polynomial *= np.polynomial.Polynomial([-node, 1.0]) / (nodes[j] - node)
    return polynomial


def root(value: float) -> float:
    """The square root, of what rounding made negative too."""
    return math.sqrt(max(value, 0.0))
