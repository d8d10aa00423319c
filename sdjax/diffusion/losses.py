"""The training loss of a denoiser and its weight per noise level."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.config import Prediction


def snr(alpha_bar: Float[Array, "..."]) -> Float[Array, "..."]:
    """Signal-to-noise ratio ab / (1 - ab)."""
    return alpha_bar / (1 - alpha_bar)


def min_snr_weight(
    alpha_bar: Float[Array, "..."], gamma: float, prediction: Prediction
) -> Float[Array, "..."]:
    """Min-SNR weights (Hang et al. 2023, arXiv 2303.09556, section 3.4) for a squared error.

    eps: min(SNR, gamma) / SNR. x0: min(SNR, gamma). v: min(SNR + 1, gamma) / (SNR + 1).

    SNR + 1 is what the squared error of v weighs x0 by (arXiv 2202.00512, section 4). The paper's
    own formula for v, min(SNR, gamma) / (SNR + 1), vanishes at pure noise, which is just where a
    text-conditional model learns what the text alone says about the picture.
    """
    ratio = snr(alpha_bar)
    if prediction == "v":
        return jnp.minimum(ratio + 1, gamma) / (ratio + 1)
    if prediction == "eps":
        return jnp.minimum(ratio, gamma) / ratio
    if prediction == "x0":
        return jnp.minimum(ratio, gamma)
    raise ValueError(f"unknown prediction {prediction!r}: choose eps, v or x0")


def weighted_squared_error(
    output: Float[Array, "batch height width channels"],
    wanted: Float[Array, "batch height width channels"],
    weight: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Mean over the batch of weight_i times the mean squared error of example i."""
    return jnp.mean(weight * jnp.mean((output - wanted) ** 2, axis=(1, 2, 3)))
