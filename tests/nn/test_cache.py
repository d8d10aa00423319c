"""Attention that remembers keys and values: a sequence in pieces is the sequence as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn.attention import Cache, dot_product_attention
from sdjax.nn.functional import apply, init_params
from sdjax.nn.transformer import TransformerBlock

BLOCK = TransformerBlock(
    heads=2,
    head_dim=4,
    mlp_dim=16,
    feed_forward="gelu",
    attention_bias=True,
    epsilon=1e-5,
    causal=True,
    dropout=0.5,
)
X = jax.random.normal(jax.random.key(0), (2, 7, 8))
PARAMS = init_params(BLOCK, jax.random.key(1), X)
MASK = jnp.array([[True] * 7, [True, True, False, False, True, True, True]])


@pytest.mark.parametrize("cuts", [(7,), (3, 4), (1, 1, 5), (1,) * 7])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "padding"])
def test_pieces_are_the_whole(cuts, mask):
    room = jnp.zeros((2, 7, 2, 4))
    cache, pieces, first = Cache(room, room, jnp.zeros((), jnp.int32)), [], 0
    for length in cuts:
        piece = X[:, first : first + length]
        out, cache = apply(BLOCK, PARAMS, piece, cache, mask, method="extend")
        pieces.append(out)
        first += length
    assert int(cache.used) == 7
    whole = apply(BLOCK, PARAMS, X, None, mask)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-6)


def test_queries_in_blocks_know_where_they_start(monkeypatch):
    query, key, value = jax.random.normal(jax.random.key(2), (3, 1, 12, 1, 4))
    whole = dot_product_attention(query, key, value, causal=True)
    monkeypatch.setattr("sdjax.nn.attention.MAX_SCORES", 1)
    monkeypatch.setattr("sdjax.nn.attention.QUERY_BLOCK", 3)
    late = dot_product_attention(query[:, 5:], key, value, causal=True, start=5)
    np.testing.assert_allclose(late, whole[:, 5:], atol=1e-6)


def test_dropout_drops_where_a_key_is_given():
    plain = apply(BLOCK, PARAMS, X)
    np.testing.assert_array_equal(apply(BLOCK, PARAMS, X), plain)
    one, two = (apply(BLOCK, PARAMS, X, dropout=jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(one - plain).max() > 0.1 and np.abs(one - two).max() > 0.1
