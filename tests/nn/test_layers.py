"""The bricks against float64 NumPy, where the golden modules cannot see."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage
from sdjax.image.depth import Depth
from sdjax.nn.functional import apply
from sdjax.nn.layers import GroupNorm, depth_to_space, layer_norm, space_to_depth
from sdjax.nn.transformer import FeedForward
from sdjax.weights.depth import depth_shapes

RNG = np.random.default_rng(0)


def group_norm_in_float64(x, groups, epsilon, scale, bias):
    batch, height, width, channels = x.shape
    split = x.astype(np.float64).reshape(batch, height, width, groups, channels // groups)
    mean = split.mean((1, 2, 4), keepdims=True)
    variance = split.var((1, 2, 4), keepdims=True)
    return ((split - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_group_norm_does_not_cancel(offset):
    x = (RNG.normal(size=(2, 8, 8, 12)) + offset).astype(np.float32)
    params = {"scale": RNG.normal(size=12), "bias": RNG.normal(size=12)}
    found = apply(GroupNorm(4, 1e-5), jax.tree.map(jnp.float32, params), jnp.asarray(x))
    wanted = group_norm_in_float64(x, 4, 1e-5, **params)
    np.testing.assert_allclose(found, wanted, atol=2e-6 * (1 + offset))


def test_layer_norm_does_not_cancel():
    """A variance near the epsilon, far from zero: the difference of squares would lose it."""
    x = (30 + 3e-3 * RNG.normal(size=(4, 16))).astype(np.float32)
    params = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    found = apply(layer_norm(1e-5, name="norm", dtype=jnp.float32), params, jnp.asarray(x))
    x = x.astype(np.float64)
    wanted = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_group_norm_keeps_differences_between_channels_of_a_group():
    x = jnp.broadcast_to(jnp.array([0.0, 10.0, 5.0, 5.0]), (1, 4, 4, 4))
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    found = apply(GroupNorm(2, 1e-6), params, x)
    np.testing.assert_allclose(found[0, 0, 0], [-1, 1, 0, 0], atol=1e-5)


def epsilons(module, params, *inputs, method=None):
    """Every norm's epsilon by its path."""
    seen = {}

    def note(next_call, args, kwargs, context):
        if context.method_name == "__call__" and hasattr(context.module, "epsilon"):
            kind = type(context.module).__name__
            if kind in ("GroupNorm", "LayerNorm"):
                seen[".".join(context.module.path)] = (kind, context.module.epsilon)
        return next_call(*args, **kwargs)

    import flax.linen as nn

    with nn.intercept_methods(note):
        jax.eval_shape(lambda p: apply(module, p, *inputs, method=method), params)
    return seen


def test_norm_epsilons_are_those_of_the_published_models():
    """1e-5 or 1e-6: outputs of tiny models do not tell, half precision ones do."""
    x, context = jnp.zeros((1, 4, 4, 4)), jnp.zeros((1, 3, 32))
    found = epsilons(
        UNet(tiny.UNET), tiny.unet_params(tiny.UNET), x, jnp.zeros(1), context, jnp.zeros((1, 16))
    )
    assert {kind for kind, _ in found.values()} == {"GroupNorm", "LayerNorm"}
    for path, (kind, epsilon) in found.items():
        spatial = kind == "GroupNorm" and "attention" in path
        assert epsilon == (1e-6 if spatial else 1e-5), path
    image = jnp.zeros((1, 8, 8, 3))
    params = tiny.autoencoder_params(tiny.AUTOENCODER)
    network = Autoencoder(tiny.AUTOENCODER)
    for inputs, method in [(image, "encode"), (jnp.zeros((1, 4, 4, 4)), "decode")]:
        found = epsilons(network, params, inputs, method=method)
        assert found and {e for _, e in found.values()} == {1e-6}
    found = epsilons(
        ClipImage(tiny.IMAGE_TOWER), tiny.image_params(tiny.IMAGE_TOWER), jnp.zeros((1, 16, 16, 3))
    )
    assert found and {e for _, e in found.values()} == {1e-5}
    network = replace(tiny.DEPTH, layer_norm_epsilon=1e-12)
    found = epsilons(Depth(network), tiny.fill(depth_shapes(network)), jnp.zeros((1, 32, 32, 3)))
    assert set(found.values()) == {("GroupNorm", 1e-5), ("LayerNorm", 1e-12)}


def test_space_to_depth_and_back():
    x = jnp.asarray(RNG.normal(size=(2, 8, 12, 3)), jnp.float32)
    folded = space_to_depth(x, 4)
    assert folded.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(folded[1, 1, 2].reshape(4, 4, 3), x[1, 4:8, 8:12])
    np.testing.assert_array_equal(depth_to_space(folded, 4), x)
    np.testing.assert_array_equal(space_to_depth(x, 1), x)


@pytest.mark.parametrize("kind", ["geglu", "gelu"])
def test_a_feed_forward_network_in_strips_is_the_same(kind, monkeypatch):
    network = FeedForward(12, kind)
    x = jnp.asarray(RNG.normal(size=(2, 16, 6)), jnp.float32)
    params = network.init(jax.random.key(0), x)

    def run(platform):
        def total(params, x):
            return (network.apply(params, x) ** 2).sum()

        lowered = jax.jit(total).trace(params, x).lower(lowering_platforms=(platform,))
        return jax.value_and_grad(total, (0, 1))(params, x), lowered.as_text().count("while")

    whole, loops = run("cpu")
    assert loops == 0
    monkeypatch.setattr("sdjax.nn.transformer.STRIP", 8)
    strips, loops = run("cpu")
    assert loops == 1
    assert run("cuda")[1] == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), strips, whole)
