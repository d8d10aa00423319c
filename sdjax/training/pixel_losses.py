"""Losses of DALL-E 2's diffusions of pixels: the decoder and its upsamplers (arXiv 2204.06125).

Pure functions of (params, batch, key), as those of `sdjax.training.losses`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sdjax import config
from sdjax.denoisers.image_conditioning import ImageConditioning
from sdjax.denoisers.unet import UNet
from sdjax.diffusion.parameterization import split, target
from sdjax.diffusion.schedule import add_noise, alpha_bars
from sdjax.diffusion.variational import bound_terms, reverse_steps
from sdjax.image.clip_image import unit
from sdjax.image.degrade import DEGRADATIONS, enlarge, shrink
from sdjax.image.preprocess import to_float
from sdjax.nn.functional import Params, apply
from sdjax.training.losses import spread_times
from sdjax.training.state import Loss, Metrics

BOUND_WEIGHT = 0.001
"""Lambda of L_hybrid (arXiv 2102.09672, section 3.1)."""


def decoder_loss(model: config.Decoder, drop_image: float, drop_text: float, jitter: float) -> Loss:
    """L_hybrid = L_simple + 0.001 L_vlb (arXiv 2102.09672, equation 16) of pixels.

    L_simple is the squared error of what the schedule says is predicted; L_vlb, the sum of the
    bound over the times, teaches the variance alone: its gradient stops at the mean. The image
    embedding is replaced by the learned one, and the text by the empty one, independently.

    Image embeddings are moved by noise of a random length up to `jitter` times their own, and made
    unit vectors again: those that a prior makes up, or that lie between two pictures, are none of a
    picture either. Not in the paper; stable unCLIP moves them too, but tells the network how far.

    batch: pixels uint8 [batch, size, size, 3]; embedding [batch, embedding_dim], unit vectors;
    states [batch, tokens, dim] and vector [batch, dim] of the text; empty_states [tokens, dim] and
    empty_vector [dim] of the empty one.
    params: {"unet", "conditioning"}.
    """
    unet, conditioning = UNet(model.unet), ImageConditioning(model.conditioning)
    schedule, pixel_error = model.schedule, hybrid_error(model.schedule)
    table = jnp.asarray(alpha_bars(schedule), jnp.float32)

    def loss(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, Metrics]:
        key_time, key_noise, key_image, key_text, key_jitter, key_dropout = jax.random.split(key, 6)
        x0 = to_float(batch["pixels"])
        count = x0.shape[0]
        time = spread_times(key_time, count, schedule.train_steps)
        noise = jax.random.normal(key_noise, x0.shape)
        x = add_noise(x0, noise, table[time])

        no_image = jax.random.bernoulli(key_image, drop_image, (count,))
        no_text = jax.random.bernoulli(key_text, drop_text, (count, 1))
        states = jnp.where(no_text[:, None], batch["empty_states"], batch["states"])
        text_vector = jnp.where(no_text, batch["empty_vector"], batch["vector"])
        vector, context = apply(
            conditioning,
            params["conditioning"],
            jittered(batch["embedding"], key_jitter, jitter),
            no_image,
            states.astype(jnp.float32),
            text_vector,
        )
        output = apply(
            unet,
            params["unet"],
            x,
            time.astype(jnp.float32),
            context,
            vector,
            dropout=key_dropout,
        )
        return pixel_error(output, x0, noise, time)

    return loss


def jittered(embedding: Array, key: Array, most: float) -> Array:
    """Unit vectors [batch, dim] moved by noise about as long as a random share of `most`."""
    key_length, key_noise = jax.random.split(key)
    length = most * jax.random.uniform(key_length, (embedding.shape[0], 1))
    noise = jax.random.normal(key_noise, embedding.shape) / embedding.shape[1] ** 0.5
    return unit(embedding + length * noise)


def hybrid_error(
    schedule: config.Schedule,
) -> Callable[[Array, Array, Array, Array], tuple[Array, Metrics]]:
    """L_hybrid of (output, x0, noise, time); of a network without variances only L_simple.

    The output is [batch, height, width, 2 * channels], or channels, of what the schedule says is
    predicted and then of the variance's place between its bounds; x0 is in [-1, 1].
    """
    table, steps = jnp.asarray(alpha_bars(schedule), jnp.float32), reverse_steps(schedule)

    def error(output: Array, x0: Array, noise: Array, time: Array) -> tuple[Array, Metrics]:
        level, channels = table[time], x0.shape[-1]
        output, share = output[..., :channels], output[..., channels:]
        simple = jnp.mean((output - target(x0, noise, level, schedule.prediction)) ** 2)
        if not share.shape[-1]:
            return simple, {}
        x, alpha, sigma = add_noise(x0, noise, level), level**0.5, (1 - level) ** 0.5
        guess, _ = split(jax.lax.stop_gradient(output), x, alpha, sigma, schedule.prediction)
        bound = schedule.train_steps * bound_terms(steps, time, x0, guess, share).mean()
        return simple + BOUND_WEIGHT * bound, {"squared_error": simple, "bits_per_dim": bound}

    return error


DEGRADED = 0.5
"""Share of small pictures that are degraded in training, as in cascaded diffusion (arXiv
2106.15282). DALL-E 2's paper does not say how many. With all of them the network takes clean
pictures, as the decoder draws, for blurred ones, and sharpens them into caricatures."""


def upsampler_loss(model: config.Upsampler, crop: int) -> Loss:
    """Denoising error of random crops, told by small pictures that were spoilt (section 2.1).

    The small picture is the large one shrunk and, for a share of `DEGRADED` of them, degraded, then
    enlarged and cut out at the same place. Only the crop goes through the network, which is applied
    to whole pictures later.

    batch: pixels uint8 [batch, image_size, image_size, 3].
    params: {"unet"}.

    Raises:
        ValueError: for a crop that is no part of the picture, or that the UNet cannot halve.
    """
    if not 0 < crop <= model.image_size or crop % model.unet.factor:
        raise ValueError(
            f"a crop of {crop} pixels: it must be a multiple of {model.unet.factor}, at most "
            f"{model.image_size}"
        )
    unet, schedule, pixel_error = UNet(model.unet), model.schedule, hybrid_error(model.schedule)
    table = jnp.asarray(alpha_bars(schedule), jnp.float32)

    def loss(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, Metrics]:
        key_time, key_noise, key_spoil, key_which, key_crop, key_dropout = jax.random.split(key, 6)
        images = to_float(batch["pixels"])
        count = images.shape[0]
        small = shrink(images, model.small_size)
        spoilt = DEGRADATIONS[model.degradation](small, key_spoil)
        which = jax.random.bernoulli(key_which, DEGRADED, (count, 1, 1, 1))
        seen = enlarge(jnp.where(which, spoilt, small), model.image_size, model.resize)
        both = random_crop(jnp.concatenate([images, seen], -1), key_crop, crop)
        x0, seen = jnp.split(both, 2, axis=-1)
        time = spread_times(key_time, count, schedule.train_steps)
        noise = jax.random.normal(key_noise, x0.shape)
        x = jnp.concatenate([add_noise(x0, noise, table[time]), seen], -1)
        output = apply(unet, params["unet"], x, time.astype(jnp.float32), dropout=key_dropout)
        return pixel_error(output, x0, noise, time)

    return loss


def random_crop(images: Array, key: Array, size: int) -> Array:
    """A square of `size` pixels of each image [batch, height, width, channels], anywhere."""
    count, height, width, channels = images.shape
    most = jnp.array([height - size + 1, width - size + 1])
    corners = jax.random.randint(key, (count, 2), 0, most)

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (size, size, channels))

    return jax.vmap(cut)(images, corners)
