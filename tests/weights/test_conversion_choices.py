"""Conversion: moving averages, precision, the proof, and failures that leave nothing behind."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from weights.published import (
    MODELS,
    SAFETY,
    SYSTEMS,
    TEXT,
    assert_bit_equal,
    checkpoint,
    entries,
    flat,
    write,
)

from sdjax.pipelines.models import read_model
from sdjax.weights import conversion, files, ldm
from sdjax.weights.conversion import convert_checkpoint, export_model
from sdjax.weights.report import report
from sdjax.weights.sources import open_source
from sdjax.weights.tensors import write_safetensors

SD1, _ = MODELS["sd1 single-file"]
TENSORS = flat(checkpoint(SD1, "single-file"))
UNET = [name for name in TENSORS if name.startswith(ldm.UNET_PREFIX)]
AVERAGES = {ldm.ema_name(name): TENSORS[name] * np.float32(0.5) for name in UNET}
BOOKKEEPING = {
    "model_ema.decay": np.float32([0.9999])[0:1].reshape(()),
    "model_ema.num_updates": np.array(7, np.int32),
}
AVERAGED = TENSORS | {name: TENSORS[name] * np.float32(0.5) for name in UNET}
TEXT_TENSORS = flat(checkpoint(TEXT, "transformers"))
NORM = "text_model.final_layer_norm.weight"


def save(tensors, path):
    save_file(tensors, path)
    return path


CHOICES = {None: AVERAGED, True: AVERAGED, False: TENSORS}


@pytest.mark.parametrize("ema", CHOICES)
def test_raw_weights_or_averages(tmp_path, ema):
    src = save(TENSORS | AVERAGES | BOOKKEEPING, tmp_path / "src.safetensors")
    source = convert_checkpoint(src, tmp_path / "model", family=SD1, ema=ema, check=True)
    assert source.averaged == (ema is not False)
    assert ("moving average" in report(source)) == source.averaged
    export_model(tmp_path / "model", tmp_path / "out.safetensors", "single-file", check=True)
    assert_bit_equal(load_file(tmp_path / "out.safetensors"), CHOICES[ema])
    assert read_model(tmp_path / "model").described["source"]["moving_average"] == source.averaged


def test_a_file_without_averages(tmp_path):
    src = save(TENSORS | BOOKKEEPING, tmp_path / "src.safetensors")
    source = open_source(src, SD1)
    source.check()
    assert not source.averaged
    assert set(BOOKKEEPING) <= set(source.unused)
    with pytest.raises(ValueError, match="holds no moving average of the weights: leave out --ema"):
        open_source(src, SD1, ema=True)


def test_an_average_that_is_missing(tmp_path):
    averages = dict(AVERAGES)
    del averages[ldm.ema_name(UNET[5])]
    src = save(TENSORS | averages, tmp_path / "src.safetensors")
    for ema in (None, True):
        with pytest.raises(ValueError, match=f"none of {UNET[5]} .* --no-ema"):
            open_source(src, SD1, ema=ema)
    open_source(src, SD1, ema=False).check()


@pytest.mark.parametrize("ema", [None, False])
def test_an_average_of_nothing_is_left_over(tmp_path, ema):
    stray = {"model_ema.diffusion_modelnothing": np.ones(3, np.float32)}
    src = save(TENSORS | AVERAGES | stray, tmp_path / "src.safetensors")
    with pytest.raises(ValueError, match="no part of the model, 1: model_ema.diffusion_modelnoth"):
        open_source(src, SD1, ema=ema).check()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_precision_to_store(tmp_path, dtype):
    numpy = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    src = save(TEXT_TENSORS, tmp_path / "src.safetensors")
    convert_checkpoint(src, tmp_path / "model", family=TEXT, dtype=dtype, check=True)
    export_model(tmp_path / "model", tmp_path / "stored", "diffusers", check=True)
    export_model(src, tmp_path / "direct", "diffusers", family=TEXT, dtype=dtype, check=True)
    for folder in ("stored", "direct"):
        found = open_source(tmp_path / folder, TEXT).components()["text"]
        assert {leaf.dtype for leaf in found.values()} == {numpy}
        wanted = TEXT_TENSORS[NORM].astype(numpy)
        assert np.asarray(found["norm_final/scale"]).tobytes() == wanted.tobytes()


def test_unused_tensors_are_not_cast(tmp_path):
    src = save(TENSORS, tmp_path / "src.safetensors")
    out = tmp_path / "out.safetensors"
    export_model(src, out, "single-file", family=SD1, dtype="float16", check=True)
    written = load_file(out)
    assert written["betas"].tobytes() == TENSORS["betas"].tobytes()
    assert written[UNET[0]].dtype == np.float16


def test_the_check_of_an_export_opens_what_was_written(tmp_path, monkeypatch):
    """It sees names that no reader knows, which the bytes written do not show."""
    src = save(TEXT_TENSORS, tmp_path / "src.safetensors")

    def wrong_names(*arguments):
        return {"": {f"x.{name}": t for name, t in published(*arguments)[""].items()}}

    published = conversion.published
    monkeypatch.setattr(conversion, "published", wrong_names)
    with pytest.raises(ValueError, match="no whole"):
        export_model(src, tmp_path / "out", "diffusers", family=TEXT, check=True)
    assert not (tmp_path / "out").exists()


def test_every_tensor_keeps_its_own_precision(tmp_path):
    types = (np.float16, np.float32, np.float64)
    mixed = {
        name: array.astype(types[i % 3]) if array.dtype == np.float32 else array
        for i, (name, array) in enumerate(TEXT_TENSORS.items())
    }
    src = save(mixed, tmp_path / "src.safetensors")
    convert_checkpoint(src, tmp_path / "model", family=TEXT, check=True)
    export_model(tmp_path / "model", tmp_path / "out", "diffusers", check=True)
    assert_bit_equal(load_file(tmp_path / "out" / "model.safetensors"), mixed)


def test_numbers_too_large_for_float16(tmp_path):
    large = TEXT_TENSORS | {NORM: TEXT_TENSORS[NORM] * np.float32(1e5)}
    src = save(large, tmp_path / "src.safetensors")
    before = entries(tmp_path)
    with pytest.raises(ValueError, match=r"norm_final/scale reaches 1.* more than float16 holds"):
        convert_checkpoint(src, tmp_path / "model", family=TEXT, dtype="float16")
    with pytest.raises(ValueError, match=rf"{NORM} reaches 1.* choose bfloat16 or float32"):
        export_model(src, tmp_path / "out", "diffusers", family=TEXT, dtype="float16")
    assert entries(tmp_path) == before
    convert_checkpoint(src, tmp_path / "model", family=TEXT, dtype="bfloat16", check=True)


def flip_a_bit_of(victim):
    """`write_safetensors`, but the last tensor of the file `victim` comes out wrong."""

    def write_and_flip(path, tensors, *options, **named):
        write_safetensors(path, tensors, *options, **named)
        if path.name == victim:
            content = bytearray(path.read_bytes())
            content[-4] ^= 1
            path.write_bytes(content)

    return write_and_flip


@pytest.mark.parametrize("victim", ["text.safetensors", "unused.safetensors"])
def test_the_check_sees_one_wrong_bit(tmp_path, monkeypatch, victim):
    src = save(TEXT_TENSORS, tmp_path / "src.safetensors")
    convert_checkpoint(src, tmp_path / "model", family=TEXT)
    before = entries(tmp_path)
    monkeypatch.setattr(files, "write_safetensors", flip_a_bit_of(victim))
    for name in ("model", "new"):  # a model that is there survives
        with pytest.raises(ValueError, match="does not come back as it was: nothing was written"):
            convert_checkpoint(src, tmp_path / name, family=TEXT, check=True)
    assert entries(tmp_path) == before
    convert_checkpoint(src, tmp_path / "new", family=TEXT)  # without the check it goes unseen


def test_the_check_of_an_export_sees_one_wrong_bit(tmp_path, monkeypatch):
    src = save(TEXT_TENSORS, tmp_path / "src.safetensors")
    before = entries(tmp_path)
    monkeypatch.setattr(conversion, "write_safetensors", flip_a_bit_of("model.safetensors"))
    with pytest.raises(ValueError, match="does not come back as it was: nothing was written"):
        export_model(src, tmp_path / "out", "diffusers", family=TEXT, check=True)
    assert entries(tmp_path) == before


def without(name):
    return {key: array for key, array in TENSORS.items() if key != name}


FIRST = "first_stage_model.encoder.conv_in.weight"
TWO = np.ones(2, np.float32)
BROKEN = {
    "missing": (without(FIRST), r"autoencoder: .*\n *missing, 1: encoder.conv_in.weight"),
    "extra": (TENSORS | {f"{ldm.UNET_PREFIX}more": TWO}, r"unet: .*\n *left over, 1: more"),
    "misshapen": (TENSORS | {FIRST: TENSORS[FIRST][:-1]}, r"1: encoder.conv_in.weight is \(15"),
    "NaN": (TENSORS | {FIRST: TENSORS[FIRST] * np.float32(np.nan)}, "conv_in.* holds NaN or inf"),
    "prefix": (TENSORS | {"lora.down": TWO}, "in no part of the model, 1: lora.down"),
    "integers": (
        TENSORS | {FIRST: TENSORS[FIRST].astype(np.int32)},
        "encoder.conv_in.weight holds int32, parameters are floats",
    ),
    "nothing known": ({"weight": TWO}, "is no checkpoint that sdjax knows"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("export", [False, True], ids=["convert", "export"])
def test_a_broken_checkpoint_leaves_nothing_behind(tmp_path, name, export):
    tensors, message = BROKEN[name]
    src = save(tensors, tmp_path / "src.safetensors")
    before = entries(tmp_path)
    with pytest.raises(ValueError, match=message):
        if export:
            export_model(src, tmp_path / "dst", "diffusers", family=SD1)
        else:
            convert_checkpoint(src, tmp_path / "dst", family=SD1)
    assert entries(tmp_path) == before


def a_file(folder):
    (folder / "dst").write_text("x")


def full_folder(folder):
    (folder / "dst").mkdir()
    (folder / "dst" / "thesis.txt").write_text("years of work")


PLACES = {
    "folder missing": ("no/dst", lambda folder: None, FileNotFoundError, "is not a folder"),
    "a file": ("dst", a_file, ValueError, "dst (is a file|exists)"),
    "full folder": ("dst", full_folder, ValueError, "not replaced|exists"),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("export", [None, "diffusers", "single-file"])
def test_a_place_that_cannot_be_written(tmp_path, name, export):
    dst, prepare, error, message = PLACES[name]
    model = MODELS["clip openclip"][0]
    src = save(flat(checkpoint(model, "openclip")), tmp_path / "src.safetensors")
    prepare(tmp_path)
    before = entries(tmp_path)
    with pytest.raises(error, match=message):
        if export:
            export_model(src, tmp_path / dst, export, family=model)
        else:
            convert_checkpoint(src, tmp_path / dst, family=model)
    assert entries(tmp_path) == before


@pytest.mark.parametrize("export", [None, "diffusers", "single-file"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, export):
    src = save(TENSORS, tmp_path / "src.safetensors")
    convert_checkpoint(src, tmp_path / "model", family=SD1)
    before = entries(tmp_path)
    calls = []

    def write_little(path, tensors, *options, **named):
        calls.append(path)
        write_safetensors(path, tensors, *options, **named)
        if len(calls) == (1 if export == "single-file" else 2):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion if export else files, "write_safetensors", write_little)
    with pytest.raises(OSError, match="No space left"):
        if export:
            export_model(src, tmp_path / "new", export, family=SD1)
        else:
            convert_checkpoint(src, tmp_path / "model", family=SD1)
    assert calls
    assert entries(tmp_path) == before


def test_a_kind_without_the_layout(tmp_path):
    src = save(TEXT_TENSORS, tmp_path / "src.safetensors")
    with pytest.raises(ValueError, match="no TextTower is written in the layout 'single-file'"):
        export_model(src, tmp_path / "out.safetensors", "single-file", family=TEXT)
    assert list(tmp_path.iterdir()) == [src]


def test_a_folder_of_another_kind_or_without_a_part(tmp_path):
    system = SYSTEMS["sd1-safety"]
    tensors = flat(checkpoint(system, "diffusers"))
    src = write(system, "diffusers", tensors, tmp_path / "src")
    assert open_source(src, system).config.safety == SAFETY  # its own, not the published one
    with pytest.raises(ValueError, match="which 'clip-vit-b-32' is not: choose among sd1, "):
        open_source(src, "clip-vit-b-32")
    (src / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="vae holds no weights"):
        open_source(src, system)
    (src / "vae").rmdir()
    with pytest.raises(FileNotFoundError, match="has no folder vae"):
        open_source(src, system)


def test_what_is_recorded(tmp_path):
    src = save(TEXT_TENSORS, tmp_path / "my.v2.safetensors")
    convert_checkpoint(src, tmp_path / "model", family=TEXT)
    described = read_model(tmp_path / "model").described
    assert (described["name"], described["family"]) == ("my.v2", "custom")
    assert described["source"] == {
        "name": "my.v2.safetensors",
        "layout": "transformers",
        "moving_average": False,
        "sha256": {"my.v2.safetensors": files.sha256(src)},
    }
