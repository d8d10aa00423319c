"""CLIP as published, as values: `sdjax.presets` has them too."""

from dataclasses import replace

from sdjax.config import Clip, ImageTower, TextTower

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

# OpenCLIP ViT-L/14 and ViT-B/32 trained on LAION: OpenAI's sizes, but the exact GELU.
OPENCLIP_L_14 = Clip(
    replace(CLIP_L_14.text, activation="gelu"), replace(CLIP_L_IMAGE, activation="gelu")
)

OPENCLIP_B_32 = Clip(
    replace(CLIP_B_32.text, activation="gelu"), replace(CLIP_B_32.image, activation="gelu")
)
