"""Settings that lie beside weights: what they say is taken, and a family must not contradict it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file
from weights.hub_folders import DPT
from weights.published import CLIP, MODELS, SYSTEMS, TEXT, checkpoint, flat, write

from sdjax import presets
from sdjax.weights import sources
from sdjax.weights.folders import lone_config, write_configs
from sdjax.weights.sources import open_source

OPEN_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 9, "vocab_size": 40, "width": 64, "heads": 2, "layers": 1},
}


@pytest.fixture
def tower(tmp_path):
    save_file(flat(checkpoint(TEXT, "transformers")), tmp_path / "model.safetensors")
    write_configs(TEXT, tmp_path)
    return tmp_path


def test_of_a_file_with_a_usual_name(tower):
    assert open_source(tower / "model.safetensors").config == TEXT
    (tower / "model.safetensors").rename(tower / "mine.safetensors")
    with pytest.raises(ValueError, match="of no published size"):
        open_source(tower / "mine.safetensors")  # the settings may be another's


def test_of_openclip(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
    config = sources.open_clip_config(tmp_path / "open_clip_config.json")[0]
    path = tmp_path / "open_clip_model.safetensors"
    save_file(flat(checkpoint(config, "openclip")), path)
    for place in (tmp_path, path):
        source = open_source(place)
        assert (source.config, source.layout) == (config, "openclip")
        assert source.config.text.activation == "gelu"
        source.check()


def test_the_layout_is_that_of_the_weights(tmp_path):
    save_file(flat(checkpoint(CLIP, "openclip")), tmp_path / "open_clip_model.safetensors")
    write_configs(CLIP, tmp_path)
    source = open_source(tmp_path)
    assert (source.config, source.layout) == (CLIP, "openclip")
    source.check()


def test_a_family_that_contradicts_them_is_refused(tower, tmp_path):
    with pytest.raises(ValueError, match="not those of 'clip-vit-l-14-text': vocab_size is 40, no"):
        open_source(tower, "clip-vit-l-14-text")
    with pytest.raises(ValueError, match="which 'sd1' is not"):
        open_source(tower, "sd1")
    assert open_source(tower, TEXT).config == TEXT
    system = SYSTEMS["sd2"]
    folder = write(system, "diffusers", flat(checkpoint(system, "diffusers")), tmp_path / "sd")
    write_configs(system, folder)
    v = replace(system, schedule=presets.SD_V_SCHEDULE)
    with pytest.raises(ValueError, match="schedule.prediction is 'eps', not 'v'"):
        open_source(folder, v)
    assert open_source(folder, system).config == system


def test_the_epsilon_of_the_depth_network_does_not_tell_families_apart(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DPT))
    depth, _ = lone_config(tmp_path / "config.json")
    assert depth.layer_norm_epsilon == 1e-12
    assert sources._family(depth) == "dpt-hybrid"
    assert sources._family(replace(presets.SD2_DEPTH, depth=depth)) == "sd2-depth"


def test_a_network_that_flax_saved(tmp_path):
    write_configs(presets.KL_F8, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("AutoencoderKL", "FlaxAutoencoderKL"))
    assert lone_config(path)[0] == presets.KL_F8


def test_names_are_shown_without_their_control_characters(tmp_path):
    config, _ = MODELS["sd1 single-file"]
    tensors = flat(checkpoint(config, "single-file"))
    name = "\x1b[2J" + "x" * 1000
    save_file(tensors | {name: np.ones(2, np.float32)}, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match="is no whole model of this config") as caught:
        open_source(tmp_path / "f.safetensors", config).check()
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 600
    save_file({name: np.ones(2, np.float32)}, tmp_path / "g.safetensors")
    with pytest.raises(ValueError, match="no checkpoint that sdjax knows") as caught:
        open_source(tmp_path / "g.safetensors")
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_checkpoint_is_converted_one_tensor_at_a_time(tmp_path):
    """About 100 MB in 50 tensors: the peak is far below what any component takes."""
    import tracemalloc

    from sdjax.weights.conversion import convert_checkpoint
    from sdjax.weights.layouts import parts
    from sdjax.weights.rules import listing
    from sdjax.weights.tensors import LazyTensor, write_safetensors

    config = replace(TEXT, dim=512, mlp_dim=2048, layers=8)
    (part,) = parts(config, "transformers")
    dtype = np.dtype(np.float32)
    tensors = {
        name: LazyTensor(shape, dtype, lambda shape=shape: np.ones(shape, np.float32))
        for name, shape in listing(part.shapes, part.table).items()
    }
    write_safetensors(tmp_path / "src.safetensors", tensors)
    size = (tmp_path / "src.safetensors").stat().st_size
    assert size > 90e6
    tracemalloc.start()
    convert_checkpoint(tmp_path / "src.safetensors", tmp_path / "model", family=config, check=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.4 * size
