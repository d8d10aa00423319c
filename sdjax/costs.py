"""What each network of a system costs: parameters, operations and memory of its compiled program.

Nothing is allocated: parameters are shapes alone, so that a laptop can ask about DALL-E 2.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from jax.typing import DTypeLike

from sdjax import config, presets
from sdjax.catalog import columns
from sdjax.denoisers.autoregressive import AutoregressivePrior
from sdjax.denoisers.image_conditioning import ImageConditioning
from sdjax.denoisers.prior import DiffusionPrior
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.pipelines.models import bundled_models, find_model
from sdjax.text.clip_text import ClipText
from sdjax.text.glide_text import GlideText
from sdjax.weights.files import MODEL_FILE
from sdjax.weights.stored import stored_config


@dataclass(frozen=True)
class Stage:
    """One network of a system and the shapes of what it is called with, for one picture."""

    name: str
    module: nn.Module
    inputs: tuple[jax.ShapeDtypeStruct | None, ...]
    method: str | None = None


@dataclass(frozen=True)
class Cost:
    """Of one call of one network for one picture; memory as XLA plans it on this platform."""

    stage: str
    parameters: int
    operations: int  # multiplications and additions in matrix products and convolutions
    weight_bytes: int
    temporary_bytes: int  # besides weights, inputs and outputs


def system(name: str) -> config.StableDiffusion | config.Unclip:
    """The system called `name`: a published, a bundled one, or one of a paper.

    Raises:
        ValueError: if there is none.
    """
    known = {
        key: value
        for key, value in {**presets.PUBLISHED, **presets.PAPER}.items()
        if isinstance(value, config.StableDiffusion | config.Unclip)
    }
    if name in bundled_models():
        described = json.loads((find_model(name) / MODEL_FILE).read_text())
        known[name] = stored_config(described, name)  # pyright: ignore[reportArgumentType]
    if name not in known:
        names = ", ".join([*known, *bundled_models()])
        raise ValueError(f"no system {name!r}: choose among {names}")
    return known[name]


def cost(stage: Stage, dtype: DTypeLike = jnp.bfloat16) -> Cost:
    """Compile a stage whose weights, as shapes only, have the type `dtype`."""

    def run(params: Any, *inputs: Any) -> Any:
        return stage.module.apply({"params": params}, *inputs, method=stage.method)

    def init(*inputs: Any) -> Any:
        return stage.module.init(jax.random.key(0), *inputs, method=stage.method)["params"]

    params = jax.eval_shape(init, *stage.inputs)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), params)
    traced = jax.jit(run).trace(params, *stage.inputs)
    memory = traced.lower().compile().memory_analysis()
    assert memory is not None  # every platform of JAX has it
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Cost(
        stage.name,
        parameters,
        operations(traced.jaxpr.jaxpr),
        parameters * jnp.dtype(dtype).itemsize,
        int(memory.temp_size_in_bytes),
    )


def operations(jaxpr: Any) -> int:
    """Multiplications and additions of the matrix products and convolutions of a traced program.

    XLA's own count takes the body of a loop once; here it counts as often as it runs.
    """
    total = 0
    for equation in jaxpr.eqns:
        repeat = equation.params["length"] if equation.primitive.name == "scan" else 1
        bodies = [operations(body) for body in jaxprs_in_params(equation.params)]
        # Of the ways to compute the same on different platforms the plain one has the most.
        inner = max(bodies) if equation.primitive.name == "cond" else sum(bodies)
        total += repeat * inner + _products(equation)
    return total


def _products(equation: Any) -> int:
    out = equation.outvars[0].aval.size
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * out * math.prod(left[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = equation.params["dimension_numbers"].rhs_spec[0]
        return 2 * out * math.prod(kernel) // kernel[outputs]
    return 0


def stages(
    model: config.StableDiffusion | config.Unclip, dtype: DTypeLike = jnp.bfloat16
) -> list[Stage]:
    """The networks of a system in the order in which they run, computing in `dtype`."""
    if isinstance(model, config.Unclip):
        return _unclip_stages(model, dtype)
    size = model.image_size // model.autoencoder.factor
    latents = _shape(1, size, size, model.autoencoder.latent_channels)
    return [
        _clip_text(model.text, dtype),
        _unet("unet", model.unet, size, model.text.context_length, dtype),
        Stage("decoder", Autoencoder(model.autoencoder, dtype), (latents,), "decode"),
    ]


def _unclip_stages(model: config.Unclip, dtype: DTypeLike) -> list[Stage]:
    found = [_clip_text(model.text, dtype)]
    if model.prior is not None:
        found.append(_prior(model.prior, dtype))
    if model.autoregressive_prior is not None:
        found.append(_autoregressive_prior(model.autoregressive_prior, dtype))
    decoder, tokens = model.decoder, model.text.context_length
    if decoder.text is not None:
        tokens = decoder.text.context_length
        seen = _shape(1, tokens, dtype=jnp.bool_)
        ids = _shape(1, tokens, dtype=jnp.int32)
        found.append(Stage("decoder's text", GlideText(decoder.text, dtype), (ids, seen)))
    tokens += decoder.conditioning.tokens
    found.append(_conditioning(decoder, model.text, dtype))
    found.append(_unet("decoder", decoder.unet, decoder.image_size, tokens, dtype))
    for upsampler in model.upsamplers:
        names = [f"upsampler to {upsampler.image_size}"]
        if upsampler.own_last_step:
            names.append(f"{names[0]}, last step")
        for name in names:
            found.append(_unet(name, upsampler.unet, upsampler.image_size, 0, dtype))
    return found


def _conditioning(decoder: config.Decoder, clip: config.TextTower, dtype: DTypeLike) -> Stage:
    """What tells the decoder its image embedding; the text is CLIP's or the decoder's own."""
    model, text = decoder.conditioning, decoder.text
    if text is None:
        states, vector = _shape(1, clip.context_length, clip.dim), _shape(1, model.embedding_dim)
    else:
        states, vector = _shape(1, text.context_length, text.dim), _shape(1, text.vector_dim)
    told = (_shape(1, model.embedding_dim), _shape(1, dtype=jnp.bool_))
    network = ImageConditioning(model, dtype)
    return Stage("decoder's conditioning", network, (*told, states, vector))


def _shape(*sizes: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _clip_text(text: config.TextTower, dtype: DTypeLike) -> Stage:
    ids, end = _shape(1, text.context_length, dtype=jnp.int32), _shape(1, dtype=jnp.int32)
    return Stage("CLIP's text", ClipText(text, dtype), (ids, end))


def _prior(prior: config.DiffusionPrior, dtype: DTypeLike) -> Stage:
    tokens = prior.text_tokens
    if prior.text_dim is None:
        text = _shape(1, tokens, dtype=jnp.int32)
    else:
        text = _shape(1, tokens, prior.text_dim)
    embedding, seen = _shape(1, prior.embedding_dim), _shape(1, tokens, dtype=jnp.bool_)
    inputs = (embedding, _shape(1), embedding, text, seen)
    return Stage("prior", DiffusionPrior(prior, dtype), inputs)


def _autoregressive_prior(prior: config.AutoregressivePrior, dtype: DTypeLike) -> Stage:
    """All codes in one call, as in training; sampling computes as much, one code at a time."""
    tokens = prior.text_tokens
    embedding, seen = _shape(1, prior.embedding_dim), _shape(1, tokens, dtype=jnp.bool_)
    text, codes = _shape(1, tokens, prior.text_dim), _shape(1, prior.codes, dtype=jnp.int32)
    module = AutoregressivePrior(prior, dtype)
    return Stage("autoregressive prior", module, (embedding, text, seen, codes))


def _unet(name: str, unet: config.UNet, size: int, tokens: int, dtype: DTypeLike) -> Stage:
    context = None if unet.context_dim is None else _shape(1, tokens, unet.context_dim)
    vector = None if unet.vector_dim is None else _shape(1, unet.vector_dim)
    label = None if unet.labels is None else _shape(1, dtype=jnp.int32)
    pixels = _shape(1, size, size, unet.in_channels)
    return Stage(name, UNet(unet, dtype), (pixels, _shape(1), context, vector, label))


def table(costs: list[Cost]) -> str:
    """For people: parameters, operations of one call, and memory."""
    rows = [("network", "parameters", "GFLOP", "weights", "temporary")] + [
        (
            c.stage,
            f"{c.parameters:,}",
            f"{c.operations / 1e9:,.1f}",
            f"{c.weight_bytes / 2**20:,.0f} MiB",
            f"{c.temporary_bytes / 2**20:,.0f} MiB",
        )
        for c in costs
    ]
    return columns(rows, right={1, 2, 3, 4})
