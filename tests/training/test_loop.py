"""The training loop: wherever it is stopped, it goes on as if it had not been, bit for bit."""

import csv
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
import tiny_models
import toy_training as toy
from PIL import Image

from sdjax.training import loop
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.loop import Task, open_run, stream, train
from sdjax.training.losses import autoencoder_loss
from sdjax.training.state import Recipe, make_step
from sdjax.weights.files import load_model

STEPS = 24
CACHED_STEP = cache(make_step)


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    """Runs of one recipe share their compiled step; other processes still compile their own."""
    monkeypatch.setattr(loop, "make_step", CACHED_STEP)


def run(out, before=lambda step: None, *, steps=STEPS, scale=lambda step: 1.0, **options):
    options = {"save_every": 10, "report_every": 5, "quiet": True, **options}
    return train(toy.make_task(steps, before, scale), toy.recipe(steps), out, **options)


def at(step, action):
    """A `before` that acts once, when the step begins."""
    return lambda number: action() if number == step else None


def crash():
    raise RuntimeError("crash")


def assert_same(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def latest(out):
    checkpoints = Checkpoints(out)
    step = checkpoints.latest()
    checkpoints.close()
    return step


def rows(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# The data


def test_a_stream_shows_every_example_once_an_epoch():
    count, batch = 37, 8
    shown = np.concatenate([stream(count, batch, step, seed=1) for step in range(count)])
    epochs = shown.reshape(batch, count)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(count), (batch, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == batch


def test_a_stream_depends_on_its_arguments_alone():
    forwards = [stream(37, 8, step, seed=1) for step in range(20)]
    backwards = [stream(37, 8, step, seed=1) for step in reversed(range(20))]
    np.testing.assert_array_equal(forwards, backwards[::-1])
    assert (stream(37, 8, 0, seed=2) != forwards[0]).any()
    longer = np.concatenate([stream(37, 16, step, seed=1) for step in range(10)])
    np.testing.assert_array_equal(longer, np.concatenate(forwards))


def test_a_batch_may_be_larger_than_the_data():
    shown = stream(5, 12, 0, seed=0)
    np.testing.assert_array_equal(np.sort(shown[:5]), np.arange(5))
    np.testing.assert_array_equal(np.sort(shown[5:10]), np.arange(5))


# A whole run


def test_a_run_is_a_python_for_and_leaves_its_files(tmp_path):
    out = tmp_path / "runs" / "a"
    averages = []

    def preview(params):
        averages.append(params)
        return Image.new("RGB", (4, 4))

    task = toy.make_task(STEPS, preview=preview)
    options = {"report_every": 10, "preview_every": 16, "quiet": True}
    state = train(task, toy.recipe(STEPS), out, **options)
    assert_same(state, toy.unbroken(STEPS))
    assert_same(averages[-1], state.average)
    assert {path.name for path in out.iterdir()} == {
        "checkpoints", "metrics.csv", "model", "recipe.json", "preview_0000016.png",
        "preview_0000024.png",
    }  # fmt: skip
    assert [row["step"] for row in rows(out)] == ["10", "20", "24"]
    assert set(rows(out)[0]) == {
        "step", "loss", "gradient_norm", "largest", "examples_per_second",
    }  # fmt: skip
    components, model = load_model(out / "model")
    assert_same(components["linear"], state.average)
    assert model["training"]["steps"] == STEPS
    assert model["training"]["segments"][0]["recipe"]["batch"] == 8


def test_the_progress_bar_counts(tmp_path, capsys):
    run(tmp_path / "run", steps=3, quiet=False)
    assert "3/3" in capsys.readouterr().err


# Stopped and resumed


@pytest.mark.parametrize(
    ("step", "kind"), [(0, signal.SIGINT), (9, signal.SIGINT), (17, signal.SIGTERM)]
)
def test_a_signal_saves_after_the_step_and_the_run_goes_on(tmp_path, step, kind):
    out = tmp_path / "run"
    handlers = [signal.getsignal(k) for k in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match=f"after step {step + 1}; --resume continues"):
        run(out, at(step, lambda: signal.raise_signal(kind)))
    assert handlers == [signal.getsignal(k) for k in (signal.SIGINT, signal.SIGTERM)]
    assert latest(out) == step + 1
    assert not (out / "model").exists()
    assert_same(run(out, resume=True), toy.unbroken(STEPS))
    assert (out / "model").exists()


def test_a_run_may_be_stopped_at_its_last_step_and_more_than_once(tmp_path):
    out = tmp_path / "run"
    interrupt = signal.raise_signal
    for step, resume in [(3, False), (4, True), (STEPS - 1, True)]:
        with pytest.raises(KeyboardInterrupt):
            run(out, at(step, lambda: interrupt(signal.SIGINT)), resume=resume)
        assert latest(out) == step + 1
    begun = []
    assert_same(run(out, begun.append, resume=True), toy.unbroken(STEPS))
    assert begun == []
    assert_same(load_model(out / "model")[0]["linear"], toy.unbroken(STEPS).average)


def test_a_crash_goes_back_to_the_last_checkpoint_and_drops_later_metrics(tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(RuntimeError, match="crash"):
        run(out, at(17, crash))
    assert latest(out) == 10
    assert [row["step"] for row in rows(out)] == ["5", "10", "15"]
    begun = []
    assert_same(run(out, begun.append, resume=True), toy.unbroken(STEPS))
    assert begun == list(range(10, STEPS))
    run(whole)
    for resumed, straight in zip(rows(out), rows(whole), strict=True):
        del resumed["examples_per_second"], straight["examples_per_second"]
        assert resumed == straight


def test_metrics_later_than_the_checkpoint_go_with_the_first_report(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RuntimeError):
        run(out, at(19, crash), save_every=6, report_every=3)
    assert latest(out) == 18
    with pytest.raises(RuntimeError):
        run(out, at(20, crash), resume=True, report_every=1)
    assert [int(row["step"]) for row in rows(out)] == [3, 6, 9, 12, 15, 18, 19, 20]


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RuntimeError):
        run(out, at(12, crash))
    half = out / "checkpoints" / "12.orbax-checkpoint-tmp" / "default"
    half.mkdir(parents=True)
    (half / "_METADATA").write_text("{")
    (out / "metrics.csv.partial").write_text("step,lo")
    assert_same(run(out, resume=True), toy.unbroken(STEPS))


class Child:
    """`toy_training` in a process of its own, which waits at each step until it may go on."""

    def __init__(self, out, steps, save_every):
        script = [sys.executable, toy.__file__, str(out), str(steps), str(save_every)]
        self.process = subprocess.Popen(
            script,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )

    def allow(self, steps):
        self.process.stdin.write("\n" * steps)
        self.process.stdin.flush()

    def follow(self, step):
        """Return as soon as the step has begun."""
        for line in self.process.stdout:
            if int(line) == step:
                return
        raise AssertionError(self.process.stderr.read())

    def finish(self):
        _, errors = self.process.communicate()
        return self.process.returncode, errors


def test_another_process_is_interrupted_and_its_run_goes_on(tmp_path):
    out, step = tmp_path / "run", int(np.random.default_rng().integers(1, STEPS - 1))
    child = Child(out, STEPS, save_every=1000)
    child.allow(step)
    child.follow(step)
    child.process.send_signal(signal.SIGINT)
    child.allow(STEPS)
    status, errors = child.finish()
    assert status != 0 and f"stopped after step {step + 1}; --resume continues" in errors
    assert latest(out) == step + 1
    assert_same(run(out, resume=True), toy.unbroken(STEPS))


def test_another_process_is_killed_while_it_saves_and_its_run_goes_on(tmp_path):
    steps = 200
    out, step = tmp_path / "run", int(np.random.default_rng().integers(2, 8))
    child = Child(out, steps, save_every=1)
    child.allow(steps)
    child.follow(step)  # step - 1 is saved; this one computes or saves, or a later one
    child.process.kill()
    assert child.finish()[0] == -signal.SIGKILL
    assert steps > latest(out) >= step
    assert_same(run(out, resume=True, steps=steps, save_every=steps), toy.unbroken(steps))


def test_a_thread_trains_without_signals(tmp_path):
    states = []
    thread = threading.Thread(target=lambda: states.append(run(tmp_path / "run")))
    thread.start()
    thread.join()
    assert_same(states[0], toy.unbroken(STEPS))


# Refused


def test_an_existing_run_is_not_overwritten(tmp_path):
    out = tmp_path / "run"
    run(out, steps=2)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="already holds a run: pass --resume, or another --out"):
        run(out, steps=2)
    with pytest.raises(ValueError, match="has done 2 steps already, more than 1"):
        run(out, steps=1, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in .*/nowhere to resume"):
        run(tmp_path / "nowhere", resume=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no run in .* to resume"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, bad):
    out = tmp_path / "run"
    options = {"scale": lambda step: bad if step >= 12 else 1.0, "report_every": 1000}
    with pytest.raises(FloatingPointError, match="the loss is nan at step 15"):
        run(out, save_every=5, **options)
    assert latest(out) == 10
    assert not (out / "model").exists()
    assert_same(run(out, resume=True), toy.unbroken(STEPS))  # with the fault repaired


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    # 1e38 times the error is still a float32, its slope is not.
    with pytest.raises(FloatingPointError, match="the gradient_norm is inf at step 5"):
        run(tmp_path / "run", scale=lambda step: 3e37 if step == 4 else 1.0)


# A real network


def test_a_small_autoencoder_learns_and_resumes_bit_for_bit(tmp_path):
    model = tiny_models.AUTOENCODER
    recipe = Recipe(steps=20, batch=4, learning_rate=3e-3, warmup=2, seed=1)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 1, 3), np.uint8)
    pixels = np.tile(pixels, (1, 8, 8, 1))
    params, loss = tiny_models.autoencoder_params(model), autoencoder_loss(model, 0.01, shift=2)

    def task(before):
        def batch(step):
            before(step)
            return {"pixels": pixels[stream(len(pixels), recipe.batch, step, recipe.seed)]}

        return Task(
            init=lambda key: jax.tree.map(jax.numpy.copy, params),
            loss=loss,
            batch=batch,
            preview=None,
            export=lambda params, folder, facts: None,
        )

    whole = train(task(print), recipe, tmp_path / "whole", report_every=1, quiet=True)
    stop = at(7, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(task(stop), recipe, tmp_path / "run", quiet=True)
    resumed = train(task(print), recipe, tmp_path / "run", resume=True, quiet=True)
    assert_same(resumed, whole)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.params, params)
    assert all(leaf > 1e-5 for leaf in jax.tree.leaves(moved))
    losses = [float(row["loss"]) for row in rows(tmp_path / "whole")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), losses
    assert {"psnr", "kl"} <= set(rows(tmp_path / "whole")[0])


def test_a_run_stopped_before_its_first_checkpoint_goes_on(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="crash"):
        run(out, at(3, crash))
    assert latest(out) is None
    assert_same(run(out, resume=True), toy.unbroken(STEPS))


def test_the_recipes_of_a_run_are_kept_with_its_weights(tmp_path):
    out = tmp_path / "run"
    run(out, steps=2)
    assert open_run(out, resume=True) == toy.recipe(2)
    run(out, steps=4, resume=True)
    training = load_model(out / "model")[1]["training"]
    assert [(s["from_step"], s["recipe"]["steps"]) for s in training["segments"]] == [
        (0, 2),
        (2, 4),
    ]
    assert training["hours"] >= 0 and training["last_metrics"]["step"] == 4


@pytest.mark.parametrize("change", [{"batch": 4}, {"seed": 9}])
def test_resuming_on_other_data_is_refused(tmp_path, change):
    out = tmp_path / "run"
    run(out, steps=2)
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"the run has {name} {getattr(toy.recipe(2), name)}"):
        train(toy.make_task(4), replace(toy.recipe(4), **{name: value}), out, resume=True)
