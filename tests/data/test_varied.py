"""Drawings made of drawings, whose captions must be true."""

import re

import numpy as np
import pytest

from sdjax import presets
from sdjax.data import emoji
from sdjax.data.colours import HUES, colour_of
from sdjax.data.varied import COLOUR_WORDS, UNCOLOURED, in_other_colours, joined, mirrored


@pytest.fixture(scope="module")
def drawings():
    """Every 17th drawing, and those whose labels decide something."""
    data = emoji.load("train", presets.MINI_STYLES)
    words = {"cat", "red", "calendar", "up"}
    rows = [
        i for i, concept in enumerate(data.concepts) if i % 17 == 0 or words & set(concept.split())
    ]
    return emoji.EmojiSet(
        data.images[rows],
        tuple(data.concepts[i] for i in rows),
        tuple(data.styles[i] for i in rows),
        data.tags,
        data.groups,
    )


@pytest.fixture(scope="module")
def recoloured(drawings):
    return in_other_colours(drawings, 0)


def rows_of(data):
    return {pair: i for i, pair in enumerate(zip(data.concepts, data.styles, strict=True))}


def test_a_mirrored_drawing_has_its_caption(drawings):
    found, rows = mirrored(drawings), rows_of(drawings)
    assert 0.8 * len(drawings) < len(found) < len(drawings)
    for image, *pair in zip(found.images, found.concepts, found.styles, strict=True):
        np.testing.assert_array_equal(image[:, ::-1], drawings.images[rows[tuple(pair)]])


def test_what_is_written_or_a_symbol_has_no_mirror(drawings):
    left = set(drawings.concepts) - set(mirrored(drawings).concepts)
    assert {"calendar", "tear-off calendar", "red question mark", "red triangle pointed up"} <= left
    assert {drawings.groups[concept] for concept in left} > {"symbols"}


def test_a_recoloured_drawing_is_called_by_its_colour_and_has_it(drawings, recoloured):
    rows = rows_of(drawings)
    assert len(recoloured) > len(drawings)
    assert colour_of(recoloured.images) == [name.split()[0] for name in recoloured.concepts]
    for image, name, style in zip(
        recoloured.images, recoloured.concepts, recoloured.styles, strict=True
    ):
        colour, thing = name.split(" ", 1)
        own = drawings.images[rows[thing, style]]
        assert colour in HUES and colour_of(own[None]) != [colour]
        assert np.abs(image.max(-1).astype(int) - own.max(-1)).max() <= 1  # light stays
        assert recoloured.tags[name] == ()
        assert recoloured.groups[name] == drawings.groups[thing]
    assert {name.split()[0] for name in recoloured.concepts} == set(HUES)
    assert len(rows_of(recoloured)) == len(recoloured)  # a drawing's new colours differ


def test_no_colour_is_put_on_what_has_one_in_its_label_or_is_asked_for_in_colours(
    drawings, recoloured
):
    words = [set(name.split(" ", 1)[1].split()) for name in recoloured.concepts]
    assert {"cat face", "red heart"} <= set(drawings.concepts)
    assert not any(found & (COLOUR_WORDS | set(UNCOLOURED)) for found in words)
    labels = " ".join(emoji.load("all").concepts)
    assert all(re.search(rf"\b{word}\b", labels) for word in UNCOLOURED)


def test_colours_are_drawn_anew_for_each_seed(drawings, recoloured):
    assert in_other_colours(drawings, 0).concepts == recoloured.concepts
    assert in_other_colours(drawings, 1).concepts != recoloured.concepts


def test_sets_are_laid_end_to_end(drawings, recoloured):
    both = joined(drawings, recoloured)
    assert both.captions() == drawings.captions() + recoloured.captions()
    np.testing.assert_array_equal(both.images[len(drawings) :], recoloured.images)
    assert both.tags == drawings.tags | recoloured.tags
    assert both.groups == drawings.groups | recoloured.groups
