"""Everything that `sdjax train` trains, by name, and how the bundled models were trained."""

from pathlib import Path

from sdjax import presets
from sdjax.presets_unclip import CLIP_H_16
from sdjax.training.judge import judge_task
from sdjax.training.loop import Task
from sdjax.training.priors import autoregressive_prior_task, diffusion_prior_task
from sdjax.training.state import Recipe
from sdjax.training.tasks import autoencoder_task, clip_task, latent_diffusion_task
from sdjax.training.unclip_tasks import decoder_task, upsampler_task

RECIPES = {
    "clip": Recipe(steps=900, batch=128, learning_rate=1e-3, weight_decay=0.1),
    "autoencoder": Recipe(steps=4000, batch=8, learning_rate=1e-3, weight_decay=0.0),
    "latent-diffusion": Recipe(steps=7700, batch=48, learning_rate=1.2e-3),
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
CLIPS = {"mini": presets.MINI_CLIP, "dalle2": CLIP_H_16}
"""CLIP's sizes by preset. DALL-E 2's was trained with SAM on 650M pairs (arXiv 2204.06125, app. C);
here it is given its sizes only."""


def make_task(
    part: str,
    preset: str,
    recipe: Recipe,
    clip_folder: Path | None = None,
    autoencoder_folder: Path | None = None,
) -> Task:
    """The training called `part` of a preset.

    Raises:
        ValueError: for an unknown part or preset, or a missing folder of a part needed first.
    """
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
    if clip_folder is None:
        raise ValueError(
            f"{part} needs --clip, a folder that `sdjax train clip` wrote, or mini for the bundled"
        )
    if part == "decoder":
        return decoder_task(presets.MINI_DECODER, recipe, clip_folder)
    if part == "prior-diffusion":
        return diffusion_prior_task(presets.MINI_PRIOR, recipe, clip_folder)
    if part == "prior-ar":
        return autoregressive_prior_task(presets.MINI_AUTOREGRESSIVE_PRIOR, recipe, clip_folder)
    if autoencoder_folder is None:
        raise ValueError(
            f"{part} needs --autoencoder, a folder that `sdjax train autoencoder` wrote"
        )
    return latent_diffusion_task(
        presets.MINI_UNET, presets.MINI_SCHEDULE, recipe, clip_folder, autoencoder_folder
    )
