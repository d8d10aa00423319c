"""DALL-E 2 in the paper's sizes, Karlo and GLIDE, as values: `sdjax.presets` has them too.

DALL-E 2's sizes are table 3 of arXiv 2204.06125; its weights were never published. Where the paper
is silent, the choice is GLIDE's (arXiv 2112.10741), from which its decoder descends, and marked so.
Counted parameters beside the paper's rounded ones:

| part | paper | counted | the difference |
|---|---|---|---|
| decoder | 3.5B | 3,565,435,398 | UNet 2.24B, its text transformer 1.32B, conditioning 10M |
| upsampler to 256 | 700M | 729,710,726 | 691,588,166 if the time only shifted the norms |
| upsampler to 1024 | 300M | 282,064,326 | the paper rounds to one digit |
| diffusion prior | 1B | 1,326,752,768 | 1.21B in 24 blocks of width 2048, 0.10B for token ids |
| autoregressive prior | 1B | 808,190,848 | without its text transformer; 1.1M are gains of ours |
| CLIP ViT-H/16 | | 986,339,841 | not given |
"""

from dataclasses import replace

from sdjax.config import (
    AutoregressivePrior,
    Clip,
    Decoder,
    DiffusionPrior,
    Glide,
    GlideText,
    ImageConditioning,
    ImageTower,
    Schedule,
    TextTower,
    Unclip,
    UNet,
    Upsampler,
)
from sdjax.presets_clip import CLIP_L_14

COSINE = Schedule("cosine")
LINEAR = Schedule("linear", beta_start=0.0001, beta_end=0.02)

# The CLIP of DALL-E 2: arXiv 2204.06125, appendix C, which gives widths, depths and the embedding.
# Heads, context, vocabulary and activation are not given: those of OpenAI's other CLIPs.
CLIP_H_16 = Clip(
    TextTower(
        vocab_size=49408,
        context_length=77,
        dim=1024,
        layers=24,
        heads=16,
        mlp_dim=4096,
        activation="quick_gelu",
        pad="zero",
        projection_dim=1024,
    ),
    ImageTower(
        image_size=256,
        patch_size=16,
        dim=1280,
        layers=32,
        heads=16,
        mlp_dim=5120,
        activation="quick_gelu",
        projection_dim=1024,
    ),
)

# Not in the paper, and as in GLIDE: the vocabulary, the padding's embedding, learned variance of
# the upsamplers, scale and shift by the time, residual blocks that resample, bilinear enlarging.
# That image embeddings enter as unit vectors is ours. These networks can be built, counted and
# compiled; the pipeline and the trainings take a decoder and priors that read CLIP's text, as the
# mini's do.
DALLE2_DECODER = Decoder(
    unet=UNet(
        in_channels=3,
        out_channels=6,
        channels=(512, 1024, 1536, 2048),
        res_blocks=3,
        attention=(False, True, True, True),
        heads=(1, 16, 24, 32),
        context_dim=2048,
        vector_dim=2048,
        vector_mlp=False,
        block="attention",
        scale_shift=True,
        resample="res_block",
        dropout=0.1,
    ),
    conditioning=ImageConditioning(embedding_dim=1024, tokens=4, context_dim=2048, vector_dim=2048),
    schedule=COSINE,
    image_size=64,
    text=GlideText(
        vocab_size=50257, context_length=256, dim=2048, layers=24, heads=32, vector_dim=2048
    ),
)
DALLE2_UPSAMPLER_256 = Upsampler(
    unet=UNet(
        in_channels=6,
        out_channels=6,
        channels=(320, 640, 960, 1280),
        res_blocks=3,
        attention=(False,) * 4,
        heads=(1,) * 4,
        context_dim=None,
        block="attention",
        middle_attention=False,
        scale_shift=True,
        resample="res_block",
        dropout=0.1,
    ),
    schedule=COSINE,
    small_size=64,
    image_size=256,
    resize="bilinear",
    degradation="blur",
)
DALLE2_UPSAMPLER_1024 = Upsampler(
    unet=UNet(
        in_channels=6,
        out_channels=6,
        channels=(192, 192, 384, 384, 768, 768),
        res_blocks=2,
        attention=(False,) * 6,
        heads=(1,) * 6,
        context_dim=None,
        block="attention",
        middle_attention=False,
        scale_shift=True,
        resample="res_block",
    ),
    schedule=LINEAR,
    small_size=256,
    image_size=1024,
    resize="bilinear",
    degradation="bsr",
)
# 17.2 is the paper's factor for embeddings, taken to be unit vectors.
DALLE2_PRIOR = DiffusionPrior(
    embedding_dim=1024,
    text_tokens=256,
    dim=2048,
    layers=24,
    heads=32,
    schedule=replace(COSINE, prediction="x0"),
    vocab_size=50257,
    scale=17.2,
)
# Its context is 384: 319 codes, of which the last is not read, text embedding and dot product, and
# 64 positions for the text, if it is a prefix, which the paper leaves open.
DALLE2_AUTOREGRESSIVE_PRIOR = AutoregressivePrior(
    embedding_dim=1024,
    text_dim=2048,
    text_tokens=64,
    codes=319,
    buckets=1024,
    dim=1664,
    layers=24,
    heads=26,
)
DALLE2 = Unclip(
    text=CLIP_H_16.text,
    decoder=DALLE2_DECODER,
    upsamplers=(DALLE2_UPSAMPLER_256, DALLE2_UPSAMPLER_1024),
    prior=DALLE2_PRIOR,
    autoregressive_prior=DALLE2_AUTOREGRESSIVE_PRIOR,
    image=CLIP_H_16.image,
)

# kakaobrain/karlo, karlo-v1.0.alpha: configs/prior_1B_vit_l.yaml, decoder_900M_vit_l.yaml,
# improved_sr_64_256_1.4B.yaml. Its text comes from CLIP ViT-L/14.
KARLO_PRIOR = DiffusionPrior(
    embedding_dim=768,
    text_tokens=77,
    dim=2048,
    layers=20,
    heads=32,
    schedule=replace(COSINE, prediction="x0"),
    text_dim=768,
)
KARLO_DECODER = Decoder(
    unet=UNet(
        in_channels=3,
        out_channels=6,
        channels=(320, 640, 960, 1280),
        res_blocks=3,
        attention=(False, True, True, True),
        heads=(1, 10, 15, 20),
        context_dim=1536,
        vector_dim=1280,
        vector_mlp=False,
        block="attention",
        scale_shift=True,
        resample="res_block",
        dropout=0.1,
    ),
    conditioning=ImageConditioning(
        embedding_dim=768,
        tokens=4,
        context_dim=1536,
        vector_dim=1280,
        text_dim=768,
        mask_padding=True,
        unit_length=False,
    ),
    schedule=COSINE,
    image_size=64,
)
KARLO_UPSAMPLER = Upsampler(
    unet=replace(DALLE2_UPSAMPLER_256.unet, out_channels=3, scale_shift=False, dropout=0.0),
    schedule=COSINE,
    small_size=64,
    image_size=256,
    resize="bicubic",
    degradation="blur",
    own_last_step=True,
)
KARLO = Unclip(
    text=CLIP_L_14.text,
    decoder=KARLO_DECODER,
    upsamplers=(KARLO_UPSAMPLER,),
    prior=KARLO_PRIOR,
)
KARLO_VARIATIONS = replace(KARLO, prior=None, image=CLIP_L_14.image)

# openai/glide-text2im, model_creation.py: the released models, trained without pictures of people.
_GLIDE_TEXT = GlideText(
    vocab_size=50257, context_length=128, dim=512, layers=16, heads=8, vector_dim=768
)
GLIDE = Glide(
    text=_GLIDE_TEXT,
    unet=UNet(
        in_channels=3,
        out_channels=6,
        channels=(192, 384, 576, 768),
        res_blocks=3,
        attention=(False, True, True, True),
        heads=(1, 6, 9, 12),
        context_dim=512,
        vector_dim=768,
        vector_mlp=False,
        block="attention",
        scale_shift=True,
        resample="res_block",
        dropout=0.1,
    ),
    schedule=COSINE,
    image_size=64,
)
GLIDE_UPSAMPLER = replace(
    GLIDE,
    unet=replace(
        GLIDE.unet,
        in_channels=6,
        channels=(192, 192, 384, 384, 768, 768),
        res_blocks=2,
        attention=(False, False, False, True, True, True),
        heads=(1, 1, 1, 6, 12, 12),
    ),
    schedule=LINEAR,
    image_size=256,
    small_size=64,
)
GLIDE_INPAINTING = replace(GLIDE, unet=replace(GLIDE.unet, in_channels=7), inpainting=True)
GLIDE_UPSAMPLER_INPAINTING = replace(
    GLIDE_UPSAMPLER, unet=replace(GLIDE_UPSAMPLER.unet, in_channels=10), inpainting=True
)
