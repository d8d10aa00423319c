"""From a name or a path to something that runs."""

import os

import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax import config
from sdjax.pipelines.clip import Clip, clip_of
from sdjax.pipelines.models import Model, read_model
from sdjax.pipelines.priors import samplers_of
from sdjax.pipelines.stable_diffusion import Defaults, Pipeline
from sdjax.pipelines.unclip import Unclip
from sdjax.pipelines.unclip_request import Settings
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.config_json import from_json


def load(
    model: str | os.PathLike[str] = "mini",
    *,
    dtype: DTypeLike = jnp.float32,
    family: str | config.Config | None = None,
    ema: bool | None = None,
) -> Pipeline | Unclip | Clip | Model:
    """Load a model.

    Args:
        model: "mini" or "dalle2-mini", which ship with sdjax; a folder that `sdjax train` or
            `weights_convert.py` wrote; a published checkpoint as it is (a .safetensors or .ckpt
            file, a folder of diffusers or transformers); or its name on the Hugging Face hub.
        dtype: of the parameters in memory, and so of what UNets and text towers compute in: with
            "bfloat16" half the memory, and on accelerators less than half the time. Statistics of
            norms, softmaxes, schedules, priors and the autoencoder compute in float32 always.
        family: what a published file cannot tell, such as "sd2-base" (eps) or "sd2-v" (v); or the
            config of a model with sizes of its own.
        ema: of a single file that has both, take the averaged weights (the default) or the raw.

    Returns:
        A `Pipeline` for Stable Diffusion, an `Unclip` for DALL-E 2, a `Clip` for CLIP, else a
        `Model`: the config and the parameters of one network.

    Raises:
        FileNotFoundError: if there is no such model, or a file of it is missing.
        ValueError: if it is damaged, hostile or unknown, if a tensor is missing, left over,
            misshapen or holds NaN, or if `family` must be given.
    """
    read = read_model(model, dtype=dtype, family=family, ema=ema)
    match read.config:
        case config.StableDiffusion():
            return _pipeline(read, read.config)
        case config.Unclip():
            return _unclip(read, read.config)
        case config.Clip():
            return clip_of(read)
    return read


def _pipeline(model: Model, system: config.StableDiffusion) -> Pipeline:
    described = model.described
    return Pipeline(
        name=model.name,
        config=system,
        params=model.params,
        tokenizer=_tokenizer(model, system.text),
        defaults=from_json(Defaults, described.get("defaults", {})),
        styles=tuple(described.get("styles", ())),
    )


KARLO = Settings(
    prior_steps=25,
    prior_guidance=4.0,
    best_of=1,
    steps=25,
    guidance=8.0,
    upsampler_steps=(7,),
    upsampler_sampler="unclip prior",  # the posterior's variance, times from the last to 0
)
"""Of Karlo, whose files do not say how it is sampled: the fast setting of its repository (the other
has 50 steps of the decoder), which is diffusers' own."""


def _unclip(model: Model, system: config.Unclip) -> Unclip:
    described = model.described
    of_karlo = any(upsampler.own_last_step for upsampler in system.upsamplers)
    settings = KARLO if of_karlo else Settings()
    if "defaults" in described:
        settings = from_json(Settings, described["defaults"])
    return Unclip(
        name=model.name,
        config=system,
        params=model.params,
        tokenizer=_tokenizer(model, system.text),
        priors=samplers_of(system, model.params, described),
        clip=None if system.image is None else clip_of(model),
        settings=settings,
        styles=tuple(described.get("styles", ())),
    )


def _tokenizer(model: Model, text: config.TextTower) -> Tokenizer:
    tokenizer = Tokenizer(text.context_length, text.pad, model.described.get("vocabulary"))
    if tokenizer.vocab_size != text.vocab_size:
        raise ValueError(
            f"{model.name}: the vocabulary has {tokenizer.vocab_size} ids, the text tower "
            f"{text.vocab_size} rows"
        )
    return tokenizer
