"""Everything that `sdjax train` trains, by name, and how the bundled models were trained."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from sdjax import presets
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
    "latent-decoder": Recipe(
        steps=7000, batch=16, learning_rate=8e-4, warmup=100, decay=0.6, weight_decay=0.0
    ),
    "prior-diffusion": Recipe(steps=3000, batch=64, learning_rate=2e-3, ema=0.995),
    "decoder": Recipe(steps=4900, batch=64, learning_rate=1.2e-3),
    "upsampler-1": Recipe(steps=1500, batch=32, learning_rate=1.5e-3, warmup=100, ema=0.995),
    "upsampler-2": Recipe(steps=2000, batch=32, learning_rate=1.5e-3, warmup=100, ema=0.995),
    "prior-ar": Recipe(steps=2000, batch=64, learning_rate=2e-3, ema=0.995),
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
    "latent-decoder": ("autoencoder",),
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
    task = _new_task(part, preset, recipe, clip, autoencoder)
    return task if recipe.start is None else begin_with(task, part, recipe.start)


def _new_task(
    part: str, preset: str, recipe: Recipe, clip: Folder | None, autoencoder: Folder | None
) -> Task:
    if part not in RECIPES:
        raise ValueError(f"no training {part!r}: choose among {', '.join(RECIPES)}")
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
    if part == "latent-decoder":
        return latent_decoder_task(recipe, _needed(part, "autoencoder", autoencoder))
    if part == "latent-diffusion":
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


def begin_with(task: Task, part: str, start: Folder) -> Task:
    """The same training, from the weights that a model has for this part.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it has no such part, or one of other sizes.
    """
    components, described = load_model(find_model(start))
    if part == "clip" and "clip" not in components:
        components["clip"] = {name: components.get(name) for name in ("text", "image")}
        components["clip"]["logit_scale"] = jnp.float32(described.get("logit_scale", LOGIT_SCALE))
    found = [components[name] for name in COMPONENTS[part] if name in components]
    if not found:
        raise ValueError(f"{start} cannot start {part}: it has no {COMPONENTS[part][0]}")
    wanted = jax.eval_shape(task.init, init_key(0))
    shape = {path: leaf.shape for path, leaf in flatten(wanted).items()}
    weights = {path: leaf for path, leaf in flatten(found[0]).items() if path in shape}
    for path in sorted(shape):
        has = weights[path].shape if path in weights else None
        if has != shape[path]:
            raise ValueError(
                f"{start} cannot start {part}: its {path} is {has}, wanted {shape[path]}"
            )
    return replace(task, init=lambda _: unflatten(weights))
