"""Interpolation against PyTorch's, and its weights against what interpolation must do."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden_rule import golden, input_values

from sdjax.nn.resize import interpolate

OPS = golden("ops")["ops"]
INPUTS = {"5x6->12x15": ("rs", (5, 6)), "9x7->4x3": ("rs2", (9, 7))}


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("sizes", INPUTS)
@pytest.mark.parametrize(("kind", "theirs"), [("linear", "bilinear"), ("cubic", "bicubic")])
def test_as_pytorch(kind, theirs, sizes, align_corners):
    stored = OPS[f"interpolate {theirs} {sizes} align_corners={align_corners} antialias=False"]
    name, old = INPUTS[sizes]
    image = jnp.asarray(input_values(name, [1, *old, 1]))  # one channel: NCHW and NHWC are alike
    new = tuple(stored["shape"][2:])
    found = interpolate(image, new, kind, align_corners=align_corners)
    np.testing.assert_allclose(found[0, ..., 0], np.reshape(stored["data"], new), atol=2e-6)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_an_image_of_the_right_size_stays_as_it_is(kind, align_corners):
    image = jnp.asarray(input_values("x", [2, 3, 5, 4]))
    same = interpolate(image, (3, 5), kind, align_corners=align_corners)
    np.testing.assert_allclose(same, image, atol=1e-6)


def test_one_pixel_fills_everything_and_half_precision_stays():
    image = jnp.full((1, 1, 1, 2), 0.3, jnp.bfloat16)
    large = interpolate(image, (3, 4), "cubic", align_corners=True)
    assert large.shape == (1, 3, 4, 2) and large.dtype == jnp.bfloat16
    assert (large == image).all()
