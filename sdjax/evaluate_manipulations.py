"""A sheet of what a DALL-E 2 does: pictures of texts by each prior, and pictures changed.

Variations, interpolation and text diffs are the paper's (arXiv 2204.06125, section 3); mixtures,
redrawing, in- and outpainting are not. The captions are held-out ones, chosen once by a seed; what
is changed are two training drawings.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from sdjax import presets
from sdjax.data import emoji
from sdjax.data.captions import caption
from sdjax.evaluate import held_out, load_text_to_image
from sdjax.evaluate_sheet import LINES, wrapped
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
FIRST, LAST = ("red apple", "3d"), ("dog face", "noto")
"""The training drawings that are changed: things and their styles."""
BORDER = 0.125
"""Of a picture's side, that outpainting adds at each border."""

Picture = UInt8[np.ndarray, "height width 3"]
Row = list[Picture]


def draw_manipulations(
    model: str | os.PathLike[str] = "dalle2-mini", *, seed: int = 0
) -> Image.Image:
    """Two rows of held-out captions, one for each prior, and a row for each manipulation.

    Raises:
        ValueError: if the model is no DALL-E 2 of both priors that knows the drawings' styles.
    """
    pipe = load_text_to_image(model)
    if not isinstance(pipe, Unclip) or len(pipe.priors) < 2:
        raise ValueError(f"{model} is no DALL-E 2 with both priors")
    styles = list(pipe.styles or presets.MINI_STYLES)
    for concept, style in (FIRST, LAST):
        if style not in styles:
            raise ValueError(f"{model} knows no {style} style, in which the {concept} is drawn")
    test, order = held_out(styles, COLUMNS, seed)
    captions = [test.captions()[i] for i in order]
    of_texts = {
        f"held-out captions, {name} prior": _arrays(pipe(captions, seed=seed, prior=name))
        for name in pipe.priors
    }
    return labelled({**of_texts, **_of_pictures(pipe, seed)}, captions)


def _of_pictures(pipe: Unclip, seed: int) -> dict[str, Row]:
    apple, dog = (_drawing(pipe, *drawing) for drawing in (FIRST, LAST))
    an_apple, a_dog = caption(*FIRST), caption(*LAST)
    green, cat, bear = (
        caption(thing, style)
        for thing, (_, style) in (("green apple", FIRST), ("cat face", LAST), ("polar bear", LAST))
    )
    thetas = np.linspace(0, MOST_THETA, COLUMNS).tolist()
    side = pipe.config.image_size
    hole = np.arange(side)[:, None].repeat(side, axis=1) >= side // 2
    greener = textdiff(pipe, apple, an_apple, green, thetas)
    feline = textdiff(pipe, dog, a_dog, cat, thetas)
    mixed = mix(pipe, [apple, dog], n=COLUMNS - 2, seed=seed)
    redrawn = translate(pipe, dog, bear, n=COLUMNS - 1, seed=seed)
    filled = inpaint(pipe, apple, hole, an_apple, n=COLUMNS - 2, seed=seed)
    border = round(BORDER * side)
    continued = outpaint(pipe, apple, an_apple, border, n=COLUMNS - 1, seed=seed)
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


def _drawing(pipe: Unclip, concept: str, style: str) -> Picture:
    """A training drawing, in the size that the model draws."""
    data = emoji.load("train", [style])
    image = Image.fromarray(data.images[data.concepts.index(concept)])
    side = pipe.config.image_size
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def _arrays(images: Images) -> Row:
    return [np.asarray(image) for image in images]


def labelled(rows: Mapping[str, Row], captions: Sequence[str]) -> Image.Image:
    """Pictures in rows, each row after its words; captions are those of the columns of the first.

    They stand above it.
    """
    font, step = ImageFont.load_default(TEXT), SIDE + GAP
    top = GAP + LINES * (TEXT + 2)
    width = LABEL + max(map(len, rows.values())) * step
    sheet = Image.new("RGB", (width, top + len(rows) * step), "white")
    pen = ImageDraw.Draw(sheet)

    def write(words: str, x: int, y: int, room: int) -> None:
        pen.text((x, y), "\n".join(wrapped(words, room, font)), fill="black", font=font)

    for j, words in enumerate(captions):
        write(words, LABEL + j * step, GAP // 2, SIDE)
    for i, (words, pictures) in enumerate(rows.items()):
        y = top + i * step
        write(words, GAP, y + SIDE // 3, LABEL - 2 * GAP)
        for j, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(large, (LABEL + j * step, y))
    return sheet
