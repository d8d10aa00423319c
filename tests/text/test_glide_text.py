from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import fill

from sdjax.config import GlideText as Config
from sdjax.nn.functional import apply
from sdjax.text.glide_text import GlideText
from sdjax.weights.glide import text_shapes

CONFIG = Config(vocab_size=40, context_length=6, dim=16, layers=2, heads=2, vector_dim=12)
PARAMS = fill(text_shapes(CONFIG))
TOKENS = jnp.array([[3, 5, 7, 9, 9, 9]])


def run(tokens, length):
    mask = jnp.arange(6)[None] < length
    return jax.jit(apply, static_argnums=0)(GlideText(CONFIG), PARAMS, tokens, mask)


def test_states_and_a_vector_for_the_unet():
    states, vector = run(TOKENS, 3)
    assert states.shape == (1, 6, 16) and vector.shape == (1, 12)
    assert states.dtype == vector.dtype == jnp.float32


def test_every_position_sees_every_other():
    before, after = run(TOKENS, 6), run(TOKENS.at[0, 5].set(1), 6)
    assert np.abs(before.states - after.states).max(-1).min() > 1e-3  # the first position too


def test_padding_has_embeddings_of_its_own():
    here, other = run(TOKENS, 3), run(TOKENS.at[0, 4].set(1), 3)
    np.testing.assert_array_equal(here.states, other.states)
    assert np.abs(run(TOKENS, 4).states - here.states).max() > 1e-3
    moved = {**PARAMS, "padding_embedding": PARAMS["padding_embedding"].at[4, 0].add(1)}
    mask = jnp.arange(6)[None] < 3
    assert np.abs(apply(GlideText(CONFIG), moved, TOKENS, mask).vector - here.vector).max() > 1e-3


def test_the_vector_is_made_of_the_last_position():
    states, vector = run(TOKENS, 6)
    project = PARAMS["vector"]
    wanted = states[:, -1] @ project["kernel"] + project["bias"]
    np.testing.assert_allclose(vector, wanted, atol=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim 16 is no multiple of heads 3"):
        replace(CONFIG, heads=3)
