"""Token merging against the paper's steps in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.merging import MOST, Merging, match
from sdjax.nn.transformer import SpatialTransformer


def tokens(height, width, batch=2, dim=5, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, height * width, dim))


@pytest.mark.parametrize("share", [0.25, 0.5, MOST])
@pytest.mark.parametrize(("height", "width"), [(4, 6), (8, 8), (5, 7)])
def test_groups_are_those_of_the_paper(height, width, share):
    x = tokens(height, width)
    found = match(x, height, width, share)
    group = np.asarray(found.group)
    windows = -(-height // 2) * -(-width // 2)
    merged = min(int(share * height * width), height * width - windows)
    assert found.groups == height * width - merged
    for picture, groups in zip(np.asarray(x, np.float64), group, strict=True):
        assert set(groups) == set(range(found.groups))
        unit = picture / np.linalg.norm(picture, axis=1, keepdims=True)
        # The last groups are those of the destinations: one of each window.
        targets = [
            min(np.flatnonzero(groups == g), key=lambda i: i not in destinations(height, width))
            for g in range(found.groups - windows, found.groups)
        ]
        assert sorted(targets) == destinations(height, width)
        sources = [i for i in range(len(unit)) if i not in targets]
        best = {i: max(targets, key=lambda t: unit[i] @ unit[t]) for i in sources}
        order = sorted(sources, key=lambda i: -(unit[i] @ unit[best[i]]))
        for i in order[:merged]:
            assert groups[i] == groups[best[i]]
        for i in order[merged:]:
            assert (groups == groups[i]).sum() == 1


def destinations(height, width):
    from sdjax.nn.merging import _windows

    targets, sources = _windows(height, width)
    assert sorted([*targets, *sources]) == list(range(height * width))
    corners = {(t // width // 2, t % width // 2) for t in targets}
    assert len(corners) == len(targets) == -(-height // 2) * -(-width // 2)
    return targets.tolist()


def test_a_group_is_its_mean_and_comes_back_as_one():
    x = jnp.arange(8.0).reshape(1, 4, 2)
    merging = Merging(jnp.array([[1, 0, 1, 1]]), 2)
    merged = merging.merge(x)
    np.testing.assert_allclose(merged, [[[2, 3], [10 / 3, 13 / 3]]], rtol=1e-6)
    np.testing.assert_array_equal(merging.unmerge(merged)[0], merged[0][jnp.array([1, 0, 1, 1])])


def test_tokens_that_are_alike_lose_nothing():
    """Four kinds of tokens, and destinations of each: attention of equals is attention."""
    kinds = jax.random.normal(jax.random.key(1), (4, 32))
    pattern = np.repeat(np.repeat(np.arange(4).reshape(2, 2), 4, axis=0), 4, axis=1)
    x = kinds[pattern][None]
    plain = SpatialTransformer(2, 8, False)
    context = jax.random.normal(jax.random.key(2), (1, 3, 32))
    params = plain.init(jax.random.key(3), x, context)
    params = jax.tree.map(lambda p: p + 0.05, params)  # the last projection starts at zero
    wanted = plain.apply(params, x, context)
    # All groups of one kind merge evenly at the largest share: three sources to each destination,
    # on average. Attention without a weight for a group's size is close, not equal.
    found = SpatialTransformer(2, 8, False, merge=MOST).apply(params, x, context)
    np.testing.assert_allclose(found, wanted, atol=0.05)
    none = SpatialTransformer(2, 8, False, merge=0.0).apply(params, x, context)
    np.testing.assert_array_equal(none, wanted)


def test_a_map_of_one_token_has_nothing_to_merge():
    x = tokens(1, 1)
    merging = match(x, 1, 1, 0.5)
    np.testing.assert_array_equal(merging.unmerge(merging.merge(x)), x)
