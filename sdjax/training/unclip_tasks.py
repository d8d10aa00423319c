"""Training of DALL-E 2's decoder and upsamplers on emoji (arXiv 2204.06125)."""

from collections.abc import Callable
from functools import partial
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
from sdjax.pipelines.clip import Clip, load_clip
from sdjax.pipelines.unclip_stages import Given, Told, decode, upsample
from sdjax.shapes import Keys
from sdjax.training.captions import choose_captions, draw_captions, encode_captions
from sdjax.training.latents import Folder
from sdjax.training.loop import Task, stream
from sdjax.training.pixel_losses import decoder_loss, upsampler_loss
from sdjax.training.state import Recipe
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
    clip_folder: Folder,
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
        ValueError: for a decoder with a text transformer of its own, or that hides padding, or is
            told embeddings of other lengths than 1.
    """
    told = model.conditioning
    if model.text is not None or told.mask_padding or not told.unit_length:
        raise ValueError(
            "only decoders that read all positions of CLIP's text, and unit vectors of images, are "
            "trained here: leave out text, mask_padding and unit_length"
        )
    clip = load_clip(clip_folder)
    data = emoji.load("train", presets.MINI_STYLES)
    pixels = small_pixels(data.images, model.image_size)
    embeddings = clip.image_embeddings(data.images)
    texts, caption_rows = draw_captions(data, variants, recipe.seed)
    text = clip.config.text
    hidden, pooled = encode_captions(text, clip.params["text"], clip.tokenizer, texts)
    empty = (jnp.asarray(hidden[:1], jnp.float32), jnp.asarray(pooled[:1]))

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        rows = choose_captions(caption_rows[index], step, recipe.seed)
        return {
            "pixels": pixels[index],
            "embedding": embeddings[index],
            "states": hidden[rows],
            "vector": pooled[rows],
            "empty_states": hidden[0],
            "empty_vector": pooled[0],
        }

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
    preview = _decoder_preview(model, clip, *empty)
    return Task(partial(_init_decoder, model, *empty), loss, batch, preview, export)


def _init_decoder(
    model: config.Decoder, states: Array, text_vector: Array, key: jax.Array
) -> Params:
    """Fresh parameters of both networks, for a text of this shape."""
    key_unet, key_conditioning = jax.random.split(key)
    embedding = jnp.zeros((1, model.conditioning.embedding_dim))
    told = (embedding, jnp.zeros(1, bool), states, text_vector)
    network = ImageConditioning(model.conditioning)
    conditioning = init_params(network, key_conditioning, *told)
    vector, context = apply(network, conditioning, *told)
    x = jnp.zeros((1, model.image_size, model.image_size, model.unet.in_channels))
    unet = init_params(UNet(model.unet), key_unet, x, jnp.zeros(1), context, vector)
    return {"unet": unet, "conditioning": conditioning}


def _decoder_preview(
    model: config.Decoder, clip: Clip, empty_states: Array, empty_vector: Array
) -> Callable[[Params], Image.Image]:
    """Held-out pictures beside what the decoder makes of their embeddings alone."""
    shown = _shown_pictures()
    size = model.image_size
    plan = sampling_plan(
        model.schedule,
        PREVIEW_STEPS,
        sampler="ddpm learned",
        spacing="trailing",
        limits=Limits(1.0),
    )

    def rows(x: Array) -> Array:  # without the embedding, and with it: both without text
        return jnp.broadcast_to(x[:, None], (len(shown), 2, *x.shape[1:]))

    told = Told(
        embedding=rows(jnp.asarray(clip.image_embeddings(shown))),
        dropped=rows(jnp.zeros(1, bool)).at[:, 0].set(True),
        states=rows(empty_states),
        vector=rows(empty_vector),
        mask=rows(jnp.ones((1, empty_states.shape[1]), bool)),
    )

    def preview(params: Params) -> Image.Image:
        given, keys = begin_with_noise(len(shown), size)
        decoded = decode(model, params, given, told, plan, keys, jnp.float32(GUIDANCE))
        both = np.stack([small_pixels(shown, size), to_pixels(decoded)], 1)
        return grid(both.reshape(-1, size, size, 3), columns=8, scale=4)

    return preview


def _shown_pictures() -> Pictures:
    """`SHOWN` held-out pictures, spread over all."""
    images = emoji.load("test", presets.MINI_STYLES).images
    return images[:: max(len(images) // SHOWN, 1)][:SHOWN]


def small_pixels(images: Pictures, size: int) -> Pictures:
    """Pictures of size x size pixels, each the mean of those that it covers."""
    return to_pixels(shrink(to_float(images), size))


def upsampler_task(model: config.Upsampler, recipe: Recipe, *, crop: int) -> Task:
    """Large pixels from small ones, on random crops of `crop` pixels of the large picture.

    Raises:
        ValueError: for a last step with a network of its own; for a crop that is no part of the
            picture, or that the UNet cannot halve.
    """
    if model.own_last_step:
        raise ValueError("only upsamplers of one network are trained here: leave out own_last_step")
    data = emoji.load("train", presets.MINI_STYLES)
    size = model.image_size
    pixels = small_pixels(data.images, size)

    def init(key: jax.Array) -> Params:
        x = jnp.zeros((1, crop, crop, model.unet.in_channels))
        return {"unet": init_params(UNet(model.unet), key, x, jnp.zeros(1))}

    def batch(step: int) -> dict[str, Any]:
        return {"pixels": pixels[stream(len(pixels), recipe.batch, step, recipe.seed)]}

    shown = small_pixels(_shown_pictures(), size)
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
