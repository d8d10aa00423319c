"""The diffusion prior: what its output depends on, and what it must not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
import tiny_priors as priors

from sdjax import config
from sdjax.denoisers.prior import DiffusionPrior
from sdjax.nn.functional import apply
from sdjax.weights.karlo_prior import prior_shapes

MODEL, PARAMS = priors.DIFFUSION, priors.DIFFUSION_PARAMS
NOISED, TIME = jnp.asarray(priors.unit_rows(5, 3)), jnp.array([0.0, 400.0, 999.0])


def run(text, noised=NOISED, time=TIME, params=PARAMS, model=MODEL, **options):
    return apply(DiffusionPrior(model), params, noised, time, *text, **options)


def test_every_input_is_heard_row_by_row():
    text = priors.text()
    plain = run(text)
    changed = [
        run(text._replace(embedding=text.embedding.at[0].add(1.0))),
        run(text._replace(states=text.states.at[0, 4].add(1.0))),
        run(text, noised=NOISED.at[0].add(1.0)),
        run(text, time=TIME.at[0].add(50.0)),
    ]
    for other in changed:
        assert np.abs(other[0] - plain[0]).max() > 1e-3
        np.testing.assert_allclose(other[1:], plain[1:], atol=1e-6)


def test_padding_is_not_seen():
    text = priors.text()
    other = text.states.at[1, 3:].set(7.0).at[2, 1:].set(-7.0)
    np.testing.assert_allclose(run(text._replace(states=other)), run(text), atol=1e-6)


def test_dropout_only_where_a_key_is_given():
    model = replace(MODEL, dropout=0.5)
    text = priors.text()
    np.testing.assert_array_equal(run(text, model=model), run(text))
    dropped = run(text, model=model, dropout=jax.random.key(0))
    assert np.abs(dropped - run(text)).max() > 1e-2


def test_token_ids_through_a_table_of_its_own():
    model = replace(MODEL, text_dim=None, vocab_size=7)
    params = tiny.fill(prior_shapes(model))
    ids = jnp.array([[1, 2, 3, 4, 5], [1, 6, 2, 0, 0], [3, 0, 0, 0, 0]])
    text = priors.text()._replace(states=ids)
    assert run(text, params=params, model=model).shape == (3, 12)
    other = run(text._replace(states=ids.at[0, 0].set(6)), params=params, model=model)
    assert np.abs(other - run(text, params=params, model=model))[0].max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 7}, "text_dim 10 or vocab_size 7, one of them"),
        ({"text_dim": None}, "one of them, says what it reads"),
        ({"dim": 15, "heads": 3}, "dim 15 must be even"),
        ({"heads": 3}, "dim 16 does not split into 3 heads"),
        ({"scale": 0.0}, "scale 0.0 must be above 0"),
        ({"schedule": config.Schedule("cosine")}, "it predicts x0, not 'eps'"),
        ({"dropout": 1.0}, r"dropout 1.0 must be in \[0, 1\)"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(MODEL, **changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text._replace(states=text.states[:, :3], mask=text.mask[:, :3]),
        lambda text: text._replace(states=text.states[..., :2]),
        lambda text: text._replace(mask=text.mask[:, :3]),
    ],
)
def test_texts_of_other_sizes_are_refused(change):
    with pytest.raises(ValueError, match="this prior reads texts of .*use the tokenizer"):
        run(change(priors.text()))
