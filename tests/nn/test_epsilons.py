"""Every norm of every network, on inputs whose variance is its epsilon.

There the output halves or doubles with the epsilon, so that no other value passes; the expected
ones are in `parity/epsilons.py`.
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
from parity.epsilons import expected, unused

from sdjax import presets
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage
from sdjax.image.depth import Depth
from sdjax.image.safety import SafetyChecker
from sdjax.text.clip_text import ClipText

UNET = replace(
    tiny.UNET, attention=(True, True), cross_only=(True, False), vector_dim=None, labels=5
)
TEXT = tiny.text_tower(30, 7)
DEPTH = replace(tiny.DEPTH, layer_norm_epsilon=presets.DPT_HYBRID.layer_norm_epsilon)
IMAGE = jnp.zeros((1, 16, 16, 3))
NETWORKS = {
    "unet": (
        UNet(UNET),
        jnp.zeros((1, 4, 4, 4)),
        jnp.zeros(1),
        jnp.zeros((1, 3, 32)),
        None,
        jnp.zeros(1, jnp.int32),
    ),
    "autoencoder": (Autoencoder(tiny.AUTOENCODER), IMAGE, jax.random.key(0)),
    "text": (ClipText(TEXT), jnp.zeros((1, 7), jnp.int32), jnp.zeros(1, jnp.int32)),
    "image": (ClipImage(tiny.IMAGE_TOWER), IMAGE),
    "depth": (Depth(DEPTH), jnp.zeros((1, 32, 32, 3))),
    "safety": (SafetyChecker(tiny.SAFETY), IMAGE),
}


def normalizing_layers(network, *inputs):
    """Layers with a scale or a kernel that are no plain product: {path: (layer, shapes)}."""
    found = {}

    def note(call, args, kwargs, context):
        layer = context.module
        output = call(*args, **kwargs)
        own = layer.variables.get("params", {}) if context.method_name == "__call__" else {}
        if {"scale", "kernel"} & set(own) and not isinstance(layer, nn.Dense | nn.Conv):
            shapes = {name: leaf.shape for name, leaf in own.items()}
            found["/".join(layer.path)] = (layer.clone(parent=None, name=None), shapes)
        return output

    with nn.intercept_methods(note):
        jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return found


def is_right(layer, shapes, epsilon):
    """Does this layer do what the formula with this epsilon says?"""
    return (standardization if "kernel" in shapes else norm)(layer, shapes, epsilon)


def norm(layer, shapes, epsilon):
    """A norm over the last axis, or over height, width and the channels of a group."""
    random = np.random.default_rng(0)
    (channels,) = shapes["scale"]
    if hasattr(layer, "groups"):
        shape, split, axes = (2, 4, 6, channels), (2, 24, layer.groups, -1), (1, 3)
    else:
        shape, split, axes = (2, 5, channels), (2, 5, channels), -1
    x = np.float32(random.normal(size=shape) * np.sqrt(epsilon))
    scale, bias = np.float32(random.normal(size=(2, channels)))
    parts = np.float64(x).reshape(split)
    center, variance = parts.mean(axes, keepdims=True), parts.var(axes, keepdims=True)
    wanted = ((parts - center) / np.sqrt(variance + epsilon)).reshape(shape) * scale + bias
    params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
    found = layer.apply({"params": params}, jnp.asarray(x))
    return np.allclose(found, wanted, rtol=0, atol=2e-5)


def standardization(layer, shapes, epsilon):
    """A convolution with a standardised kernel, beside one so large that epsilon is nothing."""
    random = np.random.default_rng(0)
    x = jnp.float32(random.normal(size=(1, 4, 4, shapes["kernel"][2])))
    kernel = np.float32(random.normal(size=shapes["kernel"]) * np.sqrt(epsilon))
    small, large = (
        layer.apply({"params": {"kernel": jnp.asarray(times * kernel)}}, x) for times in (1, 1e6)
    )
    variance = np.float64(kernel).var((0, 1, 2))
    return np.allclose(small, large * np.sqrt(variance / (variance + epsilon)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_epsilon_is_that_of_the_published_network(name):
    layers = normalizing_layers(*NETWORKS[name])
    assert unused(name, list(layers)) == []
    wrong = {
        path: expected(name, path)
        for path, (layer, shapes) in layers.items()
        if not is_right(layer, shapes, expected(name, path))
    }
    assert wrong == {}


def test_the_depth_network_has_the_epsilon_of_its_config():
    """1e-12 in the configuration on the hub, 1e-6 in the weights' own code."""
    network = Depth(replace(DEPTH, layer_norm_epsilon=1e-12))
    layer = normalizing_layers(network, jnp.zeros((1, 32, 32, 3)))["block_1/norm_self"]
    assert is_right(*layer, 1e-12)
    assert not is_right(*layer, 1e-6)


def test_norms_without_a_row_are_refused():
    with pytest.raises(ValueError, match="0 rows for the norm 'norm_new'"):
        expected("unet", "norm_new")
    assert unused("text", ["block_0/norm_self"]) == ["norm_final"]
