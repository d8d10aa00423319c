import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from sdjax import presets, viz
from sdjax.diffusion.samplers import sampling_plan
from sdjax.image.preprocess import grid
from sdjax.pipelines.images import Images


def pictures(count):
    """Of few colours, so that none is lost."""
    palette = np.array([[0, 0, 0], [200, 30, 40], [90, 120, 255]], np.uint8)
    return palette[np.random.default_rng(0).integers(0, 3, (count, 64, 64))]


def pixels_of(picture):
    return np.asarray(picture.convert("RGB"))


def test_a_grid_shows_every_pixel_enlarged():
    pixels = pictures(5)
    shown = pixels_of(viz.show_grid(pixels, columns=3))
    np.testing.assert_array_equal(shown, np.asarray(grid(pixels, 3, viz.GAP, 2)))


def test_titles_are_beside_the_pictures():
    pixels = pictures(4)
    bare = pixels_of(viz.show_grid(pixels, columns=2))
    titled = pixels_of(viz.show_grid(pixels, ["a", "b"], 2, ["above", "below"]))
    height, width = bare.shape[:2]
    np.testing.assert_array_equal(titled[-height:, -width:], bare)
    above, beside = titled[:-height, -width:], titled[-height:, :-width]
    assert (above < 128).any() and (beside < 128).any()


def test_pillow_images_are_shown_as_well():
    pixels = pictures(2)
    images = Images.from_pixels(pixels, [{}, {}])
    np.testing.assert_array_equal(
        pixels_of(viz.show_grid(images)), pixels_of(viz.show_grid(pixels))
    )


def test_a_wrong_number_of_titles_is_refused():
    with pytest.raises(ValueError, match="3 titles for a grid of 2 rows, 2 columns"):
        viz.show_grid(pictures(4), ["a", "b", "c"], 2)
    with pytest.raises(ValueError, match="1 row_titles"):
        viz.show_grid(pictures(4), columns=2, row_titles=["a"])


def test_a_trajectory_is_a_row_of_what_is_and_a_row_of_what_is_expected():
    noisy, predicted = pictures(6)[:3], pictures(6)[3:]
    shown = pixels_of(viz.show_trajectory(noisy, predicted, [1, 15, 30]))
    wanted = np.asarray(grid(pictures(6), 3, viz.GAP, 2))
    height, width = wanted.shape[:2]
    np.testing.assert_array_equal(shown[-height:, -width:], wanted)


def test_a_schedule_marks_the_times_visited():
    schedule = presets.MINI_SCHEDULE
    plan = sampling_plan(schedule, 30, 50, spacing="trailing")
    without = pixels_of(viz.show_schedule(schedule))
    marked = pixels_of(viz.show_schedule(schedule, plan))

    def black_in_the_lower_right(pixels):  # where the curves are far from text and axes
        return (pixels[150:195, 300:440].max(axis=-1) < 60).sum()

    assert black_in_the_lower_right(without) == 0
    assert black_in_the_lower_right(marked) > 20


def test_figures_are_small_enough_to_be_stored():
    picture = viz.show_grid(np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8))
    assert picture.mode == "P"
    assert len(picture.getcolors()) <= viz.COLOURS
    with Image.open(io.BytesIO(picture._repr_png_())) as stored:
        np.testing.assert_array_equal(pixels_of(stored), pixels_of(picture))


def test_any_figure_is_shown_once_and_small():
    figure, axes = plt.subplots(figsize=(4, 2))
    axes.plot(np.sin(np.arange(50) / 5))
    axes.set_ylabel("sine")
    picture = viz.show_figure(figure)
    assert not plt.get_fignums()
    assert 240 < picture.width < 320 and 100 < picture.height < 160  # 80 pixels an inch
    assert len(picture._repr_png_()) < 0.8 * len(Image.Image._repr_png_(picture))
    blue = (pixels_of(picture)[..., 2] > 150) & (pixels_of(picture)[..., 0] < 80)
    assert blue.sum() > 100
