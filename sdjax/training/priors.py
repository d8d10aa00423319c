"""Training of DALL-E 2's priors on the embeddings of a trained, frozen CLIP, computed once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax import config, presets
from sdjax.data import emoji
from sdjax.denoisers.autoregressive import AutoregressivePrior
from sdjax.denoisers.prior import DiffusionPrior, repeat
from sdjax.diffusion.analytic import mean_squared_error
from sdjax.diffusion.schedule import alpha_bars
from sdjax.image import codes
from sdjax.image.clip_image import unit
from sdjax.nn.functional import Params, apply, init_params
from sdjax.pipelines.clip import Clip, load_clip
from sdjax.pipelines.priors import Defaults
from sdjax.shapes import Vectors
from sdjax.training.captions import choose_captions, draw_captions, encode_captions
from sdjax.training.latents import Folder
from sdjax.training.loop import Task, stream
from sdjax.training.losses import spread_times
from sdjax.training.state import Loss, Metrics, Recipe
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model

VARIANTS = 12
"""Captions drawn for each picture."""
LEVELS = 4
"""Noise levels at which each picture of a batch is seen; the text's part of the work is shared. Not
in the paper."""
JITTER = 0.3
"""Noise on each principal component of an image embedding before it is cut into codes, as a share
of the component's deviation. A code to be predicted has the chances of all buckets under it for its
target: a classifier is told by nothing else which buckets are neighbours. Not in the paper. The dot
product's token is of the embedding as it is: it says how well picture and text agree."""
LEAST_VARIANCE = 1e-4
"""Variance of text embeddings in a direction, as a share of the largest, below which a `TextSkip`
does not hear it as loud as the others."""
MEASURED = 64
"""Times at which the diffusion prior's error is measured for Analytic-DPM."""

DIFFUSION_DEFAULTS = Defaults(guidance=2.0, candidates=4, steps=6)
AUTOREGRESSIVE_DEFAULTS = Defaults(guidance=2.0, candidates=8, temperature=0.3)
"""As the small priors answer best. The paper gives the diffusion prior two candidates and 64 steps,
and says nothing of the other."""


class Embedded(NamedTuple):
    """What a prior is trained on. Text 0 is the empty one."""

    images: Float[np.ndarray, "pictures dim"]  # of unit length
    texts: Float[np.ndarray, "texts dim"]  # of unit length
    states: Float[np.ndarray, "texts tokens width"]  # float16
    masks: np.ndarray  # bool [texts, tokens]
    rows: np.ndarray  # int [pictures, VARIANTS]: the texts of each picture


def embed(clip: Clip, data: emoji.EmojiSet, seed: int) -> Embedded:
    """Every picture and its captions through CLIP's towers."""
    texts, rows = draw_captions(data, VARIANTS, seed)
    states, pooled = encode_captions(clip.config.text, clip.params["text"], clip.tokenizer, texts)
    tokens = clip.tokenizer(texts)
    end = np.argmax(tokens == clip.tokenizer.eot_id, axis=1)
    return Embedded(
        clip.image_embeddings(data.images),
        np.asarray(unit(jnp.asarray(pooled))),
        states,
        np.arange(tokens.shape[1]) <= end[:, None],
        rows,
    )


def diffusion_prior_loss(model: config.DiffusionPrior, drop: float) -> Loss:
    """L = E|f(x_t, t, y) - x0|^2 (arXiv 2204.06125, section 2.2) with x0 the scaled embedding.

    The text y is the empty one at times.

    batch: image [batch, dim], text [batch, dim], both of unit length, states [batch, tokens,
    width], mask [batch, tokens]; and one row of each but the image for the empty text, empty_text,
    empty_states and empty_mask.

    Raises:
        ValueError: for a prior that standardises embeddings, or reads token ids.
    """
    scale = model.scale
    if scale is None or model.text_dim is None:
        raise ValueError("only priors with a scale that read hidden states are trained here")
    network = DiffusionPrior(model)
    table = jnp.asarray(alpha_bars(model.schedule), jnp.float32)

    def loss(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, Metrics]:
        key_time, key_noise, key_drop, key_begin, key_step = jax.random.split(key, 5)
        text, states, mask = _with_drops(batch, key_drop, drop)
        memory = apply(
            network, params, scale * text, states, mask, method="begin", dropout=key_begin
        )
        images = jnp.repeat(batch["image"], LEVELS, axis=0)
        # One from each of `LEVELS` equal parts of the schedule for each picture.
        time = spread_times(key_time, len(images), len(table)).reshape(LEVELS, -1).T.reshape(-1)
        alpha_bar = table[time][:, None]
        noise = jax.random.normal(key_noise, images.shape)
        x0 = scale * images
        x = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
        output = apply(
            network,
            params,
            x,
            time.astype(jnp.float32),
            repeat(memory, LEVELS),
            method="step",
            dropout=key_step,
        )
        cosine = jnp.sum(unit(output) * images, axis=-1).mean()
        return jnp.mean((output - x0) ** 2), {"cosine": cosine}

    return loss


def autoregressive_prior_loss(
    model: config.AutoregressivePrior, book: codes.Codebook, drop: float
) -> Loss:
    """Cross-entropy of the dot product and of every code, per token; text dropped at times.

    batch: as of `diffusion_prior_loss`.
    """
    network = AutoregressivePrior(model)

    def loss(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, Metrics]:
        key_drop, key_dropout, key_jitter = jax.random.split(key, 3)
        image = batch["image"]
        dots = codes.encode_dot(book, image, batch["text"])
        written = codes.encode(book, jittered(book, image, key_jitter))
        tokens = jnp.concatenate([dots[:, None], written[:, :-1]], axis=1)
        text, states, mask = _with_drops(batch, key_drop, drop)
        logits = apply(network, params, text, states, mask, tokens, dropout=key_dropout)
        wanted = jnp.concatenate(
            [jax.nn.one_hot(dots, model.buckets)[:, None], chances(book, image)], axis=1
        )
        by_token = -jnp.sum(wanted * jax.nn.log_softmax(logits), axis=-1).mean(0)
        return by_token.mean(), {"first_code": by_token[1]}

    return loss


def chances(book: codes.Codebook, images: Vectors) -> Float[Array, "batch codes buckets"]:
    """Of each code of image embeddings, how likely every bucket is under noise of `JITTER`.

    What the network reads, by `jittered`, is brought to unit length besides, which shortens it by
    some hundredths; this is not.
    """
    above = book.edges - codes.along_components(book, images)[..., None]
    below = jax.scipy.stats.norm.cdf(above / _spread(book)[:, None])
    return jnp.diff(below, axis=-1, prepend=0.0, append=1.0)


def jittered(
    book: codes.Codebook, images: Float[Array, "batch dim"], key: Array
) -> Float[Array, "batch dim"]:
    """Image embeddings with noise of `JITTER` along the components of a codebook."""
    noise = _spread(book) * jax.random.normal(key, (len(images), len(book.centres)))
    return unit(images + noise @ book.components)


def _spread(book: codes.Codebook) -> Float[Array, " codes"]:
    """Deviation of the jitter along each component."""
    return JITTER * book.centres.std(axis=1)


def _with_drops(batch: dict[str, Array], key: Array, drop: float) -> tuple[Array, Array, Array]:
    """(text, states, mask) with some rows replaced by the empty text's."""
    dropped = jax.random.bernoulli(key, drop, (batch["image"].shape[0],))

    def choose(name: str) -> Array:
        given = batch[name]
        where = dropped.reshape(-1, *[1] * (given.ndim - 1))
        return jnp.where(where, batch[f"empty_{name}"][None], given)

    return choose("text"), choose("states").astype(jnp.float32), choose("mask")


def _batches(data: Embedded, recipe: Recipe) -> Callable[[int], dict[str, Any]]:
    """The batch of each step: pictures by shuffled epochs, each with one of its captions."""

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        rows = choose_captions(data.rows[index], step, recipe.seed)
        return {
            "image": data.images[index],
            "text": data.texts[rows],
            "states": data.states[rows],
            "mask": data.masks[rows],
            "empty_text": data.texts[0],
            "empty_states": data.states[0],
            "empty_mask": data.masks[0],
        }

    return batch


def diffusion_prior_task(
    model: config.DiffusionPrior, recipe: Recipe, clip: Folder, drop: float = 0.1
) -> Task:
    """The diffusion prior, told by the hidden states and the embedding of CLIP's text tower.

    Args:
        model: its sizes.
        recipe: of the run.
        clip: model folder of CLIP, or the name of a bundled model that carries one.
        drop: share of the texts that are replaced by the empty one.
    """
    towers = load_clip(clip)
    data = embed(towers, emoji.load("train", presets.MINI_STYLES), recipe.seed)
    batch = _batches(data, recipe)

    def init(key: Array) -> Params:
        one = {name: value[:1] for name, value in batch(0).items()}
        inputs = (one["image"], jnp.zeros(1), one["text"], one["states"], one["mask"])
        return init_params(DiffusionPrior(model), key, *map(jnp.asarray, inputs))

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        times, errors = measure_errors(model, params, batch(recipe.steps), recipe.seed)
        described = {
            "kind": "prior",
            "config": to_json(model),
            "prior": {
                "defaults": to_json(DIFFUSION_DEFAULTS),
                "errors": {"times": times, "values": errors},
            },
            "training": {**facts, "drop": drop, "clip": towers.fingerprint},
        }
        save_model(folder, {"prior": params}, described, "float16")

    return Task(init, diffusion_prior_loss(model, drop), batch, None, export)


def standardise_text(params: Params, texts: Float[np.ndarray, "rows dim"]) -> Params:
    """A prior's fresh parameters, with mean and whitening of `texts` in its `TextSkip`.

    The texts are as the network scales them. What tells one from its neighbours is small beside
    what tells faces from food: after whitening both are heard, down to `LEAST_VARIANCE`.
    """
    mean, components, variances = codes.principal_components(texts)
    heard = np.maximum(variances, LEAST_VARIANCE * variances[0])
    whitening = components.T * (heard * np.mean(variances / heard)) ** -0.5
    found = {
        "mean": jnp.asarray(mean, jnp.float32),
        "whitening": jnp.asarray(whitening, jnp.float32),
    }
    return params | {"skip": params["skip"] | found}


def measure_errors(
    model: config.DiffusionPrior, params: Params, batch: dict[str, Any], seed: int
) -> tuple[list[float], list[float]]:
    """The network's mean squared error at `MEASURED` times, over a batch: (times, errors).

    Without guidance, and of pictures of the training: of others, and with guidance, it errs by more
    than Analytic-DPM is told.
    """
    scale = 1.0 if model.scale is None else model.scale
    x0 = scale * jnp.asarray(batch["image"])[:, None, None]
    text, states = scale * batch["text"], batch["states"].astype(np.float32)
    told = tuple(jnp.asarray(x) for x in (text, states, batch["mask"]))

    @jax.jit
    def error(params: Params, time: Array) -> Array:
        def denoise(x: Array, t: Array) -> Array:
            return apply(DiffusionPrior(model), params, x[:, 0, 0], t, *told)[:, None, None]

        key = jax.random.fold_in(jax.random.key(seed), time.astype(jnp.int32))
        return mean_squared_error(denoise, model.schedule, x0, key, time)

    times = np.round(np.linspace(0, model.schedule.train_steps - 1, MEASURED))
    return times.tolist(), [float(error(params, jnp.float32(time))) for time in times]


def autoregressive_prior_task(
    model: config.AutoregressivePrior, recipe: Recipe, clip: Folder, drop: float = 0.1
) -> Task:
    """The autoregressive prior, as `diffusion_prior_task`; its codebook is fitted to the data."""
    towers = load_clip(clip)
    data = embed(towers, emoji.load("train", presets.MINI_STYLES), recipe.seed)
    batch = _batches(data, recipe)
    canonical = data.texts[data.rows[:, 0]]
    book = codes.fit_codebook(data.images, canonical, model.codes, model.buckets)

    def init(key: Array) -> Params:
        one = {name: value[:1] for name, value in batch(0).items()}
        inputs = (one["text"], one["states"], one["mask"], np.zeros((1, model.codes), np.int32))
        params = init_params(AutoregressivePrior(model), key, *map(jnp.asarray, inputs))
        texts = model.embedding_dim**0.5 * canonical
        return params if model.text_skip is None else standardise_text(params, texts)

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        described = {
            "kind": "autoregressive_prior",
            "config": to_json(model),
            "autoregressive_prior": {"defaults": to_json(AUTOREGRESSIVE_DEFAULTS)},
            "training": {**facts, "drop": drop, "clip": towers.fingerprint},
        }
        components = {"autoregressive_prior": params, "codebook": book._asdict()}
        save_model(folder, components, described, "float16")

    return Task(init, autoregressive_prior_loss(model, book, drop), batch, None, export)
