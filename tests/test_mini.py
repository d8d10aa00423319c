"""The bundled model is what its card and the README say it is."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import sdjax
from sdjax.data import emoji
from sdjax.pipelines.models import BUNDLED
from sdjax.weights.readers import open_tensors

ASSETS = Path(sdjax.__file__).parent / "assets"
FOLDER = BUNDLED / "mini"
MOST_MEGABYTES = 75


@pytest.fixture(scope="module")
def mini():
    return sdjax.load("mini")


def evaluation():
    return json.loads((FOLDER / "evaluation.json").read_text())


def test_all_assets_together_are_small():
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert size <= MOST_MEGABYTES * 1e6


def test_weights_are_stored_in_16_bits():
    files = sorted(path.name for path in FOLDER.glob("*.safetensors"))
    assert files == [
        "autoencoder.safetensors", "image.safetensors", "text.safetensors", "unet.safetensors",
    ]  # fmt: skip
    for name in files:
        assert {tensor.dtype for tensor in open_tensors(FOLDER / name).values()} == {
            np.dtype("float16")
        }


def test_the_unet_is_small(mini):
    count = sum(leaf.size for leaf in jax.tree.leaves(mini.params["unet"]))
    assert count <= 7.6e6


def test_every_caption_of_its_styles_is_in_its_vocabulary(mini):
    for caption in emoji.load("all", mini.styles).captions():
        assert mini.tokenizer.unknown_words(caption) == [], caption
        assert mini.tokenizer.truncated(caption) == "", caption


def test_a_picture_is_clean_and_its_own(mini):
    """On white as the drawings are, and of another colour where the words ask for another."""
    red, green = (
        np.asarray(mini(f"a {colour} apple, 3d style", seed=0)[0], np.float32)
        for colour in ("red", "green")
    )
    for picture in (red, green):
        assert picture.shape == (64, 64, 3)
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.min() > 200
    centre = (slice(24, 44), slice(20, 44))
    more_red = (red - green)[centre].mean((0, 1))
    assert more_red[0] - more_red[1] > 40


def test_the_readme_gives_the_figures_of_the_evaluation():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| ")]
    found = evaluation()
    for name, words in [
        ("retrieval_clip", "found among 50, by the bundled CLIP"),
        ("retrieval_pixels", "by pixel distance"),
        ("retrieval_judge", "| the same, by a judge that"),
        ("style_judge", "| style, of four, by that judge"),
        ("both_judge", "| thing and style of one picture"),
        ("style_accuracy", "style recognised"),
        ("frechet_clip", "Fréchet distance of CLIP"),
        ("frechet_judge", "| Fréchet distance of the judge"),
    ]:
        (row,) = [row for row in rows if words in row]
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[2:4] == [str(found[name]["generated"]), str(found[name]["real"])]
        assert cells[4] == str(found[name].get("copied", ""))
    (row,) = [row for row in rows if "colour on a thing" in row]
    cells = [cell.strip() for cell in row.split("|")]
    both = found["composition"]["both"]
    assert cells[2:4] == [str(both[name]) for name in ("generated", "real")]
    (row,) = [row for row in rows if "peak signal-to-noise" in row]
    assert f"{found['autoencoder_psnr_db']} dB" in row
    assert (FOLDER / "README.md").exists() and (FOLDER / "sample.png").exists()
