"""The published models and the bundled small ones, as values, each with its source."""

from dataclasses import replace

from sdjax.config import (
    Autoencoder,
    AutoregressivePrior,
    Clip,
    Decoder,
    Depth,
    DiffusionPrior,
    ImageConditioning,
    ImageTower,
    Judge,
    SafetyChecker,
    Schedule,
    StableDiffusion,
    TextTower,
    UNet,
    Upsampler,
)
from sdjax.presets_clip import (
    CLIP_B_32,
    CLIP_L_14,
    CLIP_L_IMAGE,
    CLIP_L_TEXT,
    OPENCLIP_B_32,
    OPENCLIP_H_14,
    OPENCLIP_H_IMAGE,
    OPENCLIP_H_TEXT,
    OPENCLIP_L_14,
)
from sdjax.presets_unclip import (
    DALLE2,
    GLIDE,
    GLIDE_INPAINTING,
    GLIDE_UPSAMPLER,
    GLIDE_UPSAMPLER_INPAINTING,
    KARLO,
    KARLO_VARIATIONS,
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
    "karlo": KARLO,
    "karlo-variations": KARLO_VARIATIONS,
    "glide": GLIDE,
    "glide-inpainting": GLIDE_INPAINTING,
    "glide-upsampler": GLIDE_UPSAMPLER,
    "glide-upsampler-inpainting": GLIDE_UPSAMPLER_INPAINTING,
    "clip-vit-b-32": CLIP_B_32,
    "clip-vit-l-14": CLIP_L_14,
    "openclip-vit-b-32": OPENCLIP_B_32,
    "openclip-vit-l-14": OPENCLIP_L_14,
    "openclip-vit-h-14": OPENCLIP_H_14,
    "dpt-hybrid": DPT_HYBRID,
    "safety-checker": SAFETY_CHECKER,
}
"""Every published model by name: what a checkpoint is recognised as."""

PAPER = {"dalle2": DALLE2}
"""Models whose sizes were published, but not their weights."""

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
JUDGE = Judge(
    image_size=64,
    channels=(24, 48, 96, 160),
    groups=8,
    embedding_dim=128,
    shades=10,
    concepts=1092,  # of the drawings
    styles=6,
)
"""Grades what the bundled models draw; trained by `sdjax train judge`, for nothing else."""
MINI_SCHEDULE = Schedule(betas="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="v")

# The bundled DALL-E 2: its CLIP is the mini's. Prediction of v, as the paper does not say of what:
# it learns flat colours sooner than eps does. Only the decoder has attention and learned variance.
MINI_EMBEDDING_SCALE = 6.8
"""17.2 sqrt(160 / 1024): the paper's factor, for the dimensions of the mini's embeddings."""
MINI_DECODER = Decoder(
    unet=UNet(
        in_channels=3,
        out_channels=6,
        channels=(112, 160),
        res_blocks=1,
        attention=(False, True),
        heads=(1, 5),
        context_dim=160,
        vector_dim=448,
        norm_groups=16,
        vector_mlp=False,
        block="attention",
        scale_shift=True,
        patch=2,
    ),
    conditioning=ImageConditioning(
        embedding_dim=160,
        tokens=4,
        context_dim=160,
        vector_dim=448,
        text_dim=192,
        scale=MINI_EMBEDDING_SCALE,
    ),
    schedule=Schedule("cosine", prediction="v"),
    image_size=16,
)
_MINI_UP_UNET = UNet(
    in_channels=6,
    out_channels=3,
    channels=(32, 64),
    res_blocks=2,
    attention=(False, False),
    heads=(1, 1),
    context_dim=None,
    norm_groups=16,
    middle_attention=False,
    scale_shift=True,
)
MINI_UPSAMPLERS = (
    Upsampler(
        unet=_MINI_UP_UNET,
        schedule=Schedule("cosine", prediction="v"),
        small_size=16,
        image_size=32,
        resize="bicubic",
        degradation="blur",
    ),
    Upsampler(
        unet=_MINI_UP_UNET,
        schedule=Schedule("linear", beta_start=0.0001, beta_end=0.02, prediction="v"),
        small_size=32,
        image_size=64,
        resize="bicubic",
        degradation="bsr",
    ),
)
MINI_PAIRS = 4097
"""Pictures of training, on which the regression of both priors is fitted."""
MINI_PRIOR = DiffusionPrior(
    embedding_dim=160,
    text_tokens=24,
    dim=128,
    layers=3,
    heads=4,
    schedule=Schedule("cosine", prediction="x0"),
    text_dim=192,
    scale=15.0,  # what guesses are wrong by has less than half the length of an embedding
    dropout=0.2,
    regression=MINI_PAIRS,
)
MINI_AUTOREGRESSIVE_PRIOR = AutoregressivePrior(
    embedding_dim=160,
    text_dim=192,
    text_tokens=24,
    codes=48,  # 46 leave out less than 1% of the spread, as the paper asks
    buckets=16,  # so few that four thousand drawings teach them; the paper has 1,024
    dim=128,
    layers=3,
    heads=4,
    dropout=0.2,
    regression=MINI_PAIRS,
)
