"""Configs of other libraries: those of the published models, and those sdjax must refuse."""

from dataclasses import replace

import foreign_ldm
import pytest
from golden_rule import golden

from sdjax import presets
from sdjax.config import Clip, Schedule
from sdjax.weights import foreign, foreign_unets

CONFIGS = golden("configs")
HUB = CONFIGS["diffusers"]
LDM = {name: {k: v for k, v in c.items() if k != "source"} for name, c in CONFIGS["ldm"].items()}


def without_class(config):
    return {key: value for key, value in config.items() if key != "class"}


UNETS = {
    "sd1_diffusers_unet": presets.SD1_UNET,
    "sd1_inpaint_diffusers_unet": presets.SD1_INPAINTING.unet,
    "sd2_diffusers_unet": presets.SD2_UNET,
    "sd2_inpaint_diffusers_unet": presets.SD2_INPAINTING.unet,
    "sd2_depth_diffusers_unet": presets.SD2_DEPTH.unet,
    "sd2_x4upscaler_diffusers_unet": presets.X4_UNET,
    "stable_unclip_h_diffusers_unet": presets.SD2_UNCLIP_H.unet,
    "stable_unclip_l_diffusers_unet": presets.SD2_UNCLIP_L.unet,
}

ORIGINALS = {
    "sd1": presets.SD1,
    "sd1_inpaint": presets.SD1_INPAINTING,
    "sd2_v2-inference": presets.SD2_BASE,
    "sd2_v2-inference-v": presets.SD2_V,
    "sd2_v2-inpainting-inference": presets.SD2_INPAINTING,
    "sd2_v2-midas-inference": presets.SD2_DEPTH,
    "sd2_x4-upscaling": presets.SD2_X4_UPSCALER,
    "sd2_v2-1-stable-unclip-h-inference": presets.SD2_UNCLIP_H,
    "sd2_v2-1-stable-unclip-l-inference": presets.SD2_UNCLIP_L,
}


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_unet(name):
    assert foreign_unets.diffusers_unet(HUB[name]) == UNETS[name]


def test_diffusers_autoencoder():
    assert foreign.diffusers_autoencoder(HUB["sd_diffusers_vae"]) == presets.KL_F8
    assert foreign.diffusers_autoencoder(HUB["sd2_x4upscaler_diffusers_vae"]) == presets.KL_F4
    old = {k: v for k, v in HUB["sd_diffusers_vae"].items() if k != "scaling_factor"}
    assert foreign.diffusers_autoencoder(old) == presets.KL_F8


@pytest.mark.parametrize("name", ORIGINALS)
def test_original_yaml(name):
    config, want = LDM[name], ORIGINALS[name]
    assert foreign_ldm.ldm_unet(without_class(config["unet_config"])) == want.unet
    autoencoder = without_class(config["first_stage_config"])
    assert foreign_ldm.ldm_autoencoder(autoencoder, config["scale_factor"]) == want.autoencoder
    assert foreign_ldm.ldm_schedule(config) == want.schedule
    noise = config.get("noise_aug_config", config.get("low_scale_config"))
    if noise is not None:
        assert foreign_ldm.ldm_schedule(noise["noise_schedule_config"]) == want.condition_noise


def test_transformers_towers():
    text = HUB["clip_vitl14_hf_text"]
    assert foreign.transformers_text(text, pad="eot", projection=False) == presets.CLIP_L_TEXT
    joint = HUB["clip_vitl14_hf_text_with_projection"]
    with_projection = foreign.transformers_text(joint, pad="zero", projection=True)
    assert with_projection == presets.CLIP_L_14.text
    sd2 = HUB["sd2_diffusers_text_encoder"]
    assert foreign.transformers_text(sd2, pad="zero", projection=False) == presets.OPENCLIP_H_TEXT
    assert foreign.transformers_text(sd2, pad="zero", projection=False, skip_layers=1) == replace(
        presets.OPENCLIP_H_TEXT, skip_layers=1
    )
    for name, want in (
        ("clip_vitl14_hf_vision_with_projection", presets.CLIP_L_IMAGE),
        ("openclip_vith14_hf_vision_with_projection", presets.OPENCLIP_H_IMAGE),
    ):
        assert foreign.transformers_image(HUB[name]) == want


def nested(name):
    """As config.json has it: the joint width outside only."""
    config = HUB[name]
    towers = {f"{tower}_config": dict(config[tower]) for tower in ("text", "vision")}
    for tower in towers.values():
        tower.pop("projection_dim")
    return {"projection_dim": config["projection_dim"], **towers}


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("clip_vitl14_hf_full", presets.CLIP_L_14),
        ("openclip_vith14_hf_full", presets.OPENCLIP_H_14),
    ],
)
def test_transformers_clip(name, want):
    assert foreign.transformers_clip(nested(name), pad="zero") == want


def test_an_old_clip_config_has_a_second_dictionary_for_each_tower():
    config = nested("clip_vitl14_hf_full")
    second = {"text_config_dict": {"num_hidden_layers": 6}, "vision_config_dict": None}
    found = foreign.transformers_clip({**config, **second}, pad="zero")
    assert found == replace(presets.CLIP_L_14, text=replace(presets.CLIP_L_14.text, layers=6))


def test_safety_checker_and_depth_estimator():
    vision = HUB["sd1_safety_checker"]["vision"]
    config = {"projection_dim": 768, "vision_config": vision, "architectures": ["any"]}
    assert foreign.transformers_safety(config) == presets.SAFETY_CHECKER
    depth = HUB["sd2_depth_diffusers_depth_estimator_dpt_hybrid"]
    want = replace(presets.DPT_HYBRID, layer_norm_epsilon=1e-12)
    assert foreign.transformers_depth(depth) == want
    without_backbone = {k: v for k, v in depth.items() if k != "backbone_config"}
    assert foreign.transformers_depth(without_backbone) == want


def test_original_clips():
    assert foreign_ldm.openai_clip(HUB["clip_vitb32_openai"]) == presets.CLIP_B_32
    assert foreign_ldm.openai_clip(HUB["clip_vitl14_openai"]) == presets.CLIP_L_14
    assert foreign.open_clip(HUB["openclip_vith14_openclip"]) == presets.OPENCLIP_H_14
    l_14 = HUB["openclip_vitl14_openclip"]
    assert foreign.open_clip({**l_14, "quick_gelu": True}) == presets.CLIP_L_14
    # OpenCLIP's own ViT-L/14 has the exact GELU.
    assert foreign.open_clip(l_14) == Clip(
        replace(presets.CLIP_L_14.text, activation="gelu"),
        replace(presets.CLIP_L_14.image, activation="gelu"),
    )


SD_SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def test_diffusers_schedule():
    sampling = {"_class_name": "PNDMScheduler", "steps_offset": 1, "clip_sample": False}
    assert foreign.diffusers_schedule({**SD_SCHEDULER, **sampling}) == presets.SD_SCHEDULE
    v = {**SD_SCHEDULER, "prediction_type": "v_prediction", "trained_betas": None}
    assert foreign.diffusers_schedule(v) == presets.SD_V_SCHEDULE
    cosine = {"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02}
    assert foreign.diffusers_schedule(cosine) == presets.UNCLIP_IMAGE_SCHEDULE
    assert foreign.diffusers_schedule({}) == Schedule("linear", 0.0001, 0.02)
    given = foreign.diffusers_schedule({"trained_betas": [0.1, 0.2]})
    assert given == Schedule((0.1, 0.2), train_steps=2)
    zero_snr = foreign.diffusers_schedule({**v, "rescale_betas_zero_snr": True})
    assert zero_snr == replace(presets.SD_V_SCHEDULE, zero_snr=True)


# What files of the hub say besides, and what changes nothing.
HARMLESS = {
    "_class_name": "Any",
    "_diffusers_version": "0.6.0",
    "sample_size": 64,
    "torch_dtype": "float16",
    "a_field_of_later": None,
    "another": False,
}


def test_what_changes_nothing_is_ignored():
    unet = {**HUB["sd2_diffusers_unet"], **HARMLESS, "upcast_attention": True, "norm_eps": 1e-5}
    assert foreign_unets.diffusers_unet(unet) == presets.SD2_UNET
    vae = {**HUB["sd_diffusers_vae"], **HARMLESS, "force_upcast": True, "shift_factor": None}
    assert foreign.diffusers_autoencoder(vae) == presets.KL_F8
    text = {**HUB["clip_vitl14_hf_text"], **HARMLESS, "eos_token_id": 2}
    text |= {"top_k": 50, "temperature": 1.0, "id2label": {"0": "LABEL_0"}, "pruned_heads": {}}
    assert foreign.transformers_text(text, pad="eot", projection=False) == presets.CLIP_L_TEXT


UNET = (foreign_unets.diffusers_unet, "sd1_diffusers_unet")
VAE = (foreign.diffusers_autoencoder, "sd_diffusers_vae")
IMAGE = (foreign.transformers_image, "clip_vitl14_hf_vision_with_projection")
DEPTH = (foreign.transformers_depth, "sd2_depth_diffusers_depth_estimator_dpt_hybrid")
REFUSED = [
    (*UNET, {"norm_eps": 1e-6}, "norm_eps is 1e-06"),
    (*UNET, {"flip_sin_to_cos": False}, "flip_sin_to_cos"),
    (*UNET, {"freq_shift": 1}, "freq_shift is 1"),
    (*UNET, {"only_cross_attention": True}, "only_cross_"),
    (*UNET, {"class_embed_type": "timestep"}, "class_embed"),
    (*UNET, {"addition_embed_type": "text_time"}, "addition"),
    (*UNET, {"layers_per_block": [1, 2, 2, 2]}, "layers_per"),
    (*UNET, {"attention_head_dim": [8, 8]}, "heads"),
    (*UNET, {"attention_head_dim": "8"}, "head_dim is '8'"),
    (*UNET, {"num_attention_heads": 8}, "num_attention_h"),
    (
        foreign_unets.diffusers_unet,
        "sd1_diffusers_unet",
        {"down_block_types": ["AttnDownBlock2D"] * 4},
        "down_block_types is .* a list of 4 of CrossAttnDownBlock2D and DownBlock2D",
    ),
    (
        foreign_unets.diffusers_unet,
        "sd1_diffusers_unet",
        {"up_block_types": ["UpBlock2D"] * 4},
        "up_block_types",
    ),
    (*UNET, {"a_field_of_later": "on"}, "a_field_of_later"),
    (*VAE, {"num_vq_embeddings": 8192}, "num_vq"),
    (*VAE, {"use_quant_conv": False}, "use_quant"),
    (*VAE, {"shift_factor": 0.1}, "shift_factor"),
    (*VAE, {"scaling_factor": 0}, "scaling_factor"),
    (*IMAGE, {"hidden_act": "silu"}, "hidden_act is 'silu'; sdjax supports quick_gelu or gelu"),
    (*IMAGE, {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
    (*IMAGE, {"num_hidden_layers": 10**7}, r"layers 10000000 must be in \[1, 200\]"),
    (*IMAGE, {"hidden_size": 4 * 10**30}, "dim 4000.* must be in"),
    (*IMAGE, {"num_attention_heads": 0}, "num_attention_heads is 0"),
    (*VAE, {"scaling_factor": float("nan")}, "scaling_factor is nan"),
    (*VAE, {"scaling_factor": float("inf")}, "scaling_factor is inf"),
    (*VAE, {"\x1b[2J" + "a" * 10**5: 1}, r"AutoencoderKL: \\x1b.{3}a{80,100}\.\.\. is 1"),
    (*DEPTH, {"is_hybrid": False}, "is_hybrid"),
    (*DEPTH, {"readout_type": "add"}, "readout_type"),
    (*DEPTH, {"use_bias_in_fusion_residual": False}, "use_bias"),
    (*DEPTH, {"neck_hidden_sizes": [96, 192, 768, 768]}, "neck_hidden_sizes"),
    (
        foreign_ldm.openai_clip,
        "clip_vitl14_openai",
        {"vision_layers": [3, 4, 6, 3]},
        "vision_layers",
    ),
    (foreign.open_clip, "openclip_vith14_openclip", {"custom_text": True}, "custom_text"),
    (foreign.open_clip, "openclip_vith14_openclip", {"vision_cfg": {"width": 100}}, "head_width"),
]


@pytest.mark.parametrize(("read", "name", "changes", "message"), REFUSED)
def test_what_changes_the_network_is_refused(read, name, changes, message):
    with pytest.raises(ValueError, match=message):
        read({**HUB[name], **changes})


def test_a_list_is_no_config():
    with pytest.raises(ValueError, match="expected a dictionary of settings"):
        foreign_ldm.ldm_autoencoder({"ddconfig": ["ch", 128]}, 1.0)
    with pytest.raises(ValueError, match="text_config is 'any'; sdjax supports a dictionary"):
        foreign.transformers_clip({"text_config": "any"}, pad="zero")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_betas": ["a"]}, "trained_betas"),
        ({"rescale_betas_zero_snr": True}, "with zero_snr a network cannot predict eps"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"beta_end": -1.0}, "beta_end"),
    ],
)
def test_an_unknown_schedule_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        foreign.diffusers_schedule({**SD_SCHEDULER, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_depth": 2}, "transformer_depth"),
        ({"use_spatial_transformer": False}, "context_dim is 768"),
        ({"num_classes": "continuous"}, "num_classes is 'continuous'"),
        ({"num_heads": -1}, "num_heads is -1"),
        ({"num_head_channels": 48}, "num_head_channels is 48"),
        ({"disable_middle_self_attn": True}, "disable_middle_self_attn"),
    ],
)
def test_an_unknown_original_unet_is_refused(changes, message):
    config = without_class(LDM["sd1"]["unet_config"])
    with pytest.raises(ValueError, match=message):
        foreign_ldm.ldm_unet({**config, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_resolutions": [16]}, "attn_resolutions"),
        ({"double_z": False}, "double_z"),
        ({"attn_type": "linear"}, "attn_type"),
    ],
)
def test_an_unknown_original_autoencoder_is_refused(changes, message):
    config = without_class(LDM["sd1"]["first_stage_config"])
    config = {**config, "ddconfig": {**config["ddconfig"], **changes}}
    with pytest.raises(ValueError, match=message):
        foreign_ldm.ldm_autoencoder(config, 0.18215)
