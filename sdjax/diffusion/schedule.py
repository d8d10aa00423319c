"""The forward process: betas, alpha-bar, and noise mixed in."""

import numpy as np
from jaxtyping import Array, Float

from sdjax.config import Schedule
from sdjax.shapes import Latents


def betas(schedule: Schedule) -> np.ndarray:
    """Variances beta_1..beta_T of the forward steps: float64 [train_steps].

    "linear": evenly spaced (DDPM, arXiv 2006.11239, section 4). "scaled_linear": the square roots
    are evenly spaced (called "linear" in the latent-diffusion code). "cosine": from
    ab(t) = cos^2((t + 0.008) / 1.008 * pi/2), capped at 0.999 (arXiv 2102.09672, equation 17).
    With `schedule.zero_snr` they are those of the rescaled `alpha_bars`, and the last is 1.
    """
    if not schedule.zero_snr:
        return _plain_betas(schedule)
    ab = alpha_bars(schedule)
    return 1 - ab / np.append(1.0, ab[:-1])


def alpha_bars(schedule: Schedule) -> np.ndarray:
    """ab_t = prod_{s <= t} (1 - beta_s): float64 [train_steps], decreasing, below 1.

    With `schedule.zero_snr` the roots are shifted and stretched so that the last is 0, too, and the
    first stays (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
    """
    ab = np.cumprod(1.0 - _plain_betas(schedule))
    if not schedule.zero_snr:
        return ab
    root = np.sqrt(ab)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def _plain_betas(schedule: Schedule) -> np.ndarray:
    steps, start, end = schedule.train_steps, schedule.beta_start, schedule.beta_end
    if isinstance(schedule.betas, tuple):
        return np.array(schedule.betas, np.float64)
    if schedule.betas == "linear":
        return np.linspace(start, end, steps, dtype=np.float64)
    if schedule.betas == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2
    times = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def add_noise(
    x0: Latents, noise: Latents, alpha_bar: Float[Array, " batch"]
) -> Float[Array, "batch height width channels"]:
    """x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps (DDPM, arXiv 2006.11239, equation 4)."""
    ab = alpha_bar[:, None, None, None]
    return ab**0.5 * x0 + (1 - ab) ** 0.5 * noise
