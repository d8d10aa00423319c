"""Pictures are spoilt as they should be: by how much, at random, and never elsewhere."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdjax.image import degrade
from sdjax.image.degrade import bsr, enlarge, gaussian_blur, shrink
from sdjax.image.preprocess import to_float, to_pixels

NOISE = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3), minval=-1)
Y, X = np.mgrid[:32, :32]
SCENE = np.stack([8 * X, 255 * ((X - 16) ** 2 + (Y - 16) ** 2 < 90), 4 * (X + Y)], -1)
SCENE = SCENE.astype(np.uint8)


def test_shrinking_takes_the_mean_of_every_block():
    large = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    small = shrink(jnp.asarray(large), 4)
    np.testing.assert_allclose(small[1, 2, 3], large[1, 6:9, 9:12].mean((0, 1)), rtol=1e-5)
    with pytest.raises(ValueError, match="12 x 12 pixels are no multiples of 5"):
        shrink(jnp.asarray(large), 5)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_enlarging_keeps_slopes_and_edges_in_place(resize):
    line = jnp.broadcast_to((jnp.arange(8.0) + 0.5)[None, :, None, None], (1, 8, 8, 3))
    large = enlarge(line, 32, resize)
    inside = slice(8, 24)  # the border repeats
    np.testing.assert_allclose(large[0, inside, 5, 0], (np.arange(32) + 0.5)[inside] / 4, atol=1e-4)
    # Pillow's cubic, too, is Keys' with a = -0.5, and leaves out what lies beyond the edge.
    plane = np.asarray(NOISE[0, :8, :8, 0])
    kind = getattr(Image.Resampling, resize.upper())
    wanted = np.asarray(Image.fromarray(plane).resize((32, 32), kind))
    found = enlarge(jnp.asarray(plane)[None, ..., None], 32, resize)[0, ..., 0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_blur_is_the_papers():
    dot = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(1.0)
    found = gaussian_blur(dot)[0, ..., 0]
    weights = np.exp(-0.5 * (np.array([1, 0, 1]) / 0.6) ** 2)
    weights /= weights.sum()
    np.testing.assert_allclose(found[3:6, 3:6], np.outer(weights, weights), rtol=1e-5)
    assert found.sum().item() == pytest.approx(1) and (found[:3] == 0).all()
    plain = jnp.full((1, 8, 8, 3), 0.7)
    np.testing.assert_allclose(gaussian_blur(plain), plain, rtol=1e-6)  # borders too


def test_bsr_is_random_for_each_picture_and_mild():
    same = jnp.broadcast_to(to_float(SCENE)[None], (16, 32, 32, 3))
    spoil = jax.jit(bsr)
    spoilt = spoil(same, jax.random.key(0))
    assert spoilt.shape == same.shape and jnp.abs(spoilt).max() <= 1
    error = jnp.sqrt(((spoilt - same) ** 2).mean((1, 2, 3)))
    assert (error > 0.01).all() and (error < 0.3).all() and error.std() > 0.005, error
    assert len(np.unique(np.asarray(error))) == 16
    np.testing.assert_array_equal(spoil(same, jax.random.key(0)), spoilt)
    with pytest.raises(ValueError, match="the pictures have 32 x 24 pixels"):
        bsr(same[:, :, :24], jax.random.key(0))


def test_every_way_of_resampling_keeps_a_plain_picture():
    table = degrade._resampling(32)
    assert table.shape == (36, 32, 32)
    np.testing.assert_allclose(table.sum(-1), 1, atol=1e-5)


def test_kernels_keep_the_brightness_and_turn():
    for angle in (0.0, 0.5, 1.5):
        kernel = degrade._kernel(0.8, 0.3, angle)
        assert kernel.sum().item() == pytest.approx(1)
    level, upright = degrade._kernel(0.8, 0.3, 0.0), degrade._kernel(0.8, 0.3, np.pi / 2)
    np.testing.assert_allclose(level, upright.T, atol=1e-6)
    assert level[2, 1] > level[1, 2]


def test_jpeg_is_as_bad_as_jpeg():
    """Pillow's encoder, without halved colours, has the same loss at the same quality."""
    for quality in (60, 90):
        file = io.BytesIO()
        Image.fromarray(SCENE).save(file, "JPEG", quality=quality, subsampling=0)
        wanted = np.asarray(Image.open(file), np.float32)
        ends = (float(quality), quality + 1e-3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(degrade, "QUALITY", ends)
            found = to_pixels(degrade._jpeg(to_float(SCENE), jax.random.key(0)))
        loss = np.sqrt(((wanted - SCENE) ** 2).mean())
        assert np.sqrt(((found - wanted) ** 2).mean()) < 0.4 * loss
