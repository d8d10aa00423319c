"""How good is a prior? On held-out pictures, against the text embedding used in its place.

A prior is asked for the image embedding of a caption that training never saw. Two things tell
whether the answer is good: its cosine with the embedding of the true picture, and at which place
the true picture comes when all pictures are sorted by their cosine with the answer. The second
cannot be won by moving towards the mean of all pictures, far from all texts, as the first can.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sdjax import config, presets
from sdjax.data import emoji
from sdjax.diffusion.loop import image_keys
from sdjax.evaluate import CANDIDATES
from sdjax.image.clip_image import unit
from sdjax.pipelines.clip import Clip, clip_of, load_clip
from sdjax.pipelines.models import read_model
from sdjax.pipelines.priors import Sampler, Text, prior_of, read_text, samplers_of

Embeddings = Float[np.ndarray, "rows dim"]


def candidate_rows(count: int, seed: int) -> Int[np.ndarray, "count candidates"]:
    """For each picture: itself first, then `CANDIDATES - 1` others, drawn from all."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        others = rng.permutation(count - 1)[: CANDIDATES - 1]
        rows.append([i, *(others + (others >= i))])
    return np.array(rows)


def scores_by_picture(
    answers: Embeddings, images: Embeddings, candidates: Int[np.ndarray, "rows candidates"]
) -> dict[str, Float[np.ndarray, " rows"]]:
    """Cosine and retrieval of unit vectors `answers`, row by row the answers to `images`.

    "rank": the place of the true picture among all, from 1; "top_1": is it the first of all;
    "top_1_of_50": of the candidates, the first of which is the true one.

    Raises:
        FloatingPointError: for answers that are no numbers, which no other would come before.
    """
    if not np.isfinite(answers).all():
        raise FloatingPointError("the answers hold NaN or infinity")
    cosines = answers @ images.T
    true = np.diag(cosines)
    ranks = 1 + np.sum(cosines > true[:, None], axis=1)
    few = np.take_along_axis(cosines, candidates, axis=1)
    found = {
        "cosine": true,
        "rank": ranks,
        "top_1": ranks == 1,
        "top_1_of_50": few.argmax(1) == 0,
    }
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def prior_scores(
    answers: Embeddings, images: Embeddings, candidates: Int[np.ndarray, "rows candidates"]
) -> dict[str, float]:
    """The means of `scores_by_picture`."""
    return _means(scores_by_picture(answers, images, candidates))


def _means(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in scores.items()}


def margins(
    scores: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """By how much scores exceed others, picture by picture: means and their standard errors."""
    gaps = {name: values - others[name] for name, values in scores.items()}
    return {name: (gap.mean(), gap.std(ddof=1) / len(gap) ** 0.5) for name, gap in gaps.items()}


def evaluate_prior(
    sampler: Sampler,
    clip: Clip,
    styles: Sequence[str],
    *,
    draws: int = 4,
    seed: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """The scores of a prior on the held-out pictures of `styles`, as JSON values.

    Args:
        sampler: the prior.
        clip: both towers that it was trained with.
        styles: of the pictures.
        draws: answers to each caption, with keys of their own; scores are means over them.
        seed: of the candidates, and of the first draw.
        settings: of the sampler, such as guidance.

    Returns:
        The scores of "prior" and of "text", the text embedding itself; "margin", by how much the
        first exceed the second (a smaller rank is better), with the standard error for these
        pictures; how many "pictures".
    """
    data = emoji.load("test", styles)
    images = clip.image_embeddings(data.images)
    candidates = candidate_rows(len(images), seed)
    tower, params = clip.config.text, clip.params["text"]

    def read(texts: list[str]) -> Text:
        return read_text(tower, params, jnp.asarray(clip.tokenizer(texts)), clip.tokenizer.eot_id)

    text, empty = read(data.captions()), read([""])
    found = []
    for draw in range(draws):
        keys = image_keys(seed + draw * len(images) + jnp.arange(len(images)))
        answers = np.asarray(unit(sampler(text, empty, keys, **settings)))
        found.append(scores_by_picture(answers, images, candidates))
    mean = {name: np.mean([scores[name] for scores in found], axis=0) for name in found[0]}
    plain = scores_by_picture(np.asarray(text.embedding), images, candidates)
    margin = margins(mean, plain)
    return {
        "pictures": len(images),
        "draws": draws,
        "prior": {name: round(value, 3) for name, value in _means(mean).items()},
        "text": {name: round(value, 3) for name, value in _means(plain).items()},
        "margin": {
            name: {"mean": round(by, 3), "error": round(error, 3)}
            for name, (by, error) in margin.items()
        },
    }


def evaluate_priors(
    model: str | os.PathLike[str], *, seed: int = 0, guidance: float | None = None
) -> dict[str, Any]:
    """`evaluate_prior` of each prior of a DALL-E 2, or of the one in a folder of its own.

    A prior of its own is asked about the pictures of the bundled styles, by the bundled CLIP.

    Raises:
        ValueError: if the model has no prior, no image tower to judge it, or another CLIP.
    """
    read = read_model(model)
    styles = tuple(read.described.get("styles", ())) or presets.MINI_STYLES
    if isinstance(read.config, config.Unclip):
        samplers, clip = samplers_of(read.config, read.params, read.described), clip_of(read)
    elif isinstance(read.config, config.DiffusionPrior | config.AutoregressivePrior):
        name = "diffusion" if isinstance(read.config, config.DiffusionPrior) else "ar"
        samplers = {name: prior_of(read.config, read.params, read.described)}
        clip = load_clip("mini")
        if read.described.get("training", {}).get("clip") not in (None, clip.fingerprint):
            raise ValueError(
                f"{model} was trained with another CLIP than the bundled one, which would judge "
                "it: assemble a model with it, and evaluate that"
            )
    else:
        raise ValueError(f"{model} has no prior")
    scores = {
        name: evaluate_prior(sampler, clip, styles, seed=seed, guidance=guidance)
        for name, sampler in samplers.items()
    }
    return {"model": read.name, "seed": seed, **scores}
