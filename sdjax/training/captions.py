"""Captions for training: drawn for every picture, read once by a frozen text tower, then chosen."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from sdjax import config
from sdjax.data import emoji
from sdjax.nn.functional import Params, apply
from sdjax.text.clip_text import ClipText
from sdjax.text.tokenizer import Tokenizer

CAPTIONS, CAPTION_VARIANTS, VARIANT_CHOICE = 2, 3, 4
"""First words of NumPy seeds, one for each use, so that no two of these share a stream."""


def draw_captions(data: emoji.EmojiSet, variants: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Captions to train with: (texts, rows int [images, variants] of texts).

    Text 0 is the empty one; an image's first caption is the canonical one, the others are random.
    """
    rng = np.random.default_rng((CAPTION_VARIANTS, seed))
    drawn = [
        [canonical] + [emoji.random_caption(rng, c, s, data.tags[c]) for _ in range(variants - 1)]
        for canonical, c, s in zip(data.captions(), data.concepts, data.styles, strict=True)
    ]
    texts = ["", *sorted({text for row in drawn for text in row})]
    row_of = {text: i for i, text in enumerate(texts)}
    return texts, np.array([[row_of[text] for text in row] for row in drawn])


def choose_captions(
    rows: Int[np.ndarray, "batch variants"], step: int, seed: int
) -> Int[np.ndarray, " batch"]:
    """One of each picture's captions: half of the time the plain one, which is what people type.

    The plain one is among the others too, so that it is chosen about five times of six.
    """
    rng = np.random.default_rng((VARIANT_CHOICE, seed, step))
    count, variants = rows.shape
    variant = rng.integers(variants, size=count) * rng.integers(2, size=count)
    return rows[np.arange(count), variant]


def encode_captions(
    text: config.TextTower, params: Params, tokenizer: Tokenizer, captions: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states float16 [captions, tokens, dim] and pooled float32 [captions, projection]."""
    tower = jax.jit(lambda p, tokens, end: apply(ClipText(text), p, tokens, end))
    hidden, pooled = [], []
    for start in tqdm(range(0, len(captions), 256), desc="encoding captions", disable=None):
        chunk = captions[start : start + 256]
        tokens = tokenizer(chunk + [""] * (256 - len(chunk)))
        out = tower(params, tokens, jnp.asarray(np.argmax(tokens == tokenizer.eot_id, axis=1)))
        hidden.append(np.asarray(out.hidden, np.float16)[: len(chunk)])
        pooled.append(np.asarray(out.pooled)[: len(chunk)])
    return np.concatenate(hidden), np.concatenate(pooled)
