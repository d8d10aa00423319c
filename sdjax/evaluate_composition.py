"""Does a model put words together? Colours that no caption of training joined with the thing.

The captions are a fixed list: every colour of `COLOURS` with every thing of `THINGS`, the styles in
turn. Every word is known from other captions ("a purple heart", "a cat"), no two are from the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from sdjax.data import emoji
from sdjax.data.colours import Pictures, colour_of, recoloured
from sdjax.data.varied import UNCOLOURED as THINGS
from sdjax.evaluate_judge import Judge, judged_hits

COLOURS = ("red", "yellow", "green", "blue", "purple")
"""Those asked for; the others are near them and must be told apart."""


def composed(styles: Sequence[str]) -> list[tuple[str, str, str]]:
    """(colour, thing, style) of every caption of the list."""
    return [
        (colour, thing, styles[(i + j) % len(styles)])
        for i, thing in enumerate(THINGS)
        for j, colour in enumerate(COLOURS)
    ]


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
