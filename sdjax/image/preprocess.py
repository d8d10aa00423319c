"""Arrays <-> Pillow images, and grids."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image


def to_pixels(
    images: Float[Array, "*any"] | Float[np.ndarray, "*any"],
) -> UInt8[np.ndarray, "*any"]:
    """Float images in [-1, 1] (values outside are clipped) to uint8 [0, 255], rounded."""
    values = np.clip(np.asarray(images, np.float32), -1.0, 1.0)
    return np.round((values + 1.0) * 127.5).astype(np.uint8)


def to_float(pixels: UInt8[Array, "*any"] | UInt8[np.ndarray, "*any"]) -> Float[Array, "*any"]:
    """uint8 [0, 255] to float32 [-1, 1]: the inverse of `to_pixels`."""
    return jnp.asarray(pixels).astype(jnp.float32) / 127.5 - 1.0


def grid(
    pixels: UInt8[np.ndarray, "images height width channels"],
    columns: int,
    gap: int = 2,
    scale: int = 1,
) -> Image.Image:
    """One picture of many, in rows of `columns`, `gap` pixels apart, `scale` times enlarged."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8
    )
    for i, image in enumerate(pixels):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[y : y + height, x : x + width] = image
    picture = Image.fromarray(canvas)
    size = (picture.width * scale, picture.height * scale)
    return picture.resize(size, Image.Resampling.NEAREST) if scale > 1 else picture
