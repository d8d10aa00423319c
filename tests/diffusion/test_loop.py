"""The sampling loop: the same as a Python `for`, blind to padding, one key per image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.guidance import guide_doubled
from sdjax.diffusion.limits import Limits, limit
from sdjax.diffusion.loop import (
    begin,
    begin_state,
    call,
    image_keys,
    initial_noise,
    normal_per_image,
    sample,
    walk,
)
from sdjax.diffusion.parameterization import split
from sdjax.diffusion.samplers import SAMPLERS, sampling_plan
from sdjax.diffusion.solvers import pairs
from sdjax.diffusion.times import visited
from sdjax.presets import SD_SCHEDULE

SHAPE = (2, 2, 3)
MODES = [("ddim", 1.0), ("plms", 0.0), ("euler a", 0.0), ("heun", 0.3), ("unipc", 0.0)]
EVERY_MODE = pytest.mark.parametrize(("sampler", "eta"), MODES)


def plan_of(steps, max_calls, sampler="ddim", eta=0.0, **options):
    return sampling_plan(
        SD_SCHEDULE, steps, max_calls, sampler=sampler, spacing="trailing", eta=eta, **options
    )


def network(weight, x, timesteps):
    """A smooth function of x and t that mixes the channels."""
    mixed = jnp.tanh(x @ weight)
    return mixed + 0.1 * jnp.cos(timesteps / 300)[:, None, None, None]


WEIGHT = 0.5 * jax.random.normal(jax.random.key(7), (3, 3))


@jax.jit(static_argnames="prediction")
def run(weight, plan, x, keys, prediction="v"):
    return sample(
        lambda x, t: network(weight, x, t), plan, x, keys, prediction=prediction, trajectory=True
    )


def start(seeds):
    keys = image_keys(jnp.asarray(seeds))
    return initial_noise(keys, SHAPE), keys


@EVERY_MODE
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_scan_is_a_python_for(sampler, eta, prediction):
    x, keys = start([3, 4])
    plan = plan_of(4, 12, sampler, eta)
    final, path = run(WEIGHT, plan, x, keys, prediction)
    state = begin_state(x)
    for k in range(plan.count):
        info = jax.tree.map(lambda values, k=k: values[k], plan.calls)
        state, made = call(
            lambda x, t: network(WEIGHT, x, t), info, k, state, keys, prediction=prediction
        )
        np.testing.assert_allclose(path.x[k], made.x, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(path.x0[k], made.x0, rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(final, state[0], rtol=2e-5, atol=2e-5)


def test_a_call_by_hand():
    # DDIM in the words of its paper, and what the trajectory says of it.
    x, keys = start([3])
    plan = plan_of(5, 5, eta=0.4)
    _, path = run(WEIGHT, plan, x, keys, "eps")
    a, s = plan.calls.alpha, plan.calls.sigma
    for k in range(4):
        eps = network(WEIGHT, x, jnp.full(1, plan.calls.timestep[k]))
        x0 = (x - s[k] * eps) / a[k]
        noise = 0.4 * s[k + 1] / s[k] * jnp.sqrt(1 - (a[k] / a[k + 1]) ** 2)
        np.testing.assert_allclose(path.x[k], x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(path.eps[k], eps, rtol=1e-4, atol=1e-5)
        x = a[k + 1] * x0 + jnp.sqrt(s[k + 1] ** 2 - noise**2) * eps
        x = x + noise * normal_per_image(keys, SHAPE, k + 1)


@EVERY_MODE
def test_padding_changes_nothing(sampler, eta):
    x, keys = start([0, 1])
    short, _ = run(WEIGHT, plan_of(6, 12, sampler, eta), x, keys)
    long, _ = run(WEIGHT, plan_of(6, 50, sampler, eta), x, keys)
    np.testing.assert_array_equal(short, long)


def test_the_trajectory_is_empty_where_no_call_was_made():
    x, keys = start([0, 1])
    _, path = run(WEIGHT, plan_of(6, 12), x, keys)
    assert path.x.shape == path.x0.shape == path.eps.shape == (12, 2, *SHAPE)
    assert path.branches == () and not np.any(path.x[6:])
    np.testing.assert_array_equal(path.x[0], x)
    norms = path.norms().x
    assert norms.shape == (12, 2)
    assert norms[0, 1] == pytest.approx(np.sqrt(np.mean(np.square(x[1]))), rel=1e-5)


def test_every_sampler_and_number_is_one_program():
    traces = []

    @jax.jit
    def guided(plan, x, keys, scale):
        traces.append(x.shape)
        final, path = sample(
            lambda x, t: scale * network(WEIGHT, x, t), plan, x, keys, prediction="v"
        )
        assert path is None  # not asked for
        return final

    results = []
    samplers = {name: one for name, one in SAMPLERS.items() if not one.learned}
    for k, (name, sampler) in enumerate(samplers.items()):
        x, keys = start([k, k + 1])
        eta = 0.3 if sampler.eta else 0.0
        plan = plan_of(5 + k % 4, 40, name, eta, limits=Limits(1.0 + k, agree=k % 2))
        results.append(np.asarray(guided(plan, x, keys, jnp.float32(1 + k))))
    assert traces == [(2, *SHAPE)]
    assert all(np.isfinite(result).all() for result in results)
    jax.eval_shape(guided, plan_of(5, 40), *start([0, 1, 2]), jnp.float32(1))
    assert len(traces) == 2


@EVERY_MODE
def test_an_image_does_not_know_its_batch(sampler, eta):
    plan = plan_of(6, 12, sampler, eta)
    seeds = [10, 11, 12, 13]
    together, _ = run(WEIGHT, plan, *start(seeds))
    turned, _ = run(WEIGHT, plan, *start(seeds[::-1]))
    for i, seed in enumerate(seeds):
        alone, _ = run(WEIGHT, plan, *start([seed]))
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(turned[3 - i], together[i], rtol=1e-5, atol=1e-6)


def test_noise_differs_between_images_calls_and_the_start():
    keys = image_keys(jnp.array([0, 1]))
    drawn = np.stack([normal_per_image(keys, (16, 16, 4), k) for k in range(3)])
    correlations = np.corrcoef(drawn.reshape(6, -1))
    assert np.abs(correlations - np.eye(6)).max() < 0.15
    assert abs(drawn.mean()) < 0.05 and abs(drawn.std() - 1) < 0.05
    np.testing.assert_array_equal(initial_noise(keys, (16, 16, 4)), drawn[0])


@EVERY_MODE
@pytest.mark.parametrize("cuts", [[1, 2, 5]])
def test_a_run_in_parts_is_the_same_run(sampler, eta, cuts):
    x, keys = start([5, 6])
    plan = plan_of(6, 12, sampler, eta)
    whole, _ = run(WEIGHT, plan, x, keys)
    state = begin_state(x)
    for first, last in zip([0, *cuts], [*cuts, 12], strict=True):
        part = (jnp.arange(12) >= first) & (jnp.arange(12) < last)
        calls = plan.calls._replace(active=plan.calls.active & part)
        state, _ = walked(plan._replace(calls=calls), state, keys)
    np.testing.assert_allclose(state[0], whole, rtol=1e-5, atol=1e-5)


@jax.jit
def walked(plan, state, keys):
    return walk(lambda x, t: network(WEIGHT, x, t), plan, state, keys, prediction="v")


# Precision


def test_a_network_in_bfloat16_leaves_the_loop_in_float32():
    seen = []

    def low(x, timesteps):
        seen.append((x.dtype, timesteps.dtype))
        return network(WEIGHT.astype(jnp.bfloat16), x.astype(jnp.bfloat16), timesteps).astype(
            jnp.bfloat16
        )

    x, keys = start([0, 1])
    plan = plan_of(10, 10)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(plan)} == {"float32", "bool"}
    final, path = sample(low, plan, x, keys, prediction="v", trajectory=True)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((final, path))} == {"float32"}
    assert set(seen) == {(jnp.dtype("float32"), jnp.dtype("float32"))}
    # The loop itself rounds nothing but to float32, whose half digit is 6e-8 of about 3.
    levels = visited(SD_SCHEDULE, 10, "trailing", "ddim")
    np.testing.assert_array_equal(plan.calls.timestep, [level.timestep for level in levels[:-1]])
    for k, (here, there) in enumerate(pairs(levels)):
        x0, eps = (np.asarray(values[k], np.float64) for values in (path.x0, path.eps))
        np.testing.assert_allclose(here.alpha * x0 + here.sigma * eps, path.x[k], atol=1e-6)
        following = final if k == 9 else path.x[k + 1]
        np.testing.assert_allclose(there.alpha * x0 + there.sigma * eps, following, atol=1e-6)


# Learned variance


def twice(x, timesteps):
    output = network(WEIGHT, x, timesteps)
    return jnp.concatenate([output, jnp.tanh(x)], -1)


def test_learned_variance_scales_the_noise_where_the_sampler_wants_it():
    x, keys = start([0])
    learned, small, large, ddim = (
        plan_of(4, 4, name) for name in ("ddpm learned", "ddpm", "ddpm large", "ddim")
    )

    def first(plan, denoise):
        info = jax.tree.map(lambda values: values[0], plan.calls)
        return call(denoise, info, 0, begin_state(x), keys, prediction="v")[0][0]

    noise = normal_per_image(keys, SHAPE, 1)
    mean = first(small, twice) - small.calls.state[0, 0, 8] * noise
    least, most = small.calls.state[0, 0, 8], large.calls.state[0, 0, 8]
    share = (jnp.tanh(x) + 1) / 2
    wanted = mean + least ** (1 - share) * most**share * noise
    np.testing.assert_allclose(first(learned, twice), wanted, atol=1e-5)
    # Other samplers take the prediction, and leave the variance.
    half = first(ddim, lambda x, t: network(WEIGHT, x, t))
    np.testing.assert_array_equal(first(ddim, twice), half)


def test_learned_variance_that_the_network_does_not_say_is_refused():
    x, keys = start([0])
    with pytest.raises(ValueError, match="says the variance, too: 6 channels for 3, got 3"):
        run(WEIGHT, plan_of(4, 4, "unclip"), x, keys)


# Limits


@jax.jit
def x0_run(plan, x, keys, kept):
    """A network that predicts x0, and keeps the limits `kept` itself."""

    def denoise(x, t):
        return limit(2 * network(WEIGHT, x, t), kept)

    return sample(denoise, plan, x, keys, prediction="x0")[0]


@pytest.mark.parametrize("name", [name for name, one in SAMPLERS.items() if not one.learned])
def test_limits_reach_every_sampler_as_if_the_network_kept_them(name):
    # Those that walk along eps alone, too.
    x, keys = start([0, 1])
    none, clip, threshold = Limits(jnp.inf), Limits(0.4), Limits(quantile=0.8, most=1.5)
    free, thresholded, limited = (
        plan_of(5, 16, name, limits=one) for one in (none, threshold, clip)
    )
    wanted = x0_run(free, x, keys, threshold)
    np.testing.assert_allclose(x0_run(thresholded, x, keys, none), wanted, atol=2e-4)
    assert np.abs(x0_run(free, x, keys, none) - wanted).max() > 0.1
    found, wanted = x0_run(limited, x, keys, none), x0_run(free, x, keys, clip)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert np.abs(x0_run(free, x, keys, none) - wanted).max() > 0.1
    # The last step of these leads to the last x0 itself.
    sampler = SAMPLERS[name]
    if not (sampler.end == "first" or sampler.inverse or name in ("lms", "plms", "pndm")):
        assert np.abs(found).max() < 0.4 + 1e-4


def test_clipping_and_dynamic_thresholding():
    x, keys = start([0, 1])
    loose = lambda x, t: 3 * network(WEIGHT, x, t)  # noqa: E731

    def x0s(limits):
        plan = plan_of(6, 6, limits=limits)
        return sample(loose, plan, x, keys, prediction="v", trajectory=True)[1].x0

    free = x0s(Limits())
    assert np.abs(free).max() > 1.5
    first = np.clip(free[0], -0.5, 0.5)
    np.testing.assert_allclose(x0s(Limits(0.5))[0], first)
    found = x0s(Limits(quantile=0.8, most=1.5))
    size = np.quantile(np.abs(free[0].reshape(2, -1)), 0.8, axis=1)
    size = np.clip(size, 1, 1.5)[:, None, None, None]
    np.testing.assert_allclose(found[0], np.clip(free[0], -size, size) / size, rtol=1e-5)


def test_eps_follows_the_limited_data_unless_it_is_left_alone():
    x, keys = start([0])
    for agree in (1.0, 0.0):
        plan = plan_of(4, 4, limits=Limits(0.3, agree=agree))
        _, path = run(WEIGHT, plan, x, keys)
        assert np.abs(path.x0).max() < 0.3 + 1e-6
        for k in range(4):
            alpha, sigma, t = (values[k] for values in plan.calls[1:3] + plan.calls[:1])
            _, said = split(network(WEIGHT, path.x[k], t[None]), path.x[k], alpha, sigma, "v")
            agreeing = (path.x[k] - alpha * path.x0[k]) / sigma
            np.testing.assert_allclose(path.eps[k], agreeing if agree else said, atol=1e-5)
            assert np.abs(agreeing - said).max() > 1e-2


def test_limits_stay_finite_where_there_is_no_noise():
    # The inverse from an image itself: eps is free there, and its gradient finite.
    x, keys = start([0])
    plan = sampling_plan(SD_SCHEDULE, 4, sampler="ddim inverse", end="data", limits=Limits(0.5))
    assert plan.calls.sigma[0] == 0

    def loss(x):
        return sample(lambda x, t: network(WEIGHT, x, t), plan, x, keys, prediction="v")[0].sum()

    value, slope = jax.value_and_grad(loss)(x)
    assert np.isfinite(value) and np.isfinite(slope).all()


# Guidance and gradients


def guided_run(x, scale, plan, keys, remat=False, trajectory=False):
    def denoise(x, t):
        both = jnp.concatenate([network(0.5 * WEIGHT, x, t), network(WEIGHT, x, t)])
        return guide_doubled(both, scale), tuple(jnp.split(both, 2))

    return sample(denoise, plan, x, keys, prediction="v", remat=remat, trajectory=trajectory)


def test_the_trajectory_has_both_branches_of_guidance():
    x, keys = start([0, 1])
    plan = plan_of(4, 4)
    _, path = guided_run(x, jnp.float32(3.0), plan, keys, trajectory=True)
    without, with_text = path.branches
    np.testing.assert_allclose(path.eps, without + 3 * (with_text - without), atol=2e-5)
    t = jnp.full(2, plan.calls.timestep[0])
    output = network(WEIGHT, x, t)
    _, eps = split(output, x, plan.calls.alpha[0], plan.calls.sigma[0], "v")
    np.testing.assert_allclose(with_text[0], eps, atol=1e-5)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 1.0), ("unipc", 0.0)])
def test_gradients_agree_with_finite_differences(sampler, eta):
    x, keys = start([0, 1])
    plan = plan_of(4, 12, sampler, eta)  # with padding, whose gradient must not be NaN

    @jax.jit(static_argnames="remat")
    def loss(x, scale, remat=False):
        return jnp.mean(guided_run(x, scale, plan, keys, remat)[0] ** 2)

    scale = jnp.float32(2.0)
    gradients = jax.grad(loss, (0, 1))(x, scale)
    again = jax.grad(lambda x, scale: loss(x, scale, remat=True), (0, 1))(x, scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradients, again)
    direction = jax.random.normal(jax.random.key(1), x.shape)
    h = 1e-2
    slope = (loss(x + h * direction, scale) - loss(x - h * direction, scale)) / (2 * h)
    assert jnp.vdot(gradients[0], direction).item() == pytest.approx(slope.item(), rel=1e-2)
    slope = (loss(x, scale + h) - loss(x, scale - h)) / (2 * h)
    assert gradients[1].item() == pytest.approx(slope.item(), rel=1e-2)


def test_a_run_begins_with_noise_or_with_an_image():
    x, _ = start([0])
    image = jnp.full_like(x, 3.0)
    plan = sampling_plan(SD_SCHEDULE, 10, strength=0.5)
    alpha, sigma = plan.calls.alpha[0], plan.calls.sigma[0]
    np.testing.assert_allclose(begin(plan, x, image), alpha * image + sigma * x, rtol=1e-6)
    np.testing.assert_array_equal(begin(sampling_plan(SD_SCHEDULE, 10), x), x)
