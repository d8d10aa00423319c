"""The bundled emoji pictures, their captions and split, and the parts of the builder."""

import hashlib
import re
import socket

import numpy as np
import pytest
from PIL import Image

from sdjax.data import emoji, emoji_build, emoji_concepts
from sdjax.data.captions import (
    caption,
    caption_variants,
    random_caption,
    with_article,
)


@pytest.fixture(scope="module")
def everything():
    return emoji.load("all")


@pytest.fixture(scope="module")
def index():
    return emoji.read_index(emoji.ASSETS)


# The asset


def test_all_is_complete(everything, index):
    counted = sum(len(concept["cells"]) for concept in index["concepts"])
    assert len(everything) == counted == sum(style["pictures"] for style in index["styles"])
    assert everything.images.shape == (counted, 64, 64, 3)
    assert 800 <= len(index["concepts"]) <= 1150
    assert set(everything.styles) == set(emoji.STYLES)
    assert set(everything.tags) == set(everything.groups) == set(everything.concepts)


def test_every_concept_is_drawn_in_three_styles_and_every_cell_once(index):
    assert min(len(concept["cells"]) for concept in index["concepts"]) >= 3
    for style in index["styles"]:
        cells = [
            c["cells"][style["word"]] for c in index["concepts"] if style["word"] in c["cells"]
        ]
        assert sorted(cells) == list(range(style["pictures"]))


def test_no_picture_is_blank_or_twice_in_a_style(everything):
    assert everything.images.std(axis=(1, 2, 3)).min() > emoji_build.BLANK
    digests = [
        (style, hashlib.sha256(image.tobytes()).digest())
        for style, image in zip(everything.styles, everything.images, strict=True)
    ]
    assert len(set(digests)) == len(digests)


def test_pictures_fill_the_canvas_up_to_the_margin(everything):
    margin = emoji_build.MARGIN
    frame = np.ones((64, 64), bool)
    frame[margin:-margin, margin:-margin] = False
    assert (everything.images[:, frame] == 255).all()
    inside = everything.images[:, margin:-margin, margin:-margin] < 255
    spans = inside.any(axis=(2, 3)).sum(axis=1), inside.any(axis=(1, 3)).sum(axis=1)
    # Faint borders, and white things on white, look narrower than they are.
    assert np.mean(np.maximum(*spans) >= 56) > 0.95


def test_the_asset_is_small(index):
    files = [path for path in emoji.ASSETS.iterdir() if not path.name.startswith(".")]
    assert {path.name for path in files} == {
        "index.json",
        *(style["sheet"] for style in index["styles"]),
    }
    assert sum(path.stat().st_size for path in files) <= 16_000_000


def test_the_index_credits_every_style(index):
    for style, entry in zip(emoji.STYLE_TABLE, index["styles"], strict=True):
        assert re.fullmatch(r"[0-9a-f]{64}", style.sha256)
        assert style.licence in {"Apache-2.0", "CC-BY-4.0", "MIT"}
        assert (entry["word"], entry["sha256"]) == (style.word, style.sha256)
        assert (entry["licence"], entry["attribution"]) == (style.licence, style.attribution)
    assert "64 x 64" in index["changes"]  # CC-BY asks to say what was changed


# The split


def test_train_and_test_part_the_whole(everything):
    pairs = {split: _pairs(emoji.load(split)) for split in ("train", "test")}
    assert not set(pairs["train"]) & set(pairs["test"])
    assert sorted(pairs["train"] + pairs["test"]) == sorted(_pairs(everything))


def test_held_out_concepts_are_trained_in_three_other_styles():
    train, test = emoji.load("train"), emoji.load("test")
    assert len(test) >= 240
    assert len(set(test.concepts)) == len(test)
    assert min(train.concepts.count(concept) for concept in test.concepts) >= 3
    shares = [test.styles.count(word) / train.styles.count(word) for word in emoji.STYLES]
    assert min(shares) > 0.05 and max(shares) < 0.08


def test_the_split_is_what_the_rule_chooses(index):
    pairs = {concept["label"]: list(concept["cells"]) for concept in index["concepts"]}
    assert [list(pair) for pair in emoji_build.choose_held_out(pairs)] == index["held_out"]


def test_styles_are_chosen_by_word():
    flat = emoji.load("train", styles=["flat"])
    assert set(flat.styles) == {"flat"}
    assert 900 < len(flat) < 1100


def test_loading_needs_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(emoji.load("test")) > 0


def test_wrong_words_list_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'valid'.*train, test, all"):
        emoji.load("valid")
    with pytest.raises(ValueError, match="'apple'.*noto, twemoji, flat, 3d, emojione, firefox"):
        emoji.load(styles=["noto", "apple"])
    with pytest.raises(FileNotFoundError, match=r"reinstall sdjax.*python -m sdjax\.data\.emoji"):
        emoji.load(folder=tmp_path)


# Captions


@pytest.mark.parametrize(
    "expected",
    """a red apple; an onion; an ear of corn; a unicorn; a one-piece swimsuit; a ewe; an hourglass;
    an x-ray; an suv; a euro banknote; grapes; french fries; scissors; bread; a cut of meat;
    a pot of food; a bowl with spoon; a bus; an octopus; a compass; a dress; hot springs;
    a nest with eggs; eyes; folded hands; a person lifting weights; a face holding back tears;
    people hugging; santa claus; mount fuji; woman's clothes; a woman's hat; a thumbs up; luggage;
    a fork and knife; a grinning face; a kiwi fruit""".replace("\n    ", " ").split("; "),
)
def test_articles(expected):
    assert with_article(re.sub("^an? ", "", expected)) == expected


def test_captions_are_plain_ascii(everything):
    for text, concept in zip(everything.captions(), everything.concepts, strict=True):
        assert re.fullmatch(r"(an? )?[a-z0-9' -]+, [a-z0-9]+ style", text), text
        assert concept in text
    assert caption("grinning face", "noto") == "a grinning face, noto style"


def test_variants_name_the_concept_and_no_style():
    variants = caption_variants("red apple", ("fruit", "food"))
    assert variants == (
        "a red apple",
        "red apple",
        "red apple emoji",
        "a red apple, fruit",
        "a red apple, food",
    )
    assert caption_variants("grapes", ()) == ("grapes", "grapes emoji")


def test_random_captions_are_repeatable_and_mostly_canonical():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return [random_caption(rng, "red apple", "3d", ("fruit",)) for _ in range(1000)]

    texts = draw(0)
    assert texts == draw(0) != draw(1)
    assert all("red apple" in text for text in texts)
    assert texts.count("a red apple, 3d style") == pytest.approx(600, abs=60)
    assert sum("3d" in text for text in texts) == pytest.approx(900, abs=40)
    assert {"3d red apple", "a red apple, fruit, 3d style", "red apple emoji"} <= set(texts)


# The builder


def test_sheets_come_back_pixel_by_pixel(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_build, "WEBP_EFFORT", 0)  # lossless at any effort
    images = np.random.default_rng(0).integers(0, 256, (35, 64, 64, 3), np.uint8)
    path = tmp_path / "sheet.webp"
    path.write_bytes(emoji_build.encode_sheet(images))
    sheet = emoji.read_sheet(path)
    assert sheet.shape == (2, 64, 32, 64, 3)
    for cell, image in enumerate(images):
        np.testing.assert_array_equal(sheet[cell // 32, :, cell % 32], image)
    assert (sheet[1, :, 3:] == 255).all()


def test_fit_trims_centres_and_keeps_the_ratio():
    drawing = Image.new("RGBA", (300, 200))
    drawing.paste((0, 0, 255, 255), (20, 30, 120, 80))  # 100 x 50, off centre
    picture = emoji_build.fit(drawing)
    rows, columns = np.nonzero((picture != 255).any(axis=-1))
    assert (columns.min(), columns.max()) == (3, 60)
    assert (rows.min(), rows.max()) == (17, 45)
    assert (emoji_build.fit(Image.new("RGBA", (8, 8))) == 255).all()


def test_svg_is_rendered():
    pytest.importorskip("resvg_py")
    icons = {
        "width": 8,
        "icons": {"dot": {"body": '<path fill="#f00" d="M0 0h8v8H0z"/>', "height": 8}},
    }
    picture = emoji_build.fit(emoji_build.rasterize(emoji_build.svg_text(icons, "dot")))
    assert tuple(picture[32, 32]) == (255, 0, 0)
    assert tuple(picture[0, 0]) == (255, 255, 255)


def test_a_tampered_package_is_refused(tmp_path):
    style = emoji.STYLE_TABLE[0]
    path = tmp_path / "iconify-json-noto-1.2.9.tgz"
    path.write_bytes(b"not the package")
    found = hashlib.sha256(b"not the package").hexdigest()
    with pytest.raises(ValueError, match=f"sha256 {found}, expected {style.sha256}: delete it"):
        emoji_build.fetch(style.package, style.version, style.sha256, tmp_path)


def test_a_missing_npm_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_build.shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"npm is not installed.*noto@1\.2\.9"):
        emoji_build.fetch("@iconify-json/noto", "1.2.9", "0" * 64, tmp_path)


def test_curation():
    wanted = emoji_concepts.wanted
    assert wanted("red apple", "food-drink", "food-fruit")
    assert wanted("person surfing", "people-body", "person-sport")
    assert not wanted("woman surfing", "people-body", "person-sport")
    assert not wanted("up arrow", "symbols", "arrow")
    assert not wanted("flag: Chad", "flags", "country-flag")
    assert not wanted("six o’clock", "travel-places", "time")
    assert wanted("alarm clock", "travel-places", "time")
    assert emoji_concepts.plain("Woman’s  Piñata!") == "woman's pinata"


def test_names_join_exactly_first_and_refuse_the_doubtful():
    def concept(label, *names):
        return emoji_concepts.Concept(label, label, "0", "objects", (), names)

    concepts = [concept("dog face", "dog"), concept("dog", "dog2"), concept("bow and arrow", "bow")]
    joined = emoji_concepts.join_by_name("emojione", ["dog", "bow", "calendar"], concepts)
    assert joined == {"dog": "dog", "bow and arrow": "bow"}
    joined = emoji_concepts.join_by_name("firefox", ["dog", "dogside"], concepts)
    assert joined == {"dog face": "dog", "dog": "dogside"}


def test_code_points_agree_between_sets():
    assert emoji_build.code_points("00A9-FE0F") == "a9"
    assert emoji_build.code_points("1f468_200d_2695_fe0f") == "1f468-200d-2695"


def test_a_file_is_written_whole(tmp_path):
    emoji_build.write_atomic(tmp_path / "a", b"first")
    emoji_build.write_atomic(tmp_path / "a", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"second"


def _pairs(pictures):
    return list(zip(pictures.concepts, pictures.styles, strict=True))
