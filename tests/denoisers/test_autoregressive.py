"""The autoregressive prior: causal, and with its memory the same as without."""

from dataclasses import replace
from statistics import NormalDist

import jax
import numpy as np
import pytest
import tiny_models as tiny
import tiny_priors as priors

from sdjax.denoisers.autoregressive import AutoregressivePrior
from sdjax.denoisers.prior import TextSkip
from sdjax.nn.functional import apply
from sdjax.weights.karlo_prior import autoregressive_shapes

MODEL, PARAMS = priors.CODES, priors.CODES_PARAMS
NETWORK = AutoregressivePrior(MODEL)
TOKENS = jax.random.randint(jax.random.key(1), (3, MODEL.codes), 0, MODEL.buckets)


SKIPS = replace(MODEL, text_skip=7)
SKIPS_PARAMS = PARAMS | {"skip": tiny.fill(autoregressive_shapes(SKIPS), 5)["skip"]}


def whole(text, tokens=TOKENS, model=MODEL, params=PARAMS):
    return apply(AutoregressivePrior(model), params, *text, tokens)


@pytest.mark.parametrize(("model", "params"), [(MODEL, PARAMS), (SKIPS, SKIPS_PARAMS)])
def test_with_memory_the_logits_are_those_of_the_whole_sequence(model, params):
    text, network = priors.text(), AutoregressivePrior(model)
    logits, memory = apply(network, params, *text, method="begin")
    steps = [logits]
    step = jax.jit(lambda token, memory: apply(network, params, token, memory, method="step"))
    for token in TOKENS.T:
        logits, memory = step(token, memory)
        steps.append(logits)
    assert int(memory.caches[0].used) == MODEL.positions
    wanted = whole(text, model=model, params=params)
    np.testing.assert_allclose(np.stack(steps, axis=1), wanted, atol=2e-6)


def test_a_text_skip_tilts_the_logits_of_each_code_along_its_buckets():
    """As the middles of equally likely parts of a normal value go, and as many times as parts."""
    text = priors.text()
    skip = TextSkip(7, MODEL.codes)
    values = apply(skip, SKIPS_PARAMS["skip"], MODEL.embedding_dim**0.5 * text.embedding)
    tilt = whole(text, model=SKIPS, params=SKIPS_PARAMS) - whole(text)
    np.testing.assert_allclose(tilt[:, 0], 0, atol=1e-6)  # the dot product's token has none
    normal = NormalDist()
    along = [normal.inv_cdf((b + 0.5) / MODEL.buckets) for b in range(MODEL.buckets)]
    assert np.abs(values).max() > 0.1
    wanted = MODEL.buckets * values[..., None] * np.array(along)
    np.testing.assert_allclose(tilt[:, 1:], wanted, atol=1e-5)


def test_a_step_costs_the_same_wherever_it_is():
    text = priors.text()
    _, memory = apply(NETWORK, PARAMS, *text, method="begin")
    step = jax.jit(lambda token, memory: apply(NETWORK, PARAMS, token, memory, method="step"))
    for token in TOKENS.T:
        _, memory = step(token, memory)
    assert step._cache_size() == 1  # one program for all: no shape grows


@pytest.mark.parametrize("place", range(MODEL.codes))
def test_a_code_changes_only_what_comes_after_it(place):
    text = priors.text()
    other = TOKENS.at[:, place].set((TOKENS[:, place] + 1) % MODEL.buckets)
    change = np.abs(whole(text, other) - whole(text)).max((0, 2))
    assert (change[: place + 1] < 1e-6).all()
    assert (change[place + 1 :] > 1e-4).all()


def test_padding_is_not_seen_and_the_text_is():
    text = priors.text()
    padding = text.states.at[1, 3:].set(7.0)
    np.testing.assert_allclose(whole(text._replace(states=padding)), whole(text), atol=1e-6)
    for other in (
        text._replace(states=text.states.at[:, 0].add(1.0)),
        text._replace(embedding=-text.embedding),
    ):
        assert (np.abs(whole(other) - whole(text)).max((1, 2)) > 1e-3).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codes": 13}, "13 codes of an embedding of 12"),
        ({"buckets": 7}, "7 buckets have no top half"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(MODEL, **changes)
