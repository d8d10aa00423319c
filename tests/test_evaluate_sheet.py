"""The sheet of held-out captions: which they are, and what is under the pictures."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from sdjax import evaluate_sheet
from sdjax.data import emoji
from sdjax.evaluate import held_out
from sdjax.evaluate_sheet import captioned, check_sheet, draw_sheet, save_sheet, wrapped
from sdjax.pipelines.models import BUNDLED

FONT = ImageFont.load_default(11)
STYLES = ["noto", "twemoji", "flat", "3d"]


def test_a_smaller_count_asks_for_the_first_of_a_larger():
    test, few = held_out(STYLES, 64, seed=0)
    _, many = held_out(STYLES, 200, seed=0)
    assert (few == many[:64]).all() and len(set(many)) == 200
    assert (held_out(STYLES, 64, seed=1)[1] != few).any()
    assert test.captions() == emoji.load("test", STYLES).captions()
    with pytest.raises(ValueError, match="count must be between 1 and 262, got 263"):
        held_out(STYLES, 263, seed=0)


def test_words_are_laid_in_lines():
    text = "a person in a motorized wheelchair, twemoji style"
    lines = wrapped(text, 128, FONT)
    assert " ".join(lines) == text and len(lines) > 1
    assert all(FONT.getlength(line) <= 128 for line in lines)
    assert wrapped("a wheelchair", 1, FONT) == ["a", "wheelchair"]


def test_every_caption_of_the_data_fits_under_its_picture():
    for caption in emoji.load("test", STYLES).captions():
        assert len(wrapped(caption, 128, FONT)) <= evaluate_sheet.LINES, caption


def test_pictures_and_letters_are_where_they_belong():
    pictures = np.full((9, 64, 64, 3), 200, np.uint8)
    pictures[8] = 10
    sheet = np.asarray(captioned(pictures, ["a cat, 3d style"] * 9))
    assert (sheet[8:136, 8:136] == 200).all() and (sheet[8:136, 136:144] == 255).all()
    step = 128 + 8 + 3 * 13
    assert (sheet[8 + step : 8 + step + 128, 8:136] == 10).all()
    for top in (136, 136 + step):
        assert sheet[top : top + 39, 8:136].min() < 100  # letters
    assert sheet.shape == (2 * step + 8, 8 * 136 + 8, 3)


def test_the_model_is_asked_for_the_captions_with_its_settings(monkeypatch):
    asked = {}

    def generate(pipe, captions, **rest):
        asked.update(captions=captions, **rest)
        return np.zeros((len(captions), 64, 64, 3), np.uint8)

    monkeypatch.setattr(evaluate_sheet, "generate", generate)
    sheet = draw_sheet("mini", seed=0, quiet=True, steps=7)
    test, order = held_out(STYLES, 64, seed=0)
    assert asked["captions"] == [test.captions()[i] for i in order]
    assert (asked["seed"], asked["steps"], asked["quiet"]) == (0, 7, True)
    assert sheet.height > 8 * 128
    with pytest.raises(ValueError, match="no text-to-image model"):
        monkeypatch.setattr("sdjax.evaluate.load", lambda model: None)
        draw_sheet("mini")


@pytest.mark.parametrize("name", ["sheet.png", "sheet.webp", "SHEET.WEBP"])
def test_a_sheet_is_written_whole(name, tmp_path):
    sheet = captioned(np.full((2, 64, 64, 3), 100, np.uint8), ["a cat", "a dog"])
    save_sheet(sheet, tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.size == sheet.size
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_that_cannot_be_written_are_refused_first(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png or \.webp"):
        check_sheet(tmp_path / "sheet.jpg")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_sheet(tmp_path / "no" / "sheet.png")


def test_the_card_shows_a_small_sheet():
    folder = BUNDLED / "mini"
    assert "sheet.webp" in (folder / "README.md").read_text()
    assert (folder / "sheet.webp").stat().st_size <= 400_000
