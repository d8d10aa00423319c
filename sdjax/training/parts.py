"""Everything that `sdjax train` trains, by name, and how the bundled models were trained."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from sdjax import presets
from sdjax.nn.functional import Params
from sdjax.pipelines.clip import LOGIT_SCALE
from sdjax.pipelines.models import find_model
from sdjax.presets_unclip import CLIP_H_16
from sdjax.training.judge import judge_task
from sdjax.training.latent_decoder import latent_decoder_task
from sdjax.training.latent_diffusion import latent_diffusion_task
from sdjax.training.latents import Folder
from sdjax.training.loop import Task
from sdjax.training.priors import autoregressive_prior_task, diffusion_prior_task
from sdjax.training.state import Recipe, init_key
from sdjax.training.tasks import autoencoder_task, clip_task
from sdjax.training.unclip_tasks import decoder_task, upsampler_task
from sdjax.weights.files import load_model
from sdjax.weights.tree import flatten, unflatten

RECIPES = {
    "clip": Recipe(steps=900, batch=128, learning_rate=1e-3, weight_decay=0.1),
    "autoencoder": Recipe(steps=4000, batch=8, learning_rate=1e-3, weight_decay=0.0),
    "latent-diffusion": Recipe(steps=7700, batch=48, learning_rate=1.2e-3),
    "latent-diffusion-2": Recipe(
        steps=7300, batch=48, learning_rate=1e-3, warmup=100, decay=0.5, seed=7
    ),
    "latent-decoder": Recipe(
        steps=6300,
        batch=16,
        learning_rate=8e-4,
        warmup=100,
        decay=0.6,
        weight_decay=0.0,
        seed=3,
    ),
    "latent-decoder-2": Recipe(
        steps=10_000,
        batch=16,
        learning_rate=6e-4,
        warmup=100,
        decay=0.7,
        weight_decay=0.0,
        seed=11,
    ),
    "prior-diffusion": Recipe(steps=1000, batch=64, learning_rate=2e-3, decay=0.4, ema=0.99),
    "decoder": Recipe(steps=4900, batch=64, learning_rate=1.2e-3),
    "upsampler-1": Recipe(steps=1500, batch=32, learning_rate=1.5e-3, warmup=100, ema=0.995),
    "upsampler-2": Recipe(steps=2000, batch=32, learning_rate=1.5e-3, warmup=100, ema=0.995),
    "prior-ar": Recipe(steps=800, batch=64, learning_rate=2e-3, decay=0.4, ema=0.99),
    "judge": Recipe(
        steps=2000,
        batch=32,
        learning_rate=2e-3,
        weight_decay=0.05,
        warmup=100,
        decay=0.5,
        ema=0.995,
    ),
}
"""How the bundled models were trained; `sdjax train` starts from these."""
COMPONENTS = {
    "clip": ("clip",),
    "autoencoder": ("autoencoder",),
    "latent-diffusion": ("unet",),
    "latent-diffusion-2": ("unet",),
    "latent-decoder": ("autoencoder",),
    "latent-decoder-2": ("autoencoder",),
    "prior-diffusion": ("prior",),
    "decoder": ("decoder",),
    "upsampler-1": ("upsampler", "upsampler_0"),
    "upsampler-2": ("upsampler", "upsampler_1"),
    "prior-ar": ("autoregressive_prior",),
    "judge": ("judge",),
}
"""What the weights of a training are called in its own folder, or in that of a whole model."""
CLIPS = {"mini": presets.MINI_CLIP, "dalle2": CLIP_H_16}
"""CLIP's sizes by preset. DALL-E 2's was trained with SAM on 650M pairs (arXiv 2204.06125, app. C);
here it is given its sizes only."""


def make_task(
    part: str,
    preset: str,
    recipe: Recipe,
    clip: Folder | None = None,
    autoencoder: Folder | None = None,
) -> Task:
    """The training called `part` of a preset, begun with the weights of `recipe.start` if given.

    Raises:
        ValueError: for an unknown part or preset, a missing folder of a part needed first, or a
            start that does not fit.
    """
    start = None if recipe.start is None else read_start(part, recipe.start)
    task = _new_task(part, preset, recipe, clip, autoencoder)
    return task if start is None else begin_with(task, part, start, str(recipe.start))


def _new_task(
    part: str, preset: str, recipe: Recipe, clip: Folder | None, autoencoder: Folder | None
) -> Task:
    _check_part(part)
    known = CLIPS if part == "clip" else ("mini",)
    if preset not in known:
        raise ValueError(f"no training preset {preset!r}: choose {' or '.join(known)}")
    if part == "clip":
        return clip_task(CLIPS[preset], recipe)
    if part == "autoencoder":
        return autoencoder_task(presets.MINI_AUTOENCODER, recipe)
    if part == "judge":
        return judge_task(presets.JUDGE, recipe)
    if part.startswith("upsampler"):
        model = presets.MINI_UPSAMPLERS[int(part.removeprefix("upsampler-")) - 1]
        # A quarter of 64 pixels, as in the paper; half of 32, of which a quarter is too little.
        return upsampler_task(model, recipe, crop=16)
    if part.startswith("latent-decoder"):
        return latent_decoder_task(recipe, _needed(part, "autoencoder", autoencoder))
    if part.startswith("latent-diffusion"):
        needed = _needed(part, "clip", clip), _needed(part, "autoencoder", autoencoder)
        return latent_diffusion_task(presets.MINI_UNET, presets.MINI_SCHEDULE, recipe, *needed)
    towers = _needed(part, "clip", clip)
    if part == "decoder":
        return decoder_task(presets.MINI_DECODER, recipe, towers)
    if part == "prior-diffusion":
        return diffusion_prior_task(presets.MINI_PRIOR, recipe, towers)
    return autoregressive_prior_task(presets.MINI_AUTOREGRESSIVE_PRIOR, recipe, towers)


def _needed(part: str, name: str, model: Folder | None) -> Folder:
    """What `--clip` or `--autoencoder` gave."""
    if model is None:
        raise ValueError(
            f"{part} needs --{name}, a folder that `sdjax train {name}` wrote, or mini for the "
            "bundled"
        )
    return model


def read_start(part: str, model: Folder) -> Params:
    """The weights that a model has for a part.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: for an unknown part, or if the model has no such part.
    """
    _check_part(part)
    components, described = load_model(find_model(model))
    if part == "clip" and {"text", "image"} <= components.keys():
        scale = jnp.float32(described.get("logit_scale", LOGIT_SCALE))
        return {"text": components["text"], "image": components["image"], "logit_scale": scale}
    for name in COMPONENTS[part]:
        if name in components:
            return components[name]
    raise ValueError(f"{model} cannot start {part}: it has no {COMPONENTS[part][0]}")


def begin_with(task: Task, part: str, weights: Params, model: str) -> Task:
    """The same training, begun with weights that were read from `model`.

    Raises:
        ValueError: if they are of other sizes.
    """
    wanted = flatten(jax.eval_shape(task.init, init_key(0)))
    found = {path: leaf for path, leaf in flatten(weights).items() if path in wanted}
    for path, leaf in sorted(wanted.items()):
        shape = found[path].shape if path in found else None
        if shape != leaf.shape:
            raise ValueError(
                f"{model} cannot start {part}: its {path} is {shape}, wanted {leaf.shape}"
            )
    return replace(task, init=lambda _: unflatten(found))


def _check_part(part: str) -> None:
    if part not in RECIPES:
        raise ValueError(f"no training {part!r}: choose among {', '.join(RECIPES)}")
