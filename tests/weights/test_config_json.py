import json

import pytest

from sdjax import presets
from sdjax.config import Clip, Schedule, StableDiffusion, TextTower, UNet
from sdjax.weights.config_json import from_json, to_json

CONFIGS = {
    name: value
    for name, value in vars(presets).items()
    if name.isupper() and type(value).__module__ == "sdjax.config"
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_preset_survives_json(name):
    config = CONFIGS[name]
    text = json.dumps(to_json(config))
    again = from_json(type(config), json.loads(text))
    assert again == config
    assert hash(again) == hash(config)


def test_defaults_may_be_absent_and_whole_numbers_are_floats():
    assert from_json(Schedule, {"betas": "cosine"}) == Schedule(betas="cosine")
    data = {**to_json(presets.MINI_AUTOENCODER), "scaling_factor": 1}
    scale = from_json(type(presets.MINI_AUTOENCODER), data).scaling_factor
    assert type(scale) is float and scale == 1.0


def changed(config, **fields):
    return {**to_json(config), **fields}


@pytest.mark.parametrize(
    ("cls", "data", "words"),
    [
        (UNet, changed(presets.SD1_UNET, depth=3, width=1), "UNet: unknown fields: depth, width"),
        (Schedule, {"beta": 1}, "Schedule: unknown fields: beta; missing fields: betas"),
        (UNet, changed(presets.SD1_UNET, heads=8), "UNet.heads must be a list, got 8"),
        (UNet, changed(presets.SD1_UNET, heads=[8, 8, True, 8]), r"UNet.heads\[2\] must be int"),
        (UNet, changed(presets.SD1_UNET, context_dim=7.5), "UNet.context_dim must be int"),
        (UNet, changed(presets.SD1_UNET, vector_dim="3"), "UNet.vector_dim must be int"),
        (UNet, changed(presets.SD1_UNET, projection="mlp"), "must be one of conv, linear; got"),
        (Schedule, {"betas": "cosine", "beta_end": True}, "Schedule.beta_end must be float"),
        (Clip, {"text": [], "image": {}}, "Clip.text must be an object with fields"),
        (TextTower, changed(presets.CLIP_L_TEXT, heads=5), "dim 768 is no multiple of heads 5"),
        (
            StableDiffusion,
            changed(presets.SD1, unet=changed(presets.SD1_UNET, heads=None)),
            "StableDiffusion.unet.heads must be a list, got None",
        ),
    ],
)
def test_what_is_wrong_is_named(cls, data, words):
    with pytest.raises(ValueError, match=words):
        from_json(cls, data)


def test_only_configs_become_json():
    with pytest.raises(ValueError, match="to_json takes a config"):
        to_json({"a": 1})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("heads", 0, r"heads 0 must be in \[1, 1048576\]"),
        ("layers", 10**7, r"layers 10000000 must be in \[1, 200\]"),
        ("dim", 2**40, "dim 1099511627776 must be in"),
        ("skip_layers", -1, r"skip_layers -1 must be in \[0"),
    ],
)
def test_sizes_that_no_network_has_are_refused(field, value, message):
    stored = to_json(presets.CLIP_L_TEXT) | {field: value}
    with pytest.raises(ValueError, match=message):
        from_json(type(presets.CLIP_L_TEXT), stored)
