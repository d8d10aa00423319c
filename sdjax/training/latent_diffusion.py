"""Training of the mini Stable Diffusion's UNet: latent diffusion on emoji (arXiv 2112.10752)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from sdjax import config, presets
from sdjax.data import emoji
from sdjax.denoisers.unet import UNet
from sdjax.nn.functional import Params, init_params
from sdjax.pipelines.clip import clip_of
from sdjax.pipelines.models import Model, read_model
from sdjax.pipelines.stable_diffusion import Defaults, Pipeline
from sdjax.training.captions import choose_captions, draw_captions, encode_captions
from sdjax.training.latents import Folder, encode_latents, read_autoencoder, training_of
from sdjax.training.loop import Task, stream
from sdjax.training.losses import latent_diffusion_loss
from sdjax.training.state import Recipe
from sdjax.training.tasks import IMAGE_RANGE
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model


def latent_diffusion_task(
    model: config.UNet,
    schedule: config.Schedule,
    recipe: Recipe,
    clip: Folder,
    autoencoder: Folder,
    *,
    variants: int = 8,
    gamma: float = 5.0,
    drop: float = 0.1,
) -> Task:
    """Denoising in the latent space of a trained autoencoder, told by a trained, frozen CLIP.

    Latents and captions (`variants` an image) are encoded once. Both are given as their model
    folders, or as the name of a bundled model that holds them.
    """
    clip_model, data = read_model(clip), emoji.load("train", presets.MINI_STYLES)
    sizes, decoding, autoencoder_told = read_autoencoder(autoencoder)
    towers = clip_of(clip_model)
    parts = {"text": towers.params["text"], "image": towers.params["image"]}
    pipe = Pipeline(
        name="in training",
        config=config.StableDiffusion(
            towers.config.text, sizes, model, schedule, image_size=data.images.shape[1]
        ),
        params={**parts, "autoencoder": decoding},
        tokenizer=towers.tokenizer,
        defaults=Defaults(steps=30, guidance=3.0, sampler="ddim", spacing="trailing"),
        styles=presets.MINI_STYLES,
    )
    told = _encode(pipe, data, variants, recipe.seed)
    shown = [data.captions()[i] for i in stream(len(data.images), 16, 0, seed=99)]

    def init(key: jax.Array) -> Params:
        vector = None if model.vector_dim is None else jnp.asarray(told.pooled[:1])
        x, context = (jnp.asarray(one[:1], jnp.float32) for one in (told.means, told.hidden))
        return init_params(UNet(model), key, x, jnp.zeros(1), context, vector)

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        return _batch(told, index, choose_captions(told.rows[index], step, recipe.seed))

    def preview(params: Params) -> Image.Image:
        drawing = replace(pipe, params={**pipe.params, "unet": params})
        return drawing(shown, seed=range(len(shown))).grid(columns=8)

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        options = {"gamma": gamma, "drop": drop, "variants": variants}
        described = _describe(pipe, clip_model, folder.parent.name)
        described["training"] = {
            "clip": training_of(clip_model, "clip"),
            "autoencoder": autoencoder_told,
            "latent-diffusion": {**facts, **options},
        }
        save_model(folder, {**pipe.params, "unet": params}, described, "float16")

    return Task(init, latent_diffusion_loss(model, schedule, gamma, drop), batch, preview, export)


def _describe(pipe: Pipeline, clip: Model, name: str) -> dict[str, Any]:
    """What model.json says of such a pipeline, but for how it was trained."""
    towers = clip_of(clip)
    return {
        "kind": "stable-diffusion",
        "name": name,
        "defaults": to_json(pipe.defaults),
        "styles": list(pipe.styles),
        "config": to_json(pipe.config),
        "clip": to_json(towers.config),
        "vocabulary": clip.described["vocabulary"],
        "logit_scale": float(towers.params["logit_scale"]),
        **IMAGE_RANGE,
    }


class _Encoded(NamedTuple):
    """What the UNet is trained on. Caption 0 is the empty one."""

    means: Float[np.ndarray, "pictures height width channels"]
    stds: Float[np.ndarray, "pictures height width channels"]
    hidden: Float[np.ndarray, "captions tokens dim"]
    pooled: Float[np.ndarray, "captions projection"]
    rows: Int[np.ndarray, "pictures variants"]  # the captions of each picture


def _encode(pipe: Pipeline, data: emoji.EmojiSet, variants: int, seed: int) -> _Encoded:
    """Every picture and its captions through the frozen networks."""
    texts, rows = draw_captions(data, variants, seed)
    hidden, pooled = encode_captions(pipe.config.text, pipe.params["text"], pipe.tokenizer, texts)
    means, stds = encode_latents(pipe.config.autoencoder, pipe.params["autoencoder"], data.images)
    return _Encoded(means, stds, hidden, pooled, rows)


def _batch(told: _Encoded, index: np.ndarray, captions: np.ndarray) -> dict[str, Any]:
    """Of these pictures with these captions."""
    return {
        "mean": told.means[index].astype(np.float32),
        "std": told.stds[index].astype(np.float32),
        "context": told.hidden[captions],
        "vector": told.pooled[captions],
        "empty_context": told.hidden[0],
        "empty_vector": told.pooled[0],
    }
