"""Names of unCLIP's decoder and upsampler in Karlo's files, original and in folders of diffusers.

An original file of the decoder holds its UNet and what tells it image embedding and text; one of
the upsampler holds two UNets. In the layout of diffusers each is a folder.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import Decoder, Upsampler
from sdjax.config import ImageConditioning as ImageConditioningConfig
from sdjax.denoisers.image_conditioning import ImageConditioning
from sdjax.weights import glide, ldm
from sdjax.weights.rules import (
    LINEAR,
    NORM,
    PLAIN,
    Kind,
    Row,
    Rule,
    Table,
    Transform,
    layers,
    within,
)
from sdjax.weights.stable_diffusion import unet_shapes
from sdjax.weights.tree import Params

PREFIX = "model."
"""Before all names in an original file of the decoder or the prior."""
FIRST_STEPS, LAST_STEP = "model_first_steps.", "model_last_step."

ORIGINAL: tuple[Row, ...] = (
    ("cf_param", "null_embedding", PLAIN),
    ("clip_emb", "image_vector", LINEAR),
    ("text_feat_proj", "text_vector", LINEAR),
    ("text_seq_proj.0", "text_states", LINEAR),
    ("text_seq_proj.1", "norm_text", NORM),
)
ORIGINAL_TOKENS = "clip_tok_proj"

DIFFUSERS: tuple[Row, ...] = (
    ("learned_classifier_free_guidance_embeddings", "null_embedding", PLAIN),
    ("clip_image_embeddings_project_to_time_embeddings", "image_vector", LINEAR),
    ("embedding_proj", "text_vector", LINEAR),
    ("encoder_hidden_states_proj", "text_states", LINEAR),
    ("text_encoder_hidden_states_norm", "norm_text", NORM),
)
DIFFUSERS_TOKENS = "clip_extra_context_tokens_proj"


def original_conditioning_table(config: ImageConditioningConfig) -> Table:
    """Rows of the conditioning in an original file of the decoder."""
    return Table(layers(ORIGINAL) + _tokens(config, ORIGINAL_TOKENS))


def conditioning_table(config: ImageConditioningConfig) -> Table:
    """Rows of text_proj/diffusion_pytorch_model.safetensors."""
    return Table(layers(DIFFUSERS) + _tokens(config, DIFFUSERS_TOKENS))


def decoder_table(config: Decoder) -> Table:
    """Rows of an original file of the decoder below `PREFIX`.

    Its tree is {"unet": ..., "conditioning": ...}. A text transformer of its own, "text", which
    Karlo has not, bears GLIDE's names.
    """
    rules = within(ldm.unet_table(config.unet), "", "unet/")
    rules += within(original_conditioning_table(config.conditioning), "", "conditioning/")
    if config.text is not None:
        rules += within(glide.text_table(config.text), "", "text/")
    return Table(rules)


def upsampler_table(config: Upsampler) -> Table:
    """Rows of an original file of the upsampler: {"unet": ..., "last_unet": ...}."""
    table = ldm.unet_table(config.unet)
    if not config.own_last_step:
        return Table(within(table, "", "unet/"))
    return Table(within(table, FIRST_STEPS, "unet/") + within(table, LAST_STEP, "last_unet/"))


@functools.cache
def conditioning_shapes(config: ImageConditioningConfig) -> Params:
    """The conditioning's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        states = config.context_dim if config.text_dim is None else config.text_dim
        vector = config.vector_dim if config.text_dim is None else config.embedding_dim
        return ImageConditioning(config).init(
            jax.random.key(0),
            jnp.zeros((1, config.embedding_dim)),
            jnp.zeros(1, bool),
            jnp.zeros((1, 1, states)),
            jnp.zeros((1, vector)),
        )

    return jax.eval_shape(init)["params"]


def decoder_shapes(config: Decoder) -> Params:
    """The parameter tree of a decoder with shapes for leaves; nothing is computed."""
    text = {} if config.text is None else {"text": glide.text_shapes(config.text)}
    shapes = {
        "unet": unet_shapes(config.unet),
        "conditioning": conditioning_shapes(config.conditioning),
    }
    return shapes | text


def upsampler_shapes(config: Upsampler) -> Params:
    """The parameter tree of an upsampler with shapes for leaves; nothing is computed."""
    names = ("unet", "last_unet") if config.own_last_step else ("unet",)
    return dict.fromkeys(names, unet_shapes(config.unet))


def _tokens(config: ImageConditioningConfig, source: str) -> tuple[Rule, ...]:
    """The projection to context tokens: in the files the token's number runs fastest, not last."""
    tokens = config.tokens

    def forward(x: np.ndarray) -> np.ndarray:  # [dim * tokens, ...] to [tokens * dim, ...]
        return x.reshape(-1, tokens, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    def inverse(x: np.ndarray) -> np.ndarray:
        return x.reshape(tokens, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    kernel = Transform(lambda x: forward(x).T, lambda x: inverse(x.T))
    kind: Kind = ((".weight", "/kernel", kernel), (".bias", "/bias", Transform(forward, inverse)))
    return layers(((source, "image_tokens", kind),))
