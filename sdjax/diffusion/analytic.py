"""The best variance of a DDPM step, from what the network does not know (Analytic-DPM).

Bao et al. 2022, arXiv 2201.06503, theorem 1. The mean of a reverse step takes the network's x0 for
known; what the network does not know of x0 must come back as noise. Between any two levels

    sigma*^2 = lambda^2 + g^2 Var[x0 | x]

with lambda^2 DDPM's small variance and g what the step's mean multiplies x0 by. The paper gets the
variance from the mean square of the score, Var[x0 | x] = (sigma / alpha)^2 (1 - E|eps|^2 / d),
which cancels where there is little signal. For the best network that is its mean squared error
E|x0 - prediction|^2 / d, and this is what we measure: it never cancels, and of a network that is
not the best it still gives the best variance (arXiv 2206.07309).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.config import Schedule
from sdjax.diffusion.loop import Denoise
from sdjax.diffusion.parameterization import split
from sdjax.diffusion.samplers import Lengths, Plan, make_plan
from sdjax.diffusion.schedule import add_noise, alpha_bars
from sdjax.diffusion.solvers import ddpm
from sdjax.diffusion.solvers.maps import NOISE, X0, Call
from sdjax.diffusion.times import Spacing, visited
from sdjax.shapes import Latents

SPACING: Spacing = "linspace"
"""Of the steps; the paper of DALL-E 2 says "strided" only."""


def mean_squared_error(
    denoise: Denoise, schedule: Schedule, x0: Latents, key: Array, time: Float[Array, ""]
) -> Float[Array, ""]:
    """E|x0 - prediction|^2 / d of the network at one time, over data `x0` with noise.

    `x0` is in the network's own scale, `time` a whole number from 0 to T - 1.
    """
    table = jnp.asarray(alpha_bars(schedule), jnp.float32)
    alpha_bar = jnp.full(x0.shape[:1], table[time.astype(jnp.int32)])
    x = add_noise(x0, jax.random.normal(key, x0.shape), alpha_bar)
    output = denoise(x, jnp.full(x0.shape[:1], time))
    alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    return jnp.mean((split(output, x, alpha, sigma, schedule.prediction)[0] - x0) ** 2)


def analytic_plan(
    schedule: Schedule,
    steps: int,
    times: Float[np.ndarray, " times"],
    errors: Float[np.ndarray, " times"],
    max_calls: Lengths | None = None,
) -> Plan:
    """DDPM with the best variances, as a plan of the one sampling loop.

    Args:
        schedule: of training.
        steps: calls of the network.
        times: at which the network was measured, rising; between them its error is interpolated.
        errors: its `mean_squared_error` there.
        max_calls: static length of the plan, or lengths; None is no longer than it must be.
    """
    levels = visited(schedule, steps, SPACING, "ddim")
    calls = [_with_best_variance(call, times, errors) for call in ddpm(levels)]
    return make_plan(calls, len(calls) if max_calls is None else max_calls, (0.0, 1.0))


def _with_best_variance(call: Call, times: np.ndarray, errors: np.ndarray) -> Call:
    small = call.state[0] @ NOISE
    if small == 0:  # the last step adds no noise
        return call
    unknown = np.interp(call.level.timestep, times, errors)
    best = np.sqrt(small**2 + (call.state[0] @ X0) ** 2 * unknown)
    state = call.state.copy()
    state[0] += (best - small) * NOISE
    return call._replace(state=state)
