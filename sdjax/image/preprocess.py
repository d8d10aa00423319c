"""Arrays <-> Pillow images, what CLIP sees of them, and grids."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1] over CLIP's training images (openai/CLIP, clip/clip.py)."""


def to_pixels(
    images: Float[Array, "*any"] | Float[np.ndarray, "*any"],
) -> UInt8[np.ndarray, "*any"]:
    """Float images in [-1, 1] (values outside are clipped) to uint8 [0, 255], rounded."""
    values = np.clip(np.asarray(images, np.float32), -1.0, 1.0)
    return np.round((values + 1.0) * 127.5).astype(np.uint8)


def to_float(pixels: UInt8[Array, "*any"] | UInt8[np.ndarray, "*any"]) -> Float[Array, "*any"]:
    """uint8 [0, 255] to float32 [-1, 1]: the inverse of `to_pixels`."""
    return jnp.asarray(pixels).astype(jnp.float32) / 127.5 - 1.0


def to_picture(
    image: Image.Image | UInt8[np.ndarray, "..."] | Float[np.ndarray, "..."],
) -> Image.Image:
    """An RGB Pillow image of any Pillow image, or of pixels: uint8, or float in [-1, 1]."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"an image is [height, width, 3], got {image.shape}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"pixels are uint8, or floats in [-1, 1], got {image.dtype}: convert them")
    if image.dtype != np.uint8 and np.abs(image).max(initial=0) > 2:
        raise ValueError(
            f"float pixels must be in [-1, 1], got {image.min():.4g} to {image.max():.4g}"
        )
    if image.dtype != np.uint8:
        image = to_pixels(image)
    return Image.fromarray(image)


def square(image: Image.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The middle of an image as size x size pixels: shortest side resized, the rest cut off.

    Rounds as CLIP's own preprocessing, torchvision's Resize and CenterCrop, does.
    """
    shortest = min(image.size)
    width, height = (size * side // shortest for side in image.size)
    resized = to_picture(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def normalize(
    pixels: UInt8[np.ndarray, "*any 3"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[np.ndarray, "*any 3"]:
    """uint8 to float32 with the mean and standard deviation, of [0, 1], that a network expects."""
    values = pixels.astype(np.float32) / 255
    return (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def clip_images(
    images: Sequence[Image.Image]
    | UInt8[np.ndarray, "batch height width 3"]
    | Float[np.ndarray, "batch height width 3"],
    size: int,
) -> Float[np.ndarray, "batch {size} {size} 3"]:
    """Images as the published CLIPs were trained on them: `square`, then `normalize`d."""
    pixels = np.stack([square(to_picture(image), size) for image in images])
    return normalize(pixels, CLIP_MEAN, CLIP_STD)


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
