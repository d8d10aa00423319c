"""Networks of a few thousand numbers for tests, with random weights made by NumPy.

Initialising a network compiles it once more; filling its shapes costs nothing, and no weight is
zero, so that every part has an influence.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import config
from sdjax.denoisers.image_conditioning import ImageConditioning
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage
from sdjax.text.clip_text import ClipText

AUTOENCODER = config.Autoencoder(
    channels=(16,), res_blocks=1, latent_channels=4, scaling_factor=0.8, patch=2, norm_groups=8
)


def text_tower(vocab_size: int, context_length: int) -> config.TextTower:
    return config.TextTower(
        vocab_size=vocab_size,
        context_length=context_length,
        dim=32,
        layers=1,
        heads=2,
        mlp_dim=64,
        activation="gelu",
        pad="eot",
        projection_dim=16,
    )


IMAGE_TOWER = config.ImageTower(
    image_size=16,
    patch_size=8,
    dim=32,
    layers=1,
    heads=2,
    mlp_dim=64,
    activation="gelu",
    projection_dim=16,
)
DEPTH = config.Depth(
    image_size=64,
    stem_channels=8,
    stage_channels=(16, 32, 64),
    stage_blocks=(1, 1, 1),
    backbone_groups=4,
    dim=32,
    layers=2,
    heads=2,
    mlp_dim=64,
    taps=(0, 1),
    tap_channels=(24, 40),
    fusion_channels=16,
    layer_norm_epsilon=1e-6,
)
SAFETY = config.SafetyChecker(IMAGE_TOWER, concepts=4, special_concepts=3)
UNET = config.UNet(
    in_channels=4,
    out_channels=4,
    channels=(32, 32),
    res_blocks=1,
    attention=(False, True),
    heads=(2, 2),
    context_dim=32,
    vector_dim=16,
    norm_groups=8,
)
SMALLER_UNET = replace(UNET, channels=(16,), attention=(False,), heads=(2,))
"""For gradients, which take long to compile."""
ADM_UNET = config.UNet(
    in_channels=3,
    out_channels=6,
    channels=(16,),
    res_blocks=1,
    attention=(True,),
    heads=(2,),
    context_dim=24,
    vector_dim=64,
    norm_groups=8,
    vector_mlp=False,
    block="attention",
    scale_shift=True,
)
DECODER = config.Decoder(
    ADM_UNET,
    config.ImageConditioning(
        embedding_dim=8, tokens=2, context_dim=24, vector_dim=64, text_dim=12, scale=2.0
    ),
    config.Schedule("cosine", prediction="v"),
    image_size=8,
)
UPSAMPLER = config.Upsampler(
    replace(
        ADM_UNET,
        in_channels=6,
        out_channels=3,
        context_dim=None,
        vector_dim=None,
        vector_mlp=True,
        attention=(False,),
        middle_attention=False,
    ),
    config.Schedule("linear", 0.0001, 0.02, prediction="v"),
    small_size=8,
    image_size=16,
    resize="bicubic",
    degradation="bsr",
)


def fill(shapes: Any, seed: int = 0) -> Any:
    """Random weights: fan-in scaled matrices, scales near 1, small biases."""
    rng = np.random.default_rng(seed)

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        if len(leaf.shape) > 1:
            noise /= np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            noise = 0.1 * noise + ("scale" in jax.tree_util.keystr(path[-1:]))
        return jnp.asarray(noise, jnp.float32)

    return jax.tree.map_with_path(one, shapes)


def _params(network: Any, *inputs: Any, seed: int) -> Any:
    return fill(jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"], seed)


def autoencoder_params(model: config.Autoencoder) -> Any:
    side = 4 * model.factor
    image = jnp.zeros((1, side, side, model.image_channels))
    return _params(Autoencoder(model), image, jax.random.key(0), seed=1)


def text_params(model: config.TextTower) -> Any:
    tokens = jnp.zeros((1, model.context_length), jnp.int32)
    return _params(ClipText(model), tokens, jnp.zeros(1, jnp.int32), seed=2)


def image_params(model: config.ImageTower) -> Any:
    image = jnp.zeros((1, model.image_size, model.image_size, 3))
    return _params(ClipImage(model), image, seed=3)


def unet_params(model: config.UNet) -> Any:
    x = jnp.zeros((1, 2 * model.factor, 2 * model.factor, model.in_channels))
    context = None if model.context_dim is None else jnp.zeros((1, 3, model.context_dim))
    vector = None if model.vector_dim is None else jnp.zeros((1, model.vector_dim))
    return _params(UNet(model), x, jnp.zeros(1), context, vector, seed=4)


def decoder_params(model: config.Decoder) -> Any:
    c = model.conditioning
    states = jnp.zeros((1, 5, c.text_dim))
    vector = jnp.zeros((1, c.embedding_dim))
    given = jnp.zeros((1, c.embedding_dim)), jnp.zeros(1, bool), states, vector
    conditioning = _params(ImageConditioning(c), *given, seed=5)
    return {"unet": unet_params(model.unet), "conditioning": conditioning}
