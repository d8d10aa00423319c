"""The learning rate, the average, the decay and the pure step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.training.state import (
    Recipe,
    init_state,
    learning_rate,
    make_optimizer,
    make_step,
    step_key,
    update_average,
)

RECIPE = Recipe(steps=1000, batch=4, learning_rate=0.01, warmup=100, decay=0.2)


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    rates = np.array([learning_rate(RECIPE)(step) for step in range(1001)])
    assert rates[0] == pytest.approx(0.01 / 100, rel=1e-4)
    np.testing.assert_allclose(rates[100:800], 0.01, rtol=1e-6)
    assert rates[900] == pytest.approx(0.005, rel=1e-3)
    assert rates[999] == pytest.approx(0.01 / 200, rel=1e-3)
    assert rates[1000] == 0
    assert (np.diff(rates[:100]) > 0).all() and (np.diff(rates[800:]) < 0).all()
    np.testing.assert_allclose(np.diff(rates[:100]), np.diff(rates[:100])[0], rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_run_shorter_than_its_warm_up_still_learns(steps):
    recipe = Recipe(steps=steps, batch=1, learning_rate=1.0, warmup=200)
    rates = np.array([learning_rate(recipe)(step) for step in range(steps)])
    assert (rates > 0).all() and rates.max() == 1 or steps == 1


def test_without_decay_the_rate_stays():
    recipe = Recipe(steps=100, batch=1, learning_rate=1.0, warmup=10, decay=0.0)
    assert all(learning_rate(recipe)(step) == 1 for step in range(10, 99))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0, got nan"),
        ({"clip_norm": 0.0}, "clip_norm must be a number above 0, got 0.0"),
        ({"warmup": -1}, "warmup must be a number from 0, got -1"),
        ({"weight_decay": float("inf")}, "weight_decay must be a number from 0, got inf"),
        ({"decay": 3.0}, r"decay must be in \[0, 1\], got 3.0"),
        ({"batch": -1}, "batch must be at least 1, got -1"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"ema": -0.1}, r"ema must be in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_recipes_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**{"steps": 1, "batch": 1, "learning_rate": 1.0, **changes})


def test_the_average_by_hand():
    average, params = {"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}
    # d = (1 + step) / (10 + step) while that is below the decay.
    for step, d in [(0, 1 / 10), (8, 9 / 18), (10**6, 0.9)]:
        found = update_average(average, params, jnp.array(step), 0.9)
        assert found["w"].item() == pytest.approx(d * 1 + (1 - d) * 3, rel=1e-6)


def test_only_matrices_are_decayed():
    recipe = Recipe(steps=100, batch=1, learning_rate=0.1, warmup=1, weight_decay=0.5)
    params = {
        "kernel": jnp.ones((3, 3, 2, 2)),
        "dense": jnp.ones((2, 2)),
        "bias": jnp.ones(2),
        "scalar": jnp.ones(()),
    }
    optimizer = make_optimizer(recipe)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    for name in ("kernel", "dense"):
        np.testing.assert_allclose(updates[name], -0.1 * 0.5, rtol=1e-6)
    for name in ("bias", "scalar"):
        np.testing.assert_array_equal(updates[name], 0)


def test_long_gradients_are_shortened_before_adam_remembers_them():
    recipe = Recipe(steps=100, batch=1, learning_rate=0.1, clip_norm=1.0)
    optimizer = make_optimizer(recipe)
    params = {"a": jnp.zeros(2)}
    _, short = optimizer.update({"a": jnp.array([0.6, 0.8])}, optimizer.init(params), params)
    _, long = optimizer.update({"a": jnp.array([60.0, 80.0])}, optimizer.init(params), params)
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def toy_loss(params, batch, key):
    error = params["w"] @ batch["x"]
    return jnp.mean(error**2), {"draw": jax.random.uniform(key)}


def run(seed, count):
    step = make_step(toy_loss, Recipe(steps=10, batch=1, learning_rate=0.1, ema=0.9, seed=seed))
    state = init_state({"w": jnp.ones((2, 3))}, RECIPE)
    draws, states = [], [jax.tree.map(np.asarray, state)]
    for _ in range(count):
        state, metrics = step(state, {"x": jnp.array([1.0, 2.0, 3.0])})
        draws.append(metrics["draw"].item())
        states.append(jax.tree.map(lambda x: np.array(x), state))
    return draws, states, metrics


def test_a_step_counts_moves_averages_and_reports():
    draws, states, metrics = run(0, 3)
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    losses = [np.mean((s.params["w"] @ [1, 2, 3]) ** 2) for s in states]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    assert metrics["loss"].item() == pytest.approx(losses[2], rel=1e-5)
    # d mean(e^2) / dW = e x^T, e of two rows: |gradient| = |e| |x|.
    error = states[2].params["w"] @ [1, 2, 3]
    expected = np.linalg.norm(error) * np.sqrt(14)
    assert metrics["gradient_norm"].item() == pytest.approx(expected, rel=1e-4)
    average = states[0].params["w"]
    for k in range(3):
        d = (1 + k) / (10 + k)
        average = d * average + (1 - d) * states[k + 1].params["w"]
        np.testing.assert_allclose(states[k + 1].average["w"], average, rtol=1e-6)


def test_randomness_comes_from_the_seed_and_the_step():
    first, again, other = run(0, 3)[0], run(0, 3)[0], run(1, 3)[0]
    assert first == again
    assert len({*first, *other}) == 6
    key = step_key(0, 2)
    assert first[2] == jax.random.uniform(key).item()


def test_the_average_starts_as_a_copy():
    state = init_state({"w": jnp.ones(2)}, RECIPE)
    assert state.average["w"] is not state.params["w"]
    np.testing.assert_array_equal(state.average["w"], state.params["w"])
