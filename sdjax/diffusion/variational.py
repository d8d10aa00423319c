"""The variational bound of a diffusion that learns its variance (arXiv 2102.09672, section 3)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Int

from sdjax.config import Schedule
from sdjax.diffusion.schedule import alpha_bars, betas
from sdjax.shapes import Images

HALF_BIN = 1 / 255
"""Half the distance of two of the 256 values of a pixel in [-1, 1]."""
LEAST_LOG = math.log(1e-12)
"""Of a probability: less would only be noise of float32."""


class Reverse(NamedTuple):
    """What the steps q(x_{t-1} | x_t, x_0) back from each time are made of: float32 [times]."""

    pull: Float[Array, " times"]  # what x_0 adds to their mean
    least: Float[Array, " times"]  # log of their variance, beta_tilde
    most: Float[Array, " times"]  # log of beta


def reverse_steps(schedule: Schedule) -> Reverse:
    """The steps of a schedule (DDPM, arXiv 2006.11239, equation 7).

    The first has no variance, of which there is no logarithm: it takes the second's.
    """
    ab, beta = alpha_bars(schedule), betas(schedule)
    before = np.append(1.0, ab[:-1])
    pull = np.sqrt(before) * beta / (1 - ab)
    variance = beta * (1 - before) / (1 - ab)
    least = np.log(np.append(variance[1], variance[1:]))
    return Reverse(*(jnp.asarray(x, jnp.float32) for x in (pull, least, np.log(beta))))


def bound_terms(
    steps: Reverse, time: Int[Array, " batch"], x0: Images, guess: Images, share: Images
) -> Float[Array, " batch"]:
    """The term of the variational bound at the given times, in bits per number of an image.

    Later times: the divergence of the network's step from the true one (equation 6); time 0: the
    log-probability of the pixels (equation 5 and DDPM's equation 13). The variance is
    exp(v log beta + (1 - v) log beta_tilde) (equation 15), v = (share + 1) / 2.

    Args:
        steps: of the schedule.
        time: whole numbers.
        x0: pictures of 256 values in [-1, 1].
        guess: of the network, of x0.
        share: of the network, -1 to 1.
    """
    pull, least, most = (field[time][:, None, None, None] for field in steps)
    log_variance = least + (share + 1) / 2 * (most - least)
    squared = (pull * (x0 - guess)) ** 2
    above = log_variance - least
    divergence = 0.5 * (above + jnp.exp(-above) - 1 + squared * jnp.exp(-log_variance))
    first = time[:, None, None, None] == 0
    nats = jnp.where(first, -_log_probability(x0, guess, 0.5 * log_variance), divergence)
    return nats.mean((1, 2, 3)) / math.log(2)


def _log_probability(x0: Images, mean: Images, log_deviation: Images) -> Images:
    """Of a pixel's value under a normal distribution; the outermost bins reach to infinity."""
    scale = jnp.exp(-log_deviation)
    above, below = (x0 - mean + HALF_BIN) * scale, (x0 - mean - HALF_BIN) * scale
    inside = jax.scipy.stats.norm.cdf(above) - jax.scipy.stats.norm.cdf(below)
    inside = jnp.log(jnp.maximum(inside, math.exp(LEAST_LOG)))
    value = jnp.where(x0 < HALF_BIN - 1, log_ndtr(above), inside)
    value = jnp.where(x0 > 1 - HALF_BIN, log_ndtr(-below), value)
    return jnp.maximum(value, LEAST_LOG)
