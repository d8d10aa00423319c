"""Drawings made of drawings, with true captions: mirrored ones, and some in another colour."""

from dataclasses import replace

import numpy as np

from sdjax.data.colours import HUES, colour_of, recoloured
from sdjax.data.emoji import EmojiSet

UNCOLOURED = (
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
"""Things that keep their colours here: `sdjax.evaluate_composition` asks for them in others."""
COLOUR_WORDS = frozenset(
    """black blond blue bronze brown gold golden green grey orange pink purple rainbow red silver
    white yellow""".split()
)
"""A drawing whose label has one of these is what it says in this colour only."""
WRITTEN = frozenset(
    """bus calendar chart clock crescent dollar dvd euro globe hundred map mark medal moon musical
    newspaper note notes score sign stop zzz""".split()
)
"""Words of labels whose drawings are not the same in a mirror, besides those of all symbols."""
RECOLOURED = 2
"""New colours that a drawing is given."""
SEED = 11
"""First word of the NumPy seed of the colours."""


def mirrored(data: EmojiSet) -> EmojiSet:
    """Every drawing in a mirror, but symbols and what is written or points one way."""
    rows = [
        i
        for i, concept in enumerate(data.concepts)
        if data.groups[concept] != "symbols" and not WRITTEN & set(concept.split())
    ]
    return replace(_take(data, rows), images=data.images[rows][:, :, ::-1].copy())


def in_other_colours(data: EmojiSet, seed: int) -> EmojiSet:
    """Drawings in `RECOLOURED` colours that they do not have: "purple fox".

    Left out are those without colour, those whose label names one, and `UNCOLOURED` with all that
    has them in its label ("cat face").
    """
    rng = np.random.default_rng((SEED, seed))
    fixed = COLOUR_WORDS | set(UNCOLOURED)
    rows, colours = [], []
    for i, own in enumerate(colour_of(data.images)):
        if own and not fixed & set(data.concepts[i].split()):
            others = [colour for colour in HUES if colour != own]
            rows += [i] * RECOLOURED
            colours += rng.choice(others, RECOLOURED, replace=False).tolist()
    images = recoloured(data.images[rows], colours)
    right = [i for i, found in enumerate(colour_of(images)) if found == colours[i]]
    named = [(colours[i], data.concepts[rows[i]]) for i in right]
    concepts = tuple(f"{colour} {thing}" for colour, thing in named)
    return EmojiSet(
        images=images[right],
        concepts=concepts,
        styles=tuple(data.styles[rows[i]] for i in right),
        tags=dict.fromkeys(concepts, ()),  # those of the thing may name its own colour
        groups={f"{c} {thing}": data.groups[thing] for c, thing in named},
    )


def joined(*sets: EmojiSet) -> EmojiSet:
    """The drawings of all sets, one after the other."""
    return EmojiSet(
        images=np.concatenate([data.images for data in sets]),
        concepts=tuple(concept for data in sets for concept in data.concepts),
        styles=tuple(style for data in sets for style in data.styles),
        tags={concept: tags for data in sets for concept, tags in data.tags.items()},
        groups={concept: group for data in sets for concept, group in data.groups.items()},
    )


def _take(data: EmojiSet, rows: list[int]) -> EmojiSet:
    return replace(
        data,
        images=data.images[rows],
        concepts=tuple(data.concepts[i] for i in rows),
        styles=tuple(data.styles[i] for i in rows),
    )
