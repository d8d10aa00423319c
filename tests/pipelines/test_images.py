"""Grids of images, their recipes and their files."""

import hashlib
import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import CAT, DOG, PICTURE, assert_same

from sdjax.diffusion.loop import image_keys, initial_noise
from sdjax.pipelines.images import RECIPE, read_recipe, save_png


def test_a_grid_and_the_notebook_picture(four):
    assert four.grid().size == (2 * 8 + 2, 2 * 8 + 2)
    picture = four.grid(columns=4, scale=3)
    assert picture.size == (3 * (4 * 8 + 3 * 2), 3 * 8)
    np.testing.assert_array_equal(np.asarray(picture)[::3, ::3][:8, 10:18], np.asarray(four[1]))
    assert [recipe["seed"] for recipe in picture.info[RECIPE]] == [7, 8, 7, 8]
    shown = Image.open(io.BytesIO(four._repr_png_()))
    assert shown.format == "PNG" and shown.size == (24 * 18, 24 * 18)


def test_a_png_keeps_its_recipe(four, tmp_path):
    save_png(four[3], tmp_path / "dog.PNG")
    assert read_recipe(tmp_path / "dog.PNG") == [four[3].info[RECIPE]]
    save_png(four.grid(), tmp_path / "grid.png")
    assert read_recipe(tmp_path / "grid.png") == [image.info[RECIPE] for image in four]
    with Image.open(tmp_path / "grid.png") as picture:
        lines = picture.text["parameters"].split("\n")
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(four.grid()))
    assert lines[0] == CAT
    assert lines[1].startswith(
        "Steps: 3, Sampler: ddim, CFG scale: 4.0, Seed: 7 8 7 8, Size: 8x8, Model: tiny, "
    )


def test_the_recipe_draws_the_image_again(pipe, four, tmp_path):
    save_png(four[3], tmp_path / "dog.png")
    (recipe,) = read_recipe(tmp_path / "dog.png")
    assert recipe.pop("model") == pipe.name
    size = (recipe.pop("height"), recipe.pop("width"))
    assert_same(pipe(**recipe, size=size), [four[3]])


def test_the_recipe_of_a_redrawn_image_knows_what_it_was_given(pipe, tmp_path):
    noise = np.asarray(initial_noise(image_keys(jnp.array([1, 2])), (4, 4, 4)))
    given = {"image": PICTURE, "latents": noise}
    images = pipe(CAT, n=2, strength=0.7, **given)
    save_png(images.grid(), tmp_path / "cats.png")
    first, second = read_recipe(tmp_path / "cats.png")
    assert first["image_sha256"] == second["image_sha256"]
    assert first.pop("image_sha256") == hashlib.sha256(PICTURE.tobytes()).hexdigest()
    sums = [recipe.pop("latents_sha256") for recipe in (first, second)]
    assert sums == [hashlib.sha256(one.tobytes()).hexdigest() for one in noise]
    with Image.open(tmp_path / "cats.png") as picture:
        settings = picture.text["parameters"]
    assert "Denoising strength: 0.7, Init image hash: " in settings
    assert f"Noise hash: {sums[0][:10]} {sums[1][:10]}, " in settings
    size = (first.pop("height"), first.pop("width"))
    first.pop("model")
    assert_same(pipe(**first, size=size, image=PICTURE, latents=noise[:1]), images[:1])


def test_seeds_may_be_an_array(pipe, four):
    assert_same(pipe([CAT, DOG], n=2, seed=np.array([7, 7])), four)


def test_the_negative_prompt_has_a_line_of_its_own(pipe, tmp_path):
    save_png(pipe(CAT, negative="a dog")[0], tmp_path / "cat.png")
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.text["parameters"].split("\n")[1] == "Negative prompt: a dog"


def test_a_file_is_written_whole_or_not_at_all(four, tmp_path, monkeypatch):
    path = tmp_path / "cat.png"
    save_png(four[0], path)
    before = path.read_bytes()

    def fail(image, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    for target in (path, tmp_path / "new.png"):
        with pytest.raises(OSError, match="disk full"):
            save_png(four[1], target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cat.png"]
    assert path.read_bytes() == before


def test_where_no_png_can_go(four, tmp_path):
    with pytest.raises(ValueError, match=r"cat\.jpg must end in \.png"):
        save_png(four[0], tmp_path / "cat.jpg")
    with pytest.raises(FileNotFoundError, match="there is no folder .*/nowhere"):
        save_png(four[0], tmp_path / "nowhere" / "cat.png")
    assert list(tmp_path.iterdir()) == []


def test_other_pictures_hold_no_recipe(tmp_path):
    image = Image.new("RGB", (2, 2))
    save_png(image, tmp_path / "plain.png")
    with pytest.raises(ValueError, match="holds no sdjax recipe"):
        read_recipe(tmp_path / "plain.png")
    image.save(tmp_path / "plain.webp")
    with pytest.raises(ValueError, match="holds no sdjax recipe"):
        read_recipe(tmp_path / "plain.webp")
