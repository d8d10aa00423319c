import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import Schedule
from sdjax.diffusion.likelihood import (
    PIXEL_BIN,
    bits_per_dim,
    dequantize,
    likelihood_path,
    log_likelihood,
)
from sdjax.diffusion.loop import image_keys

SCHEDULE = Schedule("scaled_linear", prediction="v")
SHAPE = (2, 3, 2)
SIZE = 12
RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=SIZE) * 0.5
FACTOR = np.tril(RNG.normal(size=(SIZE, SIZE)) * 0.15, -1) + np.diag(RNG.uniform(0.3, 0.8, SIZE))
COVARIANCE = FACTOR @ FACTOR.T


def levels_of(path):
    """(alpha, sigma) of a time, for a denoiser that only knows timesteps."""
    times, first = np.unique(path.timestep, return_index=True)
    alpha, sigma = np.ravel(path.alpha)[first], np.ravel(path.sigma)[first]

    def lookup(timesteps):
        index = jnp.searchsorted(jnp.asarray(times), timesteps[0])
        return jnp.asarray(alpha)[index], jnp.asarray(sigma)[index]

    return lookup


def gaussian_denoiser(path, prediction):
    """The best prediction for data N(MEAN, COVARIANCE)."""
    variances, axes = np.linalg.eigh(COVARIANCE)
    variances, axes, mean = (jnp.asarray(a, jnp.float32) for a in (variances, axes, MEAN))
    lookup = levels_of(path)

    def denoise(x, timesteps):
        alpha, sigma = lookup(timesteps)
        offset = (x.reshape(len(x), SIZE) - alpha * mean) @ axes
        eps = (sigma * offset / (alpha**2 * variances + sigma**2)) @ axes.T
        eps = eps.reshape(x.shape)
        if prediction == "eps":
            return eps
        return (eps - sigma * x) / alpha  # v = a eps - s x0

    return denoise


def gaussian_data(count):
    return (MEAN + np.random.default_rng(1).normal(size=(count, SIZE)) @ FACTOR.T).astype("float32")


def gaussian_nats(data, noise=0.0):
    factor = np.linalg.cholesky(COVARIANCE + noise**2 * np.eye(SIZE))
    offset = np.linalg.solve(factor, (data - MEAN).T)
    log_volume = np.log(np.diag(factor)).sum()
    return -(offset**2).sum(0) / 2 - SIZE / 2 * np.log(2 * np.pi) - log_volume


# From almost no noise to almost no data, so that both ends are exact to 1e-4.
WIDE = Schedule("scaled_linear", beta_start=1e-6, beta_end=0.04)


def evaluate(make_denoiser, steps, data, prediction="eps", keys=None, least=None, **options):
    path = likelihood_path(WIDE, steps, least)
    denoise = make_denoiser(path, prediction)

    def run(path, x, keys):
        return log_likelihood(denoise, path, x, prediction=prediction, keys=keys, **options)

    return jax.jit(run)(path, data, keys)


def test_the_steps_of_a_path():
    path = likelihood_path(SCHEDULE, 7)
    spread = np.asarray(path.sigma / path.alpha)
    np.testing.assert_array_equal(spread[1:, 0], spread[:-1, 2])
    # The ends of Stable Diffusion's schedule, evenly spaced in the logarithm between them.
    assert spread[0, 0] == pytest.approx(0.02917, rel=1e-3)
    assert spread[-1, -1] == pytest.approx(14.6146, rel=1e-4)
    np.testing.assert_allclose(np.diff(np.log(spread)), path.length[0] / 2, rtol=1e-4)
    assert path.timestep[0, 0] == 0 and path.timestep[-1, -1] == 999
    narrow = likelihood_path(SCHEDULE, 7, least=0.1, most=10.0)
    np.testing.assert_allclose(
        (narrow.sigma / narrow.alpha)[[0, -1], [0, -1]], [0.1, 10], rtol=1e-5
    )


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_bits_of_a_gaussian(prediction):
    data = gaussian_data(50)
    found = evaluate(gaussian_denoiser, 20, data.reshape(-1, *SHAPE), prediction)
    assert not found.error.any()
    bits = -gaussian_nats(data) / SIZE / np.log(2)
    np.testing.assert_allclose(bits_per_dim(found.nats, SIZE, bin_width=1.0), bits, atol=1e-3)
    np.testing.assert_allclose(bits_per_dim(found.nats, SIZE), bits + 7, atol=1e-3)
    # The path keeps each point's place in the distribution: its distance from the mean.
    distances = (np.linalg.solve(FACTOR, (data - MEAN).T) ** 2).sum(0)
    codes = np.asarray(found.code).reshape(-1, SIZE)
    np.testing.assert_allclose((codes**2).sum(1), distances, rtol=0.05)


def test_a_path_gives_the_density_with_its_least_noise():
    data = gaussian_data(20)
    found = evaluate(gaussian_denoiser, 20, data.reshape(-1, *SHAPE), least=0.5)
    np.testing.assert_allclose(found.nats, gaussian_nats(data, noise=0.5), atol=0.01)
    assert np.abs(found.nats - gaussian_nats(data)).min() > 0.1


def test_the_density_of_a_mixture():
    # Three clusters in the plane, with the noise's own spread added to each.
    centres = jnp.array([[-1.0, 0.2], [0.8, 0.9], [0.3, -1.1]])
    spreads, weights = jnp.array([0.3, 0.2, 0.5]), jnp.array([0.5, 0.3, 0.2])

    def log_density(x, alpha, sigma):
        variance = (alpha * spreads) ** 2 + sigma**2
        squares = ((x - alpha * centres) ** 2).sum(-1)
        logs = jnp.log(weights) - squares / (2 * variance) - jnp.log(2 * jnp.pi * variance)
        return jax.scipy.special.logsumexp(logs)

    def make_denoiser(path, prediction):
        lookup = levels_of(path)

        def denoise(x, timesteps):
            alpha, sigma = lookup(timesteps)
            score = jax.vmap(jax.grad(log_density), (0, None, None))(x[:, 0, 0], alpha, sigma)
            return -sigma * score[:, None, None]

        return denoise

    grid = jnp.linspace(-2, 2, 9)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    wanted = np.array([log_density(x, 1.0, 1e-3) for x in points])
    found, coarse, coarser = (
        np.asarray(evaluate(make_denoiser, steps, points[:, None, None]).nats)
        for steps in (64, 32, 16)
    )
    np.testing.assert_allclose(found, wanted, atol=5e-3)
    total = jnp.exp(found).sum() * 0.25  # 0.5 between the points of the grid
    assert total == pytest.approx(float(jnp.exp(wanted).sum() * 0.25), rel=1e-3)
    # Order 4: half the steps, about 16 times the error.
    errors = [np.abs(nats - found).mean() for nats in (coarser, coarse)]
    assert errors[0] / errors[1] > 8


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_the_estimate_is_unbiased_within_its_error(noise):
    data = gaussian_data(1).repeat(300, 0).reshape(-1, *SHAPE)
    exact = evaluate(gaussian_denoiser, 10, data[:1])
    found = evaluate(
        gaussian_denoiser, 10, data, keys=image_keys(jnp.arange(300)), probes=24, noise=noise
    )
    deviations = (found.nats - exact.nats) / found.error
    assert found.error.min() > 1e-3
    assert abs(deviations.mean()) < 4 / 300**0.5
    assert 0.85 < deviations.std() < 1.25
    np.testing.assert_allclose(found.code, np.repeat(exact.code, 300, 0), atol=1e-5)


def test_an_estimate_does_not_depend_on_the_batch():
    data = gaussian_data(3).reshape(-1, *SHAPE)
    keys = image_keys(jnp.arange(3))
    together = evaluate(gaussian_denoiser, 5, data, keys=keys, probes=2)
    alone = evaluate(gaussian_denoiser, 5, data[1:2], keys=keys[1:2], probes=2)
    np.testing.assert_allclose(alone.nats[0], together.nats[1], rtol=1e-5)
    assert np.isnan(evaluate(gaussian_denoiser, 5, data, keys=keys).error).all()


def test_pixels_fill_their_bins():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(40, 0)
    filled = np.asarray(dequantize(jnp.asarray(pixels), image_keys(jnp.arange(40))))
    assert filled.min() >= -1 and filled.max() < 1
    np.testing.assert_array_equal(np.floor((filled + 1) / PIXEL_BIN), pixels)
    assert abs(filled.mean()) < 1e-3 and not np.allclose(filled[0], filled[1], atol=1e-4)
    # All pictures equally likely: the density is 1/2 for each number, and a pixel takes 8 bits.
    assert bits_per_dim(jnp.float32(-256 * np.log(2)), 256) == pytest.approx(8)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        likelihood_path(SCHEDULE, 0)
    with pytest.raises(ValueError, match="least noise 20"):
        likelihood_path(SCHEDULE, 5, least=20.0)
    with pytest.raises(ValueError, match="the least noise must be above 0, got 0.0"):
        likelihood_path(SCHEDULE, 5, least=0.0)
    path, x, keys = likelihood_path(SCHEDULE, 5), jnp.zeros((1, *SHAPE)), image_keys(jnp.arange(1))
    estimate = partial(inspect.unwrap(log_likelihood), None, path, x, prediction="v", keys=keys)
    with pytest.raises(ValueError, match="unknown noise 'uniform': choose rademacher or gaussian"):
        estimate(noise="uniform")
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        estimate(probes=0)
