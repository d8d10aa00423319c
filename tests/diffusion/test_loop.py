"""The sampling loop: the same as a Python `for`, blind to padding, one key per image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_rule import golden

from sdjax.diffusion.loop import image_keys, initial_noise, normal_per_image, sample
from sdjax.diffusion.parameterization import split
from sdjax.diffusion.samplers import STEPS
from sdjax.diffusion.schedule import alpha_bars, leading_timesteps, make_plan, trailing_timesteps
from sdjax.presets import SD_SCHEDULE

SHAPE = (2, 2, 3)
MODES = [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)]
EVERY_MODE = pytest.mark.parametrize(("sampler", "eta"), MODES)


def plan_of(steps, max_steps, schedule=SD_SCHEDULE):
    return make_plan(schedule, trailing_timesteps(schedule, steps), max_steps, 1.0)


def network(weight, x, timesteps):
    """A smooth function of x and t that mixes the channels."""
    mixed = jnp.tanh(x @ weight)
    return mixed + 0.1 * jnp.cos(timesteps / 300)[:, None, None, None]


WEIGHT = 0.5 * jax.random.normal(jax.random.key(7), (3, 3))


@jax.jit(static_argnames=("sampler", "prediction"))
def run(weight, plan, x, keys, eta, *, sampler="ddim", prediction="eps"):
    return sample(
        lambda x, t: network(weight, x, t),
        plan,
        x,
        keys,
        sampler=sampler,
        prediction=prediction,
        eta=eta,
        trajectory=True,
    )


def start(seeds):
    keys = image_keys(jnp.asarray(seeds))
    return initial_noise(keys, SHAPE), keys


@EVERY_MODE
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_scan_is_a_python_for(sampler, eta, prediction):
    x, keys = start([3, 4])
    plan = plan_of(6, 8)
    final, (xs, x0s) = run(WEIGHT, plan, x, keys, eta, sampler=sampler, prediction=prediction)
    for k in range(6):
        info = jax.tree.map(lambda values, k=k: values[k], plan)
        output = network(WEIGHT, x, jnp.full(2, info.timestep))
        x0, eps = split(output, x, info.alpha_bar, prediction)
        noise = normal_per_image(keys, SHAPE, k + 1)
        x = STEPS[sampler](x, x0, eps, info, jnp.float32(eta), noise)
        np.testing.assert_allclose(xs[k], x, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(x0s[k], x0, rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(final, x, rtol=2e-5, atol=2e-5)


def test_a_recorded_trajectory_comes_out_of_the_loop():
    case = {c["id"]: c for c in golden("scheduler_trajectories")["cases"]}
    case = case["ddim_v_prediction_eta0_leading_off1"]
    plan = make_plan(SD_SCHEDULE, leading_timesteps(SD_SCHEDULE, 10), 20)
    x = jnp.asarray(case["x_init"], jnp.float32).reshape(1, 2, 2, 2)
    _, (xs, _) = sample(
        lambda x, t: 0.1 * x + 0.01 * jnp.sin(t),
        plan,
        x,
        image_keys(jnp.array([0])),
        sampler="ddim",
        prediction="v",
        trajectory=True,
    )
    np.testing.assert_allclose(xs[:10].reshape(10, 8), case["x_after_step"], rtol=1e-4)


@EVERY_MODE
def test_padding_changes_nothing(sampler, eta):
    x, keys = start([0, 1])
    short, _ = run(WEIGHT, plan_of(6, 8), x, keys, eta, sampler=sampler)
    long, _ = run(WEIGHT, plan_of(6, 50), x, keys, eta, sampler=sampler)
    np.testing.assert_array_equal(short, long)


def test_the_trajectory_holds_every_padded_step():
    x, keys = start([0, 1])
    final, (xs, x0s) = run(WEIGHT, plan_of(6, 8), x, keys, 0.0)
    assert xs.shape == x0s.shape == (8, 2, *SHAPE)
    np.testing.assert_array_equal(xs[5:], jnp.stack([final] * 3))


def test_only_shapes_and_names_make_a_new_program():
    traces = []

    @jax.jit
    def guided(plan, x, keys, scale, eta):
        traces.append(x.shape)
        final, trajectory = sample(
            lambda x, t: scale * network(WEIGHT, x, t),
            plan,
            x,
            keys,
            sampler="ddim",
            prediction="eps",
            eta=eta,
        )
        assert trajectory is None  # not asked for
        return final

    results = []
    for steps, scale, eta, seeds in [
        (5, 1.0, 0.0, [0, 1]),
        (8, 7.5, 0.5, [2, 3]),
        (1, 3, 1, [4, 5]),
    ]:
        x, keys = start(seeds)
        results.append(guided(plan_of(steps, 8), x, keys, jnp.float32(scale), jnp.float32(eta)))
    assert traces == [(2, *SHAPE)]
    assert not np.allclose(results[0], results[1])
    jax.eval_shape(guided, plan_of(5, 8), *start([0, 1, 2]), jnp.float32(1), jnp.float32(0))
    assert len(traces) == 2


@EVERY_MODE
def test_an_image_does_not_know_its_batch(sampler, eta):
    x, keys = start([10, 11])
    together, _ = run(WEIGHT, plan_of(6, 8), x, keys, eta, sampler=sampler)
    for i, seed in enumerate([10, 11]):
        x, keys = start([seed])
        alone, _ = run(WEIGHT, plan_of(6, 8), x, keys, eta, sampler=sampler)
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-5, atol=1e-6)


def test_noise_differs_between_images_steps_and_the_start():
    keys = image_keys(jnp.array([0, 1]))
    drawn = np.stack([normal_per_image(keys, (16, 16, 4), k) for k in range(3)])
    correlations = np.corrcoef(drawn.reshape(6, -1))
    assert np.abs(correlations - np.eye(6)).max() < 0.15
    assert abs(drawn.mean()) < 0.05 and abs(drawn.std() - 1) < 0.05
    np.testing.assert_array_equal(initial_noise(keys, (16, 16, 4)), drawn[0])


@EVERY_MODE
@pytest.mark.parametrize("cuts", [[3], [1, 2, 5]])
def test_a_run_in_segments_is_the_same_run(sampler, eta, cuts):
    x, keys = start([5, 6])
    plan = plan_of(6, 8)
    whole, _ = run(WEIGHT, plan, x, keys, eta, sampler=sampler)
    for first, last in zip([0, *cuts], [*cuts, 8], strict=True):
        part = (jnp.arange(8) >= first) & (jnp.arange(8) < last)
        segment = plan._replace(active=plan.active & part)
        x, _ = run(WEIGHT, segment, x, keys, eta, sampler=sampler)
    np.testing.assert_array_equal(x, whole)


@EVERY_MODE
def test_gradients_flow_through_the_loop(sampler, eta):
    x, keys = start([0, 1])
    plan = plan_of(4, 8)  # with padding, whose gradient must not be NaN

    def loss(weight):
        return jnp.mean(run(weight, plan, x, keys, eta, sampler=sampler, prediction="v")[0] ** 2)

    gradient = jax.grad(loss)(WEIGHT)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3
    direction = jax.random.normal(jax.random.key(1), WEIGHT.shape)
    slope = (loss(WEIGHT + 1e-2 * direction) - loss(WEIGHT - 1e-2 * direction)) / 2e-2
    assert jnp.vdot(gradient, direction).item() == pytest.approx(slope.item(), rel=5e-3)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_gaussian_data_comes_back(sampler):
    # For data N(m, s^2) the best possible guess of eps is known in closed form.
    m, s = 0.7, 0.5
    table = jnp.asarray(alpha_bars(SD_SCHEDULE), jnp.float32)

    def best(x, timesteps):
        ab = table[timesteps.astype(int)][:, None, None, None]
        return jnp.sqrt(1 - ab) * (x - jnp.sqrt(ab) * m) / (ab * s**2 + 1 - ab)

    @jax.jit
    def draw(plan, keys, eta):
        x = initial_noise(keys, (8, 8, 4))
        return sample(best, plan, x, keys, sampler=sampler, prediction="eps", eta=eta)[0]

    keys = image_keys(jnp.arange(64))
    runs = [(1000, 1.0, 0.02)]
    runs += [(100, 0.0, 0.05), (1000, 0.0, 0.02)] if sampler == "ddim" else []
    for steps, eta, tolerance in runs:
        x = draw(plan_of(steps, 1000), keys, jnp.float32(eta))
        assert x.mean().item() == pytest.approx(m, rel=0.05)
        assert x.std().item() == pytest.approx(s, rel=tolerance)
