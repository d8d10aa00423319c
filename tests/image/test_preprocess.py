"""Pixels to floats and back, and grids."""

import numpy as np

from sdjax.image.preprocess import grid, to_float, to_pixels


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
