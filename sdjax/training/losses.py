"""Losses of the three networks, as pure functions of (params, batch, key).

`batch` is a dict of arrays; `key` is a fresh PRNG key per step. Each returns (loss, metrics).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from sdjax import config
from sdjax.denoisers.unet import UNet
from sdjax.diffusion.losses import min_snr_weight, weighted_squared_error
from sdjax.diffusion.parameterization import target
from sdjax.diffusion.schedule import add_noise, alpha_bars
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage, unit
from sdjax.image.degrade import enlarge
from sdjax.image.preprocess import to_float
from sdjax.nn.functional import Params, apply
from sdjax.text.clip_text import ClipText
from sdjax.training.state import Loss, Metrics

MAX_LOGIT_SCALE = float(np.log(100.0))
"""CLIP clips its temperature so that logits never grow beyond 100 (arXiv 2103.00020, 2.5)."""


def random_shift(
    pixels: UInt8[Array, "batch height width channels"], key: Array, most: int
) -> UInt8[Array, "batch height width channels"]:
    """Each image moved by up to `most` pixels in both directions, its border repeated."""
    height, width, channels = pixels.shape[1:]
    padded = jnp.pad(pixels, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (pixels.shape[0], 2), 0, 2 * most + 1)

    def crop(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def spread_times(key: Array, count: int, train_steps: int) -> Int[Array, " {count}"]:
    """One time from each of `count` equal parts of the schedule: less noise in the gradient."""
    fraction = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count
    # The fraction may round up to 1.
    return jnp.minimum(fraction * train_steps, train_steps - 1).astype(jnp.int32)


def clip_loss(model: config.Clip, shift: int) -> Loss:
    """Symmetric cross-entropy over the pairs of a batch (CLIP, arXiv 2103.00020, figure 3).

    batch: pixels uint8 [batch, h, w, 3], enlarged if the tower reads more, tokens int32 [batch,
    tokens], end int32 [batch].
    params: {"text", "image", "logit_scale"}.
    """
    text_tower, image_tower = ClipText(model.text), ClipImage(model.image)

    def loss(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, Metrics]:
        shown = to_float(random_shift(batch["pixels"], key, shift))
        if model.image.image_size != shown.shape[1]:
            shown = enlarge(shown, model.image.image_size, "bicubic")
        images = unit(apply(image_tower, params["image"], shown))
        text = apply(text_tower, params["text"], batch["tokens"], batch["end"])
        log_scale = params["logit_scale"]
        # Clipped, but with a gradient also above the limit: else it could never come back.
        clipped = jnp.minimum(log_scale, MAX_LOGIT_SCALE)
        scale = jnp.exp(log_scale + jax.lax.stop_gradient(clipped - log_scale))
        logits = scale * images @ unit(text.pooled).T  # image text
        by_image = jnp.diag(jax.nn.log_softmax(logits, axis=1))
        by_text = jnp.diag(jax.nn.log_softmax(logits, axis=0))
        right = jnp.argmax(logits, axis=1) == jnp.arange(logits.shape[0])
        return -0.5 * (by_image.mean() + by_text.mean()), {
            "accuracy": right.mean(),
            "logit_scale": scale,
        }

    return loss


def autoencoder_loss(model: config.Autoencoder, kl_weight: float, shift: int) -> Loss:
    """Absolute and squared error plus weighted KL, all per image value.

    The reconstruction and KL terms of arXiv 2112.10752, appendix G; without its perceptual and
    adversarial terms.

    batch: pixels uint8 [batch, h, w, 3].
    """
    network = Autoencoder(model)

    def loss(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, Metrics]:
        key_shift, key_noise = jax.random.split(key)
        images = to_float(random_shift(batch["pixels"], key_shift, shift))
        decoded, posterior = apply(network, params, images, key_noise)
        error = decoded - images
        squared = jnp.mean(error**2)
        kl = posterior.kl().mean() / error[0].size
        value = jnp.mean(jnp.abs(error)) + squared + kl_weight * kl
        return value, {"psnr": 10 * jnp.log10(4.0 / squared), "kl": kl}

    return loss


def latent_diffusion_loss(
    model: config.UNet, schedule: config.Schedule, gamma: float, drop: float
) -> Loss:
    """Denoising error with min-SNR weights and the caption dropped now and then for guidance.

    batch: mean and std float32 [batch, h, w, c], the scaled latent's posterior; context [batch,
    tokens, dim] and vector [batch, dim] of the caption; empty_context [tokens, dim] and
    empty_vector [dim] of the empty one.
    """
    network = UNet(model)
    table = jnp.asarray(alpha_bars(schedule), jnp.float32)

    def loss(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, Metrics]:
        key_latent, key_time, key_noise, key_drop = jax.random.split(key, 4)
        mean = batch["mean"]
        x0 = mean + batch["std"] * jax.random.normal(key_latent, mean.shape)
        count = mean.shape[0]
        time = spread_times(key_time, count, schedule.train_steps)
        noise = jax.random.normal(key_noise, mean.shape)
        alpha_bar = table[time]
        dropped = jax.random.bernoulli(key_drop, drop, (count,))
        context = jnp.where(
            dropped[:, None, None], batch["empty_context"][None], batch["context"]
        ).astype(jnp.float32)
        vector = None
        if model.vector_dim is not None:
            vector = jnp.where(dropped[:, None], batch["empty_vector"][None], batch["vector"])
        output = apply(
            network,
            params,
            add_noise(x0, noise, alpha_bar),
            time.astype(jnp.float32),
            context,
            vector,
        )
        wanted = target(x0, noise, alpha_bar, schedule.prediction)
        weight = min_snr_weight(alpha_bar, gamma, schedule.prediction)
        plain = jnp.mean((output - wanted) ** 2)
        return weighted_squared_error(output, wanted, weight), {"squared_error": plain}

    return loss
