"""Every way to convolve gives the same; each is taken where it was measured to be the fastest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn import convolution
from sdjax.nn.convolution import PADDING, PLAIN, best_way, convolve, convolve_doubled
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


EXACT = {
    "halved": lambda x, kernel: in_float64(x, kernel)[:, ::2, ::2],
    "doubled": lambda x, kernel: in_float64(x.repeat(2, axis=1).repeat(2, axis=2), kernel),
}


@pytest.mark.parametrize("way", convolution.WAYS)
def test_every_way_is_the_convolution(way):
    x, kernel = example()
    wanted = EXACT.get(way, in_float64)(x, kernel)
    for compute in (convolution.WAYS[way], PLAIN[way]):
        found = compute(jnp.float32(x), jnp.float32(kernel))
        np.testing.assert_allclose(found, wanted, atol=4e-6)


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


@pytest.mark.parametrize(
    ("side", "channels", "dtype", "way"),
    [
        (16, 1280, jnp.float32, "halved"),
        (64, 320, jnp.float32, "direct"),
        (15, 1280, jnp.float32, "direct"),
        (16, 1280, jnp.bfloat16, "direct"),
    ],
)
def test_the_way_of_stride_2_is_chosen_by_shape_and_type(side, channels, dtype, way):
    shape, kernel = (2, side, side, channels), (3, 3, channels, channels)
    assert best_way(shape, kernel, dtype, (2, 2)) == way


def arguments(strides=(1, 1), padding=PADDING):
    return {"strides": strides, "padding": padding, "dimension_numbers": LAYOUT}


def convolved(way, monkeypatch):
    """`convolve` as if a way were the best; the function of a map and a kernel."""
    if way == "doubled":
        return lambda x, kernel: convolve_doubled(x, kernel, **arguments())
    monkeypatch.setattr(convolution, "best_way", lambda *_: way)
    strides = (2, 2) if way == "halved" else (1, 1)
    return lambda x, kernel: convolve(x, kernel, **arguments(strides))


@pytest.mark.parametrize(
    "given",
    [arguments(strides=(2, 2), padding=((0, 1), (0, 1))), arguments(padding=((0, 1), (0, 1)))],
    ids=str,
)
def test_other_paddings_are_left_to_xla(given, monkeypatch):
    monkeypatch.setattr(convolution, "best_way", lambda *_: "winograd")
    x, kernel = (jnp.float32(a) for a in example())
    wanted = jax.lax.conv_general_dilated(
        x, kernel, given["strides"], given["padding"], dimension_numbers=LAYOUT
    )
    np.testing.assert_array_equal(convolve(x, kernel, **given), wanted)


@pytest.mark.parametrize("way", convolution.WAYS)
def test_derivatives_are_those_of_the_plain_convolution(way, monkeypatch):
    x, kernel = (jnp.float32(a) for a in example())
    ours, plain = convolved(way, monkeypatch), PLAIN[way]

    def gradients(fn):
        return jax.jit(jax.grad(lambda *args: jnp.sin(fn(*args)).sum(), (0, 1)))(x, kernel)

    for found, wanted in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    tangents = (jnp.cos(x), jnp.cos(kernel))
    found, wanted = (jax.jvp(fn, (x, kernel), tangents)[1] for fn in (ours, plain))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("way", convolution.WAYS)
def test_an_image_that_is_not_finite_leaves_the_others_alone(way, monkeypatch):
    ours = convolved(way, monkeypatch)
    x, kernel = (jnp.float32(a) for a in example())
    found = ours(x.at[0].set(jnp.nan), kernel)
    np.testing.assert_array_equal(found[1], ours(x, kernel)[1])


def test_a_large_kernel_is_transformed_in_parts(monkeypatch):
    x, kernel = (jnp.float32(a) for a in example())
    ours = convolved("winograd", monkeypatch)
    whole = ours(x, kernel)
    monkeypatch.setattr(convolution, "MOST_WEIGHTS", 5 * 7 // 3)
    text = str(jax.make_jaxpr(ours)(x, kernel))
    assert text.count("cond[") >= 4  # of the platform, and of four parts
    np.testing.assert_allclose(ours(x, kernel), whole, atol=2e-6)


def test_a_doubled_map_of_16_bits_is_convolved_as_any_other():
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in example())
    wanted = convolve(convolution.double(x), kernel, **arguments())
    np.testing.assert_array_equal(convolve_doubled(x, kernel, **arguments()), wanted)


@pytest.mark.parametrize("compute", [convolve, convolve_doubled])
def test_a_precision_that_is_asked_for_is_kept(compute):
    x, kernel = (jnp.zeros(shape) for shape in ((2, 16, 16, 256), (3, 3, 256, 256)))
    asked = {**arguments(), "precision": jax.lax.Precision.HIGHEST}
    for platform in ("cpu", "cuda"):
        traced = jax.jit(lambda x, kernel: compute(x, kernel, **asked)).trace(x, kernel)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 1
        assert text.count("<precision HIGHEST>") == 2  # of both sides
        assert "stablehlo.dot_general" not in text


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
