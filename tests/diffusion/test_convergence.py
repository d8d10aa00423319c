"""Every sampler against a mixture of Gaussians: its order, or the mean and covariance it draws."""

import math

import jax
import jax.numpy as jnp
import mixture
import numpy as np
import pytest
from mixture import EVEN, even, graded

from sdjax.diffusion import solvers
from sdjax.diffusion.limits import NO_LIMITS
from sdjax.diffusion.loop import begin, image_keys, initial_noise, sample
from sdjax.diffusion.samplers import SAMPLERS, sampling_plan
from sdjax.diffusion.solvers import Level
from sdjax.diffusion.times import Levels
from sdjax.presets import SD_SCHEDULE

# Orders: the ODE of the mixture is solved exactly


def error(build, levels: list[Level]) -> float:
    """The largest, of points over the whole range."""
    x = np.linspace(-2, 2, 9)
    calls = build(levels)
    first, last = levels[0], levels[-1]
    if calls[0].level.sigma == last.sigma:  # the inverse
        first, last = last, first
    wanted = mixture.carried(x, first, last)
    return np.abs(mixture.run(calls, x) - wanted).max()


def slopes(build, levels, counts) -> list[float]:
    errors = [error(build, levels(count)) for count in counts]
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


DETERMINISTIC = [name for name, sampler in SAMPLERS.items() if sampler.order is not None]
EVEN_ONLY = ("plms", "pndm")  # their weights are those of even steps


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_sampler_has_its_order(name):
    sampler = SAMPLERS[name]

    def build(levels):
        if name == "pndm":
            middles = [EVEN.at_time((k + 0.5) / (len(levels) - 1)) for k in range(3)]
            return solvers.pndm(levels, middles)
        return sampler.build(levels, EVEN, 0.0)

    levels = even if name in EVEN_ONLY else graded
    found = slopes(build, levels, (64, 128, 256))
    assert found == pytest.approx([sampler.order] * 2, abs=0.25)


def test_a_third_order_is_third_with_the_whole_second_difference():
    for algorithm in ("dpm++", "dpm"):
        for published, order in ((True, 2), (False, 3)):
            found = slopes(
                lambda levels, a=algorithm, p=published: solvers.dpm_multistep(
                    levels, 3, a, published=p
                ),
                graded,
                (64, 128, 256),
            )
            assert found == pytest.approx([order] * 2, abs=0.25)


@pytest.mark.parametrize("correction", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpm++", "dpm"])
def test_both_corrections_have_order_two(algorithm, correction):
    found = slopes(
        lambda levels: solvers.dpm_multistep(levels, 2, algorithm, correction=correction),
        even,
        (64, 128, 256),
    )
    assert found == pytest.approx([2, 2], abs=0.15)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("order", [1, 2])
def test_unipc_gains_an_order_by_correction(order, predict, variant):
    found = slopes(
        lambda levels: solvers.unipc(levels, order, variant=variant, predict=predict),
        graded,
        (64, 128, 256),
    )
    assert found == pytest.approx([order + 1] * 2, abs=0.15)


# Mean and covariance of samplers that draw noise

STOCHASTIC = [(name, 0.0) for name, sampler in SAMPLERS.items() if sampler.order is None]
STOCHASTIC += [("ddim", 0.5), ("ddim", 1.0), ("euler", 0.3), ("heun", 0.3)]
LOG_SPREAD = jnp.asarray(Levels(SD_SCHEDULE).log_spread, jnp.float32)


@jax.jit
def drawn(plan, keys):
    def best(x, timesteps):
        spread = jnp.exp(jnp.interp(timesteps[0], jnp.arange(1000.0), LOG_SPREAD))
        return mixture.best_eps_2d(x, spread)

    x = begin(plan, initial_noise(keys, (1, 1, 2)))
    return sample(best, plan, x, keys, prediction="eps")[0]


@jax.jit
def drawn_learned(plan, keys):
    def best(x, timesteps):
        spread = jnp.exp(jnp.interp(timesteps[0], jnp.arange(1000.0), LOG_SPREAD))
        half_way = jnp.zeros_like(x)  # between the ends of the variance
        return jnp.concatenate([mixture.best_eps_2d(x, spread), half_way], -1)

    x = begin(plan, initial_noise(keys, (1, 1, 2)))
    return sample(best, plan, x, keys, prediction="eps")[0]


@pytest.mark.parametrize(("name", "eta"), STOCHASTIC)
def test_a_stochastic_sampler_draws_the_right_mean_and_covariance(name, eta):
    sampler = SAMPLERS[name]
    steps = 200 // sampler.calls
    spacing = "trailing" if sampler.convention == "ddim" else "linspace"
    plan = sampling_plan(
        SD_SCHEDULE,
        steps,
        200,
        sampler=name,
        spacing=spacing,
        end="data",
        limits=NO_LIMITS,
        eta=eta,
    )
    draw = drawn_learned if sampler.learned else drawn
    points = np.asarray(draw(plan, image_keys(jnp.arange(8192))))[:, 0, 0]
    mean, covariance = mixture.moments()
    np.testing.assert_allclose(points.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(points.T), covariance, atol=0.03)
