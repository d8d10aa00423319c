"""Settings of diffusers and transformers: what is written reads back; what the hub has is read.

The dictionaries are the files of folders that people have copied from the hub, as diffusers 0.4 to
0.10 and transformers 4.22 to 4.26 wrote them, shortened to one line where files agree.
"""

import json
from dataclasses import replace

import pytest

from sdjax import presets
from sdjax.config import Autoencoder, ImageStatistics, StableDiffusion, UNet
from sdjax.text.tokenizer import CLIP_EOT, CLIP_SOT, Tokenizer
from sdjax.weights.folders import diffusers_config, lone_config, weights_name, write_configs
from sdjax.weights.recognize import FAMILIES

SYSTEMS = {
    **presets.SYSTEMS,
    **{
        f"{name}+safety": replace(system, safety=presets.SAFETY_CHECKER)
        for name, system in presets.SYSTEMS.items()
    },
}
NETWORKS = {n: c for n, c in FAMILIES.items() if not isinstance(c, StableDiffusion)} | {
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


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_reads_back(name, tmp_path):
    write_configs(SYSTEMS[name], tmp_path)
    assert diffusers_config(tmp_path) == SYSTEMS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_reads_back(name, tmp_path):
    write_configs(NETWORKS[name], tmp_path)
    config, layout = lone_config(tmp_path / "config.json")
    assert config == NETWORKS[name]
    of_diffusers = isinstance(config, UNet | Autoencoder | ImageStatistics)
    assert layout == ("diffusers" if of_diffusers else "transformers")


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_index_names_a_class_for_every_folder(name, tmp_path):
    write_configs(SYSTEMS[name], tmp_path)
    index = read(tmp_path / "model_index.json")
    named = {key for key, value in index.items() if isinstance(value, list) and value[0]}
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    if SYSTEMS[name].conditioning in ("depth", "image"):  # their pipelines do not check
        folders -= {"safety_checker"}
    assert named == folders
    for place in named - {"scheduler", "tokenizer"}:
        (settings,) = (read(path) for path in (tmp_path / place).iterdir())
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


# What the files of real folders say.

DOWN = [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]
UP = ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]
SD1_4_UNET = {
    "_class_name": "FlaxUNet2DConditionModel",
    "_diffusers_version": "0.5.0.dev0",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": DOWN,
    "dropout": 0.0,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": UP,
}
SD1_5_INPAINTING_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0.dev0",
    "_name_or_path": "./stable-diffusion-v1-5-inpainting/unet",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": DOWN,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 9,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 32,
    "up_block_types": UP,
}
SD2_INPAINTING_UNET = SD1_5_INPAINTING_UNET | {
    "_diffusers_version": "0.8.0",
    "_name_or_path": "stability/stable-diffusion-2-inpainting/unet",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "use_linear_projection": True,
}
SD2_1_BASE_UNET = SD2_INPAINTING_UNET | {
    "_diffusers_version": "0.10.0.dev0",
    "_name_or_path": "./stability/stable-diffusion-2-1-base/unet",
    "in_channels": 4,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 64,
}
SD2_1_UNET = SD2_1_BASE_UNET | {"sample_size": 96, "upcast_attention": True}
X4_UNET = SD2_1_BASE_UNET | {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 8,
    "block_out_channels": [256, 512, 512, 1024],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "in_channels": 7,
    "num_class_embeds": 1000,
    "only_cross_attention": [True, True, True, False],
    "sample_size": 128,
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0.dev0",
    "_name_or_path": "./stable-diffusion-v1-5-inpainting/vae",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
X4_VAE = VAE | {
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
SD1_4_TEXT = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.23.1",
    "vocab_size": 49408,
}
SD2_TEXT = SD1_4_TEXT | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
    "torch_dtype": "float16",
}
PNDM_0_4 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.4.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
PNDM_0_10 = PNDM_0_4 | {"clip_sample": False, "prediction_type": "epsilon"}
DDIM_V = PNDM_0_10 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
X4_DDIM = DDIM_V | {"beta_start": 0.0001, "beta_end": 0.02}
X4_DDPM = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",  # as if it predicted anything
    "trained_betas": None,
    "variance_type": "fixed_small",
}
COSINE_DDPM = X4_DDPM | {"beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 1.0}
END = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True}
TOKENIZER = {  # of SD 2 as well
    "add_prefix_space": False,
    "model_max_length": 77,
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": END,
}
SD2_SPECIAL = {"eos_token": END, "pad_token": "!", "unk_token": END}
# What transformers 4.23 wrote about generation into every config.
GENERATION = {
    "add_cross_attention": False,
    "architectures": None,
    "attention_dropout": 0.0,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "dropout": 0.0,
    "exponential_decay_length_penalty": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "is_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": True,
    "temperature": 1.0,
    "tie_word_embeddings": True,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.23.1",
    "typical_p": 1.0,
    "use_bfloat16": False,
}
L_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
L_IMAGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
CLIP_L = {
    "_commit_hash": None,
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": GENERATION
    | L_TEXT
    | {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "pad_token_id": 1,
        "vocab_size": 49408,
    },
    "text_config_dict": L_TEXT,
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": GENERATION
    | L_IMAGE
    | {
        "hidden_act": "quick_gelu",
        "image_size": 224,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_channels": 3,
        "pad_token_id": None,
    },
    "vision_config_dict": L_IMAGE,
}
SAFETY = CLIP_L | {"architectures": ["StableDiffusionSafetyChecker"]}
H_IMAGE = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
    "torch_dtype": "float32",
    "transformers_version": "4.27.0.dev0",
}
DPT = {
    "architectures": ["DPTForDepthEstimation"],
    "attention_probs_dropout_prob": 0.0,
    "auxiliary_loss_weight": 0.4,
    "backbone_config": GENERATION
    | {
        "depths": [3, 4, 9],
        "drop_path_rate": 0.0,
        "embedding_dynamic_padding": True,
        "embedding_size": 64,
        "global_padding": "SAME",
        "hidden_act": "relu",
        "hidden_sizes": [256, 512, 1024, 2048],
        "layer_type": "bottleneck",
        "model_type": "bit",
        "num_channels": 3,
        "num_groups": 32,
        "out_features": ["stage1", "stage2", "stage3"],
        "output_stride": 32,
        "stage_names": ["stem", "stage1", "stage2", "stage3"],
        "width_factor": 1,
    },
    "backbone_featmap_shape": [1, 1024, 24, 24],
    "backbone_out_indices": [2, 5, 8, 11],
    "fusion_hidden_size": 256,
    "head_in_index": -1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "is_hybrid": True,
    "layer_norm_eps": 1e-12,
    "model_type": "dpt",
    "neck_hidden_sizes": [256, 512, 768, 768],
    "neck_ignore_stages": [0, 1],
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
    "readout_type": "project",
    "reassemble_factors": [1, 1, 1, 0.5],
    "semantic_classifier_dropout": 0.1,
    "semantic_loss_ignore_index": 255,
    "torch_dtype": "float32",
    "transformers_version": None,
    "use_auxiliary_head": True,
    "use_batch_norm_in_fusion_residual": False,
}


def system(unet, vae, text, scheduler, special=None, **others):
    """The files of a folder, those for the tokenizer as the hub has them."""
    files = {
        "unet/config.json": unet,
        "vae/config.json": vae,
        "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": scheduler,
        "tokenizer/tokenizer_config.json": TOKENIZER,
        **{name.replace("__", "/") + ".json": values for name, values in others.items()},
    }
    return files | ({"tokenizer/special_tokens_map.json": special} if special else {})


UNCLIP_UNET = SD2_1_UNET | {
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2048,
}
REAL = {
    "sd-1-4": (system(SD1_4_UNET, VAE, SD1_4_TEXT, PNDM_0_4), "sd1"),
    "sd-1-4 with safety checker": (
        system(SD1_4_UNET, VAE, SD1_4_TEXT, PNDM_0_4, safety_checker__config=SAFETY),
        "sd1+safety",
    ),
    "sd-1-5-inpainting": (
        system(SD1_5_INPAINTING_UNET, VAE, SD1_4_TEXT | {"projection_dim": 768}, PNDM_0_4),
        "sd1-inpainting",
    ),
    "sd-2-1": (system(SD2_1_UNET, VAE, SD2_TEXT, DDIM_V, SD2_SPECIAL), "sd2-v"),
    "sd-2-1-base": (system(SD2_1_BASE_UNET, VAE, SD2_TEXT, PNDM_0_10, SD2_SPECIAL), "sd2-base"),
    "sd-2-inpainting": (
        system(SD2_INPAINTING_UNET, VAE, SD2_TEXT, PNDM_0_10, SD2_SPECIAL),
        "sd2-inpainting",
    ),
    "x4-upscaler": (
        system(
            X4_UNET,
            X4_VAE,
            SD2_TEXT,
            X4_DDIM,
            SD2_SPECIAL,
            low_res_scheduler__scheduler_config=X4_DDPM,
        ),
        "sd2-x4-upscaler",
    ),
    "sd-2-1-unclip": (
        system(
            UNCLIP_UNET,
            VAE,
            SD2_TEXT,
            DDIM_V,
            SD2_SPECIAL,
            image_encoder__config=H_IMAGE,
            image_noising_scheduler__scheduler_config=COSINE_DDPM,
        ),
        "sd2-unclip-h",
    ),
}


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
        ("vae/config.json", "{", "not valid JSON"),
        ("vae/config.json", "[]", "holds no settings, but list"),
        ("unet/config.json", '{"sample_size": [64, 64]}', "sample_size is"),
        ("unet/config.json", '{"addition_embed_type": "text_time"}', "addition_embed_type"),
    ],
)
def test_a_broken_folder(file, content, words, tmp_path):
    write(tmp_path, system(SD1_4_UNET, VAE, SD1_4_TEXT, PNDM_0_4))
    if content is None:
        (tmp_path / file).unlink()
    elif content.startswith('{"'):
        (tmp_path / file).write_text(json.dumps(SD1_4_UNET | json.loads(content)))
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        diffusers_config(tmp_path)


def test_a_network_that_sdjax_lacks(tmp_path):
    write(tmp_path, {"config.json": {"_class_name": "FlaxControlNetModel"}})
    with pytest.raises(ValueError, match="FlaxControlNetModel.*does not have"):
        lone_config(tmp_path / "config.json")
