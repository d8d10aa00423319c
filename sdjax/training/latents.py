"""What trainings in a latent space need of a trained autoencoder."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sdjax import config
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.preprocess import to_float
from sdjax.nn.functional import Params, apply
from sdjax.pipelines.models import Model, read_model

Folder = str | os.PathLike[str]
"""A model folder, or the name of a bundled model."""


def encode_latents(
    model: config.Autoencoder, params: Params, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scaled posterior mean and standard deviation of pictures, float16 [images, h, w, c]."""
    network = Autoencoder(model)

    @jax.jit
    def encode(params: Params, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        posterior = apply(network, params, to_float(pixels), method="encode")
        std = jnp.exp(0.5 * posterior.logvar)
        return posterior.mean * model.scaling_factor, std * model.scaling_factor

    means, stds = [], []
    for start in tqdm(range(0, len(images), 128), desc="encoding pictures", disable=None):
        pixels = images[start : start + 128]
        empty = np.zeros((128 - len(pixels), *pixels.shape[1:]), np.uint8)
        mean, std = encode(params, np.concatenate([pixels, empty]))
        means.append(np.asarray(mean, np.float16)[: len(pixels)])
        stds.append(np.asarray(std, np.float16)[: len(pixels)])
    return np.concatenate(means), np.concatenate(stds)


def read_autoencoder(
    model: Folder,
) -> tuple[config.Autoencoder, Params, dict[str, Any]]:
    """(sizes, parameters, how it was trained) of an autoencoder, or of that in a whole model.

    Raises:
        ValueError: if the model has none.
    """
    read = read_model(model)
    if isinstance(read.config, config.Autoencoder):
        sizes = read.config
    elif isinstance(read.config, config.StableDiffusion):
        sizes = read.config.autoencoder
    else:
        raise ValueError(f"{model} has no autoencoder: give a folder of `sdjax train autoencoder`")
    return sizes, read.params["autoencoder"], training_of(read, "autoencoder")


def training_of(model: Model, part: str) -> dict[str, Any]:
    """How a part was trained, as its own folder tells it, or that of a whole model."""
    told = model.described.get("training", {})
    return told.get(part, told)
