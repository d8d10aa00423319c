"""The autoencoder's decoder trained further: latents stay what they are, and so do denoisers.

A latent that a denoiser made up is never quite one of a picture. The decoder learns here to draw
clean pictures from latents that are a little off.
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from PIL import Image

from sdjax import config
from sdjax.data import emoji
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.preprocess import grid, to_float, to_pixels
from sdjax.nn.functional import Params, apply
from sdjax.training.latents import Folder, encode_latents, read_autoencoder
from sdjax.training.loop import Task, stream
from sdjax.training.losses import random_shift
from sdjax.training.state import Loss, Metrics, Recipe
from sdjax.training.tasks import SHIFT
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model

TRAINED = ("decoder", "post_quant")
"""What changes of the autoencoder's parameters."""
NOISE = 0.3
"""The most noise on latents, which spread about 1."""
CLEAN = 0.3
"""Share of a batch whose latents get none."""


def latent_decoder_loss(model: config.Autoencoder, shift: int, noise: float) -> Loss:
    """Absolute and squared error of pictures decoded from latents with noise.

    That only the decoder is trained is as in Stability AI's sd-vae-ft-ema; noise, of another
    deviation for every picture, as in arXiv 2510.11690, section 4.3. That it is even between 0 and
    `noise`, and that the first `CLEAN` of the (shuffled) batch get none, are choices of ours.

    batch: pixels uint8 [batch, h, w, 3], and encoder, the parameters that are not trained.
    params: the decoder's, "decoder" and "post_quant".
    """
    network = Autoencoder(model)

    def loss(params: Params, batch: dict[str, Any], key: Array) -> tuple[Array, Metrics]:
        key_shift, key_mirror, key_level, key_noise = jax.random.split(key, 4)
        shape = (len(batch["pixels"]), 1, 1, 1)
        clean = math.ceil(CLEAN * len(batch["pixels"]))  # pictures, the first ones
        images = to_float(random_shift(batch["pixels"], key_shift, shift))
        images = jnp.where(jax.random.bernoulli(key_mirror, 0.5, shape), images[:, :, ::-1], images)
        z = apply(network, batch["encoder"], images, method="encode").mean * model.scaling_factor
        level = jax.random.uniform(key_level, shape, maxval=noise).at[:clean].set(0.0)
        z = z + level * jax.random.normal(key_noise, z.shape)
        error = apply(network, params, z, method="decode") - images
        psnr = 10 * jnp.log10(4.0 / jnp.mean(error[:clean] ** 2))
        return jnp.mean(jnp.abs(error)) + jnp.mean(error**2), {"psnr": psnr}

    return loss


def latent_decoder_task(recipe: Recipe, autoencoder: Folder) -> Task:
    """More training for the decoder of a trained autoencoder, or of that in a whole model."""
    model, params, told = read_autoencoder(autoencoder)
    data, held_out = emoji.load("train"), emoji.load("test")
    shown = held_out.images[:: max(len(held_out.images) // 16, 1)][:16]
    encoder = {name: part for name, part in params.items() if name not in TRAINED}
    latents, _ = encode_latents(model, params, shown)
    decode = jax.jit(lambda p, z: apply(Autoencoder(model), p, z, method="decode"))

    def init(key: jax.Array) -> Params:
        return {name: params[name] for name in TRAINED}

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        return {"pixels": data.images[index], "encoder": encoder}

    def preview(params: Params) -> Image.Image:
        decoded = to_pixels(decode(params, latents.astype(np.float32)))
        return grid(np.stack([shown, decoded], 1).reshape(-1, *shown.shape[1:]), columns=8)

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        described = {
            "kind": "autoencoder",
            "config": to_json(model),
            "training": {**facts, "noise": NOISE, "clean": CLEAN, "autoencoder": told},
        }
        save_model(folder, {"autoencoder": {**encoder, **params}}, described, "float16")

    return Task(init, latent_decoder_loss(model, SHIFT, NOISE), batch, preview, export)
