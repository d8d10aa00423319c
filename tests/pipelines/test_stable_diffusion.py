"""The pipeline on tiny random networks: seeds, compilations, checks, recipes and files."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipeline
from PIL import Image

from sdjax.diffusion.schedule import make_plan, trailing_timesteps
from sdjax.pipelines import stable_diffusion
from sdjax.pipelines.images import RECIPE, Images, read_recipe, save_png

CAT, DOG = "a red cat, noto style", "a green dog, flat style"


@pytest.fixture(scope="session")
def pipe():
    return tiny_pipeline.make_pipeline()


@pytest.fixture(scope="session")
def four(pipe):
    """Two images of each of two prompts: every other test draws fewer, and compares."""
    return pipe([CAT, DOG], n=2, seed=7)


@pytest.fixture
def compilations():
    """The names of the compilations while the test runs."""
    found = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(details.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def pixels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


def assert_same(found, wanted):
    """Equal, but for a rounding that another batch size may tip over."""
    difference = np.abs(pixels(found) - pixels(wanted))
    assert difference.max() <= 1 and difference.mean() < 0.01


# What is drawn


def test_images_come_prompt_by_prompt_with_seeds_counted_up(pipe, four):
    assert isinstance(four, Images) and len(four) == 4
    assert all(image.size == (8, 8) and image.mode == "RGB" for image in four)
    recipes = [image.info[RECIPE] for image in four]
    assert [(r["prompt"], r["seed"]) for r in recipes] == [(CAT, 7), (CAT, 8), (DOG, 7), (DOG, 8)]
    assert recipes[0] == {
        "prompt": CAT, "seed": 7, "negative": "", "steps": 3, "guidance": 4.0, "sampler": "ddim",
        "eta": 0.0, "width": 8, "height": 8, "model": "tiny",
    }  # fmt: skip
    drawn = pixels(four)
    assert drawn.std() > 5
    for i in range(4):
        for j in range(i):
            assert np.abs(drawn[i] - drawn[j]).max() > 3


def test_an_image_alone_is_the_image_in_a_batch(pipe, four):
    assert_same(pipe(CAT, seed=8), [four[1]])
    assert_same(pipe(DOG, seed=7), [four[2]])


def test_other_words_seeds_steps_and_scales_compile_nothing(pipe, compilations):
    pipe(CAT)
    del compilations[:]
    first = pipe(DOG, seed=2**31 - 1, steps=5, guidance=9.5, eta=0.5)
    second = pipe(DOG, seed=2**31 - 1, steps=5, guidance=9.5, eta=0.5, negative="a cat")
    third = pipe(DOG, seed=2**31 - 1, steps=50, guidance=1.01)
    assert compilations == []
    assert np.abs(pixels(first) - pixels(second)).max() > 0
    assert np.abs(pixels(first) - pixels(third)).max() > 0


def test_other_weights_compile_nothing(pipe, compilations):
    before = pipe(CAT)
    doubled = jax.tree.map(lambda x: 1.5 * x, pipe.params)
    other = stable_diffusion.Pipeline(
        "other", pipe.config, doubled, pipe.tokenizer, pipe.defaults, pipe.styles
    )
    del compilations[:]
    after = other(CAT)
    assert compilations == []
    assert np.abs(pixels(after) - pixels(before)).max() > 3


def test_a_progress_bar_changes_no_pixel(pipe, capsys):
    plain = pipe(CAT, seed=3, steps=23)
    watched = pipe(CAT, seed=3, steps=23, progress=True)
    np.testing.assert_array_equal(pixels(watched), pixels(plain))
    assert "23/23" in capsys.readouterr().err


@pytest.mark.parametrize(("guided", "batches"), [(True, [4]), (False, [2])])
def test_guidance_off_calls_the_network_for_the_prompt_alone(pipe, monkeypatch, guided, batches):
    seen = []

    class Recorder(stable_diffusion.UNet):
        def apply(self, params, x, timesteps, context, vector, *, method):
            assert method is None
            seen.append(x.shape[0])
            assert timesteps.shape[0] == context.shape[0] == vector.shape[0] == x.shape[0]
            return jnp.zeros_like(x)

    monkeypatch.setattr(stable_diffusion, "UNet", Recorder)
    rows = pipe.tokenizer([CAT] * batches[0])
    text = stable_diffusion.encode_text(
        pipe.config, {"text": pipe.params["text"]}, rows, pipe.tokenizer.eot_id
    )
    schedule = pipe.config.schedule
    jax.eval_shape(
        lambda x, guidance: stable_diffusion.denoise.__wrapped__(
            pipe.config,
            {"unet": pipe.params["unet"]},
            x,
            text,
            make_plan(schedule, trailing_timesteps(schedule, 3), 50, 1.0),
            jax.vmap(jax.random.key)(jnp.arange(2)),
            guidance,
            jnp.float32(0),
            sampler="ddim",
            guided=guided,
        ),
        jnp.zeros((2, 4, 4, 4)),
        jnp.float32(3),
    )
    assert seen == batches


def test_guidance_off_and_another_size(pipe):
    plain = pipe(CAT, guidance=1.0, size=(8, 12))
    assert plain[0].size == (12, 8)
    negative = pipe(CAT, guidance=1.0, size=(8, 12), negative="a dog")
    np.testing.assert_array_equal(pixels(plain), pixels(negative))


def test_guidance_one_is_the_limit_of_guidance(pipe):
    off, nearly = pipe(CAT, guidance=1.0, size=(8, 12)), pipe(CAT, guidance=1.0001, size=(8, 12))
    assert np.abs(pixels(off) - pixels(nearly)).max() <= 1


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [CAT, ""]}, "the prompt is empty"),
        ({"n": 0}, "n, the number of images, must be at least 1, got 0"),
        ({"n": -2}, "n, the number of images, must be at least 1, got -2"),
        ({"seed": -1}, "seed must be between 0 and 2147483647, got -1"),
        ({"seed": 2**31}, "seed must be between 0 and 2147483647"),
        ({"seed": 2**31 - 1, "n": 2}, "seed must be between 0 and 2147483646"),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"steps": -5}, "steps must be between 1 and 1000, got -5"),
        ({"steps": 1001}, "steps must be between 1 and 1000, got 1001"),
        ({"guidance": 0.5}, r"guidance must be a number of at least 1 \(1 is off\), got 0.5"),
        ({"guidance": -1.0}, "guidance must be a number of at least 1"),
        ({"guidance": float("nan")}, "guidance must be a number of at least 1"),
        ({"guidance": float("inf")}, "guidance must be a number of at least 1"),
        ({"eta": -0.1}, "eta must be between 0 and 1, got -0.1"),
        ({"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
        ({"eta": float("nan")}, "eta must be between 0 and 1, got nan"),
        ({"sampler": "euler"}, "unknown sampler 'euler': choose among ddim, ddpm"),
        ({"size": 0}, "the size 0x0 does not fit tiny"),
        ({"size": -8}, "the size -8x-8 does not fit tiny"),
        ({"size": 10}, "10x10 does not fit tiny: .* multiples of 4; it was trained at 8"),
        ({"size": (8, 6)}, "the size 8x6 does not fit tiny"),
        ({"prompt": "a cat, Gothic style"}, "does not know the style 'gothic': .* noto, flat"),
        ({"negative": "a dog, oil style"}, "does not know the style 'oil'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(pipe, compilations, arguments, words):
    arguments = {"prompt": CAT, **arguments}
    with pytest.raises(ValueError, match=words):
        pipe(**arguments)
    assert compilations == []


def test_any_style_goes_where_the_model_names_none(pipe):
    free = stable_diffusion.Pipeline(
        pipe.name, pipe.config, pipe.params, pipe.tokenizer, pipe.defaults
    )
    with pytest.warns(UserWarning, match="tiny was never shown the words: gothic"):
        free("a cat, gothic style")


def test_unknown_words_are_told_and_do_no_harm(pipe):
    with pytest.warns(UserWarning, match="tiny was never shown the words: purple, zebra"):
        images = pipe("a purple zebra")
    assert len(images) == 1
    with pytest.warns(UserWarning, match="never shown the words: fog"):
        pipe(CAT, negative="fog")


def test_the_end_of_a_long_prompt_is_told(pipe):
    with pytest.warns(UserWarning, match="too long, this is ignored: 'dog dog'"):
        pipe("a cat " + "dog " * 10)


# The list of images and its files


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
