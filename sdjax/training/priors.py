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
from sdjax.image.regression import Regression, fit_regression, guesses_without, log_chances
from sdjax.nn.functional import Params, apply, init_params
from sdjax.pipelines.clip import Clip, load_clip
from sdjax.pipelines.priors import Defaults
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
MEASURED = 64
"""Times at which the diffusion prior's error is measured for Analytic-DPM."""

DIFFUSION_DEFAULTS = Defaults(guidance=1.0, candidates=4, steps=2)
AUTOREGRESSIVE_DEFAULTS = Defaults(guidance=1.0, candidates=8, temperature=0.1)
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


class Guesses(NamedTuple):
    """What a prior starts from."""

    regression: Regression
    # of each text in `Embedded.rows`, its picture left out
    without: Float[np.ndarray, "places dim"]


def fit_guesses(data: Embedded, pairs: int) -> Guesses:
    """The regression on all pictures with their plain captions, and what it guesses for training.

    In training a prior is given the guess of a regression without the picture, which is farther
    from the truth. Still not as far as for new pictures: CLIP itself was trained on these.

    Raises:
        ValueError: if there are not `pairs` of them, as the prior's config says.
    """
    if len(data.images) != pairs:
        raise ValueError(
            f"the prior's config has a regression of {pairs} pairs, but there are "
            f"{len(data.images)} pictures: set regression to that"
        )
    regression, inverse = fit_regression(data.images, data.texts[data.rows[:, 0]])
    pictures = np.repeat(np.arange(pairs), data.rows.shape[1])
    without = guesses_without(regression, inverse, data.texts[data.rows.reshape(-1)], pictures)
    return Guesses(regression, without.astype(np.float32))


def diffusion_prior_loss(model: config.DiffusionPrior, drop: float) -> Loss:
    """L = E|f(x_t, t, y) - x0|^2 (arXiv 2204.06125, section 2.2) with x0 the scaled embedding.

    The text y is the empty one at times. With a guess, x0 is what that is wrong by, scaled.

    batch: image [batch, dim], text [batch, dim], both of unit length, states [batch, tokens,
    width], mask [batch, tokens]; one row of each but the image for the empty text, empty_text,
    empty_states and empty_mask; and guess [batch, dim], if the prior starts from one.

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
        images, guess = (jnp.repeat(x, LEVELS, 0) for x in (batch["image"], _guess(batch)))
        # One from each of `LEVELS` equal parts of the schedule for each picture.
        time = spread_times(key_time, len(images), len(table)).reshape(LEVELS, -1).T.reshape(-1)
        alpha_bar = table[time][:, None]
        noise = jax.random.normal(key_noise, images.shape)
        x0 = scale * (images - guess)
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
        cosine = jnp.sum(unit(output / scale + guess) * images, axis=-1).mean()
        return jnp.mean((output - x0) ** 2), {"cosine": cosine}

    return loss


def autoregressive_prior_loss(
    model: config.AutoregressivePrior,
    book: codes.Codebook,
    regression: Regression | None,
    drop: float,
) -> Loss:
    """Cross-entropy of the dot product and of every code, per token; text dropped at times.

    batch: as of `diffusion_prior_loss`. With a guess, the network adds to the log chances about it.
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
        if regression is not None:
            logits = logits.at[:, 1:].add(log_chances(regression, book, batch["guess"]))
        # What the network reads is brought to unit length besides; what it is to predict is not.
        chances = codes.chances(book, image, _spread(book))
        wanted = jnp.concatenate([jax.nn.one_hot(dots, model.buckets)[:, None], chances], axis=1)
        by_token = -jnp.sum(wanted * jax.nn.log_softmax(logits), axis=-1).mean(0)
        return by_token.mean(), {"first_code": by_token[1]}

    return loss


def jittered(
    book: codes.Codebook, images: Float[Array, "batch dim"], key: Array
) -> Float[Array, "batch dim"]:
    """Image embeddings with noise of `JITTER` along the components of a codebook."""
    noise = _spread(book) * jax.random.normal(key, (len(images), len(book.centres)))
    return unit(images + noise @ book.components)


def _spread(book: codes.Codebook) -> Float[Array, " codes"]:
    """Deviation of the jitter along each component."""
    return JITTER * book.centres.std(axis=1)


def _guess(batch: dict[str, Any]) -> Array:
    """What a prior starts from; nothing is 0."""
    return jnp.asarray(batch["guess"]) if "guess" in batch else jnp.zeros_like(batch["image"])


def _with_drops(batch: dict[str, Array], key: Array, drop: float) -> tuple[Array, Array, Array]:
    """(text, states, mask) with some rows replaced by the empty text's."""
    dropped = jax.random.bernoulli(key, drop, (batch["image"].shape[0],))

    def choose(name: str) -> Array:
        given = batch[name]
        where = dropped.reshape(-1, *[1] * (given.ndim - 1))
        return jnp.where(where, batch[f"empty_{name}"][None], given)

    return choose("text"), choose("states").astype(jnp.float32), choose("mask")


def _batches(
    data: Embedded, guesses: Guesses | None, recipe: Recipe
) -> Callable[[int], dict[str, Any]]:
    """The batch of each step: pictures by shuffled epochs, each with one of its captions."""
    places = np.arange(data.rows.size).reshape(data.rows.shape)

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        place = choose_captions(places[index], step, recipe.seed)
        rows = data.rows.reshape(-1)[place]
        guess = {} if guesses is None else {"guess": guesses.without[place]}
        return guess | {
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
    model: config.DiffusionPrior, recipe: Recipe, clip: Folder, drop: float = 0.3
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
    guesses = None if model.regression is None else fit_guesses(data, model.regression)
    batch = _batches(data, guesses, recipe)

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
        save_model(folder, {"prior": params, **_stored(guesses)}, described, "float16")

    return Task(init, diffusion_prior_loss(model, drop), batch, None, export)


def measure_errors(
    model: config.DiffusionPrior, params: Params, batch: dict[str, Any], seed: int
) -> tuple[list[float], list[float]]:
    """The network's mean squared error at `MEASURED` times, over a batch: (times, errors).

    Without guidance, and of pictures of the training: of others, and with guidance, it errs by more
    than Analytic-DPM is told.
    """
    scale = 1.0 if model.scale is None else model.scale
    x0 = scale * (batch["image"] - _guess(batch))[:, None, None]
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
    guesses = None if model.regression is None else fit_guesses(data, model.regression)
    batch = _batches(data, guesses, recipe)
    canonical = data.texts[data.rows[:, 0]]
    book = codes.fit_codebook(data.images, canonical, model.codes, model.buckets)

    def init(key: Array) -> Params:
        one = {name: value[:1] for name, value in batch(0).items()}
        inputs = (one["text"], one["states"], one["mask"], np.zeros((1, model.codes), np.int32))
        return init_params(AutoregressivePrior(model), key, *map(jnp.asarray, inputs))

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        described = {
            "kind": "autoregressive_prior",
            "config": to_json(model),
            "autoregressive_prior": {"defaults": to_json(AUTOREGRESSIVE_DEFAULTS)},
            "training": {**facts, "drop": drop, "clip": towers.fingerprint},
        }
        tables = {"codebook": book._asdict(), **_stored(guesses)}
        components = {"autoregressive_prior": params, **tables}
        save_model(folder, components, described, "float16")

    regression = None if guesses is None else guesses.regression
    loss = autoregressive_prior_loss(model, book, regression, drop)
    return Task(init, loss, batch, None, export)


def _stored(guesses: Guesses | None) -> Params:
    return {} if guesses is None else {"regression": guesses.regression._asdict()}
