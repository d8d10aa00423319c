"""Training of CLIP and of the autoencoder on emoji: the first two of a Stable Diffusion."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax import config
from sdjax.data import emoji
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage
from sdjax.image.preprocess import grid, to_float, to_pixels
from sdjax.nn.functional import Params, apply, init_params
from sdjax.text.clip_text import ClipText
from sdjax.text.tokenizer import Tokenizer
from sdjax.training.captions import CAPTIONS
from sdjax.training.loop import Task, stream
from sdjax.training.losses import (
    MAX_LOGIT_SCALE,
    autoencoder_loss,
    clip_loss,
)
from sdjax.training.state import Recipe
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model

SHIFT = 3
"""Pixels by which training images are moved about at most."""
IMAGE_RANGE = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
"""Of pixels in [0, 1]: CLIP is trained here on images in [-1, 1]."""
UNKNOWN_RATE = 0.02
"""Share of caption pieces that CLIP's training replaces by the unknown token."""


def caption_vocabulary(pad: Literal["eot", "zero"] = "eot") -> tuple[int, ...]:
    """CLIP ids that occur in any caption the data can give, in increasing order."""
    tokenizer = Tokenizer(context_length=77, pad=pad)
    texts = [emoji.caption("thing", style) for style in emoji.STYLES]
    for concept, tags in emoji.load("all").tags.items():
        texts += emoji.caption_variants(concept, tags)
    return tuple(np.unique(tokenizer(texts)).tolist())


def clip_task(model: config.Clip, recipe: Recipe) -> Task:
    """Contrastive training of both towers (arXiv 2103.00020)."""
    vocabulary = caption_vocabulary(model.text.pad)
    tokenizer = Tokenizer(model.text.context_length, model.text.pad, vocabulary)
    model = replace(model, text=replace(model.text, vocab_size=tokenizer.vocab_size))
    data = emoji.load("train")

    def init(key: jax.Array) -> Params:
        key_text, key_image = jax.random.split(key)
        tokens = jnp.zeros((1, model.text.context_length), jnp.int32)
        size = model.image.image_size
        return {
            "text": init_params(ClipText(model.text), key_text, tokens, jnp.zeros(1, int)),
            "image": init_params(ClipImage(model.image), key_image, jnp.zeros((1, size, size, 3))),
            "logit_scale": jnp.asarray(np.log(1 / 0.07), jnp.float32),
        }

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        rng = np.random.default_rng((CAPTIONS, recipe.seed, step))
        captions = [
            emoji.random_caption(rng, data.concepts[i], data.styles[i], data.tags[data.concepts[i]])
            for i in index
        ]
        tokens = tokenizer(captions)
        end = np.argmax(tokens == tokenizer.eot_id, axis=1).astype(np.int32)
        # Now and then a word is struck out, so that words never seen in training do little harm.
        inside = (np.arange(tokens.shape[1]) > 0) & (np.arange(tokens.shape[1]) < end[:, None])
        struck = inside & (rng.random(tokens.shape) < UNKNOWN_RATE)
        tokens = np.where(struck, tokenizer.vocab_size - 1, tokens).astype(np.int32)
        return {"pixels": data.images[index], "tokens": tokens, "end": end}

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        described = {
            "kind": "clip",
            "config": to_json(model),
            "vocabulary": list(vocabulary),
            **IMAGE_RANGE,
            "training": facts,
        }
        scale = jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)
        save_model(folder, {"clip": {**params, "logit_scale": scale}}, described, "float16")

    return Task(init, clip_loss(model, SHIFT), batch, None, export)


def autoencoder_task(model: config.Autoencoder, recipe: Recipe, kl_weight: float = 0.01) -> Task:
    """KL autoencoder; the scaling factor is measured on the training images at the end."""
    data, held_out = emoji.load("train"), emoji.load("test")
    network = Autoencoder(model)
    size = data.images.shape[1]

    def init(key: jax.Array) -> Params:
        image = jnp.zeros((1, size, size, 3))
        key_weights, key_noise = jax.random.split(key)
        return init_params(network, key_weights, image, key_noise)

    def batch(step: int) -> dict[str, Any]:
        return {"pixels": data.images[stream(len(data.images), recipe.batch, step, recipe.seed)]}

    @jax.jit
    def reconstruct(params: Params, pixels: jax.Array) -> jax.Array:
        posterior = apply(network, params, to_float(pixels), method="encode")
        z = posterior.mean * model.scaling_factor
        return apply(network, params, z, method="decode")

    def preview(params: Params) -> Image.Image:
        pixels = held_out.images[:: max(len(held_out.images) // 16, 1)][:16]
        decoded = to_pixels(reconstruct(params, pixels))
        return grid(np.stack([pixels, decoded], 1).reshape(-1, size, size, 3), columns=8)

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        encode = jax.jit(lambda p, x: apply(network, p, to_float(x), method="encode"))
        spread = data.images[:: max(len(data.images) // 1024, 1)][:1024]  # of every kind of thing
        means = [encode(params, chunk).mean for chunk in np.split(spread, 8)]
        scale = float(1 / np.std(np.concatenate(means)))
        described = {
            "kind": "autoencoder",
            "config": to_json(replace(model, scaling_factor=scale)),
            "training": {**facts, "kl_weight": kl_weight},
        }
        save_model(folder, {"autoencoder": params}, described, "float16")

    return Task(init, autoencoder_loss(model, kl_weight, SHIFT), batch, preview, export)
