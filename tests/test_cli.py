"""The command line, in this process, on a tiny model."""

import json
from pathlib import Path

import pytest
import tiny_pipeline
from PIL import Image

from sdjax.cli import main
from sdjax.data import emoji
from sdjax.pipelines.images import read_recipe


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline.save(tiny_pipeline.make_pipeline(), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """The tests' compilation cache stays, and files go to a folder of the test's own."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set in conftest.py")
    monkeypatch.chdir(tmp_path)


def test_imagine_draws_a_grid_of_four_and_says_where(model, tmp_path, capsys):
    assert main(["imagine", "a red cat, flat style", "--model", model, "--seed", "7"]) == 0
    picture = tmp_path / "imagine.png"
    assert str(picture.resolve()) in capsys.readouterr().out
    recipes = read_recipe(picture)
    assert [recipe["seed"] for recipe in recipes] == [7, 8, 9, 10]
    assert {recipe["prompt"] for recipe in recipes} == {"a red cat, flat style"}
    with Image.open(picture) as image:
        assert image.size == ((8 + 2 + 8) * 4,) * 2
        assert image.text["parameters"].startswith("a red cat, flat style\nSteps: 3, ")


def test_no_command_shows_the_help(capsys):
    assert main([]) == 0
    assert "imagine" in capsys.readouterr().out


def test_imagine_takes_every_option(model, tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    options = "-n 1 --steps 4 --guidance 2 --negative dog --scale 1 -o one.png --rescale 0.7"
    more = "--spacing leading --offset 3 --image red.png --strength 0.5 --sampler heun"
    command = ["imagine", "a cat", "--model", model, "--size", "8x16", "--eta", "0.5"]
    assert main([*command, *options.split(), *more.split()]) == 0
    recipe = read_recipe(tmp_path / "one.png")[0]
    asked = {"steps": 4, "guidance": 2.0, "negative": "dog", "sampler": "heun", "eta": 0.5}
    asked |= {"spacing": "leading", "offset": 3, "strength": 0.5, "guidance_rescale": 0.7}
    assert recipe.items() >= {**asked, "height": 8, "width": 16}.items()
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (16, 8)


def test_imagine_takes_every_shortcut(model, tmp_path):
    options = "-n 1 --size 32 --guidance-interval 0.1 5 --reuse 2 --merge 0.5 --tile 8 -o one.png"
    assert main(["imagine", "a cat", "--model", model, *options.split()]) == 0
    recipe = read_recipe(tmp_path / "one.png")[0]
    asked = {"guidance_interval": [0.1, 5.0], "reuse": 2, "merge": 0.5, "tile": 8}
    assert recipe.items() >= asked.items()


def test_words_never_seen_are_noted(model, capsys):
    assert main(["imagine", "a purple cat", "--model", model, "-n", "1"]) == 0
    assert "note: tiny was never shown the words: purple" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["  "], "the prompt is empty"),
        (["a cat", "--size", "9"], "the size 9x9 does not fit tiny"),
        (["a cat", "--steps", "0"], "steps must be between 1 and 999, got 0"),
        (["a cat", "--image", "no.png"], "no image file no.png"),
        (["a cat", "--guidance", "0.5"], "guidance must be a number of at least 1"),
        (["a cat", "--sampler", "eular"], "unknown sampler 'eular': choose among ddim, ddim inv"),
        (["a cat, cubist style"], "does not know the style 'cubist': choose among noto, flat"),
        (["a cat", "-n", "0"], "n, the number of images, must be at least 1"),
        (["a cat", "--scale", "0"], "--scale must be at least 1"),
        (["a cat", "--guidance-interval", "2", "1"], "guidance_interval must be two noise levels"),
        (["a cat", "--reuse", "0"], "reuse must be at least 1"),
        (["a cat", "--merge", "0.9"], "merge must be between 0"),
        (["a cat", "--tile", "1"], "tile must be at least 8 latent pixels"),
        (["a cat", "-o", "cat.jpg"], "cat.jpg must end in .png"),
        (["a cat", "-o", "no/cat.png"], "there is no folder no"),
        (["a cat", "--model", "nowhere"], "no model 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(options, message, model, tmp_path, capsys):
    with_model = [*options] if "--model" in options else [*options, "--model", model]
    assert main(["imagine", *with_model]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sdjax imagine: ") and message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_a_size_in_words_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["imagine", "a cat", "--size", "large"])
    assert stop.value.code == 2
    assert "'large' is no size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["clip", "--preset", "huge"], "no training preset 'huge': choose mini"),
        (["clip", "--steps", "0"], "steps must be at least 1, got 0"),
        (["latent-diffusion"], "latent-diffusion needs --clip, a folder"),
        (["latent-diffusion", "--clip", "mini"], "latent-diffusion needs --autoencoder, a folder"),
        (
            ["latent-diffusion", "--clip", "none", "--autoencoder", "none"],
            "no model 'none'",
        ),
        (["judge", "--clip", "mini"], "--clip is nothing for the training of judge: leave it out"),
        (["decoder", "--kind", "ar"], "--kind is nothing for the training of decoder"),
        (["autoencoder", "--start", "none"], "no model 'none'"),
        (["clip", "--start", "dalle2-mini"], "dalle2-mini cannot start clip: it has no clip"),
        (["mini", "--steps", "5"], "--steps is nothing for the whole of mini: leave it out"),
        (["dalle2-mini", "--stage", "2"], "--stage is nothing for the whole of dalle2-mini"),
        (["mini", "--resume"], "to resume"),
    ],
)
def test_train_refuses_in_one_line(options, message, tmp_path, capsys):
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--steps", "--count"])
def test_options_that_priors_have_nothing_for_are_refused(option, capsys):
    assert main(["evaluate", "mini", "--prior", option, "5"]) == 2
    assert f"{option} is nothing for --prior: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sheet", "sheet.jpg"], "sheet.jpg must end in .png or .webp"),
        (["--sheet", "no/sheet.png"], "there is no folder no"),
        (["--sheet", "sheet.png", "--count", "60"], "--count is nothing for --sheet"),
        (["--sheet", "sheet.png", "--prior"], "--prior is nothing for --sheet: leave it out"),
        (["--manipulations", "sheet.jpg"], "sheet.jpg must end in .png or .webp"),
        (["--manipulations", "a.png", "--steps", "5"], "--steps is nothing for --manipulations"),
        (["--manipulations", "a.png", "-o", "a.json"], "--out is nothing for --manipulations"),
        (["--sheet", "a.png", "-o", "a.json"], "--out is nothing for --sheet"),
        (["--manipulations", "a.png"], "mini is no DALL-E 2 with both priors"),
    ],
)
def test_a_sheet_is_refused_before_it_is_drawn(options, message, tmp_path, capsys):
    assert main(["evaluate", "mini", *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_whole_model_is_trained_by_one_command(tmp_path, monkeypatch, capsys):
    asked = []

    def train_system(name, out, **options):
        asked.append((name, out, options))
        return out / "model"

    monkeypatch.setattr("sdjax.training.systems.train_system", train_system)
    assert main(["train", "mini", "--out", "run", "--resume", "--save-every", "9"]) == 0
    assert asked == [("mini", Path("run"), {"resume": True, "save_every": 9})]
    out = capsys.readouterr().out
    assert str((tmp_path / "run" / "model").resolve()) in out
    assert "sdjax evaluate run/model" in out


def test_evaluate_refuses_before_it_works(model, capsys):
    assert main(["evaluate", model]) == 2
    assert "tiny carries no CLIP" in capsys.readouterr().err
    assert main(["evaluate", model, "-o", "no/such.json"]) == 2
    assert "there is no folder no" in capsys.readouterr().err


def test_recipe_is_json_with_the_version(model, tmp_path):
    main(["imagine", "a cat", "--model", model, "-n", "1"])
    with Image.open(tmp_path / "imagine.png") as image:
        stored = json.loads(image.text["sdjax"])
    assert stored["version"] and len(stored["images"]) == 1


# Caption


@pytest.fixture
def drawings(tmp_path):
    """Two held-out drawings and their captions."""
    data = emoji.load("test", ("noto",))
    names, captions = ["melon.png", "elephant.png"], []
    for name, concept in zip(names, ("watermelon", "elephant"), strict=True):
        i = data.concepts.index(concept)
        Image.fromarray(data.images[i]).save(tmp_path / name)
        captions.append(data.captions()[i])
    return names, captions


def test_captions_are_ranked_for_an_image(drawings, capsys):
    (melon, _), (right, wrong) = drawings
    assert main(["caption", melon, wrong, right]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["cosine", "probability", "image", "text"]
    assert first.endswith(f"{melon}  {right}") and second.endswith(wrong)
    cosine, probability = map(float, first.split()[:2])
    assert cosine > 0.4 and probability > 0.9


def test_images_are_ranked_for_a_caption(drawings, capsys):
    (melon, elephant), (_, text) = drawings
    assert main(["caption", melon, elephant, text, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "mini"
    assert [row["image"] for row in found["ranking"]] == [elephant, melon]
    assert {row["text"] for row in found["ranking"]} == {text}
    assert sum(row["probability"] for row in found["ranking"]) == pytest.approx(1)
    assert main(["caption", melon, text, "--json"]) == 0  # one and one
    assert json.loads(capsys.readouterr().out)["ranking"][0]["probability"] == 1


def test_several_images_and_texts_are_ranked_image_by_image(drawings, capsys):
    images, texts = drawings
    assert main(["caption", *images, *texts]) == 0
    rows = [line.split(maxsplit=3)[2:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0] == [images[0], texts[0]] and rows[2] == [images[1], texts[1]]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", "a cat"], "no image file none.png"),
        (["melon.png", "none.png", "a cat"], "no image file none.png"),
        (["text.txt", "a cat"], "text.txt is damaged or no image"),
        (["cut.png", "a cat"], "cut.png is damaged or no image"),
        (["melon.png", " "], "a text is empty"),
        (["melon.png", "elephant.png"], "no text to compare with"),
        (["melon.png", "a cat", "--model", "nowhere"], "no model 'nowhere'"),
        (["melon.png", 300 * "a", "--model", "nowhere"], "no model 'nowhere'"),
        (["melon.png", "a cat", "--model", "TINY"], "tiny carries no CLIP"),
    ],
)
def test_caption_refuses_in_one_line(arguments, message, drawings, model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "melon.png").read_bytes()[:300])
    assert main(["caption", *(model if a == "TINY" else a for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sdjax caption: ") and message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "function"),
    [(["caption", "a.png", "a cat"], "clip.load_clip"), (["imagine", "a cat"], "load.load")],
)
def test_what_a_checkpoint_cannot_tell_is_passed_on(command, function, monkeypatch, capsys):
    def told(model, family=None, ema=None, dtype=None):
        raise ValueError(f"{model}, {family}, {ema}")

    monkeypatch.setattr(f"sdjax.pipelines.{function}", told)
    assert main([*command, "--model", "f", "--family", "sd1", "--no-ema"]) == 2
    assert capsys.readouterr().err.endswith("f, sd1, False\n")


def test_the_type_of_the_weights_is_passed_on(monkeypatch, capsys):
    def told(model, dtype, **_):
        raise ValueError(f"{model} in {dtype}")

    monkeypatch.setattr("sdjax.pipelines.load.load", told)
    assert main(["imagine", "a cat", "--dtype", "bfloat16"]) == 2
    assert capsys.readouterr().err.endswith("mini in bfloat16\n")
    assert main(["imagine", "a cat"]) == 2
    assert capsys.readouterr().err.endswith("mini in float32\n")


def test_models_are_listed(capsys, monkeypatch):
    from sdjax import presets

    monkeypatch.setattr(presets, "PUBLISHED", {"clip-vit-b-32": presets.CLIP_B_32})
    assert main(["models"]) == 0
    head, clip, paper, *bundled = capsys.readouterr().out.splitlines()
    assert head.startswith("model") and "parameters" in head
    assert clip.split()[:2] == ["clip-vit-b-32", "151,277,313"]
    assert paper.split()[0] == "dalle2" and "never" in paper
    assert [row.split()[0] for row in bundled] == ["dalle2-mini", "mini"]
    assert all("Apache-2.0" in row and row.endswith("bundled") for row in bundled)
    assert main(["models", "--json"]) == 0
    names = [m["name"] for m in json.loads(capsys.readouterr().out)]
    assert names == ["clip-vit-b-32", "dalle2", "dalle2-mini", "mini"]


@pytest.mark.parametrize("option", ["--step", "--guid"])
def test_options_are_written_out(option, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["imagine", "a red apple", option, "5"])
    assert f"unrecognized arguments: {option} 5" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
