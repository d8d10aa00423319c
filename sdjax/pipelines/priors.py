"""Drawing image embeddings from a text with either prior of DALL-E 2 (arXiv 2204.06125, 2.2).

    text --> text tower --> hidden states, embedding --> prior --> candidates --> the best of them

Each text has a key of its own: what it gives does not depend on the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sdjax import config
from sdjax.denoisers.autoregressive import AutoregressivePrior
from sdjax.denoisers.prior import DiffusionPrior, Memory, repeat
from sdjax.diffusion.analytic import analytic_plan
from sdjax.diffusion.guidance import guide_doubled
from sdjax.diffusion.loop import begin, initial_noise, sample
from sdjax.diffusion.samplers import Plan, sampling_plan
from sdjax.image.clip_image import unit
from sdjax.image.codes import Codebook, decode, draw_dot
from sdjax.image.regression import Regression, guess, log_chances
from sdjax.nn.functional import Params, apply, dtype_of
from sdjax.pipelines.request import CALL_LIMITS
from sdjax.pipelines.unclip_request import check_count, check_guidance
from sdjax.shapes import Keys, Mask, Scalar, Sequence, Tokens, Vectors
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.weights.config_json import from_json


class Text(NamedTuple):
    """What a prior is told of each text."""

    embedding: Vectors  # in CLIP's space; of unit length, but not for Karlo
    states: Sequence  # hidden states of the text tower
    mask: Mask  # True where there is text


class Statistics(NamedTuple):
    """Of CLIP's image embeddings, by which Karlo standardises them."""

    mean: Float[Array, " dim"]
    std: Float[Array, " dim"]


@dataclass(frozen=True)
class Defaults:
    """How a prior is sampled unless one says otherwise."""

    guidance: float = 1.0  # pull of the text; 1 is none
    candidates: int = 2  # drawn for each text, of which the nearest to it is kept
    steps: int = 64  # of the diffusion prior
    temperature: float = 1.0  # of the autoregressive prior's codes


class Errors(NamedTuple):
    """The diffusion prior's mean squared error on its training data, by time."""

    times: Float[np.ndarray, " times"]
    values: Float[np.ndarray, " times"]


@partial(jax.jit, static_argnames=("tower", "end_id", "normalize"))
def read_text(
    tower: config.TextTower, params: Params, tokens: Tokens, end_id: int, normalize: bool = True
) -> Text:
    """What CLIP's text tower says of each row of token ids.

    Without `normalize` the embedding keeps its length, as Karlo has it.
    """
    end = end_positions(tokens, end_id)
    out = apply(ClipText(tower, dtype_of(params)), params, tokens, end)
    mask = jnp.arange(tokens.shape[1]) <= end[:, None]
    return Text(unit(out.pooled) if normalize else out.pooled, out.hidden, mask)


def diffusion_plan(model: config.DiffusionPrior, steps: int, errors: Errors | None) -> Plan:
    """Strided DDPM steps with the variance of Analytic-DPM; without `errors` as for Karlo.

    Raises:
        ValueError: if the steps are out of range.
    """
    if errors is None:
        return sampling_plan(model.schedule, steps, CALL_LIMITS, sampler="unclip prior")
    return analytic_plan(model.schedule, steps, errors.times, errors.values, CALL_LIMITS)


@partial(jax.jit, static_argnames=("model", "candidates", "guided"))
def sample_diffusion(
    model: config.DiffusionPrior,
    params: Params,
    text: Text,
    empty: Text,
    keys: Keys,
    plan: Plan,
    guidance: Scalar,
    statistics: Statistics | None,
    regression: Regression | None = None,
    *,
    candidates: int,
    guided: bool,
) -> Vectors:
    """Image embeddings from noise.

    Args:
        model: the prior.
        params: its tree.
        text: of each embedding wanted.
        empty: one row: the text "", for guidance.
        keys: one per embedding wanted.
        plan: see `diffusion_plan`.
        guidance: on the network's x0.
        statistics: for a model without a scale.
        regression: for one that draws what its guess is wrong by.
        candidates: drawn for each; the nearest to the text embedding is kept.
        guided: False saves half of the work; guidance is then 1.
    """
    network = DiffusionPrior(model)
    size = 1.0 if model.scale is None else model.scale

    def begin_with(told: Text) -> Memory:
        return apply(network, params, size * told.embedding, told.states, told.mask, method="begin")

    memory = _memory(begin_with, text, empty if guided else None, candidates)
    keys = _each_candidate(keys, candidates)

    def denoise(x: Array, time: Array) -> Array:
        vectors = x[:, 0, 0]
        if guided:
            vectors, time = jnp.tile(vectors, (2, 1)), jnp.tile(time, 2)
        out = apply(network, params, vectors, time, memory, method="step")
        return (guide_doubled(out, guidance) if guided else out)[:, None, None]

    # The loop is of pictures: an embedding is one pixel with many channels.
    noise = begin(plan, initial_noise(keys, (1, 1, model.embedding_dim)))
    x, _ = sample(denoise, plan, noise, keys, prediction="x0")
    images = x[:, 0, 0]
    if statistics is not None:
        images = images * statistics.std + statistics.mean
    elif regression is not None:
        guesses = guess(regression, text.embedding)
        images = unit(jnp.repeat(guesses, candidates, axis=0) + images / size)
    else:
        images = unit(images)
    return best_of(images, text.embedding)


@partial(jax.jit, static_argnames=("model", "candidates", "guided"))
def sample_codes(
    model: config.AutoregressivePrior,
    params: Params,
    book: Codebook,
    text: Text,
    empty: Text,
    keys: Keys,
    guidance: Scalar,
    temperature: Scalar,
    regression: Regression | None = None,
    *,
    candidates: int,
    guided: bool,
) -> Vectors:
    """Image embeddings code by code, with keys and values of attention remembered.

    The arguments are those of `sample_diffusion`. Guidance s is on the logits, which `temperature`
    T, above 0, then divides: p(code) = softmax((l_empty + s (l_text - l_empty)) / T). The log
    chances about the regression's guess, if there is one, are added to both. The dot product is not
    sampled but drawn from the top half.
    """
    network, fold = AutoregressivePrior(model), jax.random.fold_in

    def begin_with(told: Text) -> Memory:
        return apply(network, params, *told, method="begin")[1]

    memory = _memory(begin_with, text, empty if guided else None, candidates)
    keys = _each_candidate(keys, candidates)
    known = jnp.zeros((len(text.embedding), model.codes, model.buckets))
    if regression is not None:
        known = log_chances(regression, book, guess(regression, text.embedding))
    known = jnp.repeat(known, candidates, axis=0)

    def write(
        carry: tuple[Array, Memory], index: Array
    ) -> tuple[tuple[Array, Memory], Int[Array, " batch"]]:
        token, memory = carry
        logits, memory = apply(
            network, params, jnp.tile(token, 2) if guided else token, memory, method="step"
        )
        if guided:
            logits = guide_doubled(logits, guidance)
        logits = logits + known[:, index]
        token = jax.vmap(lambda key, row: jax.random.categorical(fold(key, index), row))(
            keys, logits / temperature
        )
        return (token, memory), token

    dot = draw_dot(jax.vmap(lambda key: fold(key, model.codes))(keys), model.buckets)
    _, codes = jax.lax.scan(write, (dot, memory), jnp.arange(model.codes))
    return best_of(unit(decode(book, codes.T)), text.embedding)


def _memory(
    begin_with: Callable[[Text], Memory], text: Text, empty: Text | None, candidates: int
) -> Memory:
    """What a prior remembers of each candidate's text; with `empty` of that for all, before.

    A text is read once: its candidates, and all rows without a text, share what it leaves.
    """
    memory = repeat(begin_with(text), candidates)
    if empty is None:
        return memory
    without = repeat(begin_with(empty), memory.mask.shape[0])
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]) if a.ndim else b, without, memory)


def _each_candidate(keys: Key[Array, " texts"], candidates: int) -> Key[Array, " rows"]:
    """A key of its own for every candidate: all of the first text come first."""
    return jax.vmap(lambda key: jax.random.split(key, candidates))(keys).reshape(-1)


def best_of(
    images: Float[Array, "rows dim"], texts: Float[Array, "texts dim"]
) -> Float[Array, "texts dim"]:
    """Of each text's candidates the one nearest to it: with the largest cosine."""
    each = images.reshape(texts.shape[0], -1, images.shape[-1])
    dots = jnp.einsum("tcd,td->tc", unit(each), texts)
    return jnp.take_along_axis(each, jnp.argmax(dots, axis=1)[:, None, None], axis=1)[:, 0]


def _check(candidates: int, guidance: float, temperature: float = 1.0) -> None:
    check_count("candidates", candidates)
    check_guidance("guidance", guidance)
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a number above 0, got {temperature}")


@dataclass(frozen=True, eq=False)
class DiffusionSampler:
    """A loaded diffusion prior: `sampler(text, empty, keys)` are image embeddings."""

    config: config.DiffusionPrior
    params: Params
    defaults: Defaults
    errors: Errors | None = None  # None: sampled as Karlo
    statistics: Statistics | None = None
    regression: Regression | None = None  # whose guess it starts from

    def __call__(
        self,
        text: Text,
        empty: Text,
        keys: Keys,
        *,
        guidance: float | None = None,
        candidates: int | None = None,
        steps: int | None = None,
    ) -> Vectors:
        """Image embeddings of texts; what is not given is the prior's default.

        Raises:
            ValueError: for a number out of range.
        """
        guidance = self.defaults.guidance if guidance is None else guidance
        candidates = self.defaults.candidates if candidates is None else candidates
        steps = self.defaults.steps if steps is None else steps
        _check(candidates, guidance)
        return sample_diffusion(
            self.config,
            self.params,
            text,
            empty,
            keys,
            diffusion_plan(self.config, steps, self.errors),
            jnp.float32(guidance),
            self.statistics,
            self.regression,
            candidates=candidates,
            guided=guidance != 1,
        )


@dataclass(frozen=True, eq=False)
class CodeSampler:
    """A loaded autoregressive prior: `sampler(text, empty, keys)` are image embeddings."""

    config: config.AutoregressivePrior
    params: Params
    book: Codebook
    defaults: Defaults
    regression: Regression | None = None  # whose guess it starts from

    def __call__(
        self,
        text: Text,
        empty: Text,
        keys: Keys,
        *,
        guidance: float | None = None,
        candidates: int | None = None,
        temperature: float | None = None,
    ) -> Vectors:
        """Image embeddings of texts; what is not given is the prior's default.

        Raises:
            ValueError: for a number out of range.
        """
        guidance = self.defaults.guidance if guidance is None else guidance
        candidates = self.defaults.candidates if candidates is None else candidates
        temperature = self.defaults.temperature if temperature is None else temperature
        _check(candidates, guidance, temperature)
        return sample_codes(
            self.config,
            self.params,
            self.book,
            text,
            empty,
            keys,
            jnp.float32(guidance),
            jnp.float32(temperature),
            self.regression,
            candidates=candidates,
            guided=guidance != 1,
        )


Sampler = Callable[..., Vectors]
"""`DiffusionSampler` or `CodeSampler`."""


def samplers_of(
    model: config.Unclip, params: Params, described: Mapping[str, Any]
) -> dict[str, Sampler]:
    """The priors of a model, "diffusion" and "ar", from its components and its model.json."""
    parts = {"diffusion": model.prior, "ar": model.autoregressive_prior}
    return {name: prior_of(p, params, described) for name, p in parts.items() if p is not None}


def prior_of(
    prior: config.DiffusionPrior | config.AutoregressivePrior,
    params: Params,
    described: Mapping[str, Any],
) -> Sampler:
    """One prior, from the components and the model.json of a model, or of the prior alone.

    Raises:
        ValueError: if it has neither a scale nor stored moments of image embeddings.
    """
    diffuses = isinstance(prior, config.DiffusionPrior)
    part = "prior" if diffuses else "autoregressive_prior"
    facts = described.get(part, {})
    defaults = from_json(Defaults, facts.get("defaults", {}))
    regression = None if prior.regression is None else Regression(**params["regression"])
    if not diffuses:
        book = Codebook(**params["codebook"])
        return CodeSampler(prior, params[part], book, defaults, regression)
    errors = facts.get("errors")
    moments = params.get("image_statistics")
    if prior.scale is None and not moments:
        raise ValueError(
            "the prior standardises image embeddings, but their mean and deviation are not stored: "
            "put the file of Karlo's statistics beside it and convert again"
        )
    return DiffusionSampler(
        prior,
        params[part],
        defaults,
        errors and Errors(*(np.array(errors[name]) for name in Errors._fields)),
        moments and Statistics(moments["mean"], moments["std"]),
        regression,
    )
