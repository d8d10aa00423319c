"""The forward process: betas, alpha-bar, and which times a sampler visits."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdjax.config import Schedule
from sdjax.shapes import Latents


def betas(schedule: Schedule) -> np.ndarray:
    """Variances beta_1..beta_T of the forward steps: float64 [train_steps].

    "linear": evenly spaced (DDPM, arXiv 2006.11239, section 4). "scaled_linear": the square roots
    are evenly spaced (called "linear" in the latent-diffusion code). "cosine": from
    ab(t) = cos^2((t + 0.008) / 1.008 * pi/2), capped at 0.999 (arXiv 2102.09672, equation 17).
    """
    steps, start, end = schedule.train_steps, schedule.beta_start, schedule.beta_end
    if schedule.betas == "linear":
        return np.linspace(start, end, steps, dtype=np.float64)
    if schedule.betas == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2
    if schedule.betas != "cosine":
        raise ValueError(f"unknown betas {schedule.betas!r}")
    times = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def alpha_bars(schedule: Schedule) -> np.ndarray:
    """ab_t = prod_{s <= t} (1 - beta_s): float64 [train_steps], decreasing, in (0, 1)."""
    return np.cumprod(1.0 - betas(schedule))


def add_noise(
    x0: Latents, noise: Latents, alpha_bar: Float[Array, " batch"]
) -> Float[Array, "batch height width channels"]:
    """x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps (DDPM, arXiv 2006.11239, equation 4)."""
    ab = alpha_bar[:, None, None, None]
    return ab**0.5 * x0 + (1 - ab) ** 0.5 * noise


class Plan(NamedTuple):
    """The steps of one sampling run, padded to a static length: data, not structure.

    Every field is float32 [max_steps] except `active`, bool [max_steps]. Because the number of
    steps is only a mask, runs of 20 and of 50 steps share one executable.
    """

    timestep: Float[Array, " steps"]  # passed to the network
    alpha_bar: Float[Array, " steps"]  # at the current time
    alpha_bar_next: Float[Array, " steps"]  # at the time the step moves to (less noise)
    active: Bool[Array, " steps"]  # False in the padding


def leading_timesteps(schedule: Schedule, steps: int, offset: int = 1) -> np.ndarray:
    """int64 [steps], decreasing: multiples of T // steps plus `offset`, as in Stable Diffusion.

    Raises:
        ValueError: unless 1 <= steps <= train_steps - offset.
    """
    most = schedule.train_steps - offset
    if not 1 <= steps <= most:
        raise ValueError(f"steps must be between 1 and {most}, got {steps}")
    stride = schedule.train_steps // steps
    return (np.arange(steps) * stride)[::-1] + offset


def trailing_timesteps(schedule: Schedule, steps: int) -> np.ndarray:
    """int64 [steps], decreasing from T - 1: round(T - i T / steps) - 1 (arXiv 2305.08891, table 2).

    Unlike "leading" it starts at the noisiest time, which matters for few steps.

    Raises:
        ValueError: unless 1 <= steps <= train_steps.
    """
    if not 1 <= steps <= schedule.train_steps:
        raise ValueError(f"steps must be between 1 and {schedule.train_steps}, got {steps}")
    stride = schedule.train_steps / steps
    return np.round(np.arange(schedule.train_steps, 0, -stride)).astype(np.int64)[:steps] - 1


def sampling_plan(
    schedule: Schedule, steps: int, max_steps: int, spacing: Literal["leading", "trailing"]
) -> Plan:
    """The plan of a run of `steps` steps, as published models use it.

    "leading": offset 1, ending at alpha-bar of time 0 (Stable Diffusion 1 and 2 with DDIM).
    "trailing": starts at the noisiest time and ends without noise.
    """
    if spacing == "leading":
        return make_plan(schedule, leading_timesteps(schedule, steps), max_steps)
    return make_plan(schedule, trailing_timesteps(schedule, steps), max_steps, 1.0)


def make_plan(
    schedule: Schedule, timesteps: np.ndarray, max_steps: int, final_alpha_bar: float | None = None
) -> Plan:
    """Tables for visiting `timesteps` (decreasing integers), padded to `max_steps`.

    Each step moves to the next entry of the list; the last moves to `final_alpha_bar`: None means
    alpha-bar at time 0, as in Stable Diffusion's DDIM; 1.0 ends without noise.
    """
    if not len(timesteps) <= max_steps:
        raise ValueError(f"{len(timesteps)} steps do not fit into max_steps {max_steps}")
    table = alpha_bars(schedule)
    last = table[0] if final_alpha_bar is None else final_alpha_bar
    here = table[timesteps]
    following = np.append(here[1:], last)
    pad = max_steps - len(timesteps)

    def padded(values: np.ndarray, filler: float) -> Array:
        return jnp.asarray(np.pad(values, (0, pad), constant_values=filler), jnp.float32)

    return Plan(
        timestep=padded(timesteps, 0.0),
        # 0.5 in the padding keeps divisions finite where nothing is kept anyway.
        alpha_bar=padded(here, 0.5),
        alpha_bar_next=padded(following, 0.5),
        active=jnp.arange(max_steps) < len(timesteps),
    )
