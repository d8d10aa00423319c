"""Does a model put words together? Colours that no caption of training joined with the thing.

The captions are a fixed list: every colour of `COLOURS` with every thing of `THINGS`, the styles in
turn. Every word is known from other captions ("a purple heart", "a cat"), no two are from the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sdjax.data import emoji
from sdjax.evaluate_judge import Judge, judged_hits

HUES = {
    "red": 357,
    "orange": 25,
    "yellow": 47,
    "green": 115,
    "blue": 210,
    "purple": 275,
    "pink": 330,
}
"""Degrees on the circle of colours; a pixel has the colour whose hue is the nearest."""
COLOURS = ("red", "yellow", "green", "blue", "purple")
"""Those asked for; the others are near them and must be told apart."""
THINGS = (
    "butterfly",
    "cactus",
    "cat",
    "dog",
    "fish",
    "guitar",
    "key",
    "mushroom",
    "octopus",
    "umbrella",
)
COLOURFUL = 0.25
"""Difference of the strongest and the weakest of red, green and blue from which a pixel counts."""
LEAST_SHARE = 0.02
"""Of a picture's pixels, by weight, that must be colourful for it to have a colour."""

Pictures = UInt8[np.ndarray, "images height width 3"]


def composed(styles: Sequence[str]) -> list[tuple[str, str, str]]:
    """(colour, thing, style) of every caption of the list."""
    return [
        (colour, thing, styles[(i + j) % len(styles)])
        for i, thing in enumerate(THINGS)
        for j, colour in enumerate(COLOURS)
    ]


def hues(pictures: Pictures) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Hue of every pixel in degrees, and its chroma in [0, 1] (max - min of red, green, blue)."""
    rgb = pictures.astype(np.float32) / 255
    most, chroma = rgb.max(-1), rgb.max(-1) - rgb.min(-1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-6)
    sixth = np.where(
        most == red,
        (green - blue) / safe,
        np.where(most == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return 60 * sixth % 360, chroma


def colour_of(pictures: Pictures) -> list[str]:
    """The colour that most of each picture's colourful pixels have, by chroma; "" is none."""
    hue, chroma = hues(pictures)
    weight = np.where(chroma > COLOURFUL, chroma, 0)
    gap = np.abs(hue[..., None] - np.array(list(HUES.values())))
    nearest = np.minimum(gap, 360 - gap).argmin(-1)
    shares = np.stack([(weight * (nearest == i)).mean((1, 2)) for i in range(len(HUES))], axis=1)
    names = list(HUES)
    enough = shares.sum(1) >= LEAST_SHARE
    return [names[i] if some else "" for i, some in zip(shares.argmax(1), enough, strict=True)]


def recoloured(pictures: Pictures, colours: Sequence[str]) -> Pictures:
    """Every pixel turned to the hue of its picture's colour; lightness and chroma stay."""
    hue = np.array([HUES[colour] for colour in colours], np.float32)[:, None, None, None]
    rgb = pictures.astype(np.float32) / 255
    least, chroma = rgb.min(-1, keepdims=True), np.ptp(rgb, axis=-1, keepdims=True)
    distance = np.abs((hue / 60 - np.array([0, 2, 4]) + 3) % 6 - 3)  # from red, green and blue
    pure = np.clip(2 - distance, 0, 1)
    return np.round(255 * (least + chroma * pure)).astype(np.uint8)


def composition_figures(
    draw: Callable[[list[str]], Pictures],
    judge: Judge,
    styles: Sequence[str],
    candidates: Callable[[list[str]], list[list[str]]],
) -> dict[str, Any]:
    """The figures of a model, as JSON values.

    "colour": the picture has the colour asked for, "concept": the judge finds the thing among its
    candidates, "both": of one picture. "real" is the same of the real drawings, recoloured (the
    judge was trained on most of them, in their own colours); "without_word" of pictures of the
    captions without the colour: what is asked for by chance.

    Args:
        draw: pictures of captions.
        judge: of the concept.
        styles: of the captions.
        candidates: concepts to choose among, the right one first.
    """
    asked = composed(styles)
    colours = [colour for colour, _, _ in asked]
    rows = candidates([thing for _, thing, _ in asked])
    drawings = emoji.load("all", styles)
    pairs = list(zip(drawings.concepts, drawings.styles, strict=True))
    real = drawings.images[[pairs.index((thing, style)) for _, thing, style in asked]]
    pictures = {
        "generated": draw([emoji.caption(f"{c} {thing}", style) for c, thing, style in asked]),
        "real": recoloured(real, colours),
        "without_word": draw([emoji.caption(thing, style) for _, thing, style in asked]),
    }
    right = {name: _right(judge, x, colours, rows) for name, x in pictures.items()}
    return {"captions": len(asked)} | {
        figure: {name: round(float(found[figure].mean()), 3) for name, found in right.items()}
        for figure in ("colour", "concept", "both")
    }


def _right(
    judge: Judge, pictures: Pictures, colours: Sequence[str], candidates: list[list[str]]
) -> dict[str, Bool[np.ndarray, " images"]]:
    colour = np.array([a == b for a, b in zip(colour_of(pictures), colours, strict=True)])
    concept = judged_hits(judge, judge.read(pictures), candidates)
    return {"colour": colour, "concept": concept, "both": colour & concept}
