"""Training of the mini Stable Diffusion's UNet: latent diffusion on emoji (arXiv 2112.10752)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax import config, presets
from sdjax.data import emoji
from sdjax.data.varied import in_other_colours, joined, mirrored
from sdjax.denoisers.unet import UNet
from sdjax.nn.functional import Params, init_params
from sdjax.pipelines.clip import clip_of
from sdjax.pipelines.models import read_model
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
    varied: bool = False,
) -> Task:
    """Denoising in the latent space of a trained autoencoder, told by a trained, frozen CLIP.

    Latents and captions (`variants` an image) are encoded once. Both are given as their model
    folders, or as the name of a bundled model that holds them. With `varied`, half of each batch
    are drawings in a mirror or in other colours (`sdjax.data.varied`).
    """
    clip_model = read_model(clip)
    autoencoder_config, autoencoder_params, autoencoder_told = read_autoencoder(autoencoder)
    towers, data = clip_of(clip_model), emoji.load("train", presets.MINI_STYLES)
    sizes = config.StableDiffusion(
        towers.config.text, autoencoder_config, model, schedule, image_size=data.images.shape[1]
    )
    parts = {name: towers.params[name] for name in ("text", "image")}
    pipe = Pipeline(
        name="in training",
        config=sizes,
        params={**parts, "autoencoder": autoencoder_params},
        tokenizer=towers.tokenizer,
        defaults=Defaults(steps=30, guidance=3.0, sampler="ddim", spacing="trailing"),
        styles=presets.MINI_STYLES,
    )
    seen = data
    if varied:
        seen = joined(data, mirrored(data), in_other_colours(data, recipe.seed))
    texts, caption_rows = draw_captions(seen, variants, recipe.seed)
    hidden, pooled = encode_captions(pipe.config.text, pipe.params["text"], pipe.tokenizer, texts)
    means, stds = encode_latents(autoencoder_config, autoencoder_params, seen.images)
    shown = [data.captions()[i] for i in stream(len(data.images), 16, 0, seed=99)]

    def init(key: jax.Array) -> Params:
        vector = None if model.vector_dim is None else jnp.asarray(pooled[:1])
        x, context = jnp.asarray(means[:1], jnp.float32), jnp.asarray(hidden[:1], jnp.float32)
        return init_params(UNet(model), key, x, jnp.zeros(1), context, vector)

    def batch(step: int) -> dict[str, Any]:
        index = _pictures(len(data), len(seen), recipe, step)
        rows = choose_captions(caption_rows[index], step, recipe.seed)
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
                "clip": training_of(clip_model, "clip"),
                "autoencoder": autoencoder_told,
                "latent-diffusion": {
                    **facts,
                    "gamma": gamma,
                    "drop": drop,
                    "variants": variants,
                    "varied": varied,
                },
            },
        }
        save_model(folder, {**pipe.params, "unet": params}, described, "float16")

    return Task(init, latent_diffusion_loss(model, schedule, gamma, drop), batch, preview, export)


def _pictures(drawn: int, count: int, recipe: Recipe, step: int) -> np.ndarray:
    """The pictures of a step [batch]: of the `drawn` first, and as many of the others, if any."""
    if drawn == count:
        return stream(count, recipe.batch, step, recipe.seed)
    half = recipe.batch // 2
    own = stream(drawn, half, step, recipe.seed)
    others = drawn + stream(count - drawn, recipe.batch - half, step, recipe.seed + 1)
    return np.concatenate([own, others])
