"""The three trainings of a Stable Diffusion: CLIP, autoencoder, latent diffusion, on emoji."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax import config, presets
from sdjax.data import emoji
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage
from sdjax.image.preprocess import grid, to_float, to_pixels
from sdjax.nn.functional import Params, apply, init_params
from sdjax.pipelines.clip import clip_of
from sdjax.pipelines.models import Model, read_model
from sdjax.pipelines.stable_diffusion import Defaults, Pipeline
from sdjax.text.clip_text import ClipText
from sdjax.text.tokenizer import Tokenizer
from sdjax.training.loop import Task, stream
from sdjax.training.losses import (
    MAX_LOGIT_SCALE,
    autoencoder_loss,
    clip_loss,
    latent_diffusion_loss,
)
from sdjax.training.state import Recipe
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model

Folder = str | os.PathLike[str]
"""A model folder, or the name of a bundled model."""

SHIFT = 3
"""Pixels by which training images are moved about at most."""
CAPTIONS, CAPTION_VARIANTS, VARIANT_CHOICE = 2, 3, 4
"""First words of NumPy seeds, one for each use, so that no two uses share a stream."""
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


def encode_captions(
    text: config.TextTower, params: Params, tokenizer: Tokenizer, captions: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states float16 [captions, tokens, dim] and pooled float32 [captions, projection]."""
    tower = jax.jit(lambda p, tokens, end: apply(ClipText(text), p, tokens, end))
    hidden, pooled = [], []
    for start in range(0, len(captions), 256):
        chunk = captions[start : start + 256]
        tokens = tokenizer(chunk + [""] * (256 - len(chunk)))
        out = tower(params, tokens, jnp.asarray(np.argmax(tokens == tokenizer.eot_id, axis=1)))
        hidden.append(np.asarray(out.hidden, np.float16)[: len(chunk)])
        pooled.append(np.asarray(out.pooled)[: len(chunk)])
    return np.concatenate(hidden), np.concatenate(pooled)


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
    for start in range(0, len(images), 128):
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
    return sizes, read.params["autoencoder"], _training_of(read, "autoencoder")


def _training_of(model: Model, part: str) -> dict[str, Any]:
    """How a part was trained, as its own folder tells it, or that of a whole model."""
    told = model.described.get("training", {})
    return told.get(part, told)


def draw_captions(data: emoji.EmojiSet, variants: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Captions to train with: (texts, rows int [images, variants] of texts).

    Text 0 is the empty one; an image's first caption is the canonical one, the others are random.
    """
    rng = np.random.default_rng((CAPTION_VARIANTS, seed))
    drawn = [
        [canonical] + [emoji.random_caption(rng, c, s, data.tags[c]) for _ in range(variants - 1)]
        for canonical, c, s in zip(data.captions(), data.concepts, data.styles, strict=True)
    ]
    texts = ["", *sorted({text for row in drawn for text in row})]
    row_of = {text: i for i, text in enumerate(texts)}
    return texts, np.array([[row_of[text] for text in row] for row in drawn])


def latent_diffusion_task(
    model: config.UNet,
    schedule: config.Schedule,
    recipe: Recipe,
    clip: Folder,
    autoencoder: Folder,
    *,
    variants: int = 6,
    gamma: float = 5.0,
    drop: float = 0.1,
) -> Task:
    """Denoising in the latent space of a trained autoencoder, told by a trained, frozen CLIP.

    Latents and captions (`variants` an image) are encoded once. Both are given as their model
    folders, or as the name of a bundled model that holds them.
    """
    clip_model = read_model(clip)
    towers = clip_of(clip_model)
    autoencoder_config, autoencoder_params, autoencoder_told = read_autoencoder(autoencoder)
    data = emoji.load("train", presets.MINI_STYLES)
    pipe = Pipeline(
        name="in training",
        config=config.StableDiffusion(
            towers.config.text,
            autoencoder_config,
            model,
            schedule,
            image_size=data.images.shape[1],
        ),
        params={
            "text": towers.params["text"],
            "image": towers.params["image"],
            "autoencoder": autoencoder_params,
        },
        tokenizer=towers.tokenizer,
        defaults=Defaults(steps=30, guidance=3.0, sampler="ddim", spacing="trailing"),
        styles=presets.MINI_STYLES,
    )
    texts, caption_rows = draw_captions(data, variants, recipe.seed)
    hidden, pooled = encode_captions(pipe.config.text, pipe.params["text"], pipe.tokenizer, texts)
    means, stds = encode_latents(autoencoder_config, autoencoder_params, data.images)
    shown = [data.captions()[i] for i in stream(len(data.images), 16, 0, seed=99)]

    def init(key: jax.Array) -> Params:
        x = jnp.zeros((1, *means.shape[1:]))
        context = jnp.zeros((1, *hidden.shape[1:]))
        vector = None if model.vector_dim is None else jnp.zeros((1, model.vector_dim))
        return init_params(UNet(model), key, x, jnp.zeros(1), context, vector)

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        rng = np.random.default_rng((VARIANT_CHOICE, recipe.seed, step))
        # Half of the time the plain caption, which is what people type.
        variant = rng.integers(variants, size=recipe.batch) * rng.integers(2, size=recipe.batch)
        rows = caption_rows[index, variant]
        return {
            "mean": means[index].astype(np.float32),
            "std": stds[index].astype(np.float32),
            "context": hidden[rows],
            "vector": pooled[rows],
            "empty_context": hidden[0],
            "empty_vector": pooled[0],
        }

    def preview(params: Params) -> Image.Image:
        drawing = replace(pipe, params={**pipe.params, "unet": params})
        return drawing(shown, seed=range(len(shown))).grid(columns=8)

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        described = {
            "kind": "stable-diffusion",
            "name": folder.parent.name,
            "defaults": to_json(pipe.defaults),
            "styles": list(pipe.styles),
            "config": to_json(pipe.config),
            "clip": to_json(towers.config),
            "vocabulary": clip_model.described["vocabulary"],
            "logit_scale": float(towers.params["logit_scale"]),
            **IMAGE_RANGE,
            "training": {
                "clip": _training_of(clip_model, "clip"),
                "autoencoder": autoencoder_told,
                "latent-diffusion": {**facts, "gamma": gamma, "drop": drop},
            },
        }
        save_model(folder, {**pipe.params, "unet": params}, described, "float16")

    return Task(init, latent_diffusion_loss(model, schedule, gamma, drop), batch, preview, export)
