"""Training of DALL-E 2's decoder and upsamplers on emoji (arXiv 2204.06125)."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from PIL import Image

from sdjax import config, presets
from sdjax.data import emoji
from sdjax.denoisers.image_conditioning import ImageConditioning
from sdjax.denoisers.unet import UNet
from sdjax.diffusion.limits import Limits
from sdjax.diffusion.loop import image_keys, initial_noise
from sdjax.diffusion.samplers import sampling_plan
from sdjax.image.degrade import enlarge, shrink
from sdjax.image.preprocess import grid, to_float, to_pixels
from sdjax.nn.functional import Params, apply, init_params
from sdjax.pipelines.clip import load_clip
from sdjax.pipelines.unclip_stages import Given, Told, decode, upsample
from sdjax.shapes import Keys
from sdjax.training.loop import Task, stream
from sdjax.training.pixel_losses import decoder_loss, upsampler_loss
from sdjax.training.state import Recipe
from sdjax.training.tasks import VARIANT_CHOICE, draw_captions, encode_captions
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model

Pictures = UInt8[np.ndarray, "images _height _width 3"]
"""Pixels on the host."""
SHOWN = 16
"""Held-out pictures in a preview."""
GUIDANCE, PREVIEW_STEPS = 2.0, 30
"""Of the decoder in previews, and of all sampling there."""


def decoder_task(
    model: config.Decoder,
    recipe: Recipe,
    clip_folder: str | os.PathLike[str],
    *,
    variants: int = 6,
    drop_image: float = 0.1,
    drop_text: float = 0.5,
    jitter: float = 0.5,
) -> Task:
    """Pictures from CLIP's embedding of them, and a caption, by a trained, frozen CLIP.

    Embeddings and captions (`variants` a picture) are computed once; the rest is as in
    `sdjax.training.pixel_losses.decoder_loss`.

    Raises:
        ValueError: for a decoder with a text transformer of its own, or that hides padding.
    """
    if model.text is not None or model.conditioning.mask_padding:
        raise ValueError(
            "only decoders that read all positions of CLIP's text are trained here: leave out text "
            "and mask_padding"
        )
    clip = load_clip(clip_folder)
    data, held_out = (emoji.load(split, presets.MINI_STYLES) for split in ("train", "test"))
    pixels = small_pixels(data.images, model.image_size)
    embeddings = clip.image_embeddings(data.images)
    texts, caption_rows = draw_captions(data, variants, recipe.seed)
    text = clip.config.text
    hidden, pooled = encode_captions(text, clip.params["text"], clip.tokenizer, texts)
    size = model.image_size

    def init(key: jax.Array) -> Params:
        key_unet, key_conditioning = jax.random.split(key)
        told = (jnp.zeros((1, embeddings.shape[-1])), jnp.zeros(1, bool), *empty(1))
        network = ImageConditioning(model.conditioning)
        conditioning = init_params(network, key_conditioning, *told)
        vector, context = apply(network, conditioning, *told)
        x = jnp.zeros((1, size, size, model.unet.in_channels))
        unet = init_params(UNet(model.unet), key_unet, x, jnp.zeros(1), context, vector)
        return {"unet": unet, "conditioning": conditioning}

    def empty(count: int) -> tuple[Array, Array]:
        states = jnp.asarray(hidden[:1], jnp.float32)
        return jnp.repeat(states, count, 0), jnp.repeat(jnp.asarray(pooled[:1]), count, 0)

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        rng = np.random.default_rng((VARIANT_CHOICE, recipe.seed, step))
        variant = rng.integers(variants, size=recipe.batch) * rng.integers(2, size=recipe.batch)
        rows = caption_rows[index, variant]
        return {
            "pixels": pixels[index],
            "embedding": embeddings[index],
            "states": hidden[rows],
            "vector": pooled[rows],
            "empty_states": hidden[0],
            "empty_vector": pooled[0],
        }

    shown = held_out.images[:: max(len(held_out.images) // SHOWN, 1)][:SHOWN]
    plan = sampling_plan(
        model.schedule,
        PREVIEW_STEPS,
        sampler="ddpm learned",
        spacing="trailing",
        limits=Limits(1.0),
    )
    states, vector = empty(2 * len(shown))
    pairs = (len(shown), 2)  # without the embedding, and with it: both without text
    told = Told(
        embedding=jnp.repeat(jnp.asarray(clip.image_embeddings(shown))[:, None], 2, axis=1),
        dropped=jnp.broadcast_to(jnp.array([True, False]), pairs),
        states=states.reshape(*pairs, *states.shape[1:]),
        vector=vector.reshape(*pairs, -1),
        mask=jnp.ones((*pairs, states.shape[1]), bool),
    )

    def preview(params: Params) -> Image.Image:
        given, keys = begin_with_noise(len(shown), size)
        decoded = decode(model, params, given, told, plan, keys, jnp.float32(GUIDANCE))
        both = np.stack([small_pixels(shown, size), to_pixels(decoded)], 1)
        return grid(both.reshape(-1, size, size, 3), columns=8, scale=4)

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        described = {
            "kind": "decoder",
            "config": to_json(model),
            "training": {
                **facts,
                "drop_image": drop_image,
                "drop_text": drop_text,
                "jitter": jitter,
                "clip": clip.fingerprint,
            },
        }
        save_model(folder, {"decoder": params}, described, "float16")

    loss = decoder_loss(model, drop_image, drop_text, jitter)
    return Task(init, loss, batch, preview, export)


def small_pixels(images: Pictures, size: int) -> Pictures:
    """Pictures of size x size pixels, each the mean of those that it covers."""
    return to_pixels(shrink(to_float(images), size))


def upsampler_task(model: config.Upsampler, recipe: Recipe, *, crop: int) -> Task:
    """Large pixels from small ones, on random crops of `crop` pixels of the large picture."""
    data, held_out = (emoji.load(split, presets.MINI_STYLES) for split in ("train", "test"))
    size = model.image_size
    pixels = small_pixels(data.images, size)

    def init(key: jax.Array) -> Params:
        x = jnp.zeros((1, crop, crop, model.unet.in_channels))
        return {"unet": init_params(UNet(model.unet), key, x, jnp.zeros(1))}

    def batch(step: int) -> dict[str, Any]:
        return {"pixels": pixels[stream(len(pixels), recipe.batch, step, recipe.seed)]}

    shown = small_pixels(held_out.images[:: max(len(held_out.images) // SHOWN, 1)][:SHOWN], size)
    plan = sampling_plan(
        model.schedule, PREVIEW_STEPS, sampler="ddim", spacing="trailing", limits=Limits(1.0)
    )

    def preview(params: Params) -> Image.Image:
        small = shrink(to_float(shown), model.small_size)
        given, keys = begin_with_noise(len(shown), size)
        made = upsample(model, params, given, small, plan, keys)
        smooth = enlarge(small, size, model.resize)
        rows = np.stack([to_pixels(smooth), to_pixels(made), shown], 1)
        return grid(rows.reshape(-1, size, size, 3), columns=12, scale=2)

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        described = {
            "kind": "upsampler",
            "config": to_json(model),
            "training": {**facts, "crop": crop},
        }
        save_model(folder, {"upsampler": params}, described, "float16")

    return Task(init, upsampler_loss(model, crop), batch, preview, export)


def begin_with_noise(count: int, size: int) -> tuple[Given, Keys]:
    """Noise for pictures of size x size pixels, and their keys: always the same."""
    keys = image_keys(jnp.arange(count))
    noise = initial_noise(keys, (size, size, 3))
    return Given(noise, jnp.zeros_like(noise), jnp.zeros_like(noise[..., :1])), keys
