"""Pictures of training as a whole model redraws them: latents with a denoiser's own errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from sdjax.data import emoji
from sdjax.diffusion.loop import image_keys, initial_noise
from sdjax.diffusion.samplers import sampling_plan
from sdjax.pipelines.load import load
from sdjax.pipelines.stable_diffusion import Pipeline
from sdjax.pipelines.stages import denoise, encode_text, first_state
from sdjax.text.clip_text import TextOutput
from sdjax.training.latents import Folder, encode_latents

DEPTHS = ((20, 0.15), (20, 0.3), (20, 0.5), (15, None))
"""How far pictures are noised: steps of DDIM, and the share of them that is walked; None begins
with noise alone."""
MOST_OFF = 0.38
"""Root mean square by which a redrawn latent may differ from its picture's. One that is farther off
is another drawing, which the picture does not answer to."""
TOGETHER = 128
"""Pictures redrawn at once."""


class Redrawn(NamedTuple):
    """Latents and the pictures that they should be decoded to."""

    latents: Float[np.ndarray, "rows height width channels"]  # float16
    pictures: Int[np.ndarray, " rows"]


def redraw(model: Folder, data: emoji.EmojiSet, seed: int) -> Redrawn:
    """The pictures, each with its caption, from every one of `DEPTHS`; the model's own guidance.

    Raises:
        ValueError: if the model is no Stable Diffusion with a sampler of its own in `Pipeline`.
    """
    pipe = load(model)
    if not isinstance(pipe, Pipeline):
        raise ValueError(f"{model} does not redraw pictures: give a folder of latent diffusion")
    means, _ = encode_latents(pipe.config.autoencoder, pipe.params["autoencoder"], data.images)
    captions = data.captions()
    latents, pictures = [], []
    starts = [(d, i) for d in range(len(DEPTHS)) for i in range(0, len(data), TOGETHER)]
    for depth, first in tqdm(starts, desc="redrawing pictures", disable=None):
        rows = np.arange(first, first + TOGETHER) % len(data)  # of one size, few compilations
        wanted = means[rows].astype(np.float32)
        keys = image_keys(seed + depth * len(data) + jnp.asarray(rows))
        text = _read(pipe, [captions[row] for row in rows])
        found = _redraw(pipe, wanted, text, keys, *DEPTHS[depth])[: len(data) - first]
        rows, wanted = rows[: len(found)], wanted[: len(found)]
        near = np.sqrt(np.mean((found - wanted) ** 2, axis=(1, 2, 3))) <= MOST_OFF
        latents.append(found[near].astype(np.float16))
        pictures.append(rows[near])
    return Redrawn(np.concatenate(latents), np.concatenate(pictures))


def _read(pipe: Pipeline, captions: list[str]) -> TextOutput:
    """[captions, 2, ...]: the empty text and the caption, as guidance needs them."""
    tokens = pipe.tokenizer([text for caption in captions for text in ("", caption)])
    text = encode_text(pipe.config.text, pipe.params["text"], tokens, pipe.tokenizer.eot_id)
    return jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), text)


def _redraw(
    pipe: Pipeline,
    means: Float[np.ndarray, "rows height width channels"],
    text: TextOutput,
    keys: jax.Array,
    steps: int,
    strength: float | None,
) -> Float[np.ndarray, "rows height width channels"]:
    schedule = pipe.config.schedule
    plan = sampling_plan(
        schedule, steps, DEPTHS[-1][0], sampler="ddim", spacing="trailing", strength=strength
    )
    noise = initial_noise(keys, means.shape[1:])
    state = first_state(plan, noise, None if strength is None else jnp.asarray(means))
    state, _ = denoise(
        pipe.config.unet,
        pipe.params["unet"],
        state,
        text,
        plan,
        keys,
        jnp.float32(pipe.defaults.guidance),
        jnp.float32(0.0),
        prediction=schedule.prediction,
    )
    return np.asarray(state[:, 0])
