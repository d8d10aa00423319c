"""Golden cases of networks: weights by the rule, through our tables, into our networks.

What a case holds is told from its layout, keys and config, never from its name. A new family is one
line in `NETWORKS`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import foreign_adm
import foreign_ldm
import jax
import jax.numpy as jnp
import numpy as np
from golden_replay import NotSupported, Result, compare
from golden_rule import Case

from sdjax import config
from sdjax.config import Config
from sdjax.denoisers.image_conditioning import ImageConditioning
from sdjax.denoisers.prior import DiffusionPrior
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage, unit
from sdjax.image.depth import Depth
from sdjax.nn.functional import Params, apply, inspect
from sdjax.nn.resize import interpolate
from sdjax.presets_unclip import KARLO_PRIOR
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.text.glide_text import GlideText
from sdjax.weights import foreign, foreign_unclip, foreign_unets
from sdjax.weights.layouts import Layout, Part, parts
from sdjax.weights.rules import convert
from sdjax.weights.tree import flatten

TOLERANCE = 2e-4  # the reference implementations differ among themselves by up to 6e-6

Outputs = dict[str, Any]
"""By the names that the cases use; more than a case asks for is fine."""
Run = Callable[[Any, Params, Case], Outputs]


@dataclass(frozen=True)
class Network:
    """What a case is about: our config, its table and shapes, and how to get the outputs."""

    config: Config
    layout: Layout
    run: Run

    @property
    def part(self) -> Part:
        return _part(self.config, self.layout)

    def params(self, tensors: Mapping[str, np.ndarray]) -> Params:
        """The tree that a checkpoint of these tensors becomes; cases leave prefixes out."""
        return convert(tensors, self.part.table, self.part.shapes)


@functools.cache
def _part(config: Config, layout: Layout) -> Part:
    (part,) = parts(config, layout)
    return part


def network(case: Case) -> Network:
    """The network of a case.

    Raises:
        NotSupported: names what sdjax lacks.
    """
    for family, key, layout, make, run in NETWORKS:
        if case.layout.startswith(family) and key in case.state_dict_shapes:
            try:
                return Network(make(case), layout, run)
            except ValueError as error:
                raise NotSupported(str(error)) from error
    raise NotSupported(f"a network with these keys (layout {case.layout!r}, of {case.source})")


def replay(case: Case, tolerance: float = TOLERANCE) -> Result:
    """Run a case and compare every output."""
    found = network(case)
    outputs = found.run(found.config, found.params(case.tensors()), case)
    wanted = {name: case.output(name) for name in case.outputs}
    return compare(case.id, outputs, wanted, atol=tolerance)


def assert_same_params(got: Params, want: Params) -> None:
    """Two trees of the same paths and numbers."""
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path])


# Outputs. The references have channels first.


def channels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def channels_first(x: jax.Array) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


def run_unet(model: config.UNet, params: Params, case: Case) -> Outputs:
    def first(*names: str) -> jax.Array | None:
        return next((jnp.asarray(case.input(name)) for name in names if name in case.inputs), None)

    extra, mask = first("class_labels", "y"), first("attention_mask")
    times = first("timestep", "timesteps")
    assert times is not None
    x = channels_last(case.input("x"))
    if "low_res" in case.inputs:
        x = beside(x, case)
    output = jax.jit(apply, static_argnums=0)(
        UNet(model),
        params,
        x,
        times.astype(jnp.float32),
        first("encoder_hidden_states", "context"),
        extra if model.vector_dim is not None else None,
        extra if model.labels is not None else None,
        None if mask is None else mask.astype(bool),
    )
    return dict.fromkeys(("sample", "out"), channels_first(output))


def beside(x: jax.Array, case: Case) -> jax.Array:
    """The noisy picture, and beside it the small one at its size."""
    _, height, width, _ = x.shape
    small = channels_last(case.input("low_res"))
    enlarged = interpolate(small, (height, width), "linear", align_corners=False)
    return jnp.concatenate([x, enlarged], axis=-1)


def run_glide(model: config.Glide, params: Params, case: Case) -> Outputs:
    mask = jnp.asarray(case.input("mask"), bool)
    tokens = jnp.asarray(case.input("tokens"), jnp.int32)
    text = jax.jit(apply, static_argnums=0)(GlideText(model.text), params["text"], tokens, mask)
    x = channels_last(case.input("x"))
    if model.small_size is not None:
        x = beside(x, case)
    timesteps = jnp.asarray(case.input("timesteps"), jnp.float32)
    network = UNet(model.unet)
    output = jax.jit(apply, static_argnums=0)(
        network, params["unet"], x, timesteps, text.states, text.vector
    )
    return {"out": channels_first(output)}


def run_decoder(model: config.Decoder, params: Params, case: Case) -> Outputs:
    told = {name: jnp.asarray(case.input(name)) for name in ("y", "txt_feat_seq", "txt_feat")}
    known = jnp.zeros(len(told["y"]), bool)
    vector, context = apply(
        ImageConditioning(model.conditioning),
        params["conditioning"],
        told["y"],
        known,
        told["txt_feat_seq"],
        told["txt_feat"],
    )
    mask = jnp.asarray(case.input("mask"), bool)
    tokens = model.conditioning.tokens
    mask = jnp.pad(mask, ((0, 0), (tokens, 0)), constant_values=True)
    output = jax.jit(apply, static_argnums=0)(
        UNet(model.unet),
        params["unet"],
        channels_last(case.input("x")),
        jnp.asarray(case.input("timesteps"), jnp.float32),
        context,
        vector,
        None,
        mask,
    )
    return {"out": channels_first(output)}


def run_conditioning(model: config.ImageConditioning, params: Params, case: Case) -> Outputs:
    """Without the image embedding in the first row, with it in the second."""
    embedding = jnp.tile(jnp.asarray(case.input("image_embeddings")), (2, 1))
    vector, context = apply(
        ImageConditioning(model),
        params,
        embedding,
        jnp.array([True, False]),
        jnp.asarray(case.input("text_encoder_hidden_states")),
        jnp.asarray(case.input("prompt_embeds")),
    )
    return {"additive_time_embedding": vector, "encoder_hidden_states": context}


def run_prior(model: config.DiffusionPrior, params: Params, case: Case) -> Outputs:
    def first(*names: str) -> jax.Array:
        return next(jnp.asarray(case.input(name)) for name in names if name in case.inputs)

    image = apply(
        DiffusionPrior(model),
        params,
        first("hidden_states", "x"),
        first("timestep", "timesteps").astype(jnp.float32),
        first("proj_embedding", "text_emb"),
        first("encoder_hidden_states", "text_enc"),
        first("attention_mask", "mask").astype(bool),
    )
    return dict.fromkeys(("predicted_image_embedding", "out"), image)


def run_autoencoder(model: config.Autoencoder, params: Params, case: Case) -> Outputs:
    call = jax.jit(apply, static_argnums=0, static_argnames="method")
    network = Autoencoder(replace(model, scaling_factor=1.0))  # z is decoded as it is
    posterior = call(network, params, channels_last(case.input("image")), method="encode")
    decoded = call(network, params, channels_last(case.input("z")), method="decode")
    mean, logvar = channels_first(posterior.mean), channels_first(posterior.logvar)
    return {
        **dict.fromkeys(("posterior_mean", "mean"), mean),
        **dict.fromkeys(("posterior_logvar_clamped", "logvar_clamped"), logvar),
        "decoded": channels_first(decoded),
    }


def run_text(model: config.TextTower, params: Params, case: Case) -> Outputs:
    """Of the tower: its last hidden state and the last but one, normalised; its vector."""
    name = "input_ids" if "input_ids" in case.inputs else "text"
    tokens = jnp.asarray(case.input(name), jnp.int32)
    # Old configs say 2; they, and CLIP's first authors, mean the largest id.
    end_id = case.config.get("eos_token_id", 2)
    end = tokens.argmax(-1) if end_id == 2 else end_positions(tokens, end_id)
    call = jax.jit(apply, static_argnums=0)
    last = call(ClipText(model), params, tokens, end)
    before = call(ClipText(replace(model, skip_layers=1)), params, tokens, end)
    last_names = ("last_hidden_state", "text_sequence_after_ln_final", "last_then_ln_final")
    before_names = ("penultimate_then_final_ln", "penultimate_then_ln_final")
    return {
        **dict.fromkeys(last_names, last.hidden),
        **dict.fromkeys(before_names, before.hidden),
        **dict.fromkeys(("text_embeds", "encode_text"), last.pooled),
    }


def run_image(model: config.ImageTower, params: Params, case: Case) -> Outputs:
    name = "pixel_values" if "pixel_values" in case.inputs else "image"
    image = channels_last(case.input(name))
    vector, inner = jax.jit(inspect, static_argnums=0)(ClipImage(model), params, image)
    return {"image_embeds": vector, "encode_image": vector, "last_hidden_state": inner["hidden"]}


def run_clip(model: config.Clip, params: Params, case: Case) -> Outputs:
    image = run_image(model.image, params["image"], case)["encode_image"]
    text = run_text(model.text, params["text"], case)
    cosines = unit(image) @ unit(text["encode_text"]).T
    logits = jnp.exp(params["logit_scale"]) * cosines
    return {**text, "encode_image": image, "logits_per_image": logits}


def run_depth(model: config.Depth, params: Params, case: Case) -> Outputs:
    image = channels_last(case.input("pixel_values"))
    depth, inner = jax.jit(inspect, static_argnums=0)(Depth(model), params, image)
    return {"predicted_depth": depth, "before_final_relu": inner["before_relu"]}


# Which network a case holds


def transformers_text(case: Case) -> config.TextTower:
    projection = "text_projection.weight" in case.state_dict_shapes
    return foreign.transformers_text(case.config, pad="eot", projection=projection)


def diffusers_unet(case: Case) -> config.UNet:
    """Cases do not name their class, of which there are two."""
    name = "UNet2DConditionModel" if "cross_attention_dim" in case.config else "UNet2DModel"
    return foreign_unets.diffusers_unet({"_class_name": name, **case.config})


Make = Callable[[Case], Config]

NETWORKS: tuple[tuple[str, str, Layout, Make, Run], ...] = (
    (
        "diffusers",
        "conv_norm_out.weight",
        "diffusers",
        diffusers_unet,
        run_unet,
    ),
    (
        "diffusers",
        "learned_classifier_free_guidance_embeddings",
        "diffusers",
        lambda case: foreign_unclip.conditioning(case.config),
        run_conditioning,
    ),
    (
        "diffusers",
        "prd_embedding",
        "diffusers",
        lambda case: foreign_unclip.prior(case.config, KARLO_PRIOR.schedule),
        run_prior,
    ),
    (
        "karlo original",
        "prd_emb",
        "single-file",
        lambda case: replace(
            KARLO_PRIOR,
            embedding_dim=case.config["clip_dim"],
            text_dim=case.config["clip_dim"],
            text_tokens=case.config["text_ctx"],
            dim=case.config["xf_width"],
            layers=case.config["xf_layers"],
            heads=case.config["xf_heads"],
        ),
        run_prior,
    ),
    (
        "diffusers",
        "encoder.down_blocks.0.resnets.0.conv1.weight",
        "diffusers",
        lambda case: foreign.diffusers_autoencoder(case.config),
        run_autoencoder,
    ),
    (
        "HF",
        "text_model.embeddings.token_embedding.weight",
        "transformers",
        transformers_text,
        run_text,
    ),
    (
        "HF",
        "visual_projection.weight",
        "transformers",
        lambda case: foreign.transformers_image(case.config),
        run_image,
    ),
    (
        "HF",
        "dpt.embeddings.cls_token",
        "transformers",
        lambda case: foreign.transformers_depth(case.config),
        run_depth,
    ),
    (
        "original LDM",
        "input_blocks.0.0.weight",
        "single-file",
        lambda case: foreign_ldm.ldm_unet(case.config),
        run_unet,
    ),
    (
        "original LDM",
        "encoder.down.0.block.0.conv1.weight",
        "single-file",
        lambda case: foreign_ldm.ldm_autoencoder(case.config, 1.0),
        run_autoencoder,
    ),
    (
        "glide",
        "transformer_proj.weight",
        "single-file",
        foreign_adm.glide,
        run_glide,
    ),
    (
        "guided-diffusion",
        "input_blocks.0.0.weight",
        "single-file",
        foreign_adm.unet,
        run_unet,
    ),
    (
        "karlo original",
        "clip_tok_proj.weight",
        "single-file",
        foreign_adm.decoder,
        run_decoder,
    ),
    (
        "openai CLIP",
        "visual.conv1.weight",
        "openclip",
        lambda case: foreign_ldm.openai_clip(case.config),
        run_clip,
    ),
    (
        "open_clip",
        "visual.conv1.weight",
        "openclip",
        lambda case: foreign.open_clip(case.config),
        run_clip,
    ),
)
"""(start of the case's layout, a key that it has, our layout, its config, its outputs)."""
