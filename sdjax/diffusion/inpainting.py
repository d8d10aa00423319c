"""Filling in what is missing from a picture, by a network that was never trained for it.

Where the picture is known the network is not asked: its opinion of the data is replaced by the
data. DDPM then draws x' from q(x' | x, x0) with the true x0, so that the known pixels are at every
level as noisy as the forward process makes them, and the network sees them and draws the rest to
fit. RePaint (arXiv 2201.09865, equation 8) replaces x' instead, by pixels with fresh noise, which
GLIDE (arXiv 2112.10741) calls what others did without training; at each level known pixels have the
same distribution in both ways.

In one pass what is drawn early knows little of what is drawn late, and the seam shows: RePaint goes
back and forth between noise levels until both agree.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.config import Prediction, Schedule
from sdjax.diffusion.limits import Limits
from sdjax.diffusion.loop import Denoise
from sdjax.diffusion.samplers import Plan, make_plan
from sdjax.diffusion.solvers import Call, Level, ddim
from sdjax.diffusion.solvers.maps import NOISE
from sdjax.diffusion.times import check_whole, visited
from sdjax.shapes import Images, Timesteps

Known = Float[Array, "batch _height _width 1"]
"""1 where a pixel is known, 0 where it is to be drawn; as in GLIDE, unlike Stable Diffusion."""


def keep_known(
    denoise: Denoise, plan: Plan, image: Images, known: Known, prediction: Prediction
) -> Denoise:
    """`denoise`, whose opinion of the data is `image` where it is `known`.

    Args:
        denoise: one output, without its parts.
        plan: of the run, whose levels say what `x` is made of.
        image: the data.
        known: see `Known`.
        prediction: what the network predicts.
    """
    calls = plan.calls
    times = jnp.where(calls.active, calls.timestep, jnp.inf)

    def denoise_rest(x: Images, timesteps: Timesteps) -> Images:
        output = denoise(x, timesteps)
        row = jnp.argmin(jnp.abs(times - timesteps[0]))
        a, s = calls.alpha[row], calls.sigma[row]
        said = {"eps": (x - a * image) / s, "v": (a * x - image) / s, "x0": image}[prediction]
        if output.shape[-1] == 2 * x.shape[-1]:  # of a learned variance the least: that of q
            said = jnp.concatenate([said, -jnp.ones_like(said)], axis=-1)
        return jnp.where(known > 0.5, said, output)

    return denoise_rest


def repaint(levels: Sequence[Level], jump: int, repeats: int) -> list[Call]:
    """DDPM along `levels`, every stretch of `jump` steps `repeats` times (arXiv 2201.09865).

    Back to the beginning of a stretch leads the forward process, in one stride. RePaint's own
    numbers are a jump of 10 and 10 repeats.
    """
    calls = []
    for start in range(0, len(levels) - 1, jump):
        stretch = list(levels[start : start + jump + 1])
        down = ddim(stretch, eta=1.0)
        again = [*down[:-1], _lifted(down[-1], stretch[-1], stretch[0])]
        calls += (repeats - 1) * again + down
    return calls


def _lifted(call: Call, here: Level, there: Level) -> Call:
    """A call that leads `here`, with noise up to the level `there` after it."""
    ratio = there.alpha / here.alpha
    up = there.sigma**2 - (ratio * here.sigma) ** 2
    state = call.state.copy()
    drawn = float(state[0] @ NOISE)
    state[0] *= ratio
    state[0] += (math.sqrt((ratio * drawn) ** 2 + up) - ratio * drawn) * NOISE
    return call._replace(state=state)


def inpainting_plan(
    schedule: Schedule,
    steps: int,
    repeats: int,
    jump: int,
    max_calls: Sequence[int],
    limits: Limits,
) -> Plan:
    """The plan of a run with known pixels: `repaint` along times that are even.

    Raises:
        ValueError: if a number is out of range, or the calls do not fit.
    """
    for name, value in (("repeats", repeats), ("jump", jump)):
        check_whole(name, value)
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    levels = visited(schedule, steps, "trailing", "ddim", exact=True)
    return make_plan(repaint(levels, jump, repeats), max_calls, (0.0, 1.0), limits)


def shrink_known(known: Float[np.ndarray, "height width"], factor: int) -> np.ndarray:
    """The mask of a picture that is `factor` times smaller: known is what is known throughout."""
    height, width = known.shape
    blocks = known.reshape(height // factor, factor, width // factor, factor)
    return blocks.min((1, 3))
