"""The training loop: steps, a progress bar, a CSV of metrics, pictures, checkpoints, Ctrl-C."""

import csv
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from sdjax.nn.functional import Params
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.state import Loss, Metrics, Recipe, TrainState, init_key, init_state, make_step

RECIPE_FILE = "recipe.json"
"""In a run's folder: the recipes in force, each with the step from which it was."""


@dataclass(frozen=True)
class Task:
    """What is trained: functions only, so the loop knows no network.

    `batch(step)` is a pure function of the step number: it makes a resumed run exact.
    """

    init: Callable[[jax.Array], Params]
    loss: Loss
    batch: Callable[[int], dict[str, Any]]
    preview: Callable[[Params], Image.Image] | None  # a picture of how the averaged weights do
    export: Callable[[Params, Path, dict[str, Any]], None]  # (averaged weights, folder, facts)


def stream(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices [batch] of the examples of a step: shuffled epochs, laid end to end.

    Depends on its arguments alone, so any step can be asked for at any time.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    orders = {e: np.random.default_rng((seed, int(e))).permutation(count) for e in set(epochs)}
    return np.array([orders[e][p % count] for e, p in zip(epochs, positions, strict=True)])


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM set a flag, so that the loop can stop after a whole step and save."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals need the main thread
        yield lambda: False
        return
    kinds = (signal.SIGINT, signal.SIGTERM)

    def note(number: int, _: object) -> None:
        seen.append(number)
        signal.signal(number, signal.default_int_handler)  # a second Ctrl-C stops at once

    old = [signal.signal(kind, note) for kind in kinds]
    try:
        yield lambda: bool(seen)
    finally:
        for kind, handler in zip(kinds, old, strict=True):
            signal.signal(kind, handler)


class MetricsFile:
    """`metrics.csv`: one row per report; rows later than the resumed step are dropped."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open() as file:
                self.rows = [r for r in csv.DictReader(file) if int(r["step"]) <= resumed_at]

    def seconds(self, batch: int) -> float:
        """Time that the reported steps took."""
        steps = np.diff([0, *(int(row["step"]) for row in self.rows)])
        rates = np.array([float(row["examples_per_second"]) for row in self.rows])
        return float((steps * batch / rates).sum())

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; the file is rewritten whole and then renamed into place."""
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        partial = self.path.with_suffix(".csv.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]))
            writer.writeheader()
            writer.writerows(self.rows)
        partial.replace(self.path)


def open_run(out: Path, *, resume: bool) -> Recipe | None:
    """The stored recipe of the run in `out`; None for a new run.

    Raises:
        ValueError: if `out` holds a run and `resume` is False.
        FileNotFoundError: if `resume` is True and it holds none.
    """
    path = out / RECIPE_FILE
    if path.exists() and not resume:
        raise ValueError(f"{out} already holds a run: pass --resume, or another --out")
    if resume and not path.exists():
        raise FileNotFoundError(f"no run in {out} to resume")
    return Recipe(**json.loads(path.read_text())[-1]["recipe"]) if resume else None


def _check_same_data(stored: Recipe | None, recipe: Recipe) -> None:
    """A resumed run sees the same stream of examples: its batch, seed and start cannot change."""
    for name in ("batch", "seed", "start"):
        if stored is not None and getattr(stored, name) != getattr(recipe, name):
            raise ValueError(
                f"the run has {name} {getattr(stored, name)}, not {getattr(recipe, name)}: "
                "these cannot change on resuming"
            )


def _record_segment(out: Path, recipe: Recipe, first: int) -> list[dict[str, Any]]:
    """Add the recipe in force from step `first` to the run's `recipe.json`; all of them."""
    path = out / RECIPE_FILE
    segments = json.loads(path.read_text()) if path.exists() else []
    segments = [s for s in segments if s["from_step"] < first]
    segments.append({"from_step": first, "recipe": recipe.__dict__})
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(segments, indent=2) + "\n")
    partial.replace(path)
    return segments


def train(
    task: Task,
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    report_every: int = 50,
    save_every: int = 500,
    preview_every: int = 1000,
    quiet: bool = False,
) -> TrainState:
    """Run `recipe.steps` steps, or the rest of them, and export the averaged weights.

    Ctrl-C or SIGTERM finishes the step, saves a checkpoint and raises KeyboardInterrupt.

    Raises:
        ValueError: if `out` already holds a run and `resume` is False, or a run of other sizes or
            of more steps and `resume` is True.
        FileNotFoundError: if `resume` is True and there is nothing to resume.
        FloatingPointError: if the loss or its gradient is no longer finite; the last checkpoint
            stays.
    """
    stored = open_run(out, resume=resume)
    _check_same_data(stored, recipe)
    out.mkdir(parents=True, exist_ok=True)
    with closing(Checkpoints(out)) as checkpoints:
        if checkpoints.latest() is not None and not resume:
            raise ValueError(f"{out} already holds a run: pass --resume, or another --out")
        # A copy, as the first step takes the memory of its state: `init` may hand out its own.
        params = jax.tree.map(jnp.copy, task.init(init_key(recipe.seed)))
        state = init_state(params, recipe)
        if checkpoints.latest() is not None:  # else it was stopped before the first checkpoint
            state = checkpoints.restore(state)
        first = int(state.step)
        if first > recipe.steps:
            raise ValueError(f"{out} has done {first} steps already, more than {recipe.steps}")
        metrics_file = MetricsFile(out / "metrics.csv", first)
        segments = _record_segment(out, recipe, first)
        step_fn = make_step(task.loss, recipe)
        started, since = time.perf_counter(), first
        metrics = {}
        with (
            tqdm(total=recipe.steps, initial=first, unit="step", disable=quiet) as bar,
            _interrupts() as interrupted,
        ):
            for number in range(first, recipe.steps):
                batch = task.batch(number)  # made while the previous step still computes
                jax.block_until_ready(metrics)
                state, metrics = step_fn(state, batch)
                bar.update()
                done = number + 1
                last, stop = done == recipe.steps, interrupted()
                report = last or done % report_every == 0
                save = last or stop or done % save_every == 0
                if report:
                    values = _finite(metrics, done)
                    now = time.perf_counter()
                    rate = (done - since) * recipe.batch / (now - started)
                    started, since = now, done
                    bar.set_postfix({k: f"{v:.4g}" for k, v in values.items()})
                    metrics_file.add({"step": done, **values, "examples_per_second": rate})
                if save:
                    _finite(metrics, done)  # a state that is lost must not be kept
                    checkpoints.save(state)
                if task.preview and (last or done % preview_every == 0):
                    task.preview(state.average).save(out / f"preview_{done:07d}.png")
                if stop:
                    raise KeyboardInterrupt(f"stopped after step {done}; --resume continues")
    facts = {
        "steps": recipe.steps,
        "hours": round(metrics_file.seconds(recipe.batch) / 3600, 2),
        "segments": segments,
        "last_metrics": metrics_file.rows[-1] if metrics_file.rows else {},
    }
    task.export(state.average, out / "model", facts)
    return state


def _finite(metrics: Metrics, step: int) -> dict[str, float]:
    """The metrics as numbers; raises FloatingPointError after a bad loss or gradient."""
    values = {name: float(value) for name, value in metrics.items()}
    for name in ("loss", "gradient_norm"):
        if not np.isfinite(values[name]):
            raise FloatingPointError(f"the {name} is {values[name]} at step {step}")
    return values
