"""The whole of text to image as a case: words to pixels."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import config
from sdjax.bench.cases import Case, Sizes, count, find_system, latent_side
from sdjax.bench.exchange import random_components
from sdjax.bench.ours import Drawn, Ours
from sdjax.costs import operations, stages
from sdjax.pipelines.stable_diffusion import Pipeline
from sdjax.text.tokenizer import CLIP_VOCABULARY_SIZE, Tokenizer
from sdjax.weights.tree import Params as Tree

PROMPT = "an astronaut riding a horse on the moon, 3d style"
GUIDANCE = 7.5
STEPS = 10
LEVEL = 1.0
"""Pixels are compared as 0 to 255; rounding alone may differ by one."""


def pipeline_case(preset: str, sizes: Sizes) -> Case:
    """DDIM with guidance from the same noise on all sides.

    Raises:
        ValueError: for a model that draws from something else than CLIP's words.
    """
    model = find_system(preset)
    if model.conditioning != "text" or model.text.vocab_size != CLIP_VOCABULARY_SIZE:
        raise ValueError(f"{preset} does not draw from CLIP's words alone: choose sd15 or sd21-v")
    batch, steps = sizes.batch or 1, sizes.steps or STEPS
    side, pixels = latent_side(model, sizes), sizes.size or model.image_size
    shape = (batch, side, side, model.autoencoder.latent_channels)
    noise = np.random.default_rng(1).standard_normal(shape, np.float32)
    components = random_components(model)

    def make(weights: Mapping[str, Tree]) -> Ours:
        pipe = Pipeline(
            name="random",
            config=model,
            params=jax.tree.map(lambda leaf: jnp.asarray(leaf, sizes.dtype), dict(weights)),
            tokenizer=Tokenizer(model.text.context_length, model.text.pad),
        )

        def draw() -> np.ndarray:
            images = pipe(
                PROMPT,
                n=batch,
                steps=steps,
                guidance=GUIDANCE,
                size=pixels,
                sampler="ddim",
                latents=noise,
            )
            return np.stack([np.asarray(image, np.float32) for image in images])

        return Drawn(draw, pipeline_operations(model, shape, steps))

    return Case(
        "pipeline",
        model,
        components,
        {"noise": noise},
        make,
        count(components),
        {"batch": batch, "pixels": [pixels, pixels], "steps": steps, "guidance": GUIDANCE},
        {"prompt": PROMPT, "steps": steps, "guidance": GUIDANCE, "pixels": pixels},
        slack=LEVEL,
    )


def pipeline_operations(
    model: config.StableDiffusion, shape: tuple[int, int, int, int], steps: int
) -> int:
    """Of one call: both texts, both branches of every step, the decoder."""
    text, unet, decoder = stages(model, jnp.float32)
    batch = shape[0]
    latents = jax.ShapeDtypeStruct(shape[1:], jnp.float32)
    calls = {"CLIP's text": 2 * batch, "unet": 2 * batch * steps, "decoder": batch}
    total = 0
    for stage in (text, unet, decoder):
        inputs: tuple[Any, ...] = stage.inputs
        if stage is not text:
            inputs = (jax.ShapeDtypeStruct((1, *latents.shape), jnp.float32), *inputs[1:])
        total += calls[stage.name] * _operations(stage, inputs)
    return total


def _operations(stage: Any, inputs: tuple[Any, ...]) -> int:
    def init(*given: Any) -> Any:
        return stage.module.init(jax.random.key(0), *given, method=stage.method)

    def run(params: Any, *given: Any) -> Any:
        return stage.module.apply(params, *given, method=stage.method)

    params = jax.eval_shape(init, *inputs)
    return operations(jax.make_jaxpr(run)(params, *inputs).jaxpr)
