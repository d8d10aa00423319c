"""The published models and the bundled small ones, as values, each with its source."""

from dataclasses import replace

from sdjax.config import (
    Autoencoder,
    Clip,
    Depth,
    ImageTower,
    SafetyChecker,
    Schedule,
    StableDiffusion,
    TextTower,
    UNet,
)

# CLIP ViT-L/14 text tower: arXiv 2103.00020, table 20; used whole by SD 1, without projection.
CLIP_L_TEXT = TextTower(
    vocab_size=49408,
    context_length=77,
    dim=768,
    layers=12,
    heads=12,
    mlp_dim=3072,
    activation="quick_gelu",
    pad="eot",
)

# OpenCLIP ViT-H/14 text tower, of which SD 2 keeps 23 of 24 blocks.
OPENCLIP_H_TEXT = TextTower(
    vocab_size=49408,
    context_length=77,
    dim=1024,
    layers=23,
    heads=16,
    mlp_dim=4096,
    activation="gelu",
    pad="zero",
)

# The towers of CLIP ViT-L/14 and their joint space: table 20 again.
CLIP_L_IMAGE = ImageTower(
    image_size=224,
    patch_size=14,
    dim=1024,
    layers=24,
    heads=16,
    mlp_dim=4096,
    activation="quick_gelu",
    projection_dim=768,
)
CLIP_L_14 = Clip(replace(CLIP_L_TEXT, pad="zero", projection_dim=768), CLIP_L_IMAGE)

# CLIP ViT-B/32: table 20.
CLIP_B_32 = Clip(
    TextTower(
        vocab_size=49408,
        context_length=77,
        dim=512,
        layers=12,
        heads=8,
        mlp_dim=2048,
        activation="quick_gelu",
        pad="zero",
        projection_dim=512,
    ),
    ImageTower(
        image_size=224,
        patch_size=32,
        dim=768,
        layers=12,
        heads=12,
        mlp_dim=3072,
        activation="quick_gelu",
        projection_dim=512,
    ),
)

# OpenCLIP ViT-H/14: mlfoundations/open_clip, model_configs/ViT-H-14.json; heads are 80 wide.
OPENCLIP_H_IMAGE = ImageTower(
    image_size=224,
    patch_size=14,
    dim=1280,
    layers=32,
    heads=16,
    mlp_dim=5120,
    activation="gelu",
    projection_dim=1024,
)
OPENCLIP_H_14 = Clip(replace(OPENCLIP_H_TEXT, layers=24, projection_dim=1024), OPENCLIP_H_IMAGE)

# kl-f8: CompVis/latent-diffusion, models/first_stage_models/kl-f8; 0.18215 from SD's v1-inference.
KL_F8 = Autoencoder(
    channels=(128, 256, 512, 512), res_blocks=2, latent_channels=4, scaling_factor=0.18215
)

# OpenCLIP ViT-L/14 and ViT-B/32 trained on LAION: OpenAI's sizes, but the exact GELU.
OPENCLIP_L_14 = Clip(
    replace(CLIP_L_14.text, activation="gelu"), replace(CLIP_L_IMAGE, activation="gelu")
)

OPENCLIP_B_32 = Clip(
    replace(CLIP_B_32.text, activation="gelu"), replace(CLIP_B_32.image, activation="gelu")
)

# CompVis/stable-diffusion, configs/stable-diffusion/v1-inference.yaml.
SD1_UNET = UNet(
    in_channels=4,
    out_channels=4,
    channels=(320, 640, 1280, 1280),
    res_blocks=2,
    attention=(True, True, True, False),
    heads=(8, 8, 8, 8),
    context_dim=768,
    projection="conv",
)

# Stability-AI/stablediffusion, configs/stable-diffusion/v2-inference.yaml: heads are 64 wide.
SD2_UNET = UNet(
    in_channels=4,
    out_channels=4,
    channels=(320, 640, 1280, 1280),
    res_blocks=2,
    attention=(True, True, True, False),
    heads=(5, 10, 20, 20),
    context_dim=1024,
)

# Stability-AI/stablediffusion, configs/stable-diffusion/x4-upscaling.yaml: latents of a kl-f4
# autoencoder beside a noisy RGB image of their size, whose noise level is a label.
KL_F4 = Autoencoder(
    channels=(128, 256, 512), res_blocks=2, latent_channels=4, scaling_factor=0.08333
)
X4_UNET = UNet(
    in_channels=7,
    out_channels=4,
    channels=(256, 512, 512, 1024),
    res_blocks=2,
    attention=(False, True, True, True),
    heads=(8, 8, 8, 8),
    context_dim=1024,
    labels=1000,
    cross_only=(True, True, True, False),
)

# MiDaS v3 DPT-hybrid: arXiv 2103.13413 and the weights dpt_hybrid-midas-501f0c75.
DPT_HYBRID = Depth(
    image_size=384,
    stem_channels=64,
    stage_channels=(256, 512, 1024),
    stage_blocks=(3, 4, 9),
    backbone_groups=32,
    dim=768,
    layers=12,
    heads=12,
    mlp_dim=3072,
    taps=(8, 11),
    tap_channels=(768, 768),
    fusion_channels=256,
    layer_norm_epsilon=1e-6,
)

# CompVis/stable-diffusion-safety-checker, comes with SD 1 in the diffusers layout.
SAFETY_CHECKER = SafetyChecker(CLIP_L_IMAGE, concepts=17, special_concepts=3)

SD_SCHEDULE = Schedule("scaled_linear", beta_start=0.00085, beta_end=0.012)

# Schedules: SD_SCHEDULE with another prediction; the upscaler's own, configs/stable-diffusion/
# x4-upscaling.yaml; the cosine noise on stable unCLIP's image embeddings.
SD_V_SCHEDULE = replace(SD_SCHEDULE, prediction="v")
X4_SCHEDULE = Schedule("scaled_linear", beta_start=0.0001, beta_end=0.02, prediction="v")
X4_LOW_RES_SCHEDULE = replace(X4_SCHEDULE, prediction="eps")
UNCLIP_IMAGE_SCHEDULE = Schedule("cosine")

SD1 = StableDiffusion(CLIP_L_TEXT, KL_F8, SD1_UNET, SD_SCHEDULE, image_size=512)
SD1_INPAINTING = replace(SD1, unet=replace(SD1_UNET, in_channels=9), conditioning="inpainting")
SD2_BASE = StableDiffusion(OPENCLIP_H_TEXT, KL_F8, SD2_UNET, SD_SCHEDULE, image_size=512)
SD2_V = replace(SD2_BASE, schedule=SD_V_SCHEDULE, image_size=768)
SD2_INPAINTING = replace(SD2_BASE, unet=replace(SD2_UNET, in_channels=9), conditioning="inpainting")
SD2_DEPTH = replace(
    SD2_BASE, unet=replace(SD2_UNET, in_channels=5), conditioning="depth", depth=DPT_HYBRID
)
SD2_X4_UPSCALER = StableDiffusion(
    OPENCLIP_H_TEXT,
    KL_F4,
    X4_UNET,
    X4_SCHEDULE,
    image_size=512,
    conditioning="low-res",
    condition_noise=X4_LOW_RES_SCHEDULE,
)
SD2_UNCLIP_H = replace(
    SD2_V,
    unet=replace(SD2_UNET, vector_dim=2048),
    conditioning="image",
    image=OPENCLIP_H_IMAGE,
    condition_noise=UNCLIP_IMAGE_SCHEDULE,
)
SD2_UNCLIP_L = replace(SD2_UNCLIP_H, unet=replace(SD2_UNET, vector_dim=1536), image=CLIP_L_IMAGE)

SYSTEMS = {
    "sd1": SD1,
    "sd1-inpainting": SD1_INPAINTING,
    "sd2-base": SD2_BASE,
    "sd2-v": SD2_V,
    "sd2-inpainting": SD2_INPAINTING,
    "sd2-depth": SD2_DEPTH,
    "sd2-x4-upscaler": SD2_X4_UPSCALER,
    "sd2-unclip-h": SD2_UNCLIP_H,
    "sd2-unclip-l": SD2_UNCLIP_L,
}
"""Stable Diffusion by name. 2.0 and 2.1, and 1.1 to 1.5, differ in their numbers only."""

PUBLISHED = {
    **SYSTEMS,
    "clip-vit-b-32": CLIP_B_32,
    "clip-vit-l-14": CLIP_L_14,
    "openclip-vit-b-32": OPENCLIP_B_32,
    "openclip-vit-l-14": OPENCLIP_L_14,
    "openclip-vit-h-14": OPENCLIP_H_14,
    "dpt-hybrid": DPT_HYBRID,
    "safety-checker": SAFETY_CHECKER,
}
"""Every published model by name: what a checkpoint is recognised as."""

# The bundled models: our own sizes, chosen for training on two CPU cores (see the model card).
MINI_CLIP = Clip(
    TextTower(
        vocab_size=3439,  # the CLIP ids that occur in captions, and one row for all others
        context_length=24,
        dim=192,
        layers=4,
        heads=6,
        mlp_dim=768,
        activation="gelu",
        pad="eot",
        projection_dim=160,
    ),
    ImageTower(
        image_size=64,
        patch_size=16,
        dim=192,
        layers=5,
        heads=6,
        mlp_dim=768,
        activation="gelu",
        projection_dim=160,
    ),
)
MINI_AUTOENCODER = Autoencoder(
    channels=(96, 160), res_blocks=1, latent_channels=24, scaling_factor=1.0, patch=4
)
MINI_UNET = UNet(
    in_channels=24,
    out_channels=24,
    channels=(112, 160),
    res_blocks=1,
    attention=(False, True),
    heads=(4, 5),
    context_dim=192,
    vector_dim=160,
    norm_groups=16,
)
MINI_STYLES = ("noto", "twemoji", "flat", "3d")
"""The styles that the bundled generator draws; its CLIP and autoencoder saw all six of the data."""
MINI_SCHEDULE = Schedule(betas="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="v")
