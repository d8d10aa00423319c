"""The autoencoder in tiles: weights, exactness where there is one, error and memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from sdjax.image.tiling import LEAST_TILE, blend, tiled
from sdjax.pipelines import stages

PARAMS = tiny.autoencoder_params(tiny.AUTOENCODER)


@pytest.mark.parametrize(("side", "tile"), [(9, 8), (16, 8), (64, 16), (33, 10), (20, 20)])
@pytest.mark.parametrize("unit", [1, 8])
def test_weights_sum_to_one(side, tile, unit):
    starts, weights = blend(side, tile, unit)
    assert starts[0] == 0 and starts[-1] == side - tile
    assert weights.shape == (len(starts), tile * unit)
    total = np.zeros(side * unit)
    for start, row in zip(starts, weights, strict=True):
        total[start * unit :][: tile * unit] += row
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert weights.min() >= 0
    if len(starts) > 1:  # a seam is faded out, the border of the image is not
        assert weights[0, 0] == weights[-1, -1] == 1
        assert weights[0, -1] <= 0.5 and weights[1, 0] <= 0.5


def test_a_function_of_each_position_is_exact():
    x = jax.random.normal(jax.random.key(0), (2, 21, 8, 3))
    double = lambda x: jnp.repeat(jnp.repeat(jnp.tanh(x), 2, 1), 2, 2)  # noqa: E731
    np.testing.assert_allclose(tiled(double, x, 8, (1, 2)), double(x), atol=1e-6)
    half = lambda x: x[:, ::2, ::2]  # noqa: E731
    np.testing.assert_allclose(tiled(half, double(x), 8, (2, 1)), jnp.tanh(x), atol=1e-6)


def test_one_tile_is_exact():
    z = jax.random.normal(jax.random.key(0), (1, 8, 6, 4))
    whole = stages.decode_float(tiny.AUTOENCODER, PARAMS, z)
    np.testing.assert_array_equal(stages.decode_float(tiny.AUTOENCODER, PARAMS, z, 8), whole)
    image = jnp.tanh(whole)
    posterior = stages.encode(tiny.AUTOENCODER, PARAMS, image)
    np.testing.assert_array_equal(stages.encode(tiny.AUTOENCODER, PARAMS, image, 8), posterior)


def test_tiles_are_close_and_have_no_seams():
    z = jax.random.normal(jax.random.key(0), (1, 64, 64, 4))
    whole = stages.decode_float(tiny.AUTOENCODER, PARAMS, z)
    tiles = stages.decode_float(tiny.AUTOENCODER, PARAMS, z, 32)
    error = np.asarray(tiles - whole)
    assert np.sqrt((error**2).mean()) < 0.2 * np.asarray(whole).std()
    # The error is a slow change of shade: not larger between neighbours at a seam than elsewhere.
    steps = np.abs(np.diff(error, axis=1)).mean((0, 2, 3))
    starts, _ = blend(64, 32, 2)
    seams = [s * 2 - 1 for s in starts[1:]] + [(s + 32) * 2 - 1 for s in starts[:-1]]
    assert steps[seams].max() < 2 * steps.max()


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_memory_is_that_of_one_tile(way):
    def temporaries(side, tile):
        if way == "decode":
            run = partial(stages.decode_float, tiny.AUTOENCODER, PARAMS, tile=tile)
            shape = (1, side, side, 4)
        else:
            run = partial(stages.encode, tiny.AUTOENCODER, PARAMS, tile=tile)
            shape = (1, 2 * side, 2 * side, 3)
        lowered = jax.jit(run).lower(jax.ShapeDtypeStruct(shape, jnp.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    result = 64 * 64 * 4 * 3 * 4  # of the decoder, which may be kept twice
    one = temporaries(16, LEAST_TILE)
    assert temporaries(64, None) > 4 * one
    assert temporaries(64, LEAST_TILE) < one + 2 * result
