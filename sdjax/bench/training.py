"""One optimisation step of the small networks as cases: forward, backward, AdamW, average."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import config, presets
from sdjax.bench.cases import Case, Sizes, count, plain
from sdjax.bench.exchange import component_of, random_components
from sdjax.bench.ours import Compiled, Ours
from sdjax.diffusion.schedule import alpha_bars
from sdjax.training.losses import autoencoder_loss, latent_diffusion_loss
from sdjax.training.parts import RECIPES
from sdjax.training.state import Loss, Recipe, init_state, make_step
from sdjax.training.tasks import SHIFT
from sdjax.weights.tree import Params as Tree

GAMMA, DROP, KL_WEIGHT = 5.0, 0.1, 0.01
"""Of the recipes: min-SNR weights, captions dropped, weight of the posterior's divergence."""
IMAGE_SIZE = presets.MINI_CLIP.image.image_size


def train_cases(preset: str, sizes: Sizes) -> list[Case]:
    """A step of the UNet and one of the autoencoder, each with the batch of its recipe.

    The sides begin with weights of their own and draw their own noise: only times are compared.

    Raises:
        ValueError: for another model, or a precision that is not trained in.
    """
    if preset != "mini":
        raise ValueError(f"only mini is trained here, not {preset}: say --preset mini")
    if jnp.dtype(sizes.dtype) != jnp.float32:
        raise ValueError("training is in float32: leave --dtype out")
    return [_unet_case(sizes), _autoencoder_case(sizes)]


def _unet_case(sizes: Sizes) -> Case:
    recipe = _recipe("latent-diffusion", sizes)
    unet, autoencoder, text = presets.MINI_UNET, presets.MINI_AUTOENCODER, presets.MINI_CLIP.text
    side, rng = IMAGE_SIZE // autoencoder.factor, np.random.default_rng(1)
    latents = (recipe.batch, side, side, autoencoder.latent_channels)
    words = (text.context_length, text.dim)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    inputs = {
        "mean": normal(*latents),
        "std": 0.1 * np.abs(normal(*latents)),
        "context": normal(recipe.batch, *words).astype(np.float16),
        "vector": normal(recipe.batch, text.projection_dim or 0),
        "empty_context": normal(*words).astype(np.float16),
        "empty_vector": normal(text.projection_dim or 0),
    }
    loss = latent_diffusion_loss(unet, presets.MINI_SCHEDULE, GAMMA, DROP)
    told = {"alpha_bars": np.asarray(alpha_bars(presets.MINI_SCHEDULE), np.float32)}
    options = {"gamma": GAMMA, "drop": DROP, "recipe": asdict(recipe)}
    facts = {"batch": recipe.batch, "latents": [side, side]}
    return _case("train unet", unet, unet, loss, recipe, inputs, told, options, facts)


def _autoencoder_case(sizes: Sizes) -> Case:
    recipe, model = _recipe("autoencoder", sizes), presets.MINI_AUTOENCODER
    shape = (recipe.batch, IMAGE_SIZE, IMAGE_SIZE, 3)
    inputs = {"pixels": np.random.default_rng(1).integers(0, 256, shape, np.uint8)}
    options = {
        "kl_weight": KL_WEIGHT,
        "shift": SHIFT,
        "patch": model.patch,
        "recipe": asdict(recipe),
    }
    loss = autoencoder_loss(model, KL_WEIGHT, SHIFT)
    facts = {"batch": recipe.batch, "pixels": [IMAGE_SIZE, IMAGE_SIZE]}
    name = "train autoencoder"
    return _case(name, model, plain(model), loss, recipe, inputs, {}, options, facts)


def _recipe(part: str, sizes: Sizes) -> Recipe:
    recipe = RECIPES[part]
    return recipe if sizes.batch is None else replace(recipe, batch=sizes.batch)


def _case(
    name: str,
    model: config.UNet | config.Autoencoder,
    exchanged: config.UNet | config.Autoencoder,
    loss: Loss,
    recipe: Recipe,
    inputs: Mapping[str, np.ndarray],
    told: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> Case:
    """`told` are inputs for the peers alone; ours has them in its loss."""

    def make(weights: Mapping[str, Tree]) -> Ours:
        params: Any = jax.tree.map(jnp.asarray, weights[component_of(model)])
        batch = {name: jnp.asarray(array) for name, array in inputs.items()}

        def advance(given: tuple[Any, ...], result: Any) -> tuple[Any, ...]:
            return result[0], given[1]

        return Compiled(
            make_step(loss, recipe), (init_state(params, recipe), batch), advance, lambda _: None
        )

    components = random_components(model)
    case = Case(name, exchanged, components, {**inputs, **told}, make, count(components), facts)
    return replace(case, options=options)
