"""Tiny models of the reference implementations, through our tables and our networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_rule import cases

from sdjax.config import Autoencoder as AutoencoderConfig
from sdjax.config import TextTower
from sdjax.config import UNet as UNetConfig
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.weights.clip import text_shapes, text_table
from sdjax.weights.rules import convert, export
from sdjax.weights.stable_diffusion import (
    autoencoder_shapes,
    autoencoder_table,
    unet_shapes,
    unet_table,
)
from sdjax.weights.tree import flatten

TOLERANCE = 2e-4  # the reference implementations differ among themselves by up to 6e-6

CASES = {case.id: case for case in cases("tiny_modules_diffusers_hf")}
UNETS = ("unet_sd1_tiny", "unet_sd2_tiny", "unet_stable_unclip_tiny")
TEXTS = ("clip_text_tiny_quick_gelu", "clip_text_tiny_gelu")
VAE = "vae_kl_f8_tiny"


def unet_config(case):
    c = case.config
    levels = len(c["block_out_channels"])
    heads = c["attention_head_dim"]  # a misnomer: the number of heads
    return UNetConfig(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        channels=tuple(c["block_out_channels"]),
        res_blocks=c["layers_per_block"],
        attention=tuple(name.startswith("CrossAttn") for name in c["down_block_types"]),
        heads=tuple(heads) if isinstance(heads, list) else (heads,) * levels,
        context_dim=c["cross_attention_dim"],
        vector_dim=c.get("projection_class_embeddings_input_dim"),
        projection="linear" if c.get("use_linear_projection") else "conv",
    )


def autoencoder_config(case):
    c = case.config
    return AutoencoderConfig(
        channels=tuple(c["block_out_channels"]),
        res_blocks=c["layers_per_block"],
        latent_channels=c["latent_channels"],
        scaling_factor=1.0,  # the golden z is decoded as it is
        norm_groups=c["norm_num_groups"],
    )


def text_config(case, skip_layers=0):
    c = case.config
    return TextTower(
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        dim=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp_dim=c["intermediate_size"],
        activation=c["hidden_act"],
        pad="eot",
        projection_dim=c["projection_dim"],
        skip_layers=skip_layers,
    )


@functools.cache
def table_and_shapes(case):
    if case.id in UNETS:
        return unet_table(unet_config(case)), unet_shapes(unet_config(case))
    if case.id == VAE:
        config = autoencoder_config(case)
        return autoencoder_table(config), autoencoder_shapes(config)
    return text_table(text_config(case)), text_shapes(text_config(case))


def variables(case, tensors=None):
    return {"params": convert(tensors or case.tensors(), *table_and_shapes(case))}


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def assert_close(ours, case, name):
    want = case.output(name)
    ours = np.asarray(ours)
    ours = ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours
    assert ours.shape == want.shape
    np.testing.assert_allclose(ours, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    case = CASES[name]
    vector = jnp.asarray(case.input("class_labels")) if "class_labels" in case.inputs else None
    ours = jax.jit(UNet(unet_config(case)).apply)(
        variables(case),
        nhwc(case.input("x")),
        jnp.asarray(case.input("timestep"), jnp.float32),
        jnp.asarray(case.input("encoder_hidden_states")),
        vector,
    )
    assert_close(ours, case, "sample")


def test_autoencoder():
    case = CASES[VAE]
    params = variables(case)
    apply = jax.jit(Autoencoder(autoencoder_config(case)).apply, static_argnames="method")
    posterior = apply(params, nhwc(case.input("image")), method="encode")
    assert_close(posterior.mean, case, "posterior_mean")
    assert_close(posterior.logvar, case, "posterior_logvar_clamped")
    decoded = apply(params, nhwc(case.input("z")), method="decode")
    assert_close(decoded, case, "decoded")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("skip_layers", "hidden"), [(0, "last_hidden_state"), (1, "penultimate_then_final_ln")]
)
def test_text_tower(name, skip_layers, hidden):
    case = CASES[name]
    tokens = jnp.asarray(case.input("input_ids"), jnp.int32)
    end = end_positions(tokens, case.config["eos_token_id"])
    tower = ClipText(text_config(case, skip_layers))
    output = jax.jit(tower.apply)(variables(case), tokens, end)
    assert_close(output.hidden, case, hidden)
    assert_close(output.pooled, case, "text_embeds")


@pytest.mark.parametrize("name", [*UNETS, VAE, *TEXTS])
def test_a_checkpoint_survives_the_way_there_and_back(name):
    case = CASES[name]
    tensors = case.tensors()
    table, shapes = table_and_shapes(case)
    again = export(convert(tensors, table, shapes), table)
    assert again.keys() == case.state_dict_shapes.keys()
    for key, tensor in tensors.items():
        assert again[key].shape == tensor.shape
        assert again[key].tobytes() == tensor.tobytes()


def assert_same_params(got, want):
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path])


OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("convolution", [False, True])
def test_old_attention_names_of_the_autoencoder(convolution):
    case = CASES[VAE]
    old = {}
    for key, tensor in case.tensors().items():
        for new_name, old_name in OLD_ATTENTION.items():
            if f".{new_name}." in key:
                key = key.replace(new_name, old_name)
                if convolution and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        old[key] = tensor
    assert sum(".proj_attn." in key for key in old) == 4
    assert_same_params(variables(case, old), variables(case))


def test_text_tower_without_prefix_and_with_position_ids():
    case = CASES[TEXTS[0]]
    tensors = case.tensors()
    bare = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    want = variables(case)
    assert_same_params(variables(case, bare), want)
    ids = np.arange(9)[None]
    assert_same_params(variables(case, {**bare, "embeddings.position_ids": ids}), want)
    hub = {**tensors, "text_model.embeddings.position_ids": ids}
    assert_same_params(variables(case, hub), want)


def test_a_projection_the_model_lacks_is_left_over():
    case = CASES[UNETS[0]]
    table, shapes = table_and_shapes(case)
    tensors = {**case.tensors(), "class_embedding.linear_1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"left over, 1: class_embedding\.linear_1\.weight"):
        convert(tensors, table, shapes)


def test_a_linear_projection_is_no_convolution():
    case = CASES["unet_sd2_tiny"]
    conv = unet_table(unet_config(CASES["unet_sd1_tiny"]))
    with pytest.raises(ValueError, match=r"misshapen, 32: .*proj_in\.weight is \(32, 32\), not"):
        convert(case.tensors(), conv, table_and_shapes(case)[1])
