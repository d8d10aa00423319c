"""Figures for the notebooks: grids of pictures, trajectories, schedules, and any by Matplotlib.

Every function returns a Pillow image, which shows itself as the last value of a notebook cell.
Because notebooks store their figures, it has few colours and is stored in few bytes. Matplotlib,
which is in the extra "notebooks", is imported only when a figure is drawn.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sdjax.config import Schedule
from sdjax.diffusion.samplers import Plan
from sdjax.diffusion.schedule import alpha_bars
from sdjax.image.preprocess import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = UInt8[np.ndarray, "images height width channels"]

DPI = 80
COLOURS = 128
GAP = 4
"""White pixels between the pictures of a grid, before enlargement."""
SMALLEST = 96
"""Pictures are enlarged by a whole factor until they are at least this high, in figure pixels."""
TITLE_HEIGHT, LETTER_WIDTH = 20, 8
"""Figure pixels of a line of text above a grid, and of a letter to its left."""


def show_grid(
    images: Pixels | Sequence[Image.Image],
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    row_titles: Sequence[str] | None = None,
) -> Image.Image:
    """Pictures in rows of `columns` (default: one row), each pixel enlarged to a square.

    Args:
        images: uint8 [images, height, width, channels], or Pillow images of one size.
        titles: one for each column.
        columns: pictures in a row.
        row_titles: one for each row.

    Raises:
        ValueError: if there are not as many titles as columns, or row titles as rows.
    """
    pixels = np.stack([np.asarray(image) for image in images])
    height, width = pixels.shape[1:3]
    columns = len(images) if columns is None else columns
    rows = -(-len(images) // columns)
    for what, words, wanted in (("titles", titles, columns), ("row_titles", row_titles, rows)):
        if words is not None and len(words) != wanted:
            raise ValueError(f"{len(words)} {what} for a grid of {rows} rows, {columns} columns")
    scale = -(-SMALLEST // height)
    canvas = np.asarray(grid(pixels, columns, GAP, scale))
    left = LETTER_WIDTH * max((len(word) for word in row_titles or ()), default=0)
    top = TITLE_HEIGHT if titles else 0
    figure, axes = _figure(left + canvas.shape[1], top + canvas.shape[0], left, top)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    across, down = scale * (width + GAP), scale * (height + GAP)
    axes.set_xticks(scale * width / 2 + across * np.arange(len(titles or ())), titles or ())
    axes.set_yticks(scale * height / 2 + down * np.arange(len(row_titles or ())), row_titles or ())
    axes.spines[:].set_visible(False)
    return _drawn(figure)


def show_trajectory(noisy: Pixels, predicted: Pixels, steps: Sequence[int]) -> Image.Image:
    """One image on its way: x decoded above, the predicted x0 decoded below, a column a step.

    Args:
        noisy: uint8 [steps, height, width, 3], what the step left.
        predicted: the same shape, what the network took to be the clean image.
        steps: their numbers.
    """
    titles = [f"step {step}" for step in steps]
    both = np.concatenate([noisy, predicted])
    return show_grid(both, titles, len(titles), ["x", "predicted x0"])


def show_schedule(schedule: Schedule, plan: Plan | None = None) -> Image.Image:
    """How much signal and how much noise x_t holds at each time; dots where `plan` stops."""
    figure, axes = _figure(480, 240, left=40, top=10, right=10, bottom=40)
    ab = alpha_bars(schedule)
    axes.plot(np.sqrt(ab), label="signal, sqrt(ab)")
    axes.plot(np.sqrt(1 - ab), label="noise, sqrt(1 - ab)")
    if plan is not None:
        calls, made = plan.calls, np.asarray(plan.calls.active)
        times, signal = np.asarray(calls.timestep)[made], np.asarray(calls.alpha)[made]
        axes.plot(times, signal, "k.", label="visited by the sampler")
    axes.set_xlabel("time t")
    axes.legend(fontsize=8, loc="center right")
    return _drawn(figure)


def show_figure(figure: "Figure") -> Image.Image:
    """What a figure of Matplotlib shows, without its margins.

    The figure is closed, or the notebook would show and store it a second time.
    """
    from matplotlib import pyplot

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight")
    pyplot.close(figure)
    return _small(Image.open(file).convert("RGB"))


def _figure(
    width: int, height: int, left: int, top: int, right: int = 0, bottom: int = 0
) -> tuple["Figure", "Axes"]:
    """A figure of width x height pixels with one axes inside these margins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    inside = (width - left - right) / width, (height - top - bottom) / height
    return figure, figure.add_axes((left / width, bottom / height, *inside))


def _drawn(figure: "Figure") -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _small(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))


class Drawing(Image.Image):
    """A picture that a notebook stores in few bytes: of itself Pillow would hardly compress it."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.save(file, format="png", optimize=True)
        return file.getvalue()


def _small(picture: Image.Image) -> Image.Image:
    # Median cut, Pillow's default, would tint the text with the colours of the pictures.
    few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.__class__ = Drawing
    return few
