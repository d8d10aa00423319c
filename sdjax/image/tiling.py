"""Large images through the autoencoder in tiles that overlap: its memory is that of one tile."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.shapes import FeatureMap

LEAST_TILE = 8
"""Latent pixels along a side."""
OVERLAP = 4
"""A tile shares at least a part in so many of its side with the next one."""


def tiled(
    run: Callable[[FeatureMap], FeatureMap],
    x: FeatureMap,
    tile: int,
    units: tuple[int, int],
) -> FeatureMap:
    """`run` on tiles of `x`, blended where they overlap; `run(x)` if one tile holds all of it.

    Not exact: a tile does not see what is outside of it, neither by convolutions at its border, of
    which blending leaves little, nor by the statistics of group norms and the attention, which are
    of the whole image otherwise. So every tile may have a shade of its own, and the blending makes
    it a gradient instead of a seam. The larger the tile, the smaller the difference.

    Beside `x` and the result the memory is that of `run` on one tile, whatever their size.

    Args:
        run: of maps; what it returns is `units[1] / units[0]` times as large.
        x: [batch, height, width, channels]; multiples of `units[0]`.
        tile: side in units; static.
        units: positions of x and of the result along the side of a unit, one latent pixel.
    """
    unit_in, unit_out = units
    sides = [side // unit_in for side in x.shape[1:3]]
    if max(sides) <= tile:
        return run(x)
    (rows, row_weights), (columns, column_weights) = (
        blend(side, min(tile, side), unit_out) for side in sides
    )
    height, width = (min(tile, side) for side in sides)
    grid = np.stack(np.meshgrid(np.arange(len(rows)), np.arange(len(columns)), indexing="ij"), -1)

    def cut(row: Array, column: Array) -> FeatureMap:
        start = (0, row * unit_in, column * unit_in, 0)
        size = (x.shape[0], height * unit_in, width * unit_in, x.shape[3])
        return jax.lax.dynamic_slice(x, start, size)

    def add(total: Array, index: Array) -> tuple[Array, None]:
        row, column = jnp.asarray(rows)[index[0]], jnp.asarray(columns)[index[1]]
        weights = (
            jnp.asarray(row_weights)[index[0]][:, None, None]
            * jnp.asarray(column_weights)[index[1]][None, :, None]
        )
        part = run(cut(row, column)) * weights
        start = (0, row * unit_out, column * unit_out, 0)
        before = jax.lax.dynamic_slice(total, start, part.shape)
        return jax.lax.dynamic_update_slice(total, before + part, start), None

    made = jax.eval_shape(lambda: run(cut(jnp.int32(0), jnp.int32(0))))
    out = (x.shape[0], sides[0] * unit_out, sides[1] * unit_out, made.shape[3])
    return jax.lax.scan(add, jnp.zeros(out, made.dtype), jnp.asarray(grid.reshape(-1, 2)))[0]


def blend(
    side: int, tile: int, unit: int
) -> tuple[np.ndarray, Float[np.ndarray, "tiles positions"]]:
    """Tiles along one side: where each begins, in units, and the weight of each of its positions.

    The tiles are spread evenly. A weight falls to the tile's border where another tile is behind
    it, linearly along the overlap; at each position of the side the weights sum to 1.

    Args:
        side: units to be covered.
        tile: units of one tile, at most `side`.
        unit: positions in a unit.
    """
    overlap = max(tile // OVERLAP, 1)
    count = 1 + -(-(side - tile) // (tile - overlap))
    starts = np.round(np.linspace(0, side - tile, count)).astype(np.int32)
    position = np.arange(tile * unit) + 0.5
    total = np.zeros(side * unit)
    weights = np.ones((count, tile * unit))
    for k, start in enumerate(starts):
        if k > 0:
            shared = (starts[k - 1] + tile - start) * unit
            weights[k] = np.minimum(weights[k], position / shared)
        if k < count - 1:
            shared = (start + tile - starts[k + 1]) * unit
            weights[k] = np.minimum(weights[k], position[::-1] / shared)
        total[start * unit : (start + tile) * unit] += weights[k]
    for k, start in enumerate(starts):
        weights[k] /= total[start * unit : (start + tile) * unit]
    return starts, weights.astype(np.float32)
