"""A sheet of held-out captions, chosen once by a seed, with the words under the pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from sdjax import presets
from sdjax.evaluate import generate, held_out, load_text_to_image

CAPTIONS, COLUMNS = 64, 8
SCALE = 2
"""Pixels on the sheet, each way, for one of the picture's."""
GAP = 8
"""Between pictures, in pixels of the sheet."""
TEXT, LINES = 11, 3
"""Height of the letters in pixels, and lines under each picture."""
SUFFIXES = (".png", ".webp")

Pictures = UInt8[np.ndarray, "images height width 3"]


def draw_sheet(
    model: str | os.PathLike[str] = "mini", *, seed: int = 0, quiet: bool = False, **settings: Any
) -> Image.Image:
    """The first `CAPTIONS` of the captions that `evaluate` asks for, as it draws them.

    Raises:
        ValueError: if the model does not draw from a text.
    """
    pipe = load_text_to_image(model)
    test, order = held_out(list(pipe.styles or presets.MINI_STYLES), CAPTIONS, seed)
    captions = [test.captions()[i] for i in order]
    return captioned(generate(pipe, captions, seed=seed, quiet=quiet, **settings), captions)


def captioned(pictures: Pictures, captions: Sequence[str]) -> Image.Image:
    """Pictures in rows of `COLUMNS`, enlarged `SCALE` times, each above its caption."""
    side = SCALE * pictures.shape[1]
    font = ImageFont.load_default(TEXT)
    step_x, step_y = side + GAP, side + GAP + LINES * (TEXT + 2)
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * step_x + GAP, rows * step_y + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = GAP + i % COLUMNS * step_x, GAP + i // COLUMNS * step_y
        large = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(large, (x, y))
        for line, words in enumerate(wrapped(caption, side, font)[:LINES]):
            pen.text((x, y + side + 2 + line * (TEXT + 2)), words, fill="black", font=font)
    return sheet


def wrapped(text: str, width: int, font: Any) -> list[str]:
    """The words of a text in lines of at most `width` pixels; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def check_sheet(path: Path) -> None:
    """Refuse a file that `save_sheet` could not write, before any work is done.

    Raises:
        ValueError: if the name does not end like one of `SUFFIXES`.
        FileNotFoundError: if the folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet, whole or not at all, as PNG or as WebP, which is several times smaller."""
    check_sheet(path)
    kind = path.suffix.lower()[1:]
    partial = path.with_name(f".{path.name}.partial")
    try:
        sheet.save(partial, format=kind, **({"quality": 85} if kind == "webp" else {}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
