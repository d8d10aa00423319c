"""A Gaussian mixture in one or two dimensions: what the best network would say, and the answer.

In one dimension the probability-flow ODE keeps the order of points, so that it carries each
quantile at one noise level to the same quantile at another: the exact solution.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from sdjax.diffusion.solvers import SLOTS, Call, Level
from sdjax.diffusion.times import Levels, of_spread

WEIGHTS, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-1.0, 0.6]), np.array([0.45, 0.4])


def best_eps(x: np.ndarray, level: Level) -> np.ndarray:
    """The expected noise in points x, in float64."""
    variances = (level.alpha * DEVIATIONS) ** 2 + level.sigma**2
    away = x[:, None] - level.alpha * MEANS
    logits = np.log(WEIGHTS) - 0.5 * np.log(variances) - 0.5 * away**2 / variances
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return level.sigma * (shares * away / variances).sum(1)


def share_below(x: np.ndarray, level: Level) -> np.ndarray:
    deviations = np.hypot(level.alpha * DEVIATIONS, level.sigma)
    return (WEIGHTS * ndtr((x[:, None] - level.alpha * MEANS) / deviations)).sum(1)


def carried(x: np.ndarray, here: Level, there: Level) -> np.ndarray:
    """Where the ODE carries points from one level to another: bisection."""
    share = share_below(x, here)
    low, high = np.full(x.shape, -50.0), np.full(x.shape, 50.0)
    for _ in range(70):
        middle = (low + high) / 2
        below = share_below(middle, there) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return middle


def run(calls: list[Call], x: np.ndarray) -> np.ndarray:
    """A sampler without noise in float64, with the best network."""
    state = np.zeros((SLOTS, x.size))
    state[0] = x
    for call in calls:
        level = call.level
        eps = best_eps(state[0], level)
        x0 = (state[0] - level.sigma * eps) / level.alpha
        state = call.state @ np.vstack([state, x0, eps, np.zeros_like(eps)])
    return state[0]


# Noise levels between which it is carried

MOST, LEAST = 3.0, 0.1
"""Sigma / alpha at both ends."""


class Even(Levels):
    """Levels by a time from 0 to 1 that is even in log(sigma / alpha)."""

    def __init__(self):
        pass

    def at_time(self, time):
        return of_spread(float(MOST ** (1 - time) * LEAST**time), float(time))

    def at_spread(self, spread):
        return of_spread(float(spread), 0.0)


EVEN = Even()


def graded(steps: int) -> list[Level]:
    """Even steps of 1 / steps; at both ends ever shorter ones, down to 1 / steps^2.

    Multistep samplers begin, and some end, with steps of lower order: here these count for nothing.
    """
    short = 2.0 ** -np.arange(round(math.log2(steps)), 0, -1)
    sizes = np.concatenate([short, np.ones(steps - 2), short[::-1]])
    times = np.append(0, np.cumsum(sizes)) / sizes.sum()
    return [EVEN.at_time(time) for time in times]


def even(steps: int) -> list[Level]:
    return [EVEN.at_time(k / steps) for k in range(steps + 1)]


# Two dimensions, in JAX

CENTRES = np.array([[-1.0, 0.5], [0.8, -0.6], [0.2, 1.0]])
SHARES = np.array([0.4, 0.35, 0.25])
SPREADS = np.array([[0.3, 0.2], [0.2, 0.4], [0.25, 0.25]])  # along the axes


def moments() -> tuple[np.ndarray, np.ndarray]:
    mean = SHARES @ CENTRES
    away = CENTRES - mean
    covariance = np.einsum("k,ki,kj->ij", SHARES, away, away) + np.diag(SHARES @ SPREADS**2)
    return mean, covariance


def best_eps_2d(x: jax.Array, spread: jax.Array) -> jax.Array:
    """The expected noise in points x [batch, 1, 1, 2] at a level of this sigma / alpha."""
    alpha = 1 / jnp.sqrt(1 + spread**2)
    variances = alpha**2 * (SPREADS**2 + spread**2)
    away = x[:, 0, 0, None, :] - alpha * CENTRES
    logits = jnp.log(SHARES) - 0.5 * (jnp.log(variances) + away**2 / variances).sum(-1)
    shares = jax.nn.softmax(logits)[..., None]
    return (alpha * spread * (shares * away / variances).sum(1))[:, None, None, :]
