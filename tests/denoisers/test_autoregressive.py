"""The autoregressive prior: causal, and with its memory the same as without."""

from dataclasses import replace
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
import tiny_priors as priors

from sdjax.denoisers.autoregressive import AutoregressivePrior, TextSkip
from sdjax.denoisers.prior import repeat
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


def test_a_text_skip_is_a_perceptron_of_the_standardised_text_embedding():
    texts, skip = jnp.asarray(priors.unit_rows(2, 3)), SKIPS_PARAMS["skip"]
    x = (np.array(texts) - skip["mean"]) @ skip["whitening"]
    hidden = jax.nn.gelu(x @ skip["hidden"]["kernel"] + skip["hidden"]["bias"], approximate=False)
    wanted = 4 / 7**0.5 * hidden @ skip["out"]["kernel"] + skip["out"]["bias"]
    np.testing.assert_allclose(apply(TextSkip(7, MODEL.codes), skip, texts), wanted, atol=1e-5)


def test_a_fresh_text_skip_says_nothing_and_its_statistics_do_not_learn():
    skip, texts = TextSkip(7, 3), jnp.asarray(priors.unit_rows(2, 4))
    params = skip.init(jax.random.key(0), texts)["params"]
    np.testing.assert_array_equal(apply(skip, params, texts), np.zeros((4, 3)))
    params = jax.tree.map(lambda p: p + 0.1, params)
    slopes = jax.grad(lambda p: jnp.sum(apply(skip, p, texts)))(params)
    for name in ("mean", "whitening"):
        np.testing.assert_array_equal(slopes[name], 0)
    assert np.abs(slopes["hidden"]["kernel"]).max() > 1e-3


def test_continuations_of_one_text_are_all_told_its_skip():
    text, network = priors.text(), AutoregressivePrior(SKIPS)
    memory = repeat(apply(network, SKIPS_PARAMS, *text, method="begin")[1], 2)
    rows = np.array([0, 0, 1, 1, 2, 2])
    logits, _ = apply(network, SKIPS_PARAMS, TOKENS[rows, 0], memory, method="step")
    wanted = whole(text, model=SKIPS, params=SKIPS_PARAMS)[rows, 1]
    np.testing.assert_allclose(logits, wanted, atol=2e-6)


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
        ({"text_skip": 0}, r"text_skip 0 must be in \[1,"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(MODEL, **changes)
