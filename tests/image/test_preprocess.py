"""Pixels to floats and back, what CLIP sees, and grids."""

import numpy as np
import pytest
from golden_rule import _uniform, golden
from PIL import Image

from sdjax.image.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    clip_images,
    grid,
    square,
    to_float,
    to_picture,
    to_pixels,
)


def test_every_pixel_value_survives_the_way_there_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = to_float(pixels)
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(to_pixels(floats), pixels)


def test_values_outside_are_clipped():
    np.testing.assert_array_equal(to_pixels(np.float32([-3, -1, 0, 1, 3])), [0, 0, 128, 255, 255])


def test_a_grid_has_white_gaps_and_empty_places():
    pixels = np.zeros((3, 2, 4, 3), np.uint8)
    picture = np.asarray(grid(pixels, columns=2, gap=1, scale=2))
    assert picture.shape == (2 * (2 + 1 + 2), 2 * (4 + 1 + 4), 3)
    assert (picture[:4, :8] == 0).all() and (picture[:, 8:10] == 255).all()
    assert (picture[6:, 10:] == 255).all()


def test_the_middle_square_is_resized_as_pillow_did():
    """9 x 7 pixels become 5 x 4, of which CLIP's rounding drops the last column."""
    pixels = np.floor((_uniform("input:pil", [7, 9, 3]) + 1) * 128).astype(np.uint8)
    stored = golden("ops")["ops"]["PIL bicubic uint8 9wx7h -> 5wx4h"]
    wanted = np.reshape(stored["data"], stored["shape"])[:, :4]
    np.testing.assert_array_equal(square(Image.fromarray(pixels), 4), wanted)


@pytest.mark.parametrize(("width", "height"), [(7, 10), (10, 7), (1, 60), (8, 8)])
def test_any_image_becomes_a_square(width, height):
    assert square(Image.new("L", (width, height)), 8).shape == (8, 8, 3)


def test_a_square_of_the_right_size_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    np.testing.assert_array_equal(square(Image.fromarray(pixels), 6), pixels)


def test_clip_images_of_all_kinds():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    wanted = (pixels / 255 - CLIP_MEAN) / CLIP_STD
    floats = np.asarray(to_float(pixels))
    for images in (pixels, floats, [Image.fromarray(p) for p in pixels]):
        found = clip_images(images, 6)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_what_is_no_color_image_is_refused():
    with pytest.raises(ValueError, match=r"an image is \[height, width, 3\], got \(6, 6, 4\)"):
        to_picture(np.zeros((6, 6, 4), np.uint8))
    with pytest.raises(ValueError, match=r"float pixels must be in \[-1, 1\], got 0 to 255"):
        to_picture(255.0 * np.eye(6)[..., None].repeat(3, -1))
