"""Tiny models in the layouts of the original files: LDM's, OpenAI's and OpenCLIP's."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_rule import cases, golden

from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage, unit
from sdjax.nn.functional import apply
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.weights import clip, depth, foreign, ldm
from sdjax.weights import stable_diffusion as diffusers
from sdjax.weights.rules import convert, export
from sdjax.weights.tree import flatten

TOLERANCE = 2e-4  # the reference implementations differ among themselves by up to 6e-6

CASES = {
    case.id: case
    for name in ("tiny_modules_ldm", "tiny_modules_clip", "tiny_modules_diffusers_hf")
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
CLIP_CONFIG = {"openai_clip_tiny": foreign.openai_clip, "openclip_tiny": foreign.open_clip}
END = 49  # the largest id


def config_of(name):
    config = CASES[name].config
    if name in CLIPS:
        return CLIP_CONFIG[name](config)
    if name == VAE:
        return foreign.ldm_autoencoder(config, 1.0)  # the golden z is decoded as it is
    return foreign.ldm_unet(config)


@functools.cache
def table_and_shapes(name):
    config = config_of(name)
    if name in CLIPS:
        return clip.clip_table(config, "openclip"), clip.clip_shapes(config)
    if name == VAE:
        return ldm.autoencoder_table(config), diffusers.autoencoder_shapes(config)
    return ldm.unet_table(config), diffusers.unet_shapes(config)


@functools.cache
def params_of(name):
    return convert(CASES[name].tensors(), *table_and_shapes(name))


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def assert_close(ours, name, output):
    want = CASES[name].output(output)
    ours = np.asarray(ours)
    ours = ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours
    assert ours.shape == want.shape
    np.testing.assert_allclose(ours, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    case = CASES[name]
    y = jnp.asarray(case.input("y")) if "y" in case.inputs else None
    vector, label = (y, None) if y is None or y.ndim == 2 else (None, y)
    ours = jax.jit(functools.partial(apply, UNet(config_of(name))))(
        params_of(name),
        nhwc(case.input("x")),
        jnp.asarray(case.input("timesteps"), jnp.float32),
        jnp.asarray(case.input("context")),
        vector,
        label,
    )
    assert_close(ours, name, "out")


def test_autoencoder():
    case = CASES[VAE]
    run = jax.jit(functools.partial(apply, Autoencoder(config_of(VAE))), static_argnames="method")
    posterior = run(params_of(VAE), nhwc(case.input("image")), method="encode")
    assert_close(posterior.mean, VAE, "mean")
    assert_close(posterior.logvar, VAE, "logvar_clamped")
    assert_close(run(params_of(VAE), nhwc(case.input("z")), method="decode"), VAE, "decoded")


@functools.cache
def encode_text(name, skip_layers=0):
    tower = ClipText(replace(config_of(name).text, skip_layers=skip_layers))
    tokens = jnp.asarray(CASES[name].input("text"), jnp.int32)
    return apply(tower, params_of(name)["text"], tokens, end_positions(tokens, END))


@functools.cache
def encode_image(name):
    tower = ClipImage(config_of(name).image)
    return apply(tower, params_of(name)["image"], nhwc(CASES[name].input("image")))


@pytest.mark.parametrize("name", CLIPS)
def test_clip(name):
    text = encode_text(name)
    assert_close(text.pooled, name, "encode_text")
    hidden = {"openai_clip_tiny": "text_sequence_after_ln_final"}.get(name, "last_then_ln_final")
    assert_close(text.hidden, name, hidden)
    assert_close(encode_image(name), name, "encode_image")


def test_logits_of_clip():
    name = "openai_clip_tiny"
    scale = jnp.exp(params_of(name)["logit_scale"])
    logits = scale * unit(encode_image(name)) @ unit(encode_text(name).pooled).T
    assert_close(logits, name, "logits_per_image")


def test_the_penultimate_states_of_openclip():
    assert_close(
        encode_text("openclip_tiny", 1).hidden, "openclip_tiny", "penultimate_then_ln_final"
    )


def test_the_text_tower_of_stable_diffusion_2_lies_in_an_openclip_file():
    """Without its last block, its projection and the logit scale."""
    name = "openclip_tiny"
    whole = config_of(name).text
    config = replace(whole, layers=whole.layers - 1, projection_dim=None)
    file = {k: v for k, v in CASES[name].tensors().items() if not k.startswith("visual.")}
    params = convert(file, clip.openclip_text_table(config), clip.text_shapes(config))
    tokens = jnp.asarray(CASES[name].input("text"), jnp.int32)
    hidden = apply(ClipText(config), params, tokens, end_positions(tokens, END)).hidden
    assert_close(hidden, name, "penultimate_then_ln_final")
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


@pytest.mark.parametrize("name", [*UNETS, VAE, *CLIPS])
def test_a_checkpoint_survives_the_way_there_and_back(name):
    tensors = CASES[name].tensors()
    again = export(params_of(name), table_and_shapes(name)[0])
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert again[key].shape == tensor.shape
        assert again[key].tobytes() == tensor.tobytes()


def key_map(name, prefix=""):
    """{name in the newer layout: (name in the original file, operations on its tensor)}."""
    return {
        key: (source.removeprefix(prefix), operations.split("+") if operations else [])
        for key, (source, operations) in golden(f"keymaps/{name}")["map"].items()
    }


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


def assert_same_params(got, want):
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path])


@pytest.mark.parametrize("name", UNETS)
def test_both_layouts_of_a_unet_are_one_model(name):
    tensors = renamed(CASES[name].tensors(), key_map(UNETS[name], ldm.UNET_PREFIX))
    table = diffusers.unet_table(config_of(name))
    assert_same_params(convert(tensors, table, table_and_shapes(name)[1]), params_of(name))


def test_both_layouts_of_the_autoencoder_are_one_model():
    names = key_map("sd_vae_diffusers_from_ldm", ldm.AUTOENCODER_PREFIX)
    tensors = renamed(CASES[VAE].tensors(), names)
    table = diffusers.autoencoder_table(config_of(VAE))
    assert_same_params(convert(tensors, table, table_and_shapes(VAE)[1]), params_of(VAE))


@pytest.mark.parametrize("name", CLIPS)
def test_both_layouts_of_clip_are_one_model(name):
    tensors = renamed(CASES[name].tensors(), key_map(CLIPS[name]))
    # Old files of transformers number the positions.
    for tower in ("text", "vision"):
        tensors[f"{tower}_model.embeddings.position_ids"] = np.arange(9)[None]
    config, want = config_of(name), params_of(name)
    table = clip.clip_table(config, "transformers")
    assert_same_params(convert(tensors, table, table_and_shapes(name)[1]), want)
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
        convert(original, depth.depth_table(config, "midas"), shapes),
        convert(tensors, depth.depth_table(config, "transformers"), shapes),
    )
