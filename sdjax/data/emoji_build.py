"""Make the emoji asset from published npm packages: fetch, check, render, pack.

python -m sdjax.data.emoji --cache ~/.cache/sdjax --out sdjax/assets/emoji64
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sdjax.data.emoji import (
    CELLS_PER_ROW,
    FORMAT_VERSION,
    INDEX_NAME,
    SIZE,
    STYLE_TABLE,
    STYLES,
    Style,
)
from sdjax.data.emoji_concepts import Concept, join_by_name, read_concepts

Picture = UInt8[np.ndarray, "64 64 3"]
"""One picture, 0 to 255, on white."""

NAMES_PACKAGE = (
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)

MARGIN = 3  # pixels of white around the picture at 64 x 64, so that all styles align
RENDER_SIZE = 256  # pixels: four times the result, reduced for smooth edges
FAINT = 16  # alpha (0 to 255) at or below which a pixel counts as border
BLANK = 4.0  # standard deviation of 0 to 255 pixel values: a white thing on white is no picture
WEBP_EFFORT = 100  # 0 to 100, of lossless WebP: file size against packing time (minutes)
MIN_STYLES = 3  # a concept drawn in fewer says little about a style
HELD_OUT_FRACTION = 0.06
HELD_OUT_MIN_STYLES = 4
HELD_OUT_SEED = "sdjax-emoji-1"


def build(cache: Path | str, out: Path | str) -> None:
    """Fetch what is missing in `cache`, and write sheets and index into `out`."""
    cache, out = Path(cache), Path(out)
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    names = tarball_files(fetch(*NAMES_PACKAGE, cache))
    codes = [
        data
        for path, data in sorted(names.items())
        if re.fullmatch(r"en/shortcodes/[^.]+\.json", path)
    ]
    concepts = read_concepts(names["en/data.json"], names["en/messages.json"], codes)
    pictures = {style.word: draw_style(style, concepts, cache) for style in STYLE_TABLE}
    kept = [
        c for c in concepts if sum(c.label in drawn for drawn in pictures.values()) >= MIN_STYLES
    ]
    pairs = {c.label: [word for word in STYLES if c.label in pictures[word]] for c in kept}
    held_out = choose_held_out(pairs)
    cells = {}
    for word in STYLES:
        labels = [label for label, words in pairs.items() if word in words]
        cells[word] = {label: number for number, label in enumerate(labels)}
        data = encode_sheet(np.stack([pictures[word][label] for label in labels]))
        write_atomic(out / f"{word}.webp", data)
        print(f"{word}: {len(labels)} pictures, {len(data):,} bytes")
    index = make_index(kept, cells, held_out)
    write_atomic(
        out / INDEX_NAME, json.dumps(index, separators=(",", ":"), ensure_ascii=True).encode()
    )
    for group, count in Counter(concept.group for concept in kept).items():
        print(f"{group}: {count} concepts")
    print(
        f"{len(kept)} concepts, {sum(map(len, pairs.values()))} pictures, "
        f"{len(held_out)} pairs held out"
    )


def fetch(package: str, version: str, sha256: str, cache: Path) -> Path:
    """The package's tarball in `cache`, downloaded with `npm pack` if missing, and checked."""
    name = f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    path = cache / name
    if not path.exists():
        if shutil.which("npm") is None:
            raise FileNotFoundError(
                f"npm is not installed, and {path} is missing. Install Node.js, or put the "
                f"tarball of {package}@{version} there (sha256 {sha256})."
            )
        fresh = cache / f".fetch-{os.getpid()}"
        fresh.mkdir(exist_ok=True)
        try:
            command = [
                "npm",
                "pack",
                f"{package}@{version}",
                "--silent",
                "--pack-destination",
                str(fresh),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            os.replace(fresh / name, path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} has sha256 {found}, expected {sha256}: "
            f"delete it to fetch {package}@{version} again."
        )
    return path


def tarball_files(path: Path) -> dict[str, bytes]:
    """Every file of an npm tarball, without the leading 'package/'."""
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {
            member.name.split("/", 1)[1]: file.read()
            for member in members
            if (file := archive.extractfile(member)) is not None
        }


def draw_style(style: Style, concepts: list[Concept], cache: Path) -> dict[str, Picture]:
    """One style's pictures by label, without blank ones and later copies of a picture."""
    files = tarball_files(fetch(style.package, style.version, style.sha256, cache))
    sources = (
        webp_sources(files, concepts)
        if style.word == "3d"
        else svg_sources(style.word, files, concepts)
    )
    drawn, seen = {}, set()
    for concept in concepts:
        if concept.label not in sources:
            continue
        picture = fit(rasterize(sources[concept.label]))
        digest = hashlib.sha256(picture.tobytes()).digest()
        if digest not in seen and picture.std() > BLANK:
            drawn[concept.label] = picture
        seen.add(digest)
    print(f"{style.word}: {len(sources)} sources, {len(drawn)} different pictures")
    return drawn


def code_points(hexcode: str) -> str:
    """A hexcode as all sets agree on it: '00A9-FE0F' -> 'a9'."""
    parts = [part.lstrip("0") for part in hexcode.lower().replace("_", "-").split("-")]
    return "-".join(part for part in parts if part != "fe0f")


def webp_sources(files: dict[str, bytes], concepts: list[Concept]) -> dict[str, bytes]:
    """The 3d set: one WebP file per emoji, named by code points."""
    by_code = {
        code_points(Path(path).stem): data for path, data in files.items() if path.endswith(".webp")
    }
    return {
        c.label: by_code[code_points(c.hexcode)]
        for c in concepts
        if code_points(c.hexcode) in by_code
    }


def svg_sources(word: str, files: dict[str, bytes], concepts: list[Concept]) -> dict[str, str]:
    """An Iconify set: SVG bodies in one JSON, joined by code points, or else by name."""
    icons, chars = json.loads(files["icons.json"]), json.loads(files["chars.json"])
    if chars:
        by_code = {code_points(code): icon for code, icon in chars.items()}
        joined = {
            c.original: by_code[code_points(c.hexcode)]
            for c in concepts
            if code_points(c.hexcode) in by_code
        }
    else:
        joined = join_by_name(word, list(icons["icons"]), concepts)
    aliases = icons.get("aliases", {})
    sources = {}
    for concept in concepts:
        icon = joined.get(concept.original, "")
        icon = aliases[icon]["parent"] if icon in aliases else icon
        if icon in icons["icons"]:
            sources[concept.label] = svg_text(icons, icon)
    return sources


def svg_text(icons: dict[str, Any], icon: str) -> str:
    """One icon of an Iconify set as a complete SVG document."""
    entry = icons["icons"][icon]
    # Iconify: an icon's own number wins over the set's, and both over the format's default.
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = " ".join(str(entry.get(key, icons.get(key, value))) for key, value in defaults.items())
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {xlink} viewBox="{box}">{entry["body"]}</svg>'


def rasterize(source: str | bytes) -> Image.Image:
    """An SVG text at RENDER_SIZE, or the bytes of an image file as they are; RGBA."""
    if isinstance(source, str):
        try:
            import resvg_py  # a build tool only: loading the finished asset does not need it
        except ImportError as error:
            raise ImportError(
                "Rendering SVG needs resvg-py: pip install 'sdjax[train]'."
            ) from error
        size = RENDER_SIZE
        source = bytes(resvg_py.svg_to_bytes(svg_string=source, width=size, height=size))
    return Image.open(io.BytesIO(source)).convert("RGBA")


def fit(image: Image.Image) -> Picture:
    """RGBA, any size -> on white: border trimmed, aspect ratio kept, centred, MARGIN left."""
    box = Image.fromarray(np.asarray(image.getchannel("A")) > FAINT).getbbox()
    canvas = Image.new("RGBA", (SIZE, SIZE), "white")
    if box is not None:
        image = image.crop(box)
        scale = (SIZE - 2 * MARGIN) / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        canvas.alpha_composite(image, ((SIZE - width) // 2, (SIZE - height) // 2))
    return np.asarray(canvas.convert("RGB"))


def choose_held_out(pairs: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(label, style) pairs for the compositional test: trained in the label's other styles only.

    HELD_OUT_SEED fixes the order of the concepts; each gives up the style that has the smallest
    share held out so far.
    """
    totals = Counter(word for words in pairs.values() for word in words)
    held: Counter[str] = Counter()
    chosen = []
    eligible = [label for label, words in pairs.items() if len(words) >= HELD_OUT_MIN_STYLES]
    eligible.sort(key=lambda label: hashlib.sha256(f"{HELD_OUT_SEED}/{label}".encode()).digest())
    for label in eligible[: round(HELD_OUT_FRACTION * totals.total())]:
        word = min(pairs[label], key=lambda word: (held[word] / totals[word], STYLES.index(word)))
        held[word] += 1
        chosen.append((label, word))
    return sorted(chosen)


def encode_sheet(images: UInt8[np.ndarray, "images 64 64 3"]) -> bytes:
    """One lossless WebP, CELLS_PER_ROW pictures a row, the last row filled up with white."""
    rows = -(-len(images) // CELLS_PER_ROW)
    cells = np.full((rows * CELLS_PER_ROW, SIZE, SIZE, 3), 255, np.uint8)
    cells[: len(images)] = images
    grid = cells.reshape(rows, CELLS_PER_ROW, SIZE, SIZE, 3).swapaxes(1, 2)
    buffer = io.BytesIO()
    sheet = Image.fromarray(grid.reshape(rows * SIZE, CELLS_PER_ROW * SIZE, 3))
    sheet.save(buffer, "WEBP", lossless=True, quality=WEBP_EFFORT, method=6)
    return buffer.getvalue()


def make_index(
    concepts: list[Concept], cells: dict[str, dict[str, int]], held_out: list[tuple[str, str]]
) -> dict[str, Any]:
    """Everything about the sheets but the pixels."""
    return {
        "format_version": FORMAT_VERSION,
        "size": SIZE,
        "cells_per_row": CELLS_PER_ROW,
        "changes": "drawings selected, trimmed, reduced to 64 x 64 pixels, put on white",
        "styles": [
            {
                "word": style.word,
                "sheet": f"{style.word}.webp",
                "pictures": len(cells[style.word]),
                "package": f"{style.package}@{style.version}",
                "sha256": style.sha256,
                "licence": style.licence,
                "attribution": style.attribution,
            }
            for style in STYLE_TABLE
        ],
        "names": {
            "package": f"{NAMES_PACKAGE[0]}@{NAMES_PACKAGE[1]}",
            "sha256": NAMES_PACKAGE[2],
            "licence": "MIT",
            "attribution": "emojibase-data by Miles Johnson, https://emojibase.dev",
        },
        "held_out": [list(pair) for pair in held_out],
        "concepts": [
            {
                "label": concept.label,
                "group": concept.group,
                "tags": list(concept.tags),
                "cells": {
                    word: cells[word][concept.label]
                    for word in STYLES
                    if concept.label in cells[word]
                },
            }
            for concept in concepts
        ],
    }


def write_atomic(path: Path, data: bytes) -> None:
    """Write all of the file or nothing: readers never see half an asset."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
