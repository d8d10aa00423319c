"""How good is a DALL-E 2, besides its pictures of texts? The figures of what it does to pictures.

All are of held-out pictures, and measured by the model's own CLIP or in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdjax.data import emoji
from sdjax.evaluate import CHUNK, clip_retrieval
from sdjax.evaluate_figures import Pictures, psnr
from sdjax.evaluate_prior import evaluate_prior
from sdjax.image.preprocess import to_pixels
from sdjax.pipelines.clip import Clip
from sdjax.pipelines.images import Images
from sdjax.pipelines.manipulate import MOST_THETA, interpolate, reconstruct, textdiff
from sdjax.pipelines.unclip import Unclip

INVERTED = 16
"""Pictures that are inverted, and half as many that change by a text."""
THETAS = tuple(np.linspace(0, MOST_THETA, 6).round(2).tolist())


def unclip_figures(
    pipe: Unclip,
    judge: Clip,
    test: emoji.EmojiSet,
    order: np.ndarray,
    candidates: list[list[str]],
    seed: int,
) -> dict[str, Any]:
    """The figures of a model, as JSON values.

    Args:
        pipe: the model.
        judge: its CLIP.
        test: the held-out pictures.
        order: which of them.
        candidates: concepts for retrieval, for each.
        seed: of the pictures that are drawn.
    """
    pictures, styles = test.images[order], [test.styles[i] for i in order]
    few = [int(i) for i in order[:INVERTED]]
    kept = [test.images[i] for i in few]
    halves = list(zip(kept[::2], kept[1::2], strict=True))
    words = sorted(set(test.styles))
    return {
        "priors": {
            name: evaluate_prior(
                prior, judge, words, seed=seed, **pipe.settings.prior_options(name)
            )
            for name, prior in pipe.priors.items()
        },
        "decoder_from_true_embedding": _from_true_embeddings(
            pipe, judge, pictures, styles, candidates, seed
        ),
        "inversion_psnr_db": _summary([_psnr(pipe, reconstruct(pipe, kept), kept)]),
        "interpolation_ends_psnr_db": _summary(
            [_psnr(pipe, interpolate(pipe, *ends, 2), ends) for ends in halves]
        ),
        "textdiff": _text_diffs(pipe, judge, test, few),
    }


def _from_true_embeddings(
    pipe: Unclip,
    judge: Clip,
    pictures: Pictures,
    styles: Sequence[str],
    candidates: list[list[str]],
    seed: int,
) -> dict[str, float]:
    """Without any text: what the decoder and the upsamplers make of what CLIP sees."""
    embeddings, plans = pipe.embed(pictures), pipe.settings.plans(pipe.config)
    rows = []
    for start in range(0, len(embeddings), CHUNK):
        chunk = embeddings[start : start + CHUNK]
        full = np.concatenate([chunk, np.repeat(chunk[-1:], CHUNK - len(chunk), axis=0)])
        seeds = np.arange(seed + start, seed + start + CHUNK, dtype=np.int32)
        drawn = pipe.draw(full, plans, seeds=seeds, guidance=pipe.settings.guidance)
        rows.append(to_pixels(drawn[-1])[: len(chunk)])
    drawn = np.concatenate(rows)
    cosines = np.sum(judge.image_embeddings(drawn) * judge.image_embeddings(pictures), axis=1)
    return {
        "cosine": round(float(cosines.mean()), 3),
        "retrieval_clip": round(clip_retrieval(judge, drawn, styles, candidates), 3),
    }


def _text_diffs(
    pipe: Unclip, judge: Clip, test: emoji.EmojiSet, few: Sequence[int]
) -> dict[str, Any]:
    """The cosine of changed pictures with the text that they are to become, over theta.

    Every picture is to become what the next one shows, in its own style.
    """
    rows = []
    for a, b in zip(few[::2], few[1::2], strict=True):
        here, there = (emoji.caption(test.concepts[i], test.styles[a]) for i in (a, b))
        images = textdiff(pipe, test.images[a], here, there, THETAS)
        rows.append(judge.cosines(images, [there])[:, 0])
    scores = np.array(rows)
    return {
        "theta": list(THETAS),
        "cosine": [round(float(score), 3) for score in scores.mean(0)],
        "steps_that_rise": round(float(np.mean(np.diff(scores, axis=1) > 0)), 3),
    }


def _psnr(pipe: Unclip, images: Images, wanted: Sequence[np.ndarray]) -> np.ndarray:
    """Of each image, to the picture in the model's own size."""
    return psnr(
        np.stack([np.asarray(image) for image in images]),
        to_pixels(pipe.pyramid(list(wanted))[-1]),
    )


def _summary(values: Sequence[np.ndarray]) -> dict[str, float]:
    found = np.concatenate(values)
    return {"mean": round(float(found.mean()), 1), "least": round(float(found.min()), 1)}
