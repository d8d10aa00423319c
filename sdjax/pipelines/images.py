"""What a pipeline returns: Pillow images with their recipe, shown as one picture in a notebook."""

import io
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdjax.image.preprocess import grid

RECIPE = "sdjax"
"""Name of the PNG text chunk, and of the key in `image.info`, that holds the recipe as JSON."""


class Images(list[Image.Image]):
    """A list of Pillow images. As the last value of a notebook cell it shows itself as a grid."""

    @classmethod
    def from_pixels(
        cls,
        pixels: UInt8[np.ndarray, "batch height width channels"],
        recipes: Sequence[Mapping[str, Any]],
    ) -> "Images":
        """Images from arrays; recipe i goes into `info` of image i."""
        images = cls(Image.fromarray(array) for array in pixels)
        for image, recipe in zip(images, recipes, strict=True):
            image.info[RECIPE] = dict(recipe)
        return images

    def __getitem__(self, index: Any) -> Any:  # a part of it shows itself too
        found = super().__getitem__(index)
        return Images(found) if isinstance(index, slice) else found

    def grid(self, columns: int | None = None, scale: int = 1) -> Image.Image:
        """All images as one picture, in rows of `columns` (default: about square)."""
        columns = columns or int(np.ceil(np.sqrt(len(self))))
        picture = grid(np.stack([np.asarray(image) for image in self]), columns, scale=scale)
        picture.info[RECIPE] = [image.info.get(RECIPE) for image in self]
        return picture

    def _repr_png_(self) -> bytes:
        """PNG for notebooks; small images are enlarged, pixel by pixel."""
        scale = max(1, 192 // self[0].height)
        buffer = io.BytesIO()
        self.grid(scale=scale).save(buffer, format="png")
        return buffer.getvalue()


def webui_text(recipes: Sequence[Mapping[str, Any]]) -> str:
    """The recipe in the form that Stable Diffusion web interfaces write and read."""
    first = recipes[0]
    lines = [str(first["prompt"])]
    if first["negative"]:
        lines.append(f"Negative prompt: {first['negative']}")
    seeds = " ".join(str(recipe["seed"]) for recipe in recipes)
    settings = (
        f"Steps: {first['steps']}, Sampler: {first['sampler']}, CFG scale: {first['guidance']}, "
        f"Seed: {seeds}, Size: {first['width']}x{first['height']}, Model: {first['model']}, "
    )
    if "image_sha256" in first:
        settings += f"Denoising strength: {first['strength']}, "
        settings += f"Init image hash: {first['image_sha256'][:10]}, "
    if "latents_sha256" in first:
        hashes = " ".join(recipe["latents_sha256"][:10] for recipe in recipes)
        settings += f"Noise hash: {hashes}, "
    lines.append(f"{settings}Version: sdjax {version('sdjax')}")
    return "\n".join(lines)


def check_png(path: Path) -> None:
    """Refuse a file that `save_png` could not write, before any work is done.

    Raises:
        ValueError: if the name does not end in .png.
        FileNotFoundError: if the folder does not exist.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} must end in .png: the recipe is stored in PNG text")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG with its recipe in text chunks ("parameters" and "sdjax"), whole or not at all.

    Raises:
        ValueError, FileNotFoundError: see `check_png`.
    """
    check_png(path)
    found = image.info.get(RECIPE)
    recipes = [found] if isinstance(found, Mapping) else found
    chunks = PngInfo()
    if recipes:
        chunks.add_text("parameters", webui_text(recipes))
        chunks.add_text(RECIPE, json.dumps({"version": version("sdjax"), "images": recipes}))
    partial = path.with_name(f".{path.name}.partial")
    try:
        image.save(partial, format="png", pnginfo=chunks)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_recipe(path: Path) -> list[dict[str, Any]]:
    """The recipes of the images in a PNG that `save_png` wrote.

    Raises:
        ValueError: if the file holds none.
    """
    with Image.open(path) as image:
        text = getattr(image, "text", {}).get(RECIPE)
    if text is None:
        raise ValueError(f"{path} holds no sdjax recipe")
    return json.loads(text)["images"]
