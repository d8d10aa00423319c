"""The commands of DALL-E 2, in this process, on a tiny model."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipeline
import tiny_unclip
from PIL import Image

from sdjax.cli import main
from sdjax.pipelines import manipulate
from sdjax.pipelines.images import RECIPE, Images, read_recipe


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Files go to a folder of the test's own, where there are two pictures and a mask."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set in conftest.py")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(name)
    mask = np.zeros((40, 50), np.uint8)
    mask[:, 25:] = 255
    Image.fromarray(mask).save("mask.png")


@pytest.fixture(autouse=True)
def model(monkeypatch):
    pipe = tiny_unclip.make_unclip()
    monkeypatch.setattr("sdjax.pipelines.load.load", lambda *_, **__: pipe)
    return pipe


@pytest.fixture
def asked(monkeypatch):
    """What the functions of `manipulate` were asked for; they draw nothing."""
    calls = []

    def stand_in(name):
        def draw(pipe, *arguments, **options):
            calls.append((name, arguments, options))
            picture = Image.new("RGB", (16, 16))
            picture.info[RECIPE] = pipe.finish(
                [jnp.zeros((1, 16, 16, 3))],
                [""],
                np.zeros(1, np.int32),
                {"steps": 1, "sampler": "ddim", "guidance": 1.0},
            )[0].info[RECIPE]
            return Images([picture] * 3)

        return draw

    for name in ("interpolate", "textdiff", "variations", "mix", "inpaint", "outpaint"):
        monkeypatch.setattr(manipulate, name, stand_in(name))
    monkeypatch.setattr(manipulate, "translate", stand_in("translate"))
    return calls


def files(arguments):
    return [str(argument) for argument in arguments]


def test_interpolate(asked, tmp_path, capsys):
    assert main(["interpolate", "a.png", "b.png", "-n", "5", "-o", "out.png"]) == 0
    ((name, arguments, options),) = asked
    assert (name, files(arguments)) == ("interpolate", ["a.png", "b.png", "5"])
    assert options == {"fixed_noise": False}
    with Image.open("out.png") as image:
        assert image.size == (4 * (3 * 16 + 2 * 2), 64)  # in one row
    assert len(read_recipe(tmp_path / "out.png")) == 3
    assert capsys.readouterr().out == f"3 pictures: {tmp_path / 'out.png'}\n"


def test_textdiff(asked):
    words = ["--from", "a cat", "--to", "a dog"]
    assert main(["textdiff", "a.png", *words, "-n", "3", "--theta", "0.4"]) == 0
    ((name, arguments, _),) = asked
    assert name == "textdiff" and arguments[1:3] == ("a cat", "a dog")
    assert arguments[3] == [0.0, 0.2, 0.4]
    assert main(["textdiff", "a.png", *words]) == 0
    assert asked[-1][1][3][-1] == manipulate.MOST_THETA


def test_variations_and_mix(asked):
    assert main(["variations", "a.png", "-n", "2", "--eta", "0.5", "--seed", "3"]) == 0
    assert asked[-1][2] == {"eta": 0.5, "seed": 3}
    assert main(["mix", "a cat", "a.png", "--weights", "1", "2"]) == 0
    parts, weights = asked[-1][1]
    assert [type(part).__name__ for part in parts] == ["str", "PosixPath"]
    assert weights == [1, 2]


def test_inpaint_and_outpaint(asked):
    assert main(["inpaint", "a.png", "a cat", "--mask", "mask.png", "-n", "1"]) == 0
    name, (picture, hole, prompt), _ = asked[-1]
    assert (name, str(picture), prompt) == ("inpaint", "a.png", "a cat")
    assert hole.shape == (40, 50) and hole[:, 25:].all() and not hole[:, :25].any()
    assert main(["outpaint", "a.png", "a cat", "--pixels", "3"]) == 0
    assert asked[-1][1][2] == 3


def test_how_it_is_drawn_can_be_said(asked):
    drawing = ["--prior", "ar", "--steps", "7", "--guidance", "1.5"]
    for command in (
        ["mix", "a cat", "a dog"],
        ["inpaint", "a.png", "a cat", "--mask", "mask.png"],
        ["outpaint", "a.png", "a cat"],
    ):
        assert main([*command, *drawing]) == 0
        told = {"n": 4, "seed": 0, "prior": "ar", "steps": 7, "guidance": 1.5}
        assert asked[-1][2] == told
    assert main(["variations", "a.png", *drawing[2:]]) == 0
    assert asked[-1][2] == {"eta": 1.0, "seed": 0, "steps": 7, "guidance": 1.5}
    assert main(["textdiff", "a.png", "--from", "a cat", "--to", "a dog", *drawing[2:]]) == 0
    assert asked[-1][2] == {"steps": 7, "guidance": 1.5}
    assert main(["interpolate", "a.png", "b.png", *drawing[2:4]]) == 0
    assert asked[-1][2] == {"fixed_noise": False, "steps": 7}


def test_imagine_redraws_an_image(asked):
    command = ["imagine", "a cat", "--model", "tiny", "--image", "a.png", "-n", "1"]
    assert main([*command, "--strength", "0.5", "--prior", "ar", "--best-of", "3"]) == 0
    name, arguments, options = asked[-1]
    assert (name, files(arguments)) == ("translate", ["a.png", "a cat"])
    assert (options["strength"], options["prior"], options["best_of"]) == (0.5, "ar", 3)


def test_imagine_draws(model, monkeypatch):
    told = {}

    def draw(pipe, prompt, **options):
        told.update(options, prompt=prompt)
        return pipe.finish(
            [jnp.zeros((2, 16, 16, 3))],
            2 * [prompt],
            np.arange(2, dtype=np.int32),
            pipe.settings.recipe(),
        )

    monkeypatch.setattr(type(model), "__call__", draw)
    assert main(["imagine", "a cat", "--model", "tiny", "-n", "2", "--steps", "9"]) == 0
    assert (told["prompt"], told["n"], told["steps"], told["prior"]) == ("a cat", 2, 9, None)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["imagine", "a cat", "--negative", "dog"], "--negative is nothing for tiny"),
        (["imagine", "a cat", "--size", "64"], "--size is nothing for tiny"),
        (["imagine", "a cat", "--spacing", "karras"], "--spacing is nothing for tiny"),
        (["imagine", "a cat", "--guidance-interval", "1", "2"], "--guidance-interval is nothing"),
        (["imagine", "a cat", "--reuse", "2"], "--reuse is nothing for tiny"),
        (["imagine", "a cat", "--merge", "0.5"], "--merge is nothing for tiny"),
        (["imagine", "a cat", "--tile", "8"], "--tile is nothing for tiny"),
        (["imagine", "a cat", "--strength", "0.5"], "nothing for tiny without --image"),
        (["interpolate", "a.png", "none.png"], "no image file none.png"),
        (["interpolate", "a.png", "b.png", "-n", "1"], "n must be at least 2"),
        (["interpolate", "a.png", "b.png", "-o", "out.jpg"], "out.jpg must end in .png"),
        (["interpolate", "a.png", "b.png", "--scale", "0"], "--scale must be at least 1"),
        (["textdiff", "a.png", "--from", "a cat", "--to", "a cat"], "both texts mean the same"),
        (["textdiff", "a.png", "--from", "a", "--to", "b", "-n", "1"], "-n must be at least 2"),
        (["variations", "a.png", "--eta", "2"], "eta must be between 0 and 1"),
        (["mix", "a cat"], "nothing to mix"),
        (["inpaint", "a.png", "a cat", "--mask", "none.png"], "no image file none.png"),
        (["outpaint", "a.png", "a cat", "--pixels", "8"], "above 0 and below 16"),
    ],
)
def test_bad_input_is_one_line(command, message, tmp_path, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"sdjax {command[0]}: ") and message in error
    assert not (tmp_path / f"{command[0]}.png").exists()


def test_another_model_has_no_image_embeddings(monkeypatch, capsys):
    other = tiny_pipeline.make_pipeline()
    monkeypatch.setattr("sdjax.pipelines.load.load", lambda *_, **__: other)
    assert main(["variations", "a.png", "--model", "mini"]) == 2
    assert "mini is no DALL-E 2" in capsys.readouterr().err
    assert main(["imagine", "a cat", "--prior", "ar"]) == 2
    assert "--prior is nothing for tiny" in capsys.readouterr().err
