"""`sdjax models` counts what the published files hold."""

import jax
import pytest

from sdjax import presets
from sdjax.catalog import FACTS, catalog, table
from sdjax.pipelines.models import bundled_models, read_model

# From listings of the published files (tests/golden/keys), by our names of the parts.
UNET = 865_910_724
COUNTS = {
    "sd1": {"text": 123_060_480, "unet": 859_520_964, "autoencoder": 83_653_863},
    "sd1-inpainting": {"unet": 859_535_364},
    "sd2-base": {"text": 340_387_840, "unet": UNET, "autoencoder": 83_653_863},
    "sd2-v": {"text": 340_387_840, "unet": UNET},
    "sd2-inpainting": {"unet": 865_925_124},
    "sd2-depth": {"unet": 865_913_604},
    "sd2-x4-upscaler": {"unet": 473_398_020, "autoencoder": 55_325_927},
    "sd2-unclip-h": {"unet": 870_173_124, "image": 632_076_800, "image_statistics": 2048},
    "sd2-unclip-l": {"unet": 869_517_764, "image": 303_966_208},
    "karlo": {"text": 123_650_304, "prior": 1_022_028_544, "upsampler_0": 2 * 691_579_523},
    "karlo-variations": {"image": 303_966_208, "decoder": 893_318_086},
    "glide": {"total": 385_030_726},
    "clip-vit-b-32": {"total": 151_277_313},
    "clip-vit-l-14": {"clip": 427_616_513, "total": 427_616_513},
    "openclip-vit-h-14": {"total": 986_109_441},
    "safety-checker": {"total": 303_981_588},
    # The file holds 1,181,696 more: a residual unit and a norm that are never used.
    "dpt-hybrid": {"total": 122_377_985 - 1_181_696},
}


@pytest.fixture(scope="module")
def models():
    return {model["name"]: model for model in catalog()}


def test_every_model_is_listed(models):
    assert list(models) == [*presets.PUBLISHED, *presets.PAPER, *bundled_models()]
    assert COUNTS.keys() <= presets.PUBLISHED.keys()
    assert FACTS.keys() <= models.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_published_files(models, name):
    found = models[name]["parameters"]
    assert found.items() >= COUNTS[name].items()
    assert found["total"] == sum(count for part, count in found.items() if part != "total")


def test_the_bundled_model_is_counted_with_its_clip(models):
    leaves = jax.tree.leaves(read_model("mini").params)
    assert models["mini"]["parameters"]["total"] == sum(leaf.size for leaf in leaves)
    assert models["mini"]["bundled"]


def test_kinds_and_parts_are_called_as_in_model_json(models):
    assert models["sd1"]["kind"] == "stable-diffusion"
    assert models["safety-checker"]["kind"] == "safety"
    assert set(models["dpt-hybrid"]["parameters"]) == {"depth", "total"}


def test_facts(models):
    assert models["sd2-base"]["prediction"] == "eps" and models["sd2-v"]["prediction"] == "v"
    assert models["clip-vit-l-14"]["prediction"] is None
    sizes = {name: model["resolution"] for name, model in models.items()}
    assert sizes.items() >= {"sd1": 512, "sd2-v": 768, "dpt-hybrid": 384, "mini": 64}.items()
    assert sizes["clip-vit-b-32"] == sizes["safety-checker"] == 224
    sd1 = models["sd1"]
    assert sd1["bytes"] == {"float32": 4 * 1_066_235_307, "bfloat16": 2 * 1_066_235_307}
    assert sd1["licence"] == "CreativeML Open RAIL-M"
    assert models["safety-checker"]["licence"] is None


def test_the_table_is_aligned(models):
    head, *rows = table(list(models.values())).splitlines()
    assert len(rows) == len(models)
    place = head.index("licence")
    assert all(len(row) < place or row[place - 2 : place] == "  " for row in rows)
    assert "1,066,235,307" in rows[0] and "3.97 GiB" in rows[0]
