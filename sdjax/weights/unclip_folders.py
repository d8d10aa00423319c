"""Karlo in the layout of diffusers: the settings of its folder, read and written."""

from pathlib import Path
from typing import Any

from sdjax.config import Decoder, Schedule, Unclip, Upsampler
from sdjax.weights import folder_configs, foreign, foreign_unclip, foreign_unets
from sdjax.weights.fields import Fields
from sdjax.weights.folder_configs import Settings, network_settings
from sdjax.weights.folder_files import (
    has_tokenizer,
    library_and_class,
    read_json,
    settings_files,
    text_tower,
)
from sdjax.weights.layouts import FOLDERS

FROM_TEXT, FROM_IMAGE = "UnCLIPPipeline", "UnCLIPImageVariationPipeline"

PRIOR_LIMIT = 5.0
"""To which diffusers clips a prior's embedding; the original clips to 10."""


def unclip_config(folder: Path) -> Unclip:
    """The system in a folder of diffusers, from the config.json of each part."""

    def values(name: str) -> dict[str, Any]:
        return read_json(folder / name / "config.json")

    def schedule(name: str) -> Schedule:
        return foreign_unclip.schedule(read_json(folder / name / "scheduler_config.json"))

    decoder = Decoder(
        foreign_unets.diffusers_unet(values("decoder")),
        foreign_unclip.conditioning(values("text_proj")),
        schedule("decoder_scheduler"),
        image_size=_size(values("decoder")),
    )
    upsampler = Upsampler(
        foreign_unets.diffusers_unet(values("super_res_first")),
        schedule("super_res_scheduler"),
        small_size=decoder.image_size,
        image_size=_size(values("super_res_first")),
        resize="bicubic",
        degradation="blur",
        own_last_step=True,
    )
    prior = image = None
    if (folder / FOLDERS["prior"]).is_dir():
        prior = foreign_unclip.prior(values("prior"), schedule("prior_scheduler"))
    if (folder / FOLDERS["image"]).is_dir():
        image = foreign.transformers_image(values("image_encoder"))
    text = text_tower(values("text_encoder"), folder / "tokenizer")
    return Unclip(text, decoder, (upsampler,), prior, image=image)


def system_files(config: Unclip) -> dict[str, str]:
    """{name: content} of every JSON file of a system but the tokenizer's."""
    if len(config.upsamplers) != 1 or not config.upsamplers[0].own_last_step:
        raise ValueError(
            f"the pipelines of diffusers have one upsampler of two networks, this model has "
            f"{len(config.upsamplers)} upsamplers: it is stored in sdjax's own format only"
        )
    if config.prior is None and config.image is None:
        raise ValueError(
            "without a prior and without an image tower the decoder is told no image embedding: "
            "no pipeline of diffusers is like that"
        )
    (upsampler,) = config.upsamplers
    networks = {
        "text_encoder": network_settings(config.text),
        "text_proj": network_settings(config.decoder.conditioning),
        "decoder": network_settings(config.decoder.unet)
        | {"sample_size": config.decoder.image_size},
    }
    settings = network_settings(upsampler.unet) | {"sample_size": upsampler.image_size}
    networks |= {"super_res_first": settings, "super_res_last": settings}
    schedulers = {
        "decoder_scheduler": _scheduler(config.decoder.schedule, "learned_range"),
        "super_res_scheduler": _scheduler(upsampler.schedule, "fixed_small_log"),
    }
    preprocessors: dict[str, Settings] = {}
    if config.prior is not None:
        networks["prior"] = network_settings(config.prior)
        prior_scheduler = _scheduler(config.prior.schedule, "fixed_small_log", PRIOR_LIMIT)
        schedulers["prior_scheduler"] = prior_scheduler
    if config.image is not None:
        networks["image_encoder"] = network_settings(config.image)
        size = config.image.image_size
        preprocessors["feature_extractor"] = folder_configs.clip_preprocessor(size)
    ours = has_tokenizer(config.text)
    index: Settings = {
        "_class_name": FROM_IMAGE if config.prior is None else FROM_TEXT,
        "_diffusers_version": folder_configs.DIFFUSERS_VERSION,
        "tokenizer": ["transformers", "CLIPTokenizer"] if ours else [None, None],
    }
    of_image = ("image_encoder", "feature_extractor")
    for name, settings in (networks | schedulers | preprocessors).items():
        if config.prior is None or name not in of_image:  # the other pipeline has no place for it
            index[name] = library_and_class(settings)
    return settings_files(index, networks, schedulers, preprocessors)


def _scheduler(schedule: Schedule, variance: str, limit: float = 1.0) -> Settings:
    if schedule.betas != "cosine":
        raise ValueError(
            f"UnCLIPScheduler of diffusers has the cosine schedule, this model "
            f"{schedule.betas!r}: it is stored in sdjax's own format only"
        )
    return {
        "_class_name": "UnCLIPScheduler",
        "_diffusers_version": folder_configs.DIFFUSERS_VERSION,
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": True,
        "clip_sample_range": limit,
        "num_train_timesteps": schedule.train_steps,
        "prediction_type": folder_configs.PREDICTIONS[schedule.prediction],
        "variance_type": variance,
    }


def _size(values: Settings) -> int:
    return Fields("UNet", values).whole("sample_size")
