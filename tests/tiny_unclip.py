"""A DALL-E 2 of tiny networks with random weights."""

from typing import Any

import jax
import jax.numpy as jnp
import tiny_models as tiny
import tiny_pipeline

from sdjax import config
from sdjax.image.clip_image import unit
from sdjax.image.preprocess import CLIP_MEAN, CLIP_STD
from sdjax.pipelines.clip import Clip
from sdjax.pipelines.priors import Text
from sdjax.pipelines.unclip import Unclip
from sdjax.pipelines.unclip_request import Settings
from sdjax.shapes import Keys
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.layouts import component_shapes

TOKENIZER = Tokenizer(tiny_pipeline.CONTEXT_LENGTH, "eot", tiny_pipeline.vocabulary())
COSINE = config.Schedule("cosine", prediction="v")
LINEAR = config.Schedule("linear", 1e-4, 0.02, prediction="v")


def unet(**changes: object) -> config.UNet:
    sizes = {
        "in_channels": 6,
        "out_channels": 3,
        "channels": (16,),
        "res_blocks": 1,
        "attention": (False,),
        "heads": (2,),
        "context_dim": None,
        "norm_groups": 8,
        "vector_mlp": False,
        "block": "attention",
        "middle_attention": False,
        "scale_shift": True,
        "resample": "res_block",
    }
    return config.UNet(**{**sizes, **changes})


DECODER = config.Decoder(
    unet(
        in_channels=3,
        out_channels=6,
        attention=(True,),
        context_dim=24,
        vector_dim=64,
    ),
    config.ImageConditioning(
        embedding_dim=16, tokens=2, context_dim=24, vector_dim=64, text_dim=32, scale=4.0
    ),
    COSINE,
    image_size=4,
)
SYSTEM = config.Unclip(
    text=tiny.text_tower(TOKENIZER.vocab_size, tiny_pipeline.CONTEXT_LENGTH),
    image=tiny.IMAGE_TOWER,
    decoder=DECODER,
    upsamplers=(
        config.Upsampler(unet(vector_mlp=True), COSINE, 4, 8, "bilinear", "blur"),
        config.Upsampler(unet(vector_mlp=True), LINEAR, 8, 16, "bicubic", "bsr"),
    ),
)


def near_the_text(text: Text, empty: Text, keys: Keys, **options: Any) -> jax.Array:
    """Instead of a prior: the text's embedding, and some of each image's own noise."""
    noise = jax.vmap(lambda key: jax.random.normal(key, text.embedding.shape[1:]))(keys)
    return unit(text.embedding + 0.1 * noise)


def make_unclip() -> Unclip:
    params = {
        name: tiny.fill(shapes, seed=i)
        for i, (name, shapes) in enumerate(component_shapes(SYSTEM).items())
    }
    towers = {"text": params["text"], "image": params["image"], "logit_scale": jnp.float32(3.0)}
    clip_config = config.Clip(SYSTEM.text, tiny.IMAGE_TOWER)
    return Unclip(
        name="tiny",
        config=SYSTEM,
        params=params,
        tokenizer=TOKENIZER,
        priors={"diffusion": near_the_text, "ar": near_the_text},
        clip=Clip("tiny", clip_config, towers, TOKENIZER, CLIP_MEAN, CLIP_STD),
        settings=Settings(steps=3, upsampler_steps=(2, 2), guidance=2.0),
    )
