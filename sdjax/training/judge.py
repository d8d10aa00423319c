"""Training of the judge, which only grades: what is drawn, and in which style, on real pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from sdjax import config
from sdjax.data import emoji
from sdjax.image.augment import augment, soften
from sdjax.image.judge import JudgeNetwork
from sdjax.image.preprocess import to_float
from sdjax.nn.functional import Params, apply, init_params
from sdjax.training.loop import Task, stream
from sdjax.training.state import Loss, Metrics, Recipe
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model

SMOOTHING = 0.1
"""Of the concepts' labels: a few pictures of each are no reason to be sure."""


def judge_task(model: config.Judge, recipe: Recipe) -> Task:
    """Both heads on the drawings of all six styles, without those held out.

    The concepts of held-out drawings are known from other styles, two of which (emojione and
    firefox) no bundled generator draws.
    """
    data = emoji.load("train")
    names = sorted(set(data.concepts))
    model = replace(model, concepts=len(names), styles=len(emoji.STYLES))
    number = {name: i for i, name in enumerate(names)}
    concepts = np.array([number[concept] for concept in data.concepts], np.int32)
    styles = np.array([emoji.STYLES.index(style) for style in data.styles], np.int32)

    def init(key: jax.Array) -> Params:
        image = jnp.zeros((1, model.image_size, model.image_size, 3))
        return init_params(JudgeNetwork(model), key, image)

    def batch(step: int) -> dict[str, Any]:
        index = stream(len(data.images), recipe.batch, step, recipe.seed)
        return {"pixels": data.images[index], "concept": concepts[index], "style": styles[index]}

    def export(params: Params, folder: Path, facts: dict[str, Any]) -> None:
        described = {
            "kind": "judge",
            "config": to_json(model),
            "concepts": names,
            "styles": list(emoji.STYLES),
            "training": {**facts, "smoothing": SMOOTHING},
        }
        save_model(folder, {"judge": params}, described, "float16")

    return Task(init, judge_loss(model), batch, None, export)


def judge_loss(model: config.Judge) -> Loss:
    """Cross-entropy of the concept, with smoothed labels, and of the style, whose colours stay.

    batch: pixels uint8 [batch, h, w, 3], concept and style int32 [batch].
    """
    network = JudgeNetwork(model)

    def loss(params: Params, batch: dict[str, Array], key: Array) -> tuple[Array, Metrics]:
        key_concept, key_style = jax.random.split(key)
        images = to_float(batch["pixels"])
        changed, natural = augment(images, key_concept), soften(images, key_style)
        found = apply(network, params, changed, natural)
        wanted = jax.nn.one_hot(batch["concept"], model.concepts)
        wanted = optax.smooth_labels(wanted, SMOOTHING)
        concept = optax.softmax_cross_entropy(found.concepts, wanted).mean()
        style = optax.softmax_cross_entropy_with_integer_labels(found.styles, batch["style"]).mean()
        return concept + style, {
            "concept": jnp.mean(found.concepts.argmax(1) == batch["concept"]),
            "style": jnp.mean(found.styles.argmax(1) == batch["style"]),
        }

    return loss
