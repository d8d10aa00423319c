"""Sampling both priors: reproducible, one key per text, guidance, the best of several."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
import tiny_priors as priors

from sdjax.denoisers.autoregressive import AutoregressivePrior
from sdjax.diffusion.loop import image_keys
from sdjax.image.codes import decode, draw_dot
from sdjax.image.regression import guess, log_chances
from sdjax.nn.functional import apply
from sdjax.pipelines import priors as pipeline
from sdjax.pipelines.priors import CodeSampler, Defaults, DiffusionSampler, Errors, Statistics

DEFAULTS = Defaults(candidates=1, steps=3)
DIFFUSION = DiffusionSampler(priors.DIFFUSION, priors.DIFFUSION_PARAMS, DEFAULTS)
CODES = CodeSampler(priors.CODES, priors.CODES_PARAMS, priors.book(), DEFAULTS)
KEYS = image_keys(jnp.arange(3))
BOTH = pytest.mark.parametrize("sampler", [DIFFUSION, CODES], ids=["diffusion", "ar"])


def draw(sampler, text=None, keys=KEYS, **settings):
    return np.asarray(sampler(text or priors.text(), priors.EMPTY, keys, **settings))


def row(text, i):
    return jax.tree.map(lambda x: x[i : i + 1], text)


@BOTH
def test_unit_vectors_that_depend_on_key_and_text_alone(sampler):
    images = draw(sampler)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    alone = draw(sampler, row(priors.text(), 1), KEYS[1:2])
    np.testing.assert_allclose(alone[0], images[1], atol=1e-5)
    assert np.abs(draw(sampler, keys=image_keys(jnp.arange(3) + 7)) - images).max() > 1e-3


@BOTH
def test_the_best_of_several_is_nearer_to_the_text(sampler):
    text = priors.text()

    def dots(candidates):
        images = draw(sampler, candidates=candidates)
        return np.sum(images * np.asarray(text.embedding), axis=1)

    assert dots(8).mean() > dots(1).mean() + 1e-3


@BOTH
def test_guidance_1_is_off_and_more_moves_away_from_no_text(sampler):
    off, on = draw(sampler, guidance=1.0), draw(sampler, guidance=3.0)
    assert np.abs(on - off).max() > 1e-3
    same = draw(sampler, guidance=1.0 + 1e-6)  # two calls of the network, that agree
    np.testing.assert_allclose(same, off, atol=1e-4)


def test_the_kept_candidate_is_the_one_with_the_largest_dot_product():
    images, texts = priors.unit_rows(0, 6), priors.unit_rows(1, 2)
    kept = pipeline.best_of(jnp.asarray(images), jnp.asarray(texts))
    dots = np.sum(images * np.repeat(texts, 3, axis=0), axis=1).reshape(2, 3).argmax(1)
    np.testing.assert_array_equal(kept, images[[dots[0], 3 + dots[1]]])


def test_codes_are_those_of_the_network_without_memory():
    """At almost no temperature: the likeliest code, given those before it."""
    text, book, model = priors.text(), priors.book(), priors.CODES
    keys = jax.vmap(lambda key: jax.random.split(key, 1)[0])(KEYS)
    dot = draw_dot(jax.vmap(lambda key: jax.random.fold_in(key, model.codes))(keys), model.buckets)
    tokens = jnp.zeros((3, model.codes), jnp.int32).at[:, 0].set(dot)
    codes = []
    for i in range(model.codes):
        logits = apply(AutoregressivePrior(model), priors.CODES_PARAMS, *text, tokens)
        codes.append(logits[:, i + 1].argmax(-1))
        if i + 1 < model.codes:
            tokens = tokens.at[:, i + 1].set(codes[-1])
    wanted = decode(book, jnp.stack(codes, axis=1))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(draw(CODES, temperature=1e-4), wanted, atol=1e-5)


def test_measured_errors_give_more_noise_than_none():
    errors = Errors(np.array([0.0, 999.0]), np.array([0.0, 4.0]))
    analytic = replace(DIFFUSION, errors=errors)
    assert np.abs(draw(analytic) - draw(DIFFUSION)).max() > 0.01
    perfect = replace(DIFFUSION, errors=Errors(errors.times, np.zeros(2)))
    np.testing.assert_allclose(draw(perfect), draw(DIFFUSION), atol=1e-5)


def test_statistics_put_mean_and_deviation_back():
    model = replace(priors.DIFFUSION, scale=None)
    mean, std = jnp.full(12, 3.0), jnp.full(12, 0.5)
    plain = DiffusionSampler(
        model, priors.DIFFUSION_PARAMS, DEFAULTS, None, Statistics(0 * mean, 0 * std + 1)
    )
    moved = replace(plain, statistics=Statistics(mean, std))
    np.testing.assert_allclose(draw(moved), 3 + 0.5 * draw(plain), atol=1e-5)


REGRESSION = priors.regression()


def guesses(text):
    return guess(REGRESSION, text.embedding)


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_diffusion_prior_adds_to_the_guess_of_each_text(candidates):
    """One that says the same at all times, whatever it is told, and whatever the guidance."""
    params = jax.tree.map(jnp.zeros_like, priors.DIFFUSION_PARAMS)
    said = np.linspace(-0.5, 0.8, 12)
    params["out"]["bias"] = jnp.asarray(said, jnp.float32)
    sampler = replace(DIFFUSION, params=params, regression=REGRESSION)
    wanted = guesses(priors.text()) + said / priors.DIFFUSION.scale
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for guidance in (1.0, 3.0):
        found = draw(sampler, candidates=candidates, guidance=guidance)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("candidates", [1, 3])
def test_an_autoregressive_prior_adds_to_the_chances_about_the_guess(candidates):
    """One that says nothing writes the likeliest codes about it, whatever the guidance."""
    params = jax.tree.map(jnp.zeros_like, priors.CODES_PARAMS)
    sampler = replace(CODES, params=params, regression=REGRESSION)
    likeliest = log_chances(REGRESSION, priors.book(), guesses(priors.text())).argmax(-1)
    wanted = decode(priors.book(), likeliest)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for guidance in (1.0, 3.0):
        found = draw(sampler, candidates=candidates, guidance=guidance, temperature=1e-4)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_guidance_does_not_touch_the_chances_about_the_guess():
    """At temperature 1 draws are from the very chances: they are the same at every guidance."""
    params = jax.tree.map(jnp.zeros_like, priors.CODES_PARAMS)
    sampler = replace(CODES, params=params, regression=REGRESSION)
    plain, guided = (draw(sampler, guidance=guidance) for guidance in (1.0, 3.0))
    np.testing.assert_allclose(plain, guided, atol=1e-6)


def test_numbers_out_of_range_are_refused():
    for options, message in (
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"guidance": 0.5}, "guidance must be a number of at least 1"),
        ({"steps": 0}, "steps must be between 1 and"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(DIFFUSION, **options)
    with pytest.raises(ValueError, match="temperature must be a number above 0, got 0"):
        draw(CODES, temperature=0.0)


def test_a_prior_that_standardises_needs_to_know_how():
    model = replace(priors.DIFFUSION, scale=None)
    with pytest.raises(ValueError, match="mean and deviation are not stored"):
        pipeline.prior_of(model, {"prior": priors.DIFFUSION_PARAMS}, {})


def test_the_priors_of_a_model_come_from_its_components_and_its_description():
    described = {
        "prior": {"defaults": {"steps": 5}, "errors": {"times": [0.0, 1.0], "values": [1.0, 2.0]}},
        "autoregressive_prior": {"defaults": {"temperature": 0.5}},
    }
    params = {
        "prior": priors.DIFFUSION_PARAMS,
        "autoregressive_prior": priors.CODES_PARAMS,
        "codebook": priors.book()._asdict(),
    }
    diffusion = pipeline.prior_of(priors.DIFFUSION, params, described)
    assert isinstance(diffusion, DiffusionSampler)
    assert diffusion.defaults.steps == 5 and diffusion.errors.values.tolist() == [1.0, 2.0]
    codes = pipeline.prior_of(priors.CODES, params, described)
    assert isinstance(codes, CodeSampler) and codes.defaults.temperature == 0.5
    plain = pipeline.prior_of(priors.DIFFUSION, params, {})
    assert plain.errors is None and plain.statistics is None and plain.defaults == Defaults()


def test_text_is_read_with_its_padding_marked():
    tower = tiny.text_tower(20, 6)
    tokens = jnp.array([[1, 5, 6, 2, 2, 2], [1, 2, 2, 2, 2, 2]])
    params = tiny.text_params(tower)
    text = pipeline.read_text(tower, params, tokens, 2)
    assert text.mask.tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]
    np.testing.assert_allclose(np.linalg.norm(text.embedding, axis=1), 1, rtol=1e-5)
    longer = pipeline.read_text(tower, params, tokens, 2, normalize=False)
    lengths = np.linalg.norm(longer.embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(longer.embedding / lengths, text.embedding, atol=1e-5)
