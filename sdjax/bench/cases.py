"""What is measured: networks with random weights and inputs, by name of a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdjax import config
from sdjax.bench.exchange import component_of, random_components
from sdjax.bench.ours import Compiled, Ours
from sdjax.costs import system
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.nn.functional import Params, apply
from sdjax.text.clip_text import ClipText
from sdjax.weights.tree import Params as Tree

ALIASES = {"sd15": "sd1", "sd21": "sd2-base", "sd21-base": "sd2-base", "sd21-v": "sd2-v"}
"""Names that people use for models whose sizes are those of another."""
TOLERANCE = 1e-3
"""Most that float32 outputs of both sides may differ, in standard deviations of the output."""


@dataclass(frozen=True)
class Sizes:
    """What a measurement is asked for; None is what suits the model."""

    batch: int | None = None
    size: int | None = None  # pixels of the images, height and width
    steps: int | None = None  # of a pipeline
    dtype: DTypeLike = jnp.float32


@dataclass(eq=False)
class Case:
    """One thing to measure on all sides."""

    name: str
    model: config.Config  # whose folder is written for the others
    components: Mapping[str, Tree] | None  # its weights; None: the others begin with their own
    inputs: Mapping[str, np.ndarray]
    make: Callable[[Mapping[str, Tree]], Ours]  # our side, of the weights
    parameters: int
    facts: Mapping[str, Any] = field(default_factory=dict)  # batch, shapes: for the report
    options: Mapping[str, Any] = field(default_factory=dict)  # for the peers
    slack: float = 0.0  # by how much outputs may differ besides, in their own unit


def find_system(preset: str) -> config.StableDiffusion:
    """The Stable Diffusion called `preset`.

    Raises:
        ValueError: if there is none.
    """
    try:
        found = system(ALIASES.get(preset, preset))
    except ValueError as error:
        raise ValueError(f"{error}; or {', '.join(ALIASES)}") from error
    if not isinstance(found, config.StableDiffusion):
        raise ValueError(f"{preset} is no Stable Diffusion: no other implementation is compared")
    return found


def unet_case(preset: str, sizes: Sizes) -> Case:
    """One call of the UNet; a batch of two is one guided step."""
    model = find_system(preset)
    unet, batch = model.unet, sizes.batch or 2
    side = latent_side(model, sizes)
    rng = np.random.default_rng(1)
    inputs = {
        "x": _normal(rng, batch, side, side, unet.in_channels),
        "time": np.linspace(900, 100, batch).round().astype(np.float32),
    }
    if unet.context_dim is not None:
        inputs["context"] = _normal(rng, batch, model.text.context_length, unet.context_dim)
    if unet.vector_dim is not None:
        inputs["vector"] = _normal(rng, batch, unet.vector_dim)
    if unet.labels is not None:
        inputs["label"] = np.arange(batch, dtype=np.int32) % unet.labels
    network = UNet(unet, sizes.dtype)

    def call(params: Params, x: dict[str, Any]) -> jax.Array:
        told = (x.get(name) for name in ("context", "vector", "label"))
        return apply(network, params, x["x"], x["time"], *told)

    facts = {"batch": batch, "latents": [side, side], "tokens": model.text.context_length}
    return _network("unet", unet, inputs, call, sizes.dtype, facts)


def vae_case(preset: str, sizes: Sizes) -> Case:
    """Latents to images."""
    model = find_system(preset)
    autoencoder, batch = model.autoencoder, sizes.batch or 1
    side = latent_side(model, sizes)
    rng = np.random.default_rng(1)
    inputs = {"latents": _normal(rng, batch, side, side, autoencoder.latent_channels)}
    network = Autoencoder(autoencoder, sizes.dtype)

    def call(params: Params, x: dict[str, Any]) -> jax.Array:
        return apply(network, params, x["latents"], method="decode")

    facts = {"batch": batch, "pixels": [side * autoencoder.factor] * 2}
    case = _network("vae", plain(autoencoder), inputs, call, sizes.dtype, facts)
    return replace_options(case, patch=autoencoder.patch, scale=autoencoder.scaling_factor)


def text_case(preset: str, sizes: Sizes) -> Case:
    """Token ids to hidden states."""
    text = find_system(preset).text
    batch = sizes.batch or 2
    ids = np.random.default_rng(1).integers(1, text.vocab_size - 2, (batch, text.context_length))
    ids[:, 0], ids[:, -1] = text.vocab_size - 2, text.vocab_size - 1  # begin and end
    inputs = {"tokens": ids.astype(np.int32)}
    end = np.full(batch, text.context_length - 1, np.int32)
    network = ClipText(text, sizes.dtype)

    def call(params: Params, x: dict[str, Any]) -> jax.Array:
        return apply(network, params, x["tokens"], jnp.asarray(end)).hidden

    facts = {"batch": batch, "tokens": text.context_length}
    return _network("text", text, inputs, call, sizes.dtype, facts)


def plain(autoencoder: config.Autoencoder) -> config.Autoencoder:
    """The same weights without the folding of patches, which other libraries do not have."""
    channels = autoencoder.image_channels * autoencoder.patch**2
    return replace(autoencoder, patch=1, image_channels=channels)


def replace_options(case: Case, **options: Any) -> Case:
    """The case, with more options for the peers."""
    return replace(case, options={**case.options, **options})


def latent_side(model: config.StableDiffusion, sizes: Sizes) -> int:
    """Height and width of the latents.

    Raises:
        ValueError: if the size does not fit the model.
    """
    size, multiple = sizes.size or model.image_size, model.size_multiple
    if size % multiple:
        raise ValueError(f"--size must be a multiple of {multiple} for this model, got {size}")
    return size // model.autoencoder.factor


def count(components: Mapping[str, Tree]) -> int:
    """Parameters of all components."""
    return sum(leaf.size for leaf in jax.tree.leaves(dict(components)))


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _network(
    name: str,
    model: config.Config,
    inputs: Mapping[str, np.ndarray],
    call: Callable[[Params, dict[str, Any]], jax.Array],
    dtype: DTypeLike,
    facts: Mapping[str, Any],
) -> Case:
    components = random_components(model)

    def make(weights: Mapping[str, Tree]) -> Ours:
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weights[component_of(model)])
        return Compiled(jax.jit(call), (params, {k: jnp.asarray(v) for k, v in inputs.items()}))

    return Case(name, model, components, inputs, make, count(components), facts)
