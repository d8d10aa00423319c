"""The autoregressive prior: causal, and with its memory the same as without."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_priors as priors

from sdjax.denoisers.autoregressive import AutoregressivePrior
from sdjax.nn.functional import apply

MODEL, PARAMS = priors.CODES, priors.CODES_PARAMS
NETWORK = AutoregressivePrior(MODEL)
TOKENS = jax.random.randint(jax.random.key(1), (3, MODEL.codes), 0, MODEL.buckets)


def whole(text, tokens=TOKENS):
    return apply(NETWORK, PARAMS, *text, tokens)


def test_with_memory_the_logits_are_those_of_the_whole_sequence():
    text = priors.text()
    logits, memory = apply(NETWORK, PARAMS, *text, method="begin")
    steps = [logits]
    step = jax.jit(lambda token, memory: apply(NETWORK, PARAMS, token, memory, method="step"))
    for token in TOKENS.T:
        logits, memory = step(token, memory)
        steps.append(logits)
    assert int(memory.caches[0].used) == MODEL.positions
    np.testing.assert_allclose(np.stack(steps, axis=1), whole(text), atol=2e-6)


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
        ({"regression": 0}, r"regression 0 must be in \[1,"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(MODEL, **changes)
