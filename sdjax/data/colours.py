"""The colour that a picture has, and pictures in another one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

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
COLOURFUL = 0.25
"""Difference of the strongest and the weakest of red, green and blue from which a pixel counts."""
LEAST_SHARE = 0.02
"""Of a picture's pixels, by weight, that must be colourful for it to have a colour."""

Pictures = UInt8[np.ndarray, "images height width 3"]


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
