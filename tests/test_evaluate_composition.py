"""Colours put on things: the list of captions, the measure of colour, and what is counted."""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import presets
from sdjax.data import emoji
from sdjax.evaluate_composition import (
    COLOURS,
    HUES,
    THINGS,
    colour_of,
    composed,
    composition_figures,
    hues,
    recoloured,
)
from sdjax.evaluate_judge import Judge
from sdjax.image.judge import Verdict

STYLES = presets.MINI_STYLES


@pytest.fixture(scope="module")
def drawings():
    return emoji.load("all", STYLES)


def filled(rgb):
    return np.full((1, 8, 8, 3), rgb, np.uint8)


@pytest.mark.parametrize(
    ("rgb", "hue", "chroma"),
    [
        ((255, 0, 0), 0, 1),
        ((0, 255, 0), 120, 1),
        ((0, 0, 255), 240, 1),
        ((255, 255, 0), 60, 1),
        ((255, 0, 51), 348, 1),
        ((102, 51, 51), 0, 0.2),
        ((90, 90, 90), 0, 0),
    ],
)
def test_the_hue_of_a_pixel(rgb, hue, chroma):
    found = hues(filled(rgb))
    assert found[0][0, 0, 0] == pytest.approx(hue, abs=0.01)
    assert found[1][0, 0, 0] == pytest.approx(chroma, abs=1e-3)


def test_a_picture_has_the_colour_of_most_of_it_and_white_has_none():
    picture = np.concatenate([filled((220, 40, 50)), filled((60, 130, 240))], axis=2)
    assert colour_of(picture[:, :, :10]) == ["red"]
    assert colour_of(picture[:, :, 6:]) == ["blue"]
    assert colour_of(np.concatenate([filled(255), filled((40, 30, 35))])) == ["", ""]


def test_the_colours_of_real_things_are_named_as_their_captions_say(drawings):
    rows = [
        i for i, concept in enumerate(drawings.concepts)
        if re.fullmatch(f"({'|'.join(COLOURS)}) (heart|circle|square|apple|book)", concept)
    ]  # fmt: skip
    found = colour_of(drawings.images[rows])
    right = [a == drawings.concepts[i].split()[0] for a, i in zip(found, rows, strict=True)]
    assert len(rows) > 60 and np.mean(right) > 0.93


@pytest.mark.parametrize("colour", HUES)
def test_recoloured_pictures_have_the_hue_and_keep_light_and_chroma(colour, drawings):
    pictures = drawings.images[::97]
    found = recoloured(pictures, [colour] * len(pictures))
    hue, chroma = hues(found)
    gap = np.abs(hue - HUES[colour])
    assert np.minimum(gap, 360 - gap)[chroma > 0.1].max() < 4  # 8 bits
    for reduce in (np.min, np.max):
        gap = reduce(found, -1).astype(int) - reduce(pictures, -1).astype(int)
        assert np.abs(gap).max() <= 1


def test_no_caption_of_training_joins_a_colour_with_its_thing():
    data = emoji.load("all")
    asked = composed(STYLES)
    assert len(asked) == len(set(asked)) == len(THINGS) * len(COLOURS)
    assert {style for _, _, style in asked} == set(STYLES)
    texts = [
        set(re.findall(r"[a-z]+", text))
        for concept, tags in data.tags.items()
        for text in emoji.caption_variants(concept, tags)
    ]
    for colour, thing in itertools.product(COLOURS, THINGS):
        assert not [text for text in texts if {colour, thing} <= text], (colour, thing)
        assert any(colour in text for text in texts) and any(thing in text for text in texts)


class OneThing(Judge):
    """A judge that sees the first candidate in real drawings, and never in a black picture."""

    def __init__(self):
        pass

    def read(self, pictures):
        black = (pictures == 0).all((1, 2, 3))
        nothing = jnp.zeros((len(pictures), 1))
        return Verdict(nothing, jnp.stack([~black, black], axis=1).astype(float), nothing)

    def columns(self, concepts):
        return list(range(len(concepts)))


def test_what_is_counted(drawings):
    pairs = list(zip(drawings.concepts, drawings.styles, strict=True))
    asked = composed(STYLES)
    calls = []

    def draw(captions):
        calls.append(captions)
        rows = [pairs.index((thing, style)) for _, thing, style in asked]
        pictures = recoloured(drawings.images[rows], [colour for colour, _, _ in asked])
        pictures[:10] = 0
        if len(calls) == 2:
            pictures[:] = 0
        return pictures

    found = composition_figures(draw, OneThing(), STYLES, lambda things: [[t, ""] for t in things])
    assert calls[0][:2] == ["a red butterfly, noto style", "a yellow butterfly, twemoji style"]
    assert calls[1][:2] == ["a butterfly, noto style", "a butterfly, twemoji style"]
    assert found["captions"] == 50
    assert found["colour"] == {"generated": 0.8, "real": 1.0, "without_word": 0.0}
    assert found["both"] == {"generated": 0.8, "real": 1.0, "without_word": 0.0}
    assert found["concept"] == {"generated": 0.8, "real": 1.0, "without_word": 0.0}
