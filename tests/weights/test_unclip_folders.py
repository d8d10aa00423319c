"""Karlo in the layout of diffusers: its settings, read, written and refused."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from golden_rule import GOLDEN
from weights.published import (
    ATTENTION_UNET,
    CONDITIONING,
    DECODER,
    KARLO,
    PLAIN_UNET,
    PRIOR,
    UNCLIP,
    WIDE_IMAGE,
)
from weights.torch_writer import write_zip

from sdjax import presets
from sdjax.config import ImageStatistics, Schedule
from sdjax.weights import foreign_unclip
from sdjax.weights.folder_configs import network_settings
from sdjax.weights.folders import diffusers_config, lone_config, write_configs
from sdjax.weights.foreign_unets import diffusers_unet
from sdjax.weights.sources import open_source

CELEBA = replace(
    PLAIN_UNET,
    in_channels=3,
    attention=(False, True),
    heads=(1, 4),
    middle_attention=True,
    resample="conv",
)
"""LDM without a text."""


def settings_of(listing):
    """The arguments that a key listing of the published files was made with."""
    path = GOLDEN / "keys" / f"{listing}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["meta"]["config"]


@pytest.mark.parametrize("name", UNCLIP)
def test_a_system_reads_back(name, tmp_path):
    write_configs(UNCLIP[name], tmp_path)
    assert diffusers_config(tmp_path) == UNCLIP[name]


def test_the_index_names_library_and_class_of_each_part(tmp_path):
    write_configs(replace(KARLO, image=WIDE_IMAGE), tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index == {
        "_class_name": "UnCLIPPipeline",
        "_diffusers_version": index["_diffusers_version"],
        "decoder": ["diffusers", "UNet2DConditionModel"],
        "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
        "prior": ["diffusers", "PriorTransformer"],
        "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
        "super_res_first": ["diffusers", "UNet2DModel"],
        "super_res_last": ["diffusers", "UNet2DModel"],
        "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_proj": ["unclip", "UnCLIPTextProjModel"],
        "tokenizer": [None, None],
    }
    prior = json.loads((tmp_path / "prior_scheduler/scheduler_config.json").read_text())
    assert (prior["prediction_type"], prior["clip_sample_range"]) == ("sample", 5.0)


@pytest.mark.parametrize("config", [ATTENTION_UNET, PLAIN_UNET, CELEBA, CONDITIONING, PRIOR])
def test_a_network_reads_back(config, tmp_path):
    write_configs(config, tmp_path)
    assert lone_config(tmp_path / "config.json") == (config, "diffusers")


def test_the_published_settings_are_the_presets():
    decoder, (upsampler,) = presets.KARLO.decoder, presets.KARLO.upsamplers
    found = diffusers_unet(settings_of("karlo_diffusers_decoder"))
    assert found == replace(decoder.unet, dropout=0.0)
    upsampling = {"_class_name": "UNet2DModel", **settings_of("karlo_diffusers_super_res")}
    assert diffusers_unet(upsampling) == upsampler.unet
    told = settings_of("karlo_diffusers_text_proj")
    assert foreign_unclip.conditioning(told) == decoder.conditioning
    assert foreign_unclip.prior(settings_of("karlo_diffusers_prior")) == presets.KARLO.prior
    scheduler = {"_class_name": "UnCLIPScheduler", "variance_type": "learned_range"}
    assert foreign_unclip.schedule(scheduler) == decoder.schedule


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("karlo_diffusers_decoder", {"class_embed_type": None}, "class_embed_type is None"),
        ("karlo_diffusers_decoder", {"cross_attention_norm": "layer_norm"}, "cross_attention_norm"),
        ("karlo_diffusers_decoder", {"attention_head_dim": 48}, "attention_head_dim is 48"),
        (
            "karlo_diffusers_decoder",
            {"resnet_time_scale_shift": "ada"},
            "time_scale_shift is 'ada'",
        ),
        ("karlo_diffusers_super_res", {"down_block_types": ["SkipDownBlock2D"] * 4}, "down_block"),
        ("karlo_diffusers_decoder", {"dropout": 1}, "dropout is 1; sdjax supports a number from 0"),
        ("karlo_diffusers_super_res", {"freq_shift": 1}, "freq_shift is 1"),
    ],
)
def test_an_unknown_unet_is_refused(name, changes, message):
    class_name = "UNet2DModel" if "super_res" in name else "UNet2DConditionModel"
    with pytest.raises(ValueError, match=message):
        diffusers_unet({"_class_name": class_name, **settings_of(name), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_in_type": "layer"}, "norm_in_type is 'layer'"),
        ({"added_emb_type": None}, "added_emb_type is None"),
        ({"embedding_proj_dim": 5}, "embedding_proj_dim is 5; sdjax supports 768"),
    ],
)
def test_an_unknown_prior_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        foreign_unclip.prior({**settings_of("karlo_diffusers_prior"), **changes})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (presets.MINI_DECODER.unet, "no UNet of diffusers has such attention"),
        (replace(ATTENTION_UNET, heads=(1, 8), middle_attention=False), "no UNet of diffusers"),
        (replace(PLAIN_UNET, attention=(False, True)), "no UNet of diffusers"),
        (replace(presets.SD1_UNET, scale_shift=True), "transformers only beside plain"),
        (replace(CONDITIONING, mask_padding=False), "hides padding"),
        (replace(PRIOR, scale=17.2), "embeddings that were standardised"),
    ],
)
def test_what_no_class_of_diffusers_is_cannot_be_written(config, message):
    with pytest.raises(ValueError, match=message):
        network_settings(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(KARLO, upsamplers=()), "this model has 0 upsamplers"),
        (replace(KARLO, prior=None), "told no image embedding"),
        (
            replace(KARLO, decoder=replace(DECODER, schedule=Schedule("linear"))),
            "UnCLIPScheduler of diffusers has the cosine schedule, this model 'linear'",
        ),
    ],
)
def test_a_system_that_no_pipeline_is_cannot_be_written(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_configs(config, tmp_path)


def test_a_missing_part_is_named(tmp_path):
    write_configs(KARLO, tmp_path)
    (tmp_path / "text_proj/config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"text_proj/config\.json is missing"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match="text_encoder"):  # of a family, weights come next
        open_source(tmp_path, "karlo")


def test_statistics_are_a_pair_without_names(tmp_path):
    mean, std = np.arange(768, dtype=np.float32), np.full(768, 2, np.float32)
    write_zip(tmp_path / "ViT-L-14_stats.th", (mean, std))
    source = open_source(tmp_path / "ViT-L-14_stats.th")
    assert source.config == ImageStatistics(768)
    found = source.components()["image_statistics"]
    np.testing.assert_array_equal(found["mean"], mean)
    np.testing.assert_array_equal(found["std"], std)
