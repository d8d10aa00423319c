"""The command `weights_convert.py`, and conversion of damaged and hostile files."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_rule import weight
from safetensors.numpy import load_file, save_file
from weights import hostile
from weights.published import SYSTEMS, assert_bit_equal, checkpoint, entries, flat, read, write
from weights.torch_writer import write_zip

from sdjax import presets
from sdjax.pipelines.models import read_model
from sdjax.weights import command, files
from sdjax.weights.command import main
from sdjax.weights.conversion import convert_checkpoint
from sdjax.weights.folders import write_configs

SCRIPT = Path(__file__).parents[1] / "weights_convert.py"
STATISTICS = {name: np.asarray(weight(name, [1, 768])) for name in ("mean", "std")}


@pytest.fixture
def folder(tmp_path):
    """A folder of diffusers: it says its own sizes, so the command needs no family."""
    system = SYSTEMS["sd1-safety"]
    src = write(system, "diffusers", flat(checkpoint(system, "diffusers")), tmp_path / "src")
    write_configs(system, src)
    return src


def run(*arguments):
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """The message on stderr of a command that must fail."""
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("weights_convert.py: ")
    assert "Traceback" not in error
    return error


def test_a_dry_run_shows_what_fits(folder, capsys):
    before = entries(folder.parent)
    assert run("--src", folder, "--dry-run") == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert head == f"{folder}: custom, layout diffusers"
    assert columns.split() == [
        *("part", "used", "missing", "misshapen", "left", "over", "unused", "parameters", "dtype")
    ]
    assert [row.split()[0] for row in rows] == ["unet", "autoencoder", "text", "safety"]
    for row, part in zip(rows, ("unet", "vae", "text_encoder", "safety_checker"), strict=True):
        tensors = read(folder / part)
        ids = [name for name in tensors if name.endswith("position_ids")]
        _, used, *none, unused, parameters, dtype = row.split()
        assert (int(used), none, int(unused)) == (
            len(tensors) - len(ids),
            ["0"] * 3,
            len(ids),
        )
        size = sum(array.size for name, array in tensors.items() if name not in ids)
        assert (parameters, dtype) == (f"{size:,}", "float32")
    assert entries(folder.parent) == before


def test_a_dry_run_of_a_broken_file_says_what_is_wrong(folder, capsys):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.conv_in.weight"]
    save_file(tensors | {"more": np.ones(3, np.float32)}, path)
    assert run("--src", folder, "--dry-run") == 2
    out, err = capsys.readouterr()
    _, _, missing, misshapen, left_over, *_ = re.search("autoencoder.*", out)[0].split()
    assert (missing, misshapen, left_over) == ("1", "0", "1")
    assert "missing, 1: encoder.conv_in.weight" in err
    assert "left over, 1: more" in err


def test_convert_then_export_both_ways(folder, tmp_path, capsys):
    model, single, back = tmp_path / "model", tmp_path / "sd.safetensors", tmp_path / "back"
    assert run("--src", folder, "--dst", model, "--check") == 0
    assert capsys.readouterr().out.endswith(f"wrote {model}, checked bit by bit\n")
    assert read_model(model).config == SYSTEMS["sd1-safety"]
    assert run("--src", model, "--dst", back, "--export", "diffusers", "--check") == 0
    assert_bit_equal(read(back), read(folder))
    assert run("--src", model, "--dst", single, "--export", "single-file") == 0
    assert capsys.readouterr().out.endswith(f"wrote {single}\n")
    names = {name.split(".")[0] for name in load_file(single)}
    assert names == {"model", "first_stage_model", "cond_stage_model"}
    direct = tmp_path / "direct.safetensors"
    assert run("--src", folder, "--dst", direct, "--export", "single-file") == 0
    assert_bit_equal(load_file(direct), load_file(single))
    half = tmp_path / "half"
    assert run("--src", model, "--dst", half, "--export", "diffusers", "--dtype", "float16") == 0
    assert {str(a.dtype) for a in read(half / "unet").values()} == {"float16"}


def test_the_family_is_recognised_or_checked(tmp_path, capsys):
    src = tmp_path / "statistics.safetensors"
    save_file(STATISTICS, src)
    assert run("--src", src, "--dst", tmp_path / "model", "--check") == 0
    assert read_model(tmp_path / "model").name == "clip-vit-l-14-image-statistics"
    error = refused(capsys, "--src", src, "--dst", tmp_path / "new", "--family", "sd1")
    assert "which 'sd1' is not" in error
    error = refused(capsys, "--src", src, "--dst", tmp_path / "new", "--family", "sd2v")
    assert "unknown family 'sd2v': did you mean 'sd2-v'? All names: sd1," in error


def test_ambiguity_ends_with_the_options(capsys, monkeypatch, tmp_path):
    question = "f could be sd2-base or sd2-v: say which, with --family sd2-base or --family sd2-v"

    def ask(path, family=None, ema=None):
        assert (family, ema) == (None, True)
        raise ValueError(question)

    monkeypatch.setattr(command, "open_source", ask)
    (tmp_path / "f").touch()
    error = refused(capsys, "--src", tmp_path / "f", "--dst", tmp_path / "model", "--ema")
    assert error == f"weights_convert.py: {question}\n"


def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys):
    model, full = tmp_path / "model", tmp_path / "full"
    assert run("--src", folder, "--dst", model) == 0
    shutil.copytree(folder, full)
    before = entries(tmp_path)
    capsys.readouterr()
    for arguments, message in [
        (("--src", tmp_path / "no.ckpt", "--dst", "x"), "no file /"),
        (("--src", folder), "say with --dst where to write"),
        (("--src", model, "--dst", "x"), "is a model folder already: write it with --export"),
        (("--src", model, "--dry-run"), "is a model folder already"),
        (("--src", folder, "--dst", full), "is neither empty nor a model folder"),
        (("--src", folder, "--dst", tmp_path / "a" / "b"), "is not a folder"),
        (("--src", folder, "--dst", full, "--export", "diffusers"), "exists: choose another name"),
        (("--src", folder, "--dst", tmp_path / "new", "--ema"), "leave out --ema"),
    ]:
        error = refused(capsys, *arguments)
        assert message in error
        assert error.count("\n") == 1
    assert entries(tmp_path) == before


def test_a_full_disk_is_told_in_one_line(folder, tmp_path, capsys, monkeypatch):
    def full(path, tensors, *options, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_safetensors", full)
    before = entries(tmp_path)
    error = refused(capsys, "--src", folder, "--dst", tmp_path / "model")
    assert error == "weights_convert.py: [Errno 28] No space left on device\n"
    assert entries(tmp_path) == before


@pytest.mark.parametrize("name", hostile.CASES)
def test_damaged_and_hostile_files(name, tmp_path):
    (tmp_path / "src").mkdir()
    case = hostile.CASES[name]
    path = case.make(tmp_path / "src")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(case.error, match=case.message) as caught:
        convert_checkpoint(path, tmp_path / "model")
    assert type(caught.value) is case.error
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before  # no output, and no canary of a payload


@pytest.mark.parametrize("make", hostile.NOT_FINITE)
def test_numbers_that_are_not_finite(make, tmp_path):
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is no checkpoint that sdjax knows"):
        convert_checkpoint(path, tmp_path / "model")
    assert sorted(tmp_path.iterdir()) == before


WITHOUT_TORCH = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "open_clip"):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Blocked())

import sdjax
from sdjax.pipelines.models import read_model
from sdjax.weights.command import main

for src, dst in (sys.argv[1:3], sys.argv[3:5]):
    assert main(["--src", src, "--dst", dst, "--check"]) == 0
    read_model(dst)
    written = dst + ".published"
    assert main(["--src", dst, "--dst", written, "--export", "diffusers", "--check"]) == 0
    read_model(written)
sdjax.load(sys.argv[2])
sdjax.load(sys.argv[2] + ".published")
assert not {"torch", "diffusers", "open_clip"} & set(sys.modules)
"""


def test_nothing_needs_torch(folder, tmp_path):
    ckpt = write_zip(tmp_path / "statistics.ckpt", {"state_dict": STATISTICS})
    single, stored = tmp_path / "single", tmp_path / "stored"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, ckpt, single, folder, stored],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model = read_model(single)
    np.testing.assert_array_equal(model.params["image_statistics"]["mean"], STATISTICS["mean"][0])


def test_the_script_is_the_command():
    spec = importlib.util.spec_from_file_location("weights_convert", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main is main
    assert presets.SYSTEMS.keys() <= set(re.findall(r"[\w-]+", command._parser().format_help()))


@pytest.mark.parametrize("layout", ["diffusers", "single-file"])
def test_a_model_that_borrows_its_clip_is_not_exported(layout, tmp_path, capsys):
    assert run("--src", "dalle2-mini", "--dst", tmp_path / "x", "--export", layout) == 2
    assert "has its text, image from a bundled model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
