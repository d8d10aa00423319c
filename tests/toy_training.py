"""A training that takes milliseconds, for the tests of the training loop: fit a noisy linear map.

As a script it trains in a folder as the tests do. It prints the number of each step as the step
begins, and waits for a line on standard input before it goes on:

    python tests/toy_training.py FOLDER STEPS SAVE_EVERY
"""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.training.loop import Task, stream, train
from sdjax.training.state import Recipe, TrainState, init_key, init_state, make_step
from sdjax.weights.files import save_model

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(37, 4)).astype(np.float32)
OUTPUTS = (INPUTS @ RNG.normal(size=(4, 3)) + 0.1 * RNG.normal(size=(37, 3))).astype(np.float32)


def recipe(steps: int) -> Recipe:
    """What every toy run uses."""
    return Recipe(steps=steps, batch=8, learning_rate=0.03, warmup=4, ema=0.9, seed=3)


def init(key: jax.Array) -> dict[str, Any]:
    return {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.zeros(3)}


def loss(params: dict[str, Any], batch: dict[str, Any], key: jax.Array) -> tuple[Any, Any]:
    """Squared error with inputs disturbed at random, so that the step's key matters."""
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    error = x @ params["kernel"] + params["bias"] - batch["y"]
    value = jnp.mean(error**2) * batch["scale"]
    return value, {"largest": jnp.abs(error).max()}


def make_task(
    steps: int,
    before: Callable[[int], None] = lambda step: None,
    scale: Callable[[int], float] = lambda step: 1.0,
    preview: Callable | None = None,
) -> Task:
    """The toy; `before` runs as each step begins, `scale` multiplies the step's loss."""
    batch_size, seed = recipe(steps).batch, recipe(steps).seed

    def batch(step: int) -> dict[str, Any]:
        before(step)
        index = stream(len(INPUTS), batch_size, step, seed)
        return {"x": INPUTS[index], "y": OUTPUTS[index], "scale": np.float32(scale(step))}

    def export(params: dict[str, Any], folder: Path, facts: dict[str, Any]) -> None:
        save_model(folder, {"linear": params}, {"kind": "toy", "training": facts})

    return Task(init, loss, batch, preview, export)


@cache
def unbroken(steps: int) -> TrainState:
    """The state after a Python `for` over the steps: no loop, no files."""
    task, step_fn = make_task(steps), make_step(loss, recipe(steps))
    state = init_state(init(init_key(recipe(steps).seed)), recipe(steps))
    for number in range(steps):
        state, _ = step_fn(state, task.batch(number))
    return state


def main(folder: str, steps: str, save_every: str) -> None:
    def wait(step: int) -> None:
        print(step, flush=True)
        sys.stdin.readline()

    jax.config.update("jax_default_matmul_precision", "highest")  # as in conftest.py
    task = make_task(int(steps), before=wait)
    train(task, recipe(int(steps)), Path(folder), save_every=int(save_every), quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
