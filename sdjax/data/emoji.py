"""Emoji drawn in six styles: about a thousand concepts, 64 x 64 pixels, each with a caption.

Loading needs NumPy and Pillow only. The asset is built anew, from published packages, by

    python -m sdjax.data.emoji --cache DIR --out DIR
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sdjax.data.captions import caption, caption_variants, random_caption

__all__ = [
    "STYLES",
    "STYLE_TABLE",
    "EmojiSet",
    "Style",
    "caption",
    "caption_variants",
    "load",
    "random_caption",
]

FORMAT_VERSION = 1
SIZE = 64  # pixels, height and width of a picture
CELLS_PER_ROW = 32
INDEX_NAME = "index.json"
ASSETS = Path(__file__).resolve().parents[1] / "assets" / "emoji64"
SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Style:
    """One way of drawing: the word captions use, and where the drawings come from."""

    word: str
    package: str  # npm
    version: str
    sha256: str  # of the package's tarball
    licence: str  # SPDX
    attribution: str


STYLE_TABLE = (
    Style(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Noto Emoji by Google, https://github.com/googlefonts/noto-emoji",
    ),
    Style(
        "twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twemoji by Twitter and other contributors, https://github.com/jdecked/twemoji",
    ),
    Style(
        "flat",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Fluent Emoji (flat) by Microsoft, https://github.com/microsoft/fluentui-emoji",
    ),
    Style(
        "3d",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        "Fluent Emoji (3D) by Microsoft, https://github.com/microsoft/fluentui-emoji, via LobeHub",
    ),
    Style(
        "emojione",
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "EmojiOne 2 by Emoji One and EmojiTwo contributors, https://github.com/EmojiTwo/emojitwo",
    ),
    Style(
        "firefox",
        "@iconify-json/fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        "Firefox OS Emojis by Mozilla, https://github.com/mozilla/fxemoji",
    ),
)
STYLES = tuple(style.word for style in STYLE_TABLE)


@dataclass(frozen=True, eq=False)
class EmojiSet:
    """Pictures with what they show; concept by concept, styles in the order of STYLES."""

    images: UInt8[np.ndarray, "images 64 64 3"]  # 0 to 255, on white
    concepts: tuple[str, ...]  # [images], "red apple"
    styles: tuple[str, ...]  # [images], "3d"
    tags: dict[str, tuple[str, ...]]  # concept -> further words for it
    groups: dict[str, str]  # concept -> "food-drink"

    def __len__(self) -> int:
        return len(self.concepts)

    def captions(self) -> list[str]:
        """The canonical caption of each image."""
        return [
            caption(concept, style)
            for concept, style in zip(self.concepts, self.styles, strict=True)
        ]


def load(
    split: str = "train", styles: Sequence[str] | None = None, folder: Path | str = ASSETS
) -> EmojiSet:
    """The bundled pictures; `test` holds the (concept, style) pairs that `train` leaves out.

    `all` is both, `styles=None` all six. Every concept of `test` is in `train` in another style.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    wanted = STYLES if styles is None else tuple(styles)
    unknown = [word for word in wanted if word not in STYLES]
    if unknown or not wanted:
        raise ValueError(f"Unknown styles {unknown}: choose among {', '.join(STYLES)}.")
    index = read_index(Path(folder))
    held_out = {tuple(pair) for pair in index["held_out"]}
    rows = []
    for concept in index["concepts"]:
        for word, cell in concept["cells"].items():
            tested = (concept["label"], word) in held_out
            if word in wanted and (split == "all" or tested == (split == "test")):
                rows.append((concept["label"], word, cell))
    sheets = {
        word: read_sheet(Path(folder) / f"{word}.webp")
        for word in dict.fromkeys(row[1] for row in rows)
    }
    images = np.empty((len(rows), SIZE, SIZE, 3), np.uint8)
    for number, (_, word, cell) in enumerate(rows):
        images[number] = sheets[word][cell // CELLS_PER_ROW, :, cell % CELLS_PER_ROW]
    present = {row[0] for row in rows}
    return EmojiSet(
        images=images,
        concepts=tuple(row[0] for row in rows),
        styles=tuple(row[1] for row in rows),
        tags={c["label"]: tuple(c["tags"]) for c in index["concepts"] if c["label"] in present},
        groups={c["label"]: c["group"] for c in index["concepts"] if c["label"] in present},
    )


@cache
def read_index(folder: Path) -> dict[str, Any]:
    """The asset's index.json, checked for its format."""
    path = folder / INDEX_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"The emoji pictures are not at {folder}: reinstall sdjax with its assets, or build "
            "them with `python -m sdjax.data.emoji --cache DIR --out DIR` (needs npm)."
        )
    index = json.loads(path.read_text())
    if index.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {index.get('format_version')}, this sdjax reads {FORMAT_VERSION}."
        )
    return index


def read_sheet(path: Path) -> UInt8[np.ndarray, "rows 64 32 64 3"]:
    """One style's sheet, 0 to 255: cell c is [c // 32, :, c % 32]."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: reinstall sdjax with its assets, or build them again."
        )
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    return pixels.reshape(-1, SIZE, CELLS_PER_ROW, SIZE, 3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the asset from the published packages."""
    parser = argparse.ArgumentParser(prog="python -m sdjax.data.emoji", description=main.__doc__)
    parser.add_argument("--cache", required=True, type=Path, help="folder for downloaded packages")
    parser.add_argument("--out", required=True, type=Path, help="folder for sheets and index")
    options = parser.parse_args(arguments)
    from sdjax.data.emoji_build import build  # it imports this module

    build(options.cache, options.out)


if __name__ == "__main__":
    main()
