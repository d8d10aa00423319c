"""Every way to convolve gives the same; each is taken where it was measured to be the fastest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn import convolution
from sdjax.nn.convolution import PADDING, best_way, convolve
from sdjax.nn.layers import conv3x3

LAYOUT = ("NHWC", "HWIO", "NHWC")


def example(channels=5, features=7, height=6, width=8, batch=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, height, width, channels))
    kernel = rng.normal(size=(3, 3, channels, features)) / np.sqrt(9 * channels)
    return x, kernel


def in_float64(x, kernel):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )


@pytest.mark.parametrize("way", convolution.WAYS)
def test_every_way_is_the_convolution(way):
    x, kernel = example()
    found = convolution.WAYS[way](jnp.float32(x), jnp.float32(kernel))
    np.testing.assert_allclose(found, in_float64(x, kernel), atol=3e-6)


def test_nine_products_of_bfloat16_are_summed_in_float32():
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in example(channels=64))
    found = convolution.nine(x, kernel)
    assert found.dtype == jnp.bfloat16
    exact = in_float64(np.asarray(x, np.float64), np.asarray(kernel, np.float64))
    # Rounded once, at the end.
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "channels", "dtype", "way"),
    [
        ((2, 64, 64), (320, 320), jnp.float32, "winograd"),
        ((2, 16, 16), (2560, 1280), jnp.float32, "winograd"),
        ((2, 8, 8), (1280, 1280), jnp.float32, "neighbours"),
        ((2, 8, 8), (256, 256), jnp.float32, "direct"),
        ((2, 63, 64), (320, 320), jnp.float32, "direct"),
        ((2, 64, 64), (320, 4), jnp.float32, "direct"),
        ((1, 512, 512), (128, 128), jnp.float32, "direct"),
        ((2, 64, 64), (320, 320), jnp.bfloat16, "nine"),
        ((2, 64, 64), (320, 320), jnp.float16, "direct"),
    ],
)
def test_the_way_is_chosen_by_shape_and_type(shape, channels, dtype, way):
    assert best_way((*shape, channels[0]), (3, 3, *channels), dtype) == way


def arguments(strides=(1, 1), padding=PADDING):
    return {"strides": strides, "padding": padding, "dimension_numbers": LAYOUT}


@pytest.mark.parametrize(
    "given", [arguments(strides=(2, 2)), arguments(padding=((0, 1), (0, 1)))], ids=str
)
def test_what_has_no_stride_of_1_and_padding_of_1_is_left_to_xla(given, monkeypatch):
    monkeypatch.setattr(convolution, "best_way", lambda *_: "winograd")
    x, kernel = (jnp.float32(a) for a in example())
    wanted = jax.lax.conv_general_dilated(
        x, kernel, given["strides"], given["padding"], dimension_numbers=LAYOUT
    )
    np.testing.assert_array_equal(convolve(x, kernel, **given), wanted)


@pytest.mark.parametrize("way", convolution.WAYS)
def test_derivatives_are_those_of_the_plain_convolution(way, monkeypatch):
    monkeypatch.setattr(convolution, "best_way", lambda *_: way)
    x, kernel = (jnp.float32(a) for a in example())

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), PADDING, dimension_numbers=LAYOUT)

    def ours(x, kernel):
        return convolve(x, kernel, **arguments())

    def gradients(fn):
        return jax.jit(jax.grad(lambda *args: jnp.sin(fn(*args)).sum(), (0, 1)))(x, kernel)

    for found, wanted in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    tangents = (jnp.cos(x), jnp.cos(kernel))
    found, wanted = (jax.jvp(fn, (x, kernel), tangents)[1] for fn in (ours, plain))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("way", convolution.WAYS)
def test_an_image_that_is_not_finite_leaves_the_others_alone(way, monkeypatch):
    monkeypatch.setattr(convolution, "best_way", lambda *_: way)
    x, kernel = (jnp.float32(a) for a in example())
    found = convolve(x.at[0].set(jnp.nan), kernel, **arguments())
    np.testing.assert_array_equal(found[1], convolve(x, kernel, **arguments())[1])


def products(layer, x, platform):
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    text = jax.jit(layer.apply).trace(params, x).lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")


def test_only_a_cpu_turns_a_layer_into_products():
    layer = conv3x3(256, name="conv", dtype=jnp.float32)
    x = jax.ShapeDtypeStruct((2, 16, 16, 256), jnp.float32)
    assert products(layer, x, "cpu") == (16, 1)  # the one is in a branch that is never taken
    assert products(layer, x, "cuda") == (0, 1)
    assert products(layer, x, "tpu") == (0, 1)


def test_kernels_are_transformed_when_their_turn_comes():
    """Not all before the first, which would take the memory of all."""
    x = jax.ShapeDtypeStruct((2, 16, 16, 256), jnp.float32)
    kernels = [jax.ShapeDtypeStruct((3, 3, 256, 256), jnp.float32)] * 6

    def temporary(kernels):
        def run(x, kernels):
            for kernel in kernels:
                x = jax.nn.silu(convolve(x, kernel, **arguments()))
            return x

        return jax.jit(run).lower(x, kernels).compile().memory_analysis().temp_size_in_bytes

    assert temporary(kernels) < 1.5 * temporary(kernels[:2])
