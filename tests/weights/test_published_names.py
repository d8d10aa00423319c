"""The tables against the key listings of published models, by shapes alone."""

import functools
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sdjax import presets
from sdjax.weights.clip import text_shapes, text_table
from sdjax.weights.rules import listing
from sdjax.weights.stable_diffusion import (
    autoencoder_shapes,
    autoencoder_table,
    unet_shapes,
    unet_table,
)
from sdjax.weights.tree import flatten

KEYS = Path(__file__).parents[1] / "golden" / "keys"
UNET = (unet_table, unet_shapes)
AUTOENCODER = (autoencoder_table, autoencoder_shapes)
TEXT = (text_table, text_shapes)

PUBLISHED = {
    "sd1_diffusers_unet": (UNET, presets.SD1_UNET, 859_520_964),
    "sd2_diffusers_unet": (UNET, presets.SD2_UNET, 865_910_724),
    "stable_unclip_h_diffusers_unet": (
        UNET,
        replace(presets.SD2_UNET, vector_dim=2048),
        870_173_124,
    ),
    "sd_diffusers_vae": (AUTOENCODER, presets.KL_F8, 83_653_863),
    "clip_vitl14_hf_text": (TEXT, presets.CLIP_L_TEXT, 123_060_480),
    "sd2_diffusers_text_encoder": (TEXT, presets.OPENCLIP_H_TEXT, 340_387_840),
}


def published(name):
    stored = json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))
    return {key: tuple(tensor["shape"]) for key, tensor in stored["tensors"].items()}


@functools.cache
def shapes_of(name):
    (_, shapes), config, _ = PUBLISHED[name]
    return shapes(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name):
    count = PUBLISHED[name][-1]
    leaves = flatten(shapes_of(name)).values()
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_file(name):
    (table, _), config, _ = PUBLISHED[name]
    assert listing(shapes_of(name), table(config)) == published(name)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (UNET, presets.MINI_UNET),
        (AUTOENCODER, presets.MINI_AUTOENCODER),
        (TEXT, presets.MINI_CLIP.text),
    ],
)
def test_the_bundled_models_have_names_too(model, config):
    table, shapes = model
    expected = shapes(config)
    assert len(listing(expected, table(config))) == len(flatten(expected))
