"""The layouts of the original files, LDM's, OpenAI's, OpenCLIP's and MiDaS's, against the newer."""

import functools
import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from golden_networks import TOLERANCE, assert_same_params, network
from golden_rule import cases, golden

from sdjax.nn.functional import apply
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.weights import clip, depth, foreign, karlo, ldm
from sdjax.weights import stable_diffusion as diffusers
from sdjax.weights.rules import convert, listing

CASES = {
    case.id: case
    for name in (
        "tiny_modules_ldm",
        "tiny_modules_clip",
        "tiny_modules_diffusers_hf",
        "tiny_modules_karlo_original",
    )
    for case in cases(name)
}
VAE = "ldm_kl_f8_tiny"
UNETS = {
    "ldm_unet_sd1_tiny": "sd1_unet_diffusers_from_ldm",
    "ldm_unet_sd2_tiny": "sd2_unet_diffusers_from_ldm",
    "ldm_unet_x4_tiny": "sd2_x4upscaler_unet_diffusers_from_ldm",
    "ldm_unet_unclip_tiny": "stable_unclip_h_unet_diffusers_from_ldm",
}
"""And the map from these names to those of diffusers, found apart from sdjax."""
CLIPS = {
    "openai_clip_tiny": "clip_vitl14_hf_from_openai",
    "openclip_tiny": "openclip_vith14_hf_from_openclip",
}
END = 49  # the largest id


def config_of(name):
    return network(CASES[name]).config


@functools.cache
def params_of(name):
    return network(CASES[name]).params(CASES[name].tensors())


def shapes_of(name):
    return network(CASES[name]).part.shapes


def test_the_text_tower_of_stable_diffusion_2_lies_in_an_openclip_file():
    """Without its last block, its projection and the logit scale."""
    name = "openclip_tiny"
    whole = config_of(name).text
    config = replace(whole, layers=whole.layers - 1, projection_dim=None)
    file = {k: v for k, v in CASES[name].tensors().items() if not k.startswith("visual.")}
    params = convert(file, clip.openclip_text_table(config), clip.text_shapes(config))
    tokens = jnp.asarray(CASES[name].input("text"), jnp.int32)
    hidden = apply(ClipText(config), params, tokens, end_positions(tokens, END)).hidden
    wanted = CASES[name].output("penultimate_then_ln_final")
    np.testing.assert_allclose(hidden, wanted, rtol=0, atol=TOLERANCE)
    unused = {**file, "transformer.resblocks.7.ln_1.bias": np.zeros(64)}
    with pytest.raises(ValueError, match=r"left over, 1: transformer\.resblocks\.7\.ln_1\.bias"):
        convert(unused, clip.openclip_text_table(config), clip.text_shapes(config))


@pytest.mark.parametrize("name", CLIPS)
def test_one_tower_from_the_file_of_both(name):
    config, file = config_of(name), CASES[name].tensors()
    image = convert(file, clip.openclip_image_table(config.image), clip.image_shapes(config.image))
    assert_same_params(image, params_of(name)["image"])
    file = {k: v for k, v in file.items() if not k.startswith("visual.")}
    text = convert(file, clip.openclip_text_table(config.text), clip.text_shapes(config.text))
    assert_same_params(text, params_of(name)["text"])


def key_map(name, prefix=""):
    """{name in the newer layout: (name in the original file, operations on its tensor)}."""
    return {
        key: (source.removeprefix(prefix), operations.split("+") if operations else [])
        for key, (source, operations) in golden(f"keymaps/{name}")["map"].items()
    }


def test_both_layouts_of_karlos_decoder_are_one_model():
    """Its UNet and its conditioning, which are two folders in the layout of diffusers."""
    case = CASES["karlo_orig_decoder_tiny"]
    tensors, model = case.tensors(), config_of(case.id)
    new = {
        **heads_apart(tensors, key_map("karlo_decoder_diffusers_from_original", "model."), 32),
        **renamed(tensors, key_map("karlo_text_proj_diffusers_from_original", "model.")),
    }
    decoder, conditioning = model.unet, model.conditioning
    found = {
        "unet": (diffusers.unet_table(decoder), diffusers.unet_shapes(decoder)),
        "conditioning": (
            karlo.conditioning_table(conditioning),
            karlo.conditioning_shapes(conditioning),
        ),
    }
    for name, (table, shapes) in found.items():
        own = {key: tensor for key, tensor in new.items() if key in listing(shapes, table)}
        assert_same_params(convert(own, table, shapes), params_of(case.id)[name])
    assert len(new) == sum(len(listing(shapes, table)) for table, shapes in found.values())


def heads_apart(tensors, key_map, width):
    """`renamed` where heads `width` wide hold their query, key and value side by side."""
    result = {}
    for key, (source, operations) in key_map.items():
        if source not in tensors:
            continue
        tensor = tensors[source]
        for operation in operations:
            if operation == "squeeze":
                tensor = tensor[..., 0]
            else:
                _, part, parts = map(int, re.findall(r"\d+", operation))
                cut = tensor.reshape(-1, parts, width, *tensor.shape[1:])
                tensor = cut[:, part].reshape(-1, *tensor.shape[1:])
        result[key] = tensor
    return result


def third(operation):
    """The part of a fused tensor that `rows[a:b]` takes; a and b are those of the full size."""
    first, last = map(int, operation.removeprefix("rows[").removesuffix("]").split(":"))
    return first // (last - first)


def renamed(tensors, key_map):
    """The tensors of an original file in the newer layout; what a small model lacks is left out."""
    result = {}
    for key, (source, operations) in key_map.items():
        if source not in tensors:
            continue
        tensor = tensors[source]
        for operation in operations:
            if operation.startswith("rows["):
                tensor = np.split(tensor, 3)[third(operation)]
            elif operation == "T":
                tensor = tensor.T
            else:
                assert operation == "squeeze"
                tensor = tensor[:, :, 0, 0]
        result[key] = tensor
    return result


@pytest.mark.parametrize("name", UNETS)
def test_both_layouts_of_a_unet_are_one_model(name):
    tensors = renamed(CASES[name].tensors(), key_map(UNETS[name], ldm.UNET_PREFIX))
    table = diffusers.unet_table(config_of(name))
    assert_same_params(convert(tensors, table, shapes_of(name)), params_of(name))


def test_both_layouts_of_the_autoencoder_are_one_model():
    names = key_map("sd_vae_diffusers_from_ldm", ldm.AUTOENCODER_PREFIX)
    tensors = renamed(CASES[VAE].tensors(), names)
    table = diffusers.autoencoder_table(config_of(VAE))
    assert_same_params(convert(tensors, table, shapes_of(VAE)), params_of(VAE))


@pytest.mark.parametrize("name", CLIPS)
def test_both_layouts_of_clip_are_one_model(name):
    tensors = renamed(CASES[name].tensors(), key_map(CLIPS[name]))
    # Old files of transformers number the positions.
    for tower in ("text", "vision"):
        tensors[f"{tower}_model.embeddings.position_ids"] = np.arange(9)[None]
    config, want = config_of(name), params_of(name)
    table = clip.clip_table(config, "transformers")
    assert_same_params(convert(tensors, table, shapes_of(name)), want)
    image = {key: tensor for key, tensor in tensors.items() if key.startswith("vis")}
    table = clip.image_table(config.image)
    assert_same_params(convert(image, table, clip.image_shapes(config.image)), want["image"])


def test_both_layouts_of_the_depth_estimator_are_one_model():
    case = CASES["dpt_hybrid_tiny"]
    config = foreign.transformers_depth(case.config)
    tensors, shapes = case.tensors(), depth.depth_shapes(config)
    fused, original = {}, {}
    for key, (source, operations) in key_map("dpt_hybrid_hf_from_midas").items():
        if key not in tensors:
            continue
        if operations:
            fused.setdefault(source, {})[third(operations[0])] = tensors[key]
        else:
            original[source] = tensors[key]
    original |= {
        source: np.concatenate([thirds[part] for part in range(3)])
        for source, thirds in fused.items()
    }
    assert_same_params(
        convert(original, depth.depth_table("midas"), shapes),
        convert(tensors, depth.depth_table("transformers"), shapes),
    )
