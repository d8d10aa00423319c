"""A sheet of all that a DALL-E 2 does: pictures of texts by each prior, and pictures changed.

The captions are held-out ones, chosen once by a seed; what is changed are two training drawings.
"""

import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from sdjax import presets
from sdjax.data import emoji
from sdjax.data.captions import caption
from sdjax.evaluate import held_out, load_text_to_image
from sdjax.evaluate_sheet import wrapped
from sdjax.pipelines.images import Images
from sdjax.pipelines.manipulate import (
    MOST_THETA,
    inpaint,
    interpolate,
    mix,
    outpaint,
    textdiff,
    translate,
    variations,
)
from sdjax.pipelines.unclip import Unclip

COLUMNS = 8
SIDE, GAP = 128, 8
"""Of a picture and between pictures, in pixels of the sheet."""
LABEL, TEXT = 120, 12
"""Width of the words before a row, and height of their letters."""
FIRST, LAST, STYLE = "red apple", "dog face", "3d"
"""The training drawings that are changed."""
BORDER = 0.125
"""Of a picture's side, that outpainting adds at each border."""

Picture = UInt8[np.ndarray, "height width 3"]
Row = list[Picture]


def draw_manipulations(
    model: str | os.PathLike[str] = "dalle2-mini", *, seed: int = 0
) -> Image.Image:
    """Two rows of held-out captions, one for each prior, and a row for each manipulation.

    Raises:
        ValueError: if the model is no DALL-E 2 of both priors.
    """
    pipe = load_text_to_image(model)
    if not isinstance(pipe, Unclip) or len(pipe.priors) < 2:
        raise ValueError(f"{model} is no DALL-E 2 with both priors")
    return labelled({**_of_texts(pipe, seed), **_of_pictures(pipe, seed)})


def _of_texts(pipe: Unclip, seed: int) -> dict[str, Row]:
    test, order = held_out(list(pipe.styles or presets.MINI_STYLES), COLUMNS, seed)
    captions = [test.captions()[i] for i in order]
    return {
        f"held-out captions, {name} prior": _arrays(pipe(captions, seed=seed, prior=name))
        for name in pipe.priors
    }


def _of_pictures(pipe: Unclip, seed: int) -> dict[str, Row]:
    apple, dog = (_drawing(pipe, thing) for thing in (FIRST, LAST))
    words = {thing: caption(thing, STYLE) for thing in (FIRST, LAST, "green apple", "cat face")}
    bear, thetas = caption("polar bear", STYLE), np.linspace(0, MOST_THETA, COLUMNS).tolist()
    half = pipe.config.image_size // 2
    hole = np.arange(2 * half)[:, None].repeat(2 * half, axis=1) >= half
    greener = textdiff(pipe, apple, words[FIRST], words["green apple"], thetas)
    feline = textdiff(pipe, dog, words[LAST], words["cat face"], thetas)
    mixed = mix(pipe, [apple, dog], n=COLUMNS - 2, seed=seed)
    redrawn = translate(pipe, dog, bear, n=COLUMNS - 1, seed=seed)
    filled = inpaint(pipe, apple, hole, words[FIRST], n=COLUMNS - 2, seed=seed)
    border = round(BORDER * pipe.config.image_size)
    continued = outpaint(pipe, apple, words[FIRST], border, n=COLUMNS - 1, seed=seed)
    return {
        "variations": [apple, *_arrays(variations(pipe, apple, COLUMNS - 1, seed=seed))],
        "interpolation": _arrays(interpolate(pipe, apple, dog, COLUMNS)),
        "text diff to a green apple": _arrays(greener),
        "text diff to a cat face": _arrays(feline),
        "mixture": [apple, dog, *_arrays(mixed)],
        "redrawn as a polar bear": [dog, *_arrays(redrawn)],
        "inpainting": [apple, np.where(hole[..., None], np.uint8(128), apple), *_arrays(filled)],
        "outpainting": [apple, *_arrays(continued)],
    }


def _drawing(pipe: Unclip, concept: str) -> Picture:
    """A training drawing, in the size that the model draws."""
    data = emoji.load("train", [STYLE])
    image = Image.fromarray(data.images[data.concepts.index(concept)])
    return np.asarray(image.resize((pipe.config.image_size,) * 2, Image.Resampling.BICUBIC))


def _arrays(images: Images) -> Row:
    return [np.asarray(image) for image in images]


def labelled(rows: Mapping[str, Row]) -> Image.Image:
    """Pictures in rows, each row after its words."""
    font, step = ImageFont.load_default(TEXT), SIDE + GAP
    width = LABEL + max(map(len, rows.values())) * step
    sheet = Image.new("RGB", (width, len(rows) * step + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (words, pictures) in enumerate(rows.items()):
        top = GAP + i * step
        pen.text(
            (GAP, top + SIDE // 3), "\n".join(wrapped(words, LABEL - 2 * GAP, font)), "black", font
        )
        for j, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(large, (LABEL + j * step, top))
    return sheet
