"""How good is a bundled text-to-image model? The figures of its model card, from held-out pictures.

A test caption is a (concept, style) pair that training never saw: the concept is known from other
styles, the style from other concepts.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sdjax import presets
from sdjax.data import emoji
from sdjax.evaluate_composition import composition_figures
from sdjax.evaluate_figures import (
    Pictures,
    compared,
    fit_style_probe,
    frechet_distance,
    probe_accuracy,
    psnr,
)
from sdjax.evaluate_judge import Judge, judged_hits, judged_styles, load_judge, styles_named
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.judge import Verdict
from sdjax.image.preprocess import to_float
from sdjax.nn.functional import apply
from sdjax.pipelines.clip import Clip, in_batches, load_clip
from sdjax.pipelines.load import load
from sdjax.pipelines.stable_diffusion import Pipeline
from sdjax.pipelines.unclip import Unclip

CANDIDATES = 50
"""Concepts that a judge chooses among, the right one included."""
SHIFT = 2
"""Pixels (at half resolution) by which the pixel judge may move a picture."""
SEEN = 100
"""Captions of training that are asked for, beside those held out."""
CHUNK = 50
"""Pictures handled at once, so that everything compiles once."""


def draw_candidates(concepts: Sequence[str], pool: Sequence[str], seed: int) -> list[list[str]]:
    """For each concept: itself first, then `CANDIDATES - 1` others drawn from `pool`."""
    rng = np.random.default_rng(seed)
    rows = []
    for concept in concepts:
        others = [c for c in pool if c != concept]
        rows.append([concept, *rng.choice(others, CANDIDATES - 1, replace=False).tolist()])
    return rows


def clip_retrieval(
    judge: Clip, pictures: Pictures, styles: Sequence[str], candidates: list[list[str]]
) -> float:
    """Share of pictures whose own caption is the nearest of the candidates', by CLIP."""
    vectors = judge.image_embeddings(pictures)
    captions = [
        emoji.caption(concept, style)
        for row, style in zip(candidates, styles, strict=True)
        for concept in row
    ]
    texts = judge.text_embeddings(captions).reshape(len(pictures), CANDIDATES, -1)
    return float(np.mean(np.einsum("nd,nkd->nk", vectors, texts).argmax(1) == 0))


def pixel_retrieval(
    reference: emoji.EmojiSet,
    pictures: Pictures,
    styles: Sequence[str],
    candidates: list[list[str]],
) -> float:
    """Share of pictures nearest, in pixels after small shifts, to their concept in *other* styles.

    A judge without a network, which a copier of those pictures would please: mean squared
    difference at 32 x 32 pixels to the real pictures of each candidate in all styles but the one
    asked for, the least over shifts.
    """
    known = {(c, s): halve(x) for c, s, x in zip(*_columns(reference), strict=True)}
    right = 0
    for picture, style, row in zip(pictures, styles, candidates, strict=True):
        views = shifted(halve(picture))
        distances = []
        for concept in row:
            real = [known[concept, s] for s in reference_styles(known, concept) if s != style]
            gaps = ((views[:, None] - np.stack(real)[None]) ** 2).mean((2, 3, 4))
            distances.append(gaps.min())
        right += int(np.argmin(distances) == 0)
    return right / len(pictures)


def _columns(data: emoji.EmojiSet) -> tuple[tuple[str, ...], tuple[str, ...], Pictures]:
    return data.concepts, data.styles, data.images


def reference_styles(known: dict[tuple[str, str], np.ndarray], concept: str) -> list[str]:
    """Styles in which a concept is known."""
    return [style for style in emoji.STYLES if (concept, style) in known]


def halve(picture: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] to float32 [h / 2, w / 2, 3] in [0, 1], by averaging 2 x 2 pixels."""
    height, width, channels = picture.shape
    blocks = picture.reshape(height // 2, 2, width // 2, 2, channels)
    return blocks.mean((1, 3), dtype=np.float32) / 255


def shifted(picture: np.ndarray) -> np.ndarray:
    """The picture moved by -SHIFT, 0 and SHIFT pixels both ways: [9, h, w, 3], edges repeated."""
    height, width, _ = picture.shape
    padded = np.pad(picture, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    steps = (0, SHIFT, 2 * SHIFT)
    return np.stack([padded[y : y + height, x : x + width] for y in steps for x in steps])


def reconstruct(pipe: Pipeline, pictures: Pictures) -> Pictures:
    """Through the autoencoder and back, by the mean of the posterior."""
    network = Autoencoder(pipe.config.autoencoder)

    @jax.jit
    def both_ways(params: Any, pixels: jax.Array) -> jax.Array:
        mean = apply(network, params, to_float(pixels), method="encode").mean
        scaled = mean * pipe.config.autoencoder.scaling_factor
        image = apply(network, params, scaled, method="decode")
        return jax.numpy.round((jax.numpy.clip(image, -1, 1) + 1) * 127.5).astype("uint8")

    return in_batches(lambda x: both_ways(pipe.params["autoencoder"], x), pictures, CHUNK)


def generate(
    pipe: Pipeline | Unclip, captions: Sequence[str], *, seed: int, quiet: bool, **settings: Any
) -> Pictures:
    """One picture a caption, caption i with seed `seed + i`, `CHUNK` at a time."""
    rows = []
    for start in tqdm(range(0, len(captions), CHUNK), desc="drawing", disable=quiet):
        chunk = list(captions[start : start + CHUNK])
        full = chunk + chunk[-1:] * (CHUNK - len(chunk))
        seeds = [seed + start + i for i in range(CHUNK)]
        images = pipe(full, seed=seeds, **settings)
        rows.append(np.stack([np.asarray(image) for image in images])[: len(chunk)])
    return np.concatenate(rows)


def copies(data: emoji.EmojiSet, concepts: Sequence[str], styles: Sequence[str]) -> Pictures:
    """What a copier would answer: a drawing of the thing in another style than the one asked for.

    It knows every thing and makes nothing: how far a figure can be had without drawing. It takes
    the first of the styles in which `data`, the pictures of training, has the thing.

    Raises:
        ValueError: for a thing that is in no other style.
    """
    rows = []
    for concept, style in zip(concepts, styles, strict=True):
        known = [
            i
            for i, (name, word) in enumerate(zip(data.concepts, data.styles, strict=True))
            if name == concept and word != style
        ]
        if not known:
            raise ValueError(f"there is no other drawing of {concept!r} to copy")
        rows.append(known[0])
    return data.images[rows]


def held_out(words: Sequence[str], count: int, seed: int) -> tuple[emoji.EmojiSet, np.ndarray]:
    """The held-out drawings of these styles, and which of them are asked for, by chance.

    A smaller count asks for the first of a larger one.

    Raises:
        ValueError: if there are fewer than `count`.
    """
    test = emoji.load("test", words)
    if not 1 <= count <= len(test):
        raise ValueError(f"count must be between 1 and {len(test)}, got {count}")
    return test, np.random.default_rng(seed).permutation(len(test))[:count]


def load_text_to_image(model: str | os.PathLike[str]) -> Pipeline | Unclip:
    """`sdjax.load` of what draws from a text.

    Raises:
        ValueError: if the model is something else.
    """
    pipe = load(model)
    if not isinstance(pipe, Pipeline | Unclip):
        raise ValueError(f"{model} is no text-to-image model")
    return pipe


def evaluate(
    model: str = "mini", *, count: int = 200, seed: int = 0, quiet: bool = False, **settings: Any
) -> dict[str, Any]:
    """All figures of a model, as JSON values; `settings` go to the pipeline (steps, guidance ...).

    "real" is the same figure for the real held-out pictures: the judge's own ceiling. "ratio" is
    the one divided by the other. "copied" is that of drawings in other styles (see `copies`).
    "seen" has the judge's figures for `SEEN` captions of training.

    Raises:
        ValueError: if fewer than `count` held-out captions exist, or the model has no CLIP.
    """
    pipe = load_text_to_image(model)
    judge, neutral = load_clip(model), load_judge()
    words = list(pipe.styles or presets.MINI_STYLES)
    if count < CANDIDATES:
        raise ValueError(f"count must be at least {CANDIDATES}, got {count}")
    test, order = held_out(words, count, seed)
    concepts = [test.concepts[i] for i in order]
    styles = [test.styles[i] for i in order]
    everything = emoji.load("all")
    pool = sorted(set(everything.concepts))
    candidates = draw_candidates(concepts, pool, seed)

    def draw(captions: Sequence[str]) -> Pictures:
        return generate(pipe, captions, seed=seed, quiet=quiet, **settings)

    copied = copies(emoji.load("train", words), concepts, styles)
    pictures = (draw([test.captions()[i] for i in order]), test.images[order], copied)
    clip_hits = [clip_retrieval(judge, x, styles, candidates) for x in pictures]
    pixel_hits = [pixel_retrieval(everything, x, styles, candidates) for x in pictures]
    other = other_pictures(words, concepts, styles, seed)
    return {
        "model": model,
        "captions": count,
        "seed": seed,
        **_own_figures(pipe, judge, neutral, test, order, candidates, seed, settings),
        "retrieval_clip": compared(clip_hits),
        "retrieval_pixels": compared(pixel_hits),
        **_clip_figures(judge, pictures, other, styles, words),
        **judge_figures(neutral, pictures, other, styles, words, candidates),
        "seen": _seen_figures(draw, neutral, words, pool, seed),
        "composition": composition_figures(
            draw, neutral, words, lambda concepts: draw_candidates(concepts, pool, seed)
        ),
    }


def _own_figures(
    pipe: Pipeline | Unclip,
    judge: Clip,
    neutral: Judge,
    test: emoji.EmojiSet,
    order: np.ndarray,
    candidates: list[list[str]],
    seed: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The settings in force, and what only a model of this kind has."""
    if isinstance(pipe, Pipeline):
        decoded = reconstruct(pipe, test.images)
        psnrs, words = psnr(test.images, decoded), list(pipe.styles or presets.MINI_STYLES)
        verdict = neutral.read(decoded[order])
        kept = styles_named(neutral, verdict, [test.styles[i] for i in order], words)
        return {
            "settings": {**pipe.defaults.__dict__, **settings},
            "autoencoder_psnr_db": round(float(psnrs.mean()), 2),
            "style_judge_reconstructed": round(kept, 3),
        }
    from sdjax.evaluate_unclip import unclip_figures  # it imports this module

    chosen = replace(pipe, settings=pipe.complete(**settings))
    own = unclip_figures(chosen, judge, test, order, candidates, seed)
    return {"settings": {**pipe.settings.recipe(), **settings}, **own}


def _clip_figures(
    judge: Clip,
    pictures: tuple[Pictures, ...],
    other: Pictures,
    styles: Sequence[str],
    words: Sequence[str],
) -> dict[str, Any]:
    """Style and distance by CLIP's vectors, for pictures that were drawn, real ones and copies."""
    train = emoji.load("train", words)
    probe = fit_style_probe(judge.image_embeddings(train.images), train.styles, words)
    vectors = [judge.image_embeddings(x) for x in pictures]
    named = [probe_accuracy(probe, x, styles, words) for x in vectors]
    drawn, real, *_ = vectors
    distances = [frechet_distance(x, real) for x in (drawn, judge.image_embeddings(other))]
    return {"style_accuracy": compared(named), "frechet_clip": compared(distances, digits=4)}


def judge_figures(
    judge: Judge,
    pictures: tuple[Pictures, ...],
    other: Pictures,
    styles: Sequence[str],
    words: Sequence[str],
    candidates: list[list[str]],
) -> dict[str, Any]:
    """Retrieval, style, both of one picture, and distance by the judge that trains no generator.

    Args:
        judge: it.
        pictures: that were drawn, real ones, and copies.
        other: real ones of other things, to whose distance that of the drawn ones is compared.
        styles: asked for.
        words: styles to choose among.
        candidates: concepts to choose among, the right one first.
    """
    verdicts = [judge.read(x) for x in pictures]
    drawn, real, *_ = (np.asarray(x.features) for x in verdicts)
    distances = [frechet_distance(x, real) for x in (drawn, np.asarray(judge.read(other).features))]
    found = _judged(judge, verdicts, styles, words, candidates)
    return found | {"frechet_judge": compared(distances, digits=4)}


def _seen_figures(
    draw: Callable[[Sequence[str]], Pictures],
    judge: Judge,
    words: Sequence[str],
    pool: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """The judge's figures for captions that training saw; it saw their drawings, too."""
    train = emoji.load("train", words)
    rows = np.random.default_rng(seed).permutation(len(train))[:SEEN]
    concepts, styles = ([column[i] for i in rows] for column in (train.concepts, train.styles))
    pictures = draw([train.captions()[i] for i in rows]), train.images[rows]
    verdicts = [judge.read(x) for x in pictures]
    candidates = draw_candidates(concepts, pool, seed)
    return {"captions": SEEN} | _judged(judge, verdicts, styles, words, candidates)


def _judged(
    judge: Judge,
    verdicts: Sequence[Verdict],
    styles: Sequence[str],
    words: Sequence[str],
    candidates: list[list[str]],
) -> dict[str, Any]:
    """Thing, style, and both of one picture."""
    hits = [judged_hits(judge, x, candidates) for x in verdicts]
    named = [np.array(judged_styles(judge, x, words)) == np.array(styles) for x in verdicts]
    both = [a & b for a, b in zip(hits, named, strict=True)]
    shares = {"retrieval_judge": hits, "style_judge": named, "both_judge": both}
    return {name: compared([float(x.mean()) for x in row]) for name, row in shares.items()}


def other_pictures(
    words: Sequence[str], concepts: Sequence[str], styles: list[str], seed: int
) -> Pictures:
    """Training drawings of none of these things, as many of each style as are in `styles`."""
    train, rng = emoji.load("train", words), np.random.default_rng(seed)
    asked, rows = set(concepts), []
    for word in words:
        free = [
            i
            for i, (concept, style) in enumerate(zip(train.concepts, train.styles, strict=True))
            if style == word and concept not in asked
        ]
        rows += rng.choice(free, styles.count(word), replace=False).tolist()
    return train.images[rows]
