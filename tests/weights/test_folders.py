"""Settings of diffusers and transformers: what is written reads back; what the hub has is read."""

import json
from dataclasses import replace

import pytest
from weights.hub_folders import (
    CLIP_L,
    DPT,
    END,
    H_IMAGE,
    PNDM_0_4,
    PNDM_0_10,
    REAL,
    SAFETY,
    SD1_4_TEXT,
    SD1_4_UNET,
    SD1_5_INPAINTING_UNET,
    SD2_INPAINTING_UNET,
    SD2_SPECIAL,
    SD2_TEXT,
    VAE,
    system,
)

from sdjax import presets
from sdjax.config import Decoder, Glide, StableDiffusion, Unclip, Upsampler
from sdjax.text.tokenizer import CLIP_EOT, CLIP_SOT, Tokenizer
from sdjax.weights.folders import diffusers_config, lone_config, weights_name, write_configs
from sdjax.weights.layouts import TRANSFORMERS
from sdjax.weights.recognize import FAMILIES

SYSTEMS = presets.SYSTEMS | {
    f"{name}+safety": replace(presets.SYSTEMS[name], safety=presets.SAFETY_CHECKER)
    for name in ("sd1", "sd2-depth", "sd2-x4-upscaler")
}
WITHOUT_A_FOLDER = StableDiffusion | Unclip | Glide | Decoder | Upsampler
"""Of their own: these are several networks."""
NETWORKS = {n: c for n, c in FAMILIES.items() if not isinstance(c, WITHOUT_A_FOLDER)} | {
    "mini-unet": presets.MINI_UNET,
    "mini-clip": presets.MINI_CLIP,
    "mini-text": presets.MINI_CLIP.text,
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(folder, files):
    for name, values in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module", params=SYSTEMS)
def written(request, tmp_path_factory):
    """A system and the folder that was written for it."""
    folder = tmp_path_factory.mktemp("system")
    write_configs(SYSTEMS[request.param], folder)
    return SYSTEMS[request.param], folder


def test_a_system_reads_back(written):
    system, folder = written
    assert diffusers_config(folder) == system


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_reads_back(name, tmp_path):
    write_configs(NETWORKS[name], tmp_path)
    config, layout = lone_config(tmp_path / "config.json")
    assert config == NETWORKS[name]
    assert layout == ("transformers" if isinstance(config, TRANSFORMERS) else "diffusers")


def test_the_index_names_a_class_for_every_folder(written):
    system, folder = written
    index = read(folder / "model_index.json")
    named = {key for key, value in index.items() if isinstance(value, list) and value[0]}
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    if system.conditioning == "depth":  # its pipeline does not check
        folders -= {"safety_checker"}
    assert named == folders
    for place in named - {"tokenizer"}:
        (settings,) = (read(path) for path in (folder / place).iterdir())
        names = [*settings.get("architectures", ()), settings.get("_class_name")]
        assert index[place][1] in [*names, settings.get("image_processor_type")]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("sd1", {"unet/": 1, "vae/": 1, "text_encoder/": 0}),
        ("sd1+safety", {"unet/": 1, "vae/": 1, "text_encoder/": 0, "safety_checker/": 0}),
        ("sd2-depth", {"unet/": 1, "vae/": 1, "text_encoder/": 0, "depth_estimator/": 0}),
        (
            "sd2-unclip-l",
            {
                **{"unet/": 1, "vae/": 1, "text_encoder/": 0},
                **{"image_encoder/": 0, "image_normalizer/": 1},
            },
        ),
    ],
)
def test_folders_for_weights(name, places, tmp_path):
    write_configs(SYSTEMS[name], tmp_path)
    assert {f"{path.parent.name}/" for path in tmp_path.glob("*/config.json")} == set(places)
    for place, of_diffusers in places.items():
        stem = "diffusion_pytorch_model" if of_diffusers else "model"
        assert weights_name(SYSTEMS[name], place) == f"{stem}.safetensors"


def test_weights_of_lone_networks():
    assert weights_name(presets.SD1_UNET, "") == "diffusion_pytorch_model.safetensors"
    assert weights_name(presets.KL_F8, "") == "diffusion_pytorch_model.safetensors"
    assert weights_name(presets.CLIP_L_14, "") == "model.safetensors"


@pytest.mark.parametrize(("name", "pad"), [("sd1", "<|endoftext|>"), ("sd2-v", "!")])
def test_the_tokenizer_is_clips(name, pad, tmp_path):
    write_configs(presets.SYSTEMS[name], tmp_path)
    folder = tmp_path / "tokenizer"
    vocabulary = read(folder / "vocab.json")
    text = read(tmp_path / "text_encoder/config.json")
    assert len(vocabulary) == text["vocab_size"] == 49408
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        special = read(folder / file)
        assert special["pad_token"] == pad
        assert vocabulary[special["pad_token"]] == text["pad_token_id"]
        assert vocabulary[special["bos_token"]] == text["bos_token_id"] == CLIP_SOT
        assert vocabulary[special["eos_token"]] == text["eos_token_id"] == CLIP_EOT
    assert Tokenizer(77, presets.SYSTEMS[name].text.pad).pad_id == text["pad_token_id"]
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0].startswith("#version")
    pairs = [merge.split(" ") for merge in merges[1:]]
    assert ["".join(pair) for pair in pairs] == list(vocabulary)[512:-2]


def test_a_cut_vocabulary_comes_without_a_tokenizer(tmp_path):
    text = replace(presets.CLIP_L_TEXT, vocab_size=1000)
    write_configs(replace(presets.SD1, text=text), tmp_path)
    assert not (tmp_path / "tokenizer").exists()
    assert read(tmp_path / "model_index.json")["tokenizer"] == [None, None]
    assert diffusers_config(tmp_path).text == text
    assert read(tmp_path / "text_encoder/config.json")["eos_token_id"] == 998


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (presets.MINI_AUTOENCODER, "patches of 4"),
        (replace(presets.SD1, unet=replace(presets.SD1_UNET, patch=2)), "patches of 2"),
        (replace(presets.CLIP_L_TEXT, skip_layers=1), "skips its last 1"),
        (replace(presets.SAFETY_CHECKER, concepts=4), "17 concepts and 3"),
        (
            replace(
                presets.SD1,
                text=replace(presets.CLIP_L_TEXT, projection_dim=768),
                unet=replace(presets.SD1_UNET, vector_dim=768),
            ),
            "vector of 768",
        ),
    ],
)
def test_what_diffusers_cannot_be_is_refused(config, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        write_configs(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", REAL)
def test_a_folder_of_the_hub(name, tmp_path):
    files, family = REAL[name]
    write(tmp_path, files)
    assert diffusers_config(tmp_path) == SYSTEMS[family]


def test_the_depth_model_of_the_hub(tmp_path):
    unet = SD2_INPAINTING_UNET | {"in_channels": 5}
    files = system(unet, VAE, SD2_TEXT, PNDM_0_10, SD2_SPECIAL, depth_estimator__config=DPT)
    write(tmp_path, files)
    # An epsilon unlike that of the original network.
    depth = replace(presets.DPT_HYBRID, layer_norm_epsilon=1e-12)
    assert diffusers_config(tmp_path) == replace(presets.SD2_DEPTH, depth=depth)


@pytest.mark.parametrize(
    ("values", "config"),
    [
        (SD1_5_INPAINTING_UNET, presets.SD1_INPAINTING.unet),
        (VAE, presets.KL_F8),
        (SD1_4_TEXT, presets.CLIP_L_TEXT),
        (SD2_TEXT, presets.OPENCLIP_H_TEXT),
        (CLIP_L, presets.CLIP_L_14),
        (H_IMAGE, presets.OPENCLIP_H_IMAGE),
        (SAFETY, presets.SAFETY_CHECKER),
        (DPT, replace(presets.DPT_HYBRID, layer_norm_epsilon=1e-12)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_of_the_hub(values, config, tmp_path):
    write(tmp_path, {"config.json": values})
    assert lone_config(tmp_path / "config.json")[0] == config


@pytest.mark.parametrize(
    ("special", "tokenizer", "pad"),
    [
        (None, None, "zero"),  # by the activation
        (None, {"pad_token": "!"}, "zero"),  # as transformers 5 writes it
        (None, {"pad_token": "<|endoftext|>"}, "eot"),
        ({"pad_token": "!"}, {"pad_token": "<|endoftext|>"}, "zero"),
        ({"pad_token": END}, {"pad_token": "!"}, "eot"),
        ({"eos_token": END}, None, "zero"),
    ],
)
def test_how_a_tokenizer_pads(special, tokenizer, pad, tmp_path):
    files = {"special_tokens_map.json": special, "tokenizer_config.json": tokenizer}
    write(tmp_path, {"config.json": SD2_TEXT})
    write(tmp_path, {name: values for name, values in files.items() if values})
    assert lone_config(tmp_path / "config.json")[0].pad == pad


@pytest.mark.parametrize(
    ("version", "size", "image_size"),
    [("0.8.0", 32, 512), ("0.8.1", 96, 768), ("0.9.0", 32, 256), ("0.10.0.dev0", 32, 256)],
)
def test_early_folders_say_32_and_mean_64(version, size, image_size, tmp_path):
    unet = SD1_4_UNET | {"_diffusers_version": version, "sample_size": size}
    write(tmp_path, system(unet, VAE, SD1_4_TEXT, PNDM_0_4))
    assert diffusers_config(tmp_path).image_size == image_size


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("vae/config.json", None, "vae/config.json is missing"),
        ("vae/config.json", "{", "no valid JSON"),
        ("vae/config.json", "[]", "no valid JSON"),
        ("vae/config.json", '{"a": ' * 100_000, "no valid JSON"),
        ("vae/config.json", '{"act_fn": "silu", "act_fn": "relu"}', "occurs twice"),
        ("unet/config.json", '{"sample_size": [64, 64]}', "sample_size is"),
        ("unet/config.json", '{"addition_embed_type": "text_time"}', "addition_embed_type"),
    ],
)
def test_a_broken_folder(file, content, words, tmp_path):
    write(tmp_path, system(SD1_4_UNET, VAE, SD1_4_TEXT, PNDM_0_4))
    if content is None:
        (tmp_path / file).unlink()
    elif file == "unet/config.json":
        (tmp_path / file).write_text(json.dumps(SD1_4_UNET | json.loads(content)))
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        diffusers_config(tmp_path)


def test_a_network_that_sdjax_lacks(tmp_path):
    write(tmp_path, {"config.json": {"_class_name": "FlaxControlNetModel"}})
    with pytest.raises(ValueError, match="FlaxControlNetModel.*does not have"):
        lone_config(tmp_path / "config.json")
