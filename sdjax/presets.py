"""The published models and the bundled small ones, as values, each with its source."""

from sdjax.config import Autoencoder, Clip, ImageTower, Schedule, StableDiffusion, TextTower, UNet

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

# kl-f8: CompVis/latent-diffusion, models/first_stage_models/kl-f8; 0.18215 from SD's v1-inference.
KL_F8 = Autoencoder(
    channels=(128, 256, 512, 512), res_blocks=2, latent_channels=4, scaling_factor=0.18215
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

SD_SCHEDULE = Schedule(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)

SD1 = StableDiffusion(CLIP_L_TEXT, KL_F8, SD1_UNET, SD_SCHEDULE, image_size=512)
SD2_BASE = StableDiffusion(OPENCLIP_H_TEXT, KL_F8, SD2_UNET, SD_SCHEDULE, image_size=512)

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
