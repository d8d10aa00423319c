"""Exact likelihood of data by the probability-flow ODE (Song et al. 2020, arXiv 2011.13456, D.2).

With x = alpha x0 + sigma eps and u = log(sigma / alpha) the ODE behind deterministic samplers is

    dx/du = sigma eps(x, u) - sigma^2 x

(their dy/ds = eps in y = x / alpha and s = sigma / alpha). Followed from data to noise, the density
changes by the divergence of the right side (equation 39):

    log p(data) = log p(noise) + integral of div du

The density at the noisy end is taken to be N(0, 1), as samplers do. The data end is not s = 0 but
the least s of the path: what is computed is the density of data with noise of that spread.

A density is no probability. For pixels, 256 values on each axis, add uniform noise to fill the bins
(`dequantize`): the mean of log p over this noise is a lower bound of the log-probability of the
pixels, and `bits_per_dim` an upper bound of their code length. Latents of an autoencoder have no
bins: their density says nothing about pixels, and differs from scale to scale.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.config import Prediction, Schedule
from sdjax.diffusion.parameterization import split
from sdjax.diffusion.times import Levels
from sdjax.shapes import Images, Keys, Latents, Pixels, Timesteps

PIXEL_BIN = 2 / 256
"""Width of the bins of `dequantize`: 256 of them fill [-1, 1)."""
PROBES_AT_ONCE = 16
"""Directions of the divergence that are computed together."""

Stage = tuple[Array, Array, Array]


class Path(NamedTuple):
    """Steps of equal length in log s: data, not structure; times at a step's begin, middle, end."""

    timestep: Float[Array, "steps 3"]
    alpha: Float[Array, "steps 3"]
    sigma: Float[Array, "steps 3"]
    length: Float[Array, " steps"]  # in log s


class Likelihood(NamedTuple):
    """The result of `log_likelihood`."""

    nats: Float[Array, " batch"]  # log density
    error: Float[Array, " batch"]  # standard error of nats; 0 if exact, nan for a single probe
    code: Latents  # where the data came to lie: x at the noisy end, about N(0, 1)


def likelihood_path(
    schedule: Schedule, steps: int, least: float | None = None, most: float | None = None
) -> Path:
    """The noise levels of an integration.

    Args:
        schedule: of training.
        steps: of four network calls each.
        least: sigma / alpha at the data end; None is the schedule's least noise.
        most: sigma / alpha at the noisy end; None is the schedule's most.

    Raises:
        ValueError: if a number is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if least is not None and not least > 0:
        raise ValueError(f"the least noise must be above 0, got {least}")
    levels = Levels(schedule)
    start, end = np.exp(levels.log_spread[[0, -1]])
    start, end = start if least is None else least, end if most is None else most
    if not start < end:
        raise ValueError(f"the least noise {start:g} must be below the most {end:g}")
    start, end = math.log(start), math.log(end)
    visited = [levels.at_spread(math.exp(u)) for u in np.linspace(start, end, 2 * steps + 1)]
    index = 2 * np.arange(steps)[:, None] + np.arange(3)

    def table(values: list[float]) -> Array:
        return jnp.asarray(np.array(values)[index], jnp.float32)

    return Path(
        table([level.timestep for level in visited]),
        table([level.alpha for level in visited]),
        table([level.sigma for level in visited]),
        jnp.full(steps, (end - start) / steps, jnp.float32),
    )


def log_likelihood(
    denoise: Callable[[Latents, Timesteps], Latents],
    path: Path,
    x: Latents,
    *,
    prediction: Prediction,
    keys: Keys | None = None,
    probes: int = 1,
    noise: Literal["rademacher", "gaussian"] = "rademacher",
) -> Likelihood:
    """The log density of `x`, by the classical Runge-Kutta method of order 4.

    Without `keys` the divergence is exact and costs one derivative for each number of an image;
    with keys it is estimated (Skilling-Hutchinson, equation 40), without bias: div f is the mean of
    v . (df/dy) v over random v. As in the paper, each v is kept along the whole path.

    Args:
        denoise: network output for latents and timesteps; an image must not depend on the others.
        path: see `likelihood_path`.
        x: data, dequantised if need be.
        prediction: what the network predicts; static.
        keys: one per image, for an estimate.
        probes: random directions of each image; static.
        noise: signs (less variance), or normals; static.

    Raises:
        ValueError: for an unknown noise, or no probes.
    """
    directions = _directions(x, keys, probes, noise)
    slope = partial(_slope, denoise, prediction, directions)

    def step(carry: tuple[Latents, Array], scanned: Path) -> tuple[tuple[Latents, Array], None]:
        x, stretched = carry
        begin, middle, end = zip(*scanned[:3], strict=True)
        h = scanned.length
        k1, d1 = slope(x, begin)
        k2, d2 = slope(x + h / 2 * k1, middle)
        k3, d3 = slope(x + h / 2 * k2, middle)
        k4, d4 = slope(x + h * k3, end)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return (x, stretched + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    alpha = path.alpha[0, 0]
    start = (alpha * x, jnp.zeros((directions.shape[0], x.shape[0])))
    (code, stretched), _ = jax.lax.scan(step, start, path)
    # The density of x0 = x / alpha, not of x.
    prior = jnp.sum(jax.scipy.stats.norm.logpdf(code) + jnp.log(alpha), axis=(1, 2, 3))
    if keys is None:
        return Likelihood(prior + stretched.sum(0), jnp.zeros_like(prior), code)
    error = jnp.std(stretched, axis=0, ddof=1) / math.sqrt(probes)
    return Likelihood(prior + stretched.mean(0), error, code)


def _directions(
    x: Latents, keys: Keys | None, probes: int, noise: str
) -> Float[Array, "probes _batch height width channels"]:
    """Every axis, the same for all images; or with keys random ones for each."""
    if keys is None:
        return jnp.eye(x[0].size).reshape(-1, 1, *x.shape[1:])
    draws = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}
    if noise not in draws:
        raise ValueError(f"unknown noise {noise!r}: choose {' or '.join(draws)}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    shape = (probes, *x.shape[1:])
    return jax.vmap(lambda key: draws[noise](key, shape, jnp.float32), out_axes=1)(keys)


def _slope(
    denoise: Callable[[Latents, Timesteps], Latents],
    prediction: Prediction,
    directions: Array,
    x: Latents,
    stage: Stage,
) -> tuple[Latents, Float[Array, "probes batch"]]:
    """dx/du, and v . (its derivative) v for every direction v."""
    timestep, alpha, sigma = stage

    def flow(x: Latents) -> Latents:
        output = denoise(x, jnp.full(x.shape[0], timestep))
        return sigma * split(output, x, alpha, sigma, prediction)[1] - sigma**2 * x

    # The same from either side of v; fused attention on GPUs has this one only.
    value, pull = jax.vjp(flow, x)

    def stretch(v: Array) -> Float[Array, " batch"]:
        v = jnp.broadcast_to(v, x.shape)
        return jnp.sum(v * pull(v)[0], axis=(1, 2, 3))

    return value, jax.lax.map(stretch, directions, batch_size=PROBES_AT_ONCE)


def dequantize(pixels: Pixels, keys: Keys) -> Images:
    """Pixels spread evenly over their bins: (pixel + u) / 128 - 1, u uniform in [0, 1).

    sdjax's images elsewhere are pixel / 127.5 - 1: the same within 1 / 256.
    """
    u = jax.vmap(lambda key: jax.random.uniform(key, pixels.shape[1:]))(keys)
    return (pixels + u) * PIXEL_BIN - 1


def bits_per_dim(
    nats: Float[Array, "..."], dimensions: int, bin_width: float = PIXEL_BIN
) -> Float[Array, "..."]:
    """Bits for each number of an image: -log2 p / dimensions - log2 of the bin's width.

    For pixels in [-1, 1) the second term is 7 (in [0, 1) it would be 8). With a bin of 1 it is the
    density itself.

    Args:
        nats: log densities.
        dimensions: numbers in an image: height x width x channels.
        bin_width: of one pixel value, in units of the data.
    """
    return -nats / (dimensions * math.log(2)) - math.log2(bin_width)
