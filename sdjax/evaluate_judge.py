"""A judge that steers no generator: a classifier trained on real drawings only.

The bundled CLIP steers the models and is therefore no neutral judge of them. This one has seen
neither the held-out drawings nor any picture that a model drew, and no model has seen it. It
learned from the generators' own training drawings, and two more sets.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sdjax import config
from sdjax.image.judge import JudgeNetwork, Verdict
from sdjax.image.preprocess import to_float
from sdjax.nn.functional import Params, apply
from sdjax.pipelines.clip import in_batches
from sdjax.weights.config_json import from_json
from sdjax.weights.files import load_model

ASSETS = Path(__file__).resolve().parent / "assets" / "judge"
CHUNK = 64
"""Pictures handled at once."""

Pictures = UInt8[np.ndarray, "images height width 3"]


@dataclass(frozen=True, eq=False)
class Judge:
    """The network and the words that it chooses among."""

    config: config.Judge
    params: Params
    concepts: tuple[str, ...]
    styles: tuple[str, ...]

    def read(self, pictures: Pictures) -> Verdict:
        """What the judge makes of pictures and of their mirror images together.

        Raises:
            ValueError: for pictures of another size than the judge's.
        """
        size = self.config.image_size
        if pictures.shape[1:] != (size, size, 3):
            raise ValueError(
                f"the judge reads pictures of {size} x {size} pixels, got {pictures.shape[1:]}: "
                "resize them first"
            )
        rows = in_batches(partial(_read, self.config, self.params), pictures, CHUNK)
        ends = np.cumsum([self.config.embedding_dim, len(self.concepts)])
        return Verdict(*(jnp.asarray(part) for part in np.split(rows, ends, axis=1)))

    def columns(self, concepts: Sequence[str]) -> list[int]:
        """Which logits are those of these concepts.

        Raises:
            ValueError: for a concept that the judge does not know.
        """
        number = {name: i for i, name in enumerate(self.concepts)}
        unknown = [name for name in concepts if name not in number]
        if unknown:
            raise ValueError(
                f"the judge does not know {unknown[0]!r}: train it again (`sdjax train judge`)"
            )
        return [number[name] for name in concepts]


@partial(jax.jit, static_argnums=0)
def _read(
    model: config.Judge, params: Params, pixels: UInt8[Array, "images height width 3"]
) -> Float[Array, "images numbers"]:
    """Features and logits side by side, each the mean over the picture and its mirror image."""
    image, network = to_float(pixels), JudgeNetwork(model)
    both = [apply(network, params, x) for x in (image, image[:, :, ::-1])]
    return jnp.concatenate([(a + b) / 2 for a, b in zip(*both, strict=True)], axis=-1)


def load_judge(folder: str | os.PathLike[str] = ASSETS) -> Judge:
    """The bundled judge, or the model folder of another that `sdjax train judge` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or no judge.
    """
    parts, described = load_model(folder)
    if described.get("kind") != "judge":
        raise ValueError(
            f"{folder} holds no judge: give the folder that `sdjax train judge` wrote, or none"
        )
    return Judge(
        config=from_json(config.Judge, described["config"]),
        params=parts["judge"],
        concepts=tuple(described["concepts"]),
        styles=tuple(described["styles"]),
    )


def judged_hits(judge: Judge, verdict: Verdict, candidates: list[list[str]]) -> np.ndarray:
    """Bool [images]: is the first of its candidates the best of them, to the judge?"""
    columns = np.array([judge.columns(row) for row in candidates])
    return np.take_along_axis(np.asarray(verdict.concepts), columns, 1).argmax(1) == 0


def judged_styles(judge: Judge, verdict: Verdict, words: Sequence[str]) -> list[str]:
    """The style of each picture, chosen among `words`."""
    logits = np.asarray(verdict.styles)[:, [judge.styles.index(word) for word in words]]
    return [words[int(i)] for i in logits.argmax(1)]


def styles_named(
    judge: Judge, verdict: Verdict, styles: Sequence[str], words: Sequence[str]
) -> float:
    """Share of pictures whose style, one of `words`, the judge names."""
    named = judged_styles(judge, verdict, words)
    return float(np.mean([a == b for a, b in zip(named, styles, strict=True)]))
