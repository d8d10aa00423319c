"""Tiny random networks of diffusers, transformers and OpenCLIP, built like the published ones."""

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from parity.torch_side import randomise
from transformers import CLIPConfig, DPTConfig, DPTForDepthEstimation

SD1_BLOCKS = {
    "block_out_channels": (32, 64, 64, 96),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "cross_attention_dim": 24,
}
SD1 = SD1_BLOCKS | {"attention_head_dim": 8}
SD2 = SD1_BLOCKS | {"attention_head_dim": (1, 2, 2, 3), "use_linear_projection": True}
UNETS = {
    "sd1": SD1,
    "sd1_inpainting": SD1 | {"in_channels": 9},
    "sd2": SD2,
    "sd2_inpainting": SD2 | {"in_channels": 9},
    "sd2_depth": SD2 | {"in_channels": 5},
    "x4": SD1
    | {
        "in_channels": 7,
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
        "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
        "only_cross_attention": (True, True, True, False),
        "num_class_embeds": 50,
        "use_linear_projection": True,
    },
    "unclip": SD2 | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    "one_block_per_level": SD2 | {"layers_per_block": 1},
}

AUTOENCODERS = {
    name: {
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
    }
    for name, channels in {"f8": (32, 32, 64, 64), "f4": (32, 64, 96)}.items()
}

END_TOKEN = 49
TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 9,
    "projection_dim": 20,
    "bos_token_id": 48,
    "eos_token_id": END_TOKEN,
    "pad_token_id": END_TOKEN,
}
IMAGE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 20,
    "patch_size": 4,
    "projection_dim": 20,
}
TOKENS = torch.tensor(
    [
        [48, 5, 6, 7, END_TOKEN, END_TOKEN, END_TOKEN, END_TOKEN, END_TOKEN],
        [48, 9, 8, END_TOKEN, 0, 0, 0, 0, 0],
        [48, 1, 2, 3, 4, 5, 6, 7, END_TOKEN],
    ]
)

DEPTH = {
    "is_hybrid": True,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
    "backbone_featmap_shape": [1, 128, 4, 4],
    "neck_hidden_sizes": [32, 64, 32, 48],
    "fusion_hidden_size": 16,
    "readout_type": "project",
    "reassemble_factors": [1, 1, 1, 0.5],
    "backbone_out_indices": [1, 1, 2, 3],
    "neck_ignore_stages": [0, 1],
    "layer_norm_eps": 1e-6,
    "backbone_config": {
        "model_type": "bit",
        "global_padding": "same",
        "layer_type": "bottleneck",
        "depths": [1, 2, 2],
        "hidden_sizes": [32, 64, 128],
        "embedding_size": 32,
        "num_groups": 8,
        "out_features": ["stage1", "stage2", "stage3"],
        "embedding_dynamic_padding": True,
    },
}

OPEN_CLIP = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 20, "layers": 2, "width": 80, "head_width": 20, "patch_size": 4},
    "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 64, "heads": 4, "layers": 3},
}


def unet(name: str) -> Any:
    """UNet2DConditionModel, one of `UNETS`."""
    return randomise(UNet2DConditionModel(**UNETS[name]))


def autoencoder(name: str) -> Any:
    """AutoencoderKL, one of `AUTOENCODERS`."""
    return randomise(AutoencoderKL(**AUTOENCODERS[name]))


def whole(kind: Any) -> Any:
    """CLIPModel, or the safety checker, which has the same config."""
    return randomise(kind(CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=20)))


def safety_checker() -> Any:
    """The safety checker, with thresholds at which it flags half of all noise."""
    module = whole(StableDiffusionSafetyChecker)
    with torch.no_grad():
        module.special_care_embeds_weights.mul_(0.1).add_(0.08)
        module.concept_embeds_weights.mul_(0.1).add_(0.38)
    return module


def depth() -> Any:
    """DPT-hybrid."""
    return randomise(DPTForDepthEstimation(DPTConfig(**DEPTH)))


def open_clip() -> Any:
    """OpenCLIP with a vision transformer."""
    vision, text = CLIPVisionCfg(**OPEN_CLIP["vision_cfg"]), CLIPTextCfg(**OPEN_CLIP["text_cfg"])
    return randomise(CLIP(OPEN_CLIP["embed_dim"], vision, text))
