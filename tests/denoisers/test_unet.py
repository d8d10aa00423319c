"""What a UNet reads besides latents, time and text, and what it refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from sdjax.config import UNet as UNetConfig
from sdjax.denoisers import unet
from sdjax.denoisers.unet import UNet, merged_level
from sdjax.nn.functional import apply
from sdjax.weights.stable_diffusion import unet_shapes

UPSCALER = replace(
    tiny.UNET, vector_dim=None, labels=5, attention=(True, True), cross_only=(True, False)
)
X, TIMES, CONTEXT = jnp.ones((1, 4, 4, 4)), jnp.zeros(1), jnp.ones((1, 3, 32))


def test_the_label_is_the_row_that_is_added_to_the_time():
    """Moving a row's numbers into the bias of the time embedding changes nothing."""
    params = tiny.fill(unet_shapes(UPSCALER))
    run = jax.jit(
        lambda params, label: apply(UNet(UPSCALER), params, X, TIMES, CONTEXT, None, label)
    )
    outputs = [run(params, jnp.array([label])) for label in range(2)]
    assert float(jnp.abs(outputs[1] - outputs[0]).max()) > 1e-3
    row = params["label_embedding"]["embedding"][1]
    last = params["time_embedding"]["linear_2"]
    moved = {
        **params,
        "label_embedding": {"embedding": jnp.zeros((5, row.size))},
        "time_embedding": {
            **params["time_embedding"],
            "linear_2": {**last, "bias": last["bias"] + row},
        },
    }
    np.testing.assert_allclose(run(moved, jnp.array([3])), outputs[1], atol=1e-5)


def test_both_attentions_of_a_cross_only_level_read_the_text():
    shapes = unet_shapes(UPSCALER)
    for name in ("down_0_attention_0", "up_0_attention_1"):
        block = shapes[name]["block"]
        assert set(block) == {
            "first_attention",
            "norm_first",
            "cross_attention",
            "norm_cross",
            "mlp",
            "norm_mlp",
        }
    for name in ("down_1_attention_0", "up_1_attention_0", "mid_attention"):
        assert "self_attention" in shapes[name]["block"]
        assert "first_attention" not in shapes[name]["block"]


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (UPSCALER, (None, None), "labels 5, but the label given is None"),
        (tiny.UNET, (None, None), "vector_dim 16, but the vector given is None"),
        (UPSCALER, (jnp.ones((1, 16)), jnp.ones(1, int)), r"vector_dim None, .* is \(1, 16\)"),
        (tiny.UNET, (jnp.ones((1, 16)), jnp.ones(1, int)), r"labels None, .* is \(1,\)"),
    ],
)
def test_what_the_config_has_must_be_given_and_nothing_else(config, given, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(UNet(config).init, jax.random.key(0), X, TIMES, CONTEXT, *given)


def test_flags_for_every_level():
    with pytest.raises(ValueError, match="UNet: 2 channels, but 1 flags in cross_only"):
        replace(tiny.UNET, cross_only=(True,))
    assert isinstance(replace(tiny.UNET, cross_only=(True, False)), UNetConfig)


def test_a_patch_is_pixels_as_channels():
    """The same weights, given the pixels folded by hand."""
    config = replace(tiny.UPSAMPLER.unet, patch=2)
    plain = replace(config, in_channels=24, out_channels=12, patch=1)
    params = tiny.unet_params(config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, tiny.unet_params(plain))
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 6))
    folded = x.reshape(2, 2, 2, 4, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(2, 2, 4, 24)
    wanted = apply(UNet(plain), params, folded, jnp.ones(2))
    wanted = wanted.reshape(2, 2, 4, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 8, 3)
    found = apply(UNet(config), params, x, jnp.ones(2))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert config.factor == 2 * plain.factor


# What may be left out

DEEPER = replace(tiny.UNET, channels=(16, 32, 32), attention=(True, False, True), heads=(2,) * 3)


@pytest.mark.parametrize("shallow", [1, 2, 9])
@pytest.mark.parametrize("config", [tiny.UNET, DEEPER, tiny.ADM_UNET], ids=str)
def test_the_deep_part_reused_at_once_is_the_whole(config, shallow, monkeypatch):
    monkeypatch.setattr(unet, "SHALLOW", shallow)
    params = tiny.unet_params(config)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, config.in_channels))
    given = TIMES + 500, jnp.ones((1, 3, config.context_dim)), jnp.ones((1, config.vector_dim))
    whole = apply(UNet(config), params, x, *given)
    again, deep = apply(UNet(config), params, x, *given, method="remember")
    np.testing.assert_array_equal(again, whole)
    reused = apply(UNet(config), params, deep, x, *given, method="reuse")
    np.testing.assert_allclose(reused, whole, atol=1e-5)
    # It sees the new x through the outermost part, and the rest as it was.
    moved = apply(UNet(config), params, deep, x + 0.1, *given, method="reuse")
    exact = apply(UNet(config), params, x + 0.1, *given)
    assert 1e-3 < jnp.abs(moved - whole).max() and 1e-4 < jnp.abs(moved - exact).max()


def test_reusing_runs_nothing_below_the_outermost_level():
    params = tiny.unet_params(DEEPER)
    x, given = jnp.ones((1, 8, 8, 4)), (TIMES, CONTEXT, jnp.ones((1, 16)))
    deep = jax.eval_shape(lambda: apply(UNet(DEEPER), params, x, *given, method="remember"))[1]
    broken = {
        name: jax.tree.map(lambda p: p * jnp.nan, value)
        if name.startswith(("down_1", "down_2", "mid", "up_1", "up_2", "down_0_downsample"))
        else value
        for name, value in params.items()
    }
    found = apply(UNet(DEEPER), broken, jnp.ones(deep.shape), x, *given, method="reuse")
    assert jnp.isfinite(found).all()


@pytest.mark.parametrize(
    ("config", "level"),
    [(DEEPER, 0), (tiny.UNET, 1), (UPSCALER, 1), (tiny.ADM_UNET, None)],
)
def test_tokens_are_merged_at_the_outermost_self_attention(config, level):
    assert merged_level(config) == level


def test_merging_leaves_the_parameters_as_they_are():
    given = jnp.ones((1, 8, 8, 4)), TIMES, CONTEXT, jnp.ones((1, 16))
    plain, merged = (
        jax.eval_shape(UNet(DEEPER, merge=merge).init, jax.random.key(0), *given)
        for merge in (0.0, 0.5)
    )
    assert plain == merged
