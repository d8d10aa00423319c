"""The sheet of all manipulations: what each is asked for, and where its pictures are."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_unclip

from sdjax import evaluate_manipulations as sheets
from sdjax.evaluate import held_out
from sdjax.pipelines.images import Images
from sdjax.pipelines.unclip import Unclip

CALLS = ("variations", "interpolate", "textdiff", "mix", "translate", "inpaint", "outpaint")
STEP = sheets.SIDE + sheets.GAP


def pictures(count, value):
    return Images.from_pixels(np.full((count, 16, 16, 3), value, np.uint8), [{}] * count)


def fake(name, asked):
    def call(pipe, *rest, **options):
        asked.append((name, rest, options))
        count = options.get("n") or (8 if name == "textdiff" else rest[-1])
        return pictures(count, 20 * (1 + CALLS.index(name)))

    return call


@pytest.fixture
def drawn(monkeypatch):
    """(the sheet as pixels, what was asked)."""
    asked = []
    pipe = replace(tiny_unclip.make_unclip(), styles=("noto", "3d"))
    pipe = replace(pipe, priors={name: tiny_unclip.near_the_text for name in ("diffusion", "ar")})

    def text_to_image(self, prompt, **options):
        asked.append(("texts", (prompt,), options))
        return pictures(len(prompt), 200)

    monkeypatch.setattr(Unclip, "__call__", text_to_image)
    for name in CALLS:
        monkeypatch.setattr(sheets, name, fake(name, asked))
    monkeypatch.setattr(sheets, "load_text_to_image", lambda model: pipe)
    return np.asarray(sheets.draw_manipulations("here", seed=3)), asked


def test_every_manipulation_has_a_full_row(drawn):
    sheet, asked = drawn
    assert {name for name, *_ in asked} == {"texts", *CALLS}
    top = sheets.GAP + sheets.LINES * (sheets.TEXT + 2)
    assert sheet.shape == (top + 10 * STEP, sheets.LABEL + 8 * STEP, 3)
    for column in range(8):  # its caption
        x = sheets.LABEL + column * STEP
        assert sheet[: top - sheets.GAP, x : x + sheets.SIDE].min() < 100
    middle = top + sheets.SIDE // 2
    last = sheet[middle::STEP, sheets.LABEL + 7 * STEP + sheets.SIDE // 2]
    # Texts by either prior, variations, interpolation, two text diffs, and the rest.
    values = [200, 200, 20, 40, 60, 60, 80, 100, 120, 140]
    np.testing.assert_array_equal(last, np.array(values)[:, None].repeat(3, axis=1))
    for row in range(10):
        words = sheet[top + row * STEP : top + (row + 1) * STEP, : sheets.LABEL - sheets.GAP]
        assert words.min() < 100


def test_both_priors_are_told_the_held_out_captions_and_the_seed_is_used(drawn):
    _, asked = drawn
    test, order = held_out(["noto", "3d"], 8, seed=3)
    of_texts = [call for call in asked if call[0] == "texts"]
    assert [options["prior"] for *_, options in of_texts] == ["diffusion", "ar"]
    for _, (prompts,), options in of_texts:
        assert prompts == [test.captions()[i] for i in order] and options["seed"] == 3
    chosen = {name: options.get("seed") for name, _, options in asked}
    assert {name for name, seed in chosen.items() if seed is None} == {"interpolate", "textdiff"}


def test_the_drawings_and_their_words_go_where_they_belong(drawn):
    _, asked = drawn
    apple, dog = (
        next(rest[i] for name, rest, _ in asked if name == "interpolate") for i in range(2)
    )
    assert apple.shape == dog.shape == (16, 16, 3) and (apple != dog).any()
    diffs = [rest for name, rest, _ in asked if name == "textdiff"]
    assert [rest[1:3] for rest in diffs] == [
        ("a red apple, 3d style", "a green apple, 3d style"),
        ("a dog face, noto style", "a cat face, noto style"),
    ]
    for (picture, *_, thetas), wanted in zip(diffs, (apple, dog), strict=True):
        np.testing.assert_array_equal(picture, wanted)
        np.testing.assert_allclose(thetas, np.linspace(0, 0.5, 8))
    told = {name: rest for name, rest, _ in asked}
    assert told["translate"][1] == "a polar bear, noto style"
    np.testing.assert_array_equal(told["translate"][0], dog)
    for name in ("variations", "inpaint", "outpaint"):
        np.testing.assert_array_equal(told[name][0], apple)
    np.testing.assert_array_equal(told["mix"][0], [apple, dog])


def test_the_lower_half_is_filled_in(drawn):
    _, asked = drawn
    hole = next(rest[1] for name, rest, _ in asked if name == "inpaint")
    assert hole.shape == (16, 16) and hole[8:].all() and not hole[:8].any()
    assert next(rest[-1] for name, rest, _ in asked if name == "outpaint") == 2  # of 16, an eighth


def test_a_model_that_cannot_draw_it_all_is_refused(monkeypatch):
    pipe = replace(tiny_unclip.make_unclip(), priors={"ar": tiny_unclip.near_the_text})
    monkeypatch.setattr(sheets, "load_text_to_image", lambda model: pipe)
    with pytest.raises(ValueError, match="here is no DALL-E 2 with both priors"):
        sheets.draw_manipulations("here")
    both = {name: tiny_unclip.near_the_text for name in ("diffusion", "ar")}
    other = replace(tiny_unclip.make_unclip(), priors=both, styles=("flat", "noto"))
    monkeypatch.setattr(sheets, "load_text_to_image", lambda model: other)
    with pytest.raises(ValueError, match="here knows no 3d style, in which the red apple"):
        sheets.draw_manipulations("here")
