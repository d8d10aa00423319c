"""Token merging: attention among fewer tokens (Bolya & Hoffman 2023, arXiv 2303.17604)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.shapes import Sequence

MOST = 0.75
"""The largest share that can be merged: one token of each 2 x 2 stays."""
ROWS = 512
"""Tokens compared with all others at once, so that the whole comparison is never stored."""


@dataclass(frozen=True)
class Merging:
    """Which tokens are one."""

    group: Int[Array, "batch tokens"]  # of each token, in [0, groups)
    groups: int

    def merge(self, x: Sequence) -> Float[Array, "batch groups dim"]:
        """The mean of each group."""

        def one(x: Array, group: Array) -> Array:
            total = jnp.zeros((self.groups, x.shape[-1]), jnp.float32).at[group].add(x)
            size = jnp.zeros((self.groups, 1), jnp.float32).at[group].add(1.0)
            return (total / size).astype(x.dtype)

        return jax.vmap(one)(x, self.group)

    def unmerge(self, y: Float[Array, "batch groups dim"]) -> Sequence:
        """Every token of a group becomes what the group became."""
        return jnp.take_along_axis(y, self.group[..., None], axis=1)


def match(x: Sequence, height: int, width: int, share: float) -> Merging:
    """Merge `share` of the tokens of a feature map into others that look alike.

    One token of each window of 2 x 2 is a destination, taken at random as in the paper, but always
    the same; the rest are sources. Each source has the destination of the largest cosine; the
    sources whose cosine is largest are merged into it, int(share tokens) of them or all there are.

    Args:
        x: [batch, height width, dim], row by row.
        height: of the map.
        width: of the map.
        share: static, 0 to `MOST`.
    """
    targets, sources = _windows(height, width)
    tokens = height * width
    merged = min(int(share * tokens), len(sources))
    kept = len(sources) - merged

    def one(x: Array) -> Array:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)
        onto = x[targets]

        def nearest(row: Array) -> tuple[Array, Array]:
            cosines = onto @ row
            return cosines.max(), cosines.argmax()

        cosine, target = jax.lax.map(nearest, x[sources], batch_size=ROWS)
        order = jnp.argsort(-cosine)
        gone, stay = order[:merged], order[merged:]
        group = jnp.zeros(tokens, jnp.int32)
        group = group.at[targets].set(kept + jnp.arange(len(targets)))
        group = group.at[jnp.asarray(sources)[stay]].set(jnp.arange(kept))
        return group.at[jnp.asarray(sources)[gone]].set(kept + target[gone])

    if not len(sources):
        return Merging(jnp.zeros((x.shape[0], tokens), jnp.int32), tokens)
    return Merging(jax.vmap(one)(jax.lax.stop_gradient(x)), kept + len(targets))


def _windows(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the destinations, one of each window of 2 x 2, and of the other tokens."""
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.arange(0, height, 2), np.arange(0, width, 2), indexing="ij")
    # At an odd border a window is cut, and its only row or column taken.
    rows = np.minimum(rows + rng.integers(0, 2, rows.shape), height - 1)
    columns = np.minimum(columns + rng.integers(0, 2, columns.shape), width - 1)
    targets = np.sort((rows * width + columns).ravel())
    return targets, np.setdiff1d(np.arange(height * width), targets)
