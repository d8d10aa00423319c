"""Golden cases of networks: weights by the rule, through our tables, into our networks.

What a case holds is told from its layout, keys and config, never from its name. A new family is one
line in `NETWORKS`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import foreign_ldm
import jax
import jax.numpy as jnp
import numpy as np
from golden_replay import NotSupported, Result, compare
from golden_rule import Case

from sdjax import config
from sdjax.config import Config
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage, unit
from sdjax.image.depth import Depth
from sdjax.nn.functional import Params, apply, inspect
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.weights import foreign
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
        """The tree that a checkpoint of these tensors becomes."""
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

    extra = first("class_labels", "y")
    output = jax.jit(apply, static_argnums=0)(
        UNet(model),
        params,
        channels_last(case.input("x")),
        first("timestep", "timesteps").astype(jnp.float32),
        first("encoder_hidden_states", "context"),
        extra if model.vector_dim is not None else None,
        extra if model.labels is not None else None,
    )
    return dict.fromkeys(("sample", "out"), channels_first(output))


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


Make = Callable[[Case], Config]

NETWORKS: tuple[tuple[str, str, Layout, Make, Run], ...] = (
    (
        "diffusers",
        "conv_norm_out.weight",
        "diffusers",
        lambda case: foreign.diffusers_unet(case.config),
        run_unet,
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
