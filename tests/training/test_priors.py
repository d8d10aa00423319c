"""Training both priors: what they are told, two steps on real pictures, the folder at the end."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_priors as priors

from sdjax import evaluate_prior, presets
from sdjax.data import emoji
from sdjax.denoisers.autoregressive import AutoregressivePrior
from sdjax.diffusion.loop import image_keys
from sdjax.image import codes
from sdjax.image.clip_image import unit
from sdjax.image.regression import guess, log_chances
from sdjax.nn.functional import apply
from sdjax.pipelines.clip import load_clip
from sdjax.pipelines.priors import prior_of, read_text
from sdjax.training import priors as training
from sdjax.training.loop import train
from sdjax.training.parts import make_task
from sdjax.training.state import Recipe
from sdjax.weights.files import load_model
from sdjax.weights.stored import stored_config

RECIPE = Recipe(steps=2, batch=4, learning_rate=1e-3, warmup=1)
SIZES = {"dim": 16, "layers": 1, "heads": 2}
FEW = {"codes": 3, "buckets": 8, "regression": 80}


def batch(count=6):
    text = priors.text()
    rows = np.arange(count) % 3
    return {
        "image": jnp.asarray(priors.unit_rows(3, count)),
        "text": text.embedding[rows],
        "states": text.states[rows],
        "mask": text.mask[rows],
        "empty_text": priors.EMPTY.embedding[0],
        "empty_states": priors.EMPTY.states[0],
        "empty_mask": priors.EMPTY.mask[0],
    }


@pytest.fixture(scope="module")
def few(request):
    """CLIP's embeddings of a few pictures only, in place of all."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    whole = emoji.load("train", presets.MINI_STYLES)
    part = replace(
        whole, images=whole.images[:80], concepts=whole.concepts[:80], styles=whole.styles[:80]
    )
    patch.setattr(training.emoji, "load", lambda *_: part)
    embedded = training.embed(load_clip("mini"), part, RECIPE.seed)  # once for all
    patch.setattr(training, "embed", lambda *_, **__: embedded)
    return part


def test_what_is_told_once_for_all_is_told_right(few):
    clip = load_clip("mini")
    data = training.embed(clip, few, seed=0)
    assert data.images.shape == (80, 160)
    np.testing.assert_allclose(np.linalg.norm(data.images, axis=1), 1, rtol=1e-5)
    canonical = clip.text_embeddings(few.captions()[:4])
    np.testing.assert_allclose(data.texts[data.rows[:4, 0]], canonical, atol=1e-5)
    assert data.masks[0].sum() == 2  # start and end: the empty text
    assert data.masks.any(1).all() and not data.masks.all(1).any()


@pytest.mark.parametrize("pairs", [None, 80], ids=["", "regression"])
@pytest.mark.parametrize("kind", ["diffusion", "ar"])
def test_two_steps_and_what_is_written_can_be_sampled(few, kind, pairs, tmp_path):
    model = {
        "diffusion": replace(presets.MINI_PRIOR, **SIZES, regression=pairs),
        "ar": replace(presets.MINI_AUTOREGRESSIVE_PRIOR, **SIZES, **FEW | {"regression": pairs}),
    }[kind]
    task_of = {
        "diffusion": training.diffusion_prior_task,
        "ar": training.autoregressive_prior_task,
    }[kind]
    train(task_of(model, RECIPE, "mini"), RECIPE, tmp_path, quiet=True)
    params, described = load_model(tmp_path / "model")
    assert stored_config(described, "here") == model
    sampler = prior_of(model, params, described)
    sampler = replace(sampler, defaults=replace(sampler.defaults, steps=2, candidates=1))
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluate_prior.emoji, "load", lambda *_: few)
    report = evaluate_prior.evaluate_prior(sampler, load_clip("mini"), ["noto"], draws=1)
    patch.undo()
    assert report["pictures"] == 80 and report["prior"].keys() == report["text"].keys()
    if pairs is None:
        assert report["text"]["cosine"] > 0.6 > abs(report["prior"]["cosine"])
    else:  # these are its pairs: already the guess is right
        assert report["prior"]["cosine"] > report["text"]["cosine"] > 0.6


def test_a_prior_is_trained_with_guesses_that_do_not_know_its_picture(few):
    data = training.embed(load_clip("mini"), few, seed=0)
    found = training.fit_guesses(data, 80)
    plain = found.without.reshape(80, -1, 160)[:, 0]
    known = np.asarray(guess(found.regression, jnp.asarray(data.texts[data.rows[:, 0]])))
    cosines = [np.sum(unit(jnp.asarray(x)) * data.images, 1).mean() for x in (known, plain)]
    assert cosines[0] > 0.97 > 0.9 > cosines[1] > 0.5
    task = training.diffusion_prior_task(
        replace(presets.MINI_PRIOR, **SIZES, regression=80), RECIPE, "mini"
    )
    batch = task.batch(3)
    for row, text, given in zip(batch["image"], batch["text"], batch["guess"], strict=True):
        picture = np.argmin(np.abs(data.images - row).sum(1))
        places = 12 * picture + np.flatnonzero((data.texts[data.rows[picture]] == text).all(1))
        np.testing.assert_allclose(given, found.without[places[0]], atol=1e-5)


def test_a_regression_of_other_pictures_than_there_are_is_refused(few):
    with pytest.raises(ValueError, match="regression of 81 pairs, but there are 80 pictures"):
        training.fit_guesses(training.embed(load_clip("mini"), few, seed=0), 81)


@pytest.mark.parametrize("kind", ["diffusion", "ar"])
def test_a_fresh_prior_answers_with_the_guess(few, kind, tmp_path):
    """Nothing is learned in no step: what is drawn lies about the guess."""
    model, task_of = {
        "diffusion": (
            replace(presets.MINI_PRIOR, **SIZES, regression=80),
            training.diffusion_prior_task,
        ),
        "ar": (
            replace(presets.MINI_AUTOREGRESSIVE_PRIOR, **SIZES, **FEW | {"buckets": 16}),
            training.autoregressive_prior_task,
        ),
    }[kind]
    task = task_of(model, RECIPE, "mini")
    task.export(task.init(jax.random.key(0)), tmp_path / "model", {})
    params, described = load_model(tmp_path / "model")
    sampler = prior_of(model, params, described)
    clip = load_clip("mini")
    tower, end = clip.config.text, clip.tokenizer.eot_id
    text, empty = (
        read_text(tower, clip.params["text"], jnp.asarray(clip.tokenizer(words)), end)
        for words in (few.captions()[:5], [""])
    )
    wanted = unit(guess(sampler.regression, text.embedding))
    settings = {"steps": 1} if kind == "diffusion" else {"temperature": 1e-3}
    drawn = sampler(text, empty, image_keys(jnp.arange(5)), candidates=1, **settings)
    if kind == "ar":  # as far as three codes can say it
        book = sampler.book
        known = log_chances(sampler.regression, book, guess(sampler.regression, text.embedding))
        wanted = unit(codes.decode(book, known.argmax(-1)))
    np.testing.assert_allclose(drawn, wanted, atol=2e-3)


def test_dropped_texts_are_the_empty_one():
    given = batch(300)
    text, states, mask = training._with_drops(given, jax.random.key(0), 0.3)
    empty = np.array((text == given["empty_text"]).all(1))
    assert 0.2 < empty.mean() < 0.4
    np.testing.assert_array_equal(empty, (states == given["empty_states"]).all((1, 2)))
    np.testing.assert_array_equal(mask[empty].sum(1), 1)
    np.testing.assert_array_equal(text[~empty], given["text"][~empty])


def test_the_loss_of_the_diffusion_prior_is_of_x0_in_its_scale():
    """A network that always says 0 has the mean square of scaled unit vectors for its loss."""
    params = jax.tree.map(jnp.zeros_like, priors.DIFFUSION_PARAMS)
    loss = training.diffusion_prior_loss(priors.DIFFUSION, 0.1)
    value, _ = loss(params, batch(), jax.random.key(0))
    np.testing.assert_allclose(value, priors.DIFFUSION.scale**2 / 12, rtol=1e-5)


SAID = np.linspace(-1, 2, 12)
"""What a network says whatever it is told."""


def test_with_a_guess_x0_is_what_it_is_wrong_by():
    params = jax.tree.map(jnp.zeros_like, priors.DIFFUSION_PARAMS)
    params["out"]["bias"] = jnp.asarray(SAID, jnp.float32)
    given = batch()
    given["guess"] = jnp.asarray(priors.unit_rows(8, 6))
    value, metrics = training.diffusion_prior_loss(priors.DIFFUSION, 0.1)(
        params, given, jax.random.key(0)
    )
    scale = priors.DIFFUSION.scale
    left = scale * (given["image"] - given["guess"])
    np.testing.assert_allclose(value, jnp.mean((SAID - left) ** 2), rtol=1e-5)
    answers = unit(given["guess"] + SAID / scale)
    cosines = jnp.sum(answers * given["image"], axis=1)
    np.testing.assert_allclose(metrics["cosine"], cosines.mean(), atol=1e-5)
    # What Analytic-DPM is told is the error of the same x0, at every time.
    _, errors = training.measure_errors(priors.DIFFUSION, params, given, 0)
    np.testing.assert_allclose(errors, jnp.mean((SAID - left) ** 2), rtol=1e-4)


def test_with_a_guess_the_network_adds_to_the_chances_about_it():
    """One that says nothing has their cross-entropy, and that of even chances of the dot."""
    params = jax.tree.map(jnp.zeros_like, priors.CODES_PARAMS)
    book, regression, given = priors.book(), priors.regression(), batch()
    given["guess"] = jnp.asarray(priors.unit_rows(8, 6))  # not what it guesses with the pair in it
    loss = training.autoregressive_prior_loss(priors.CODES, book, regression, drop=0.0)
    value, _ = loss(params, given, jax.random.key(0))
    spread = training.JITTER * book.centres.std(axis=1)
    wanted = codes.chances(book, given["image"], spread)
    known = log_chances(regression, book, given["guess"])
    crossed = -jnp.sum(wanted * known, axis=-1).mean()
    np.testing.assert_allclose(value, (4 * crossed + np.log(8)) / 5, rtol=1e-5)


def test_the_loss_of_codes_is_their_cross_entropy(monkeypatch):
    monkeypatch.setattr(training, "JITTER", 1e-6)
    book, given = priors.book(), batch()
    loss = training.autoregressive_prior_loss(priors.CODES, book, None, drop=0.0)
    value, _ = loss(priors.CODES_PARAMS, given, jax.random.key(0))
    dots = codes.encode_dot(book, given["image"], given["text"])
    tokens = jnp.concatenate([dots[:, None], codes.encode(book, given["image"])], 1)
    told = (given["text"], given["states"], given["mask"], tokens[:, :-1])
    logits = apply(AutoregressivePrior(priors.CODES), priors.CODES_PARAMS, *told)
    chances = jax.nn.softmax(logits)
    wanted = [-np.log(chances[i, j, t]) for (i, j), t in np.ndenumerate(tokens)]
    np.testing.assert_allclose(value, np.mean(wanted), rtol=1e-5)
    uniform, _ = loss(jax.tree.map(jnp.zeros_like, priors.CODES_PARAMS), given, jax.random.key(0))
    np.testing.assert_allclose(uniform, np.log(8), rtol=1e-5)


def test_pictures_move_by_a_share_of_each_components_spread(monkeypatch):
    monkeypatch.setattr(training, "JITTER", 1e-3)  # so little that a sphere is flat
    book, image = priors.book(), jnp.asarray(priors.unit_rows(3, 1))
    moved = training.jittered(book, image.repeat(4000, axis=0), jax.random.key(0))
    np.testing.assert_allclose(jnp.linalg.norm(moved, axis=1), 1, rtol=1e-5)
    on_sphere = book.components - (book.components @ image.T) * image
    spread = 1e-3 * book.centres.std(axis=1, keepdims=True)
    wanted = jnp.linalg.norm(spread * on_sphere @ book.components.T, axis=0)
    np.testing.assert_allclose(((moved - image) @ book.components.T).std(0), wanted, rtol=0.05)


def test_the_chances_of_buckets_are_how_often_moved_pictures_fall_in_them():
    book, image = priors.book(), jnp.asarray(priors.unit_rows(5, 1))
    spread = training.JITTER * book.centres.std(axis=1)
    chances = codes.chances(book, image, spread)
    np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-5)
    noise = spread * jax.random.normal(jax.random.key(0), (20_000, len(spread)))
    moved = codes.encode(book, image + noise @ book.components)
    counted = jax.nn.one_hot(moved, book.centres.shape[1]).mean(0)
    np.testing.assert_allclose(chances[0], counted, atol=0.015)


def test_a_prior_needs_a_clip():
    for part in ("prior-ar", "prior-diffusion"):
        with pytest.raises(ValueError, match=f"{part} needs --clip"):
            make_task(part, "mini", RECIPE)
