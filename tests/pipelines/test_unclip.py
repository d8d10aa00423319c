"""DALL-E 2 on tiny random networks: seeds, compilations, inversion, manipulations, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_unclip
from PIL import Image

from sdjax import config
from sdjax.evaluate_figures import psnr
from sdjax.pipelines import manipulate
from sdjax.pipelines.images import RECIPE, Images, read_recipe, save_png
from sdjax.pipelines.unclip_request import Settings, check_count, each_seed

CAT, DOG = "a red cat, noto style", "a green dog, flat style"
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
HOLE = np.zeros((16, 16), bool)
HOLE[4:12, 8:] = True
ASIDE = np.zeros((16, 48), bool)
ASIDE[:, :10] = True
STEPS = 24


@pytest.fixture(scope="session")
def pipe():
    return tiny_unclip.make_unclip()


@pytest.fixture(scope="session")
def two(pipe):
    """Most tests draw two images: each program is compiled once."""
    return pipe([CAT, DOG], seed=[7, 9])


@pytest.fixture
def compilations():
    """The names of the compilations while the test runs."""
    found = []

    def listen(event, seconds, **details):
        name = details.get("fun_name", event)
        if event == "/jax/core/compile/backend_compile_duration" and name != "jit(stage)":
            found.append(name)  # "stage" only copies an array

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def pixels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


def away(a, b):
    """The mean difference of pixels, image by image."""
    return np.abs(pixels(a) - pixels(b)).mean((1, 2, 3))


# Text to image


def test_images_come_with_their_recipes(two):
    assert isinstance(two, Images)
    assert all(image.size == (16, 16) and image.mode == "RGB" for image in two)
    recipes = [image.info[RECIPE] for image in two]
    assert [(r["prompt"], r["seed"]) for r in recipes] == [(CAT, 7), (DOG, 9)]
    assert recipes[0] == {
        "prompt": CAT, "seed": 7, "negative": "", "prior": "diffusion", "prior_steps": None,
        "prior_guidance": None, "best_of": None, "steps": 3, "sampler": "unclip", "eta": 0.0,
        "guidance": 2.0, "upsampler_steps": [2, 2], "upsampler_sampler": "ddim", "width": 16,
        "height": 16, "model": "tiny",
    }  # fmt: skip
    assert away(two[:1], two[1:]) > 3


def test_an_image_does_not_depend_on_its_company(pipe, two):
    turned = pipe([DOG, CAT], seed=[9, 7])
    assert np.abs(pixels(turned)[::-1] - pixels(two)).max() <= 1
    counted = pipe(CAT, n=2, seed=6)
    assert np.abs(pixels(counted)[1] - pixels(two)[0]).max() <= 1


def test_other_numbers_and_words_compile_nothing(pipe, two, compilations):
    options = [
        {"steps": 7, "guidance": 1.5},
        {"upsampler_steps": (3, 1), "seed": 10**9},
        {"prior": "ar", "best_of": 3, "prior_guidance": 2.0},
    ]
    drawn = [pipe([CAT, "a house"], **one) for one in options]
    others = replace(pipe, params=jax.tree.map(lambda x: 1.2 * np.asarray(x), pipe.params))
    drawn.append(others([CAT, DOG], seed=[7, 9]))
    assert compilations == []
    for one in drawn:
        assert (away(one, two) > 1).all()


def test_the_prior_is_told_what_was_asked(pipe):
    told = {}

    def spy(text, empty, keys, **options):
        told.update(options, rows=text.embedding.shape[0], alone=empty.embedding.shape[0])
        lengths = np.linalg.norm(np.asarray(text.embedding), axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)
        return text.embedding

    settings = pipe.complete(prior_steps=5, prior_guidance=1.5, best_of=4)
    spied = replace(pipe, priors={"diffusion": spy})
    spied.imagine([CAT, DOG], np.arange(2, dtype=np.int32), settings)
    assert told == {"guidance": 1.5, "candidates": 4, "steps": 5, "rows": 2, "alone": 1}


def test_the_embedding_and_the_text_are_seen(pipe, two):
    embeddings = pipe.embed(list(PICTURES))
    plans = pipe.settings.plans(pipe.config)
    seeds = np.array([7, 9], np.int32)

    def draw(embeddings, texts):
        return np.asarray(pipe.draw(embeddings, plans, seeds=seeds, texts=texts, guidance=2.0)[-1])

    first = draw(embeddings, [CAT, CAT])
    assert np.abs(draw(embeddings[::-1], [CAT, CAT]) - first).mean() > 0.01
    assert np.abs(draw(embeddings, [DOG, DOG]) - first).mean() > 0.01


# The pair (embedding, noise)


@pytest.fixture(scope="session")
def ends(pipe):
    return manipulate.interpolate(pipe, *PICTURES, 2, steps=STEPS)


def test_the_ends_of_an_interpolation_are_the_pictures(ends):
    assert psnr(pixels(ends).astype(np.uint8), PICTURES).min() > 30
    assert [image.info[RECIPE]["share"] for image in ends] == [0, 1]


def test_with_the_noise_of_the_first_the_last_is_another(pipe, ends):
    fixed = manipulate.interpolate(pipe, *PICTURES, 2, steps=STEPS, fixed_noise=True)
    assert away(fixed, ends)[0] < 1 < away(fixed, ends)[1]


def test_repeats_make_a_reconstruction_better(pipe):
    usual, better = (
        psnr(
            pixels(
                manipulate.reconstruct(pipe, list(PICTURES), steps=STEPS, repeats=repeats)
            ).astype(np.uint8),
            PICTURES,
        )
        for repeats in (1, 4)
    )
    assert (better > usual + 6).all()


def test_variations_leave_the_picture_with_eta(pipe):
    same = manipulate.variations(pipe, PICTURES[0], 2, eta=0.0, steps=STEPS)
    assert psnr(pixels(same).astype(np.uint8), PICTURES[[0, 0]]).min() > 30
    first, second = manipulate.variations(pipe, PICTURES[0], 2, steps=STEPS)
    assert away([first], [second]) > 2 and away([first], [same[0]]) > 2
    assert [image.info[RECIPE]["seed"] for image in (first, second)] == [0, 1]


def test_a_text_diff_begins_with_the_picture_and_can_be_stored(pipe, tmp_path):
    found = manipulate.textdiff(pipe, PICTURES[0], CAT, DOG, (0.0, 0.4), steps=STEPS)
    save_png(found.grid(), tmp_path / "textdiff.png")
    assert [r["theta"] for r in read_recipe(tmp_path / "textdiff.png")] == [0.0, 0.4]
    assert psnr(pixels(found).astype(np.uint8)[:1], PICTURES[:1]) > 30
    assert away(found[:1], found[1:]) > 1
    assert found[1].info[RECIPE]["theta"] == 0.4


# More than noise to begin with


def test_known_pixels_stay(pipe):
    found = manipulate.inpaint(pipe, PICTURES[0], HOLE, CAT, n=2, repeats=2, steps=6)
    drawn = pixels(found)
    assert np.abs(drawn - PICTURES[0])[:, ~HOLE].max() <= 1
    assert np.abs(drawn[0] - drawn[1])[HOLE].mean() > 3
    recipe = found[0].info[RECIPE]
    assert (recipe["from"], recipe["sampler"], recipe["eta"]) == ("inpaint", "ddpm", 0.0)
    assert recipe["upsampler_sampler"] == "ddpm"


def test_a_picture_is_continued(pipe):
    found = manipulate.outpaint(pipe, PICTURES[0], CAT, (2, 4, 6, 4), n=2, repeats=1)
    inside = pixels(found)[:, 2:10, 4:12]
    small = np.asarray(Image.fromarray(PICTURES[0]).resize((8, 8), Image.Resampling.BICUBIC))
    assert np.abs(inside - small).max() <= 1
    recipe = found[0].info[RECIPE]
    assert (recipe["from"], recipe["pixels"]) == ("outpaint", [2, 4, 6, 4])


def test_a_picture_is_redrawn_as_much_as_asked(pipe):
    """By a network that says nothing (v = 0), and without upsamplers."""
    nothing = jax.tree.map(np.zeros_like, pipe.params["decoder"])
    small = replace(
        pipe,
        config=replace(pipe.config, upsamplers=()),
        params={**pipe.params, "decoder": nothing},
        settings=Settings(steps=20, upsampler_steps=(), guidance=2.0),
    )
    coarse = PICTURES[0].reshape(4, 4, 4, 4, 3).mean((1, 3))
    found = [
        pixels(manipulate.translate(small, PICTURES[0], CAT, n=2, strength=strength))
        for strength in (0.05, 0.5, 1.0)
    ]
    changes = [np.abs(drawn - coarse).mean() for drawn in found]
    assert changes[0] < 10 and changes[0] < 0.7 * changes[1] < 0.7 * changes[2]


def test_a_mixture_of_one_is_that_one(pipe):
    alone = manipulate.mix(pipe, [CAT, PICTURES[0]], [0.0, 1.0], n=2)
    other = manipulate.mix(pipe, [PICTURES[0], PICTURES[1]], [2.0, 0.0], n=2)
    assert away(alone, other).max() < 0.5
    both = manipulate.mix(pipe, [CAT, PICTURES[0]], n=2)
    assert away(alone, both).min() > 0.5
    assert both[0].info[RECIPE]["parts"] == [CAT, "a picture"]


# Refusals, before anything is compiled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "a cat, 3d style"}, "does not know the style '3d'"),
        ({"n": 0}, "n, the number of images, must be at least 1, got 0"),
        ({"seed": -1}, "seed must be between 0 and 2147483647, got -1"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"prior": "gan"}, "unknown prior 'gan': choose diffusion or ar"),
        ({"prior": "ar"}, "tiny has no prior 'ar'; it has diffusion"),
        ({"guidance": 0.5}, "guidance must be a number of at least 1"),
        ({"prior_guidance": np.nan}, "prior_guidance must be a number of at least 1"),
        ({"best_of": 0}, "best_of must be at least 1, got 0"),
        ({"prompt": []}, "the prompt is empty"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sampler": "magic"}, "unknown sampler 'magic'"),
        ({"sampler": "ddim inverse"}, "walks to noise"),
        ({"eta": 0.5}, "unclip takes no eta, got 0.5"),
        ({"upsampler_steps": (5,)}, "tiny has 2 upsamplers"),
        ({"upsampler_steps": (5, 0)}, "upsampler_steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(pipe, options, message, compilations):
    one = replace(pipe, priors={"diffusion": tiny_unclip.near_the_text}, styles=("noto", "flat"))
    with pytest.raises(ValueError, match=message):
        one(**{"prompt": CAT, **options})
    assert compilations == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("variations", (PICTURES[0], 0), "must be at least 1, got 0"),
        ("variations", (Path("none.png"),), "no image file none.png"),
        ("interpolate", (*PICTURES, 1), "n must be at least 2"),
        ("textdiff", (PICTURES[0], CAT, " "), "the prompt is empty"),
        ("textdiff", (PICTURES[0], CAT, DOG, (2.0,)), "thetas must be numbers from 0 to 1"),
        ("mix", ([CAT],), "nothing to mix: give a list of at least two"),
        ("mix", (CAT,), "nothing to mix: give a list of at least two"),
        ("mix", ([CAT, DOG], [np.nan, 1.0]), "2 parts need as many weights"),
        ("reconstruct", ("a.png",), "give a list of images, not one"),
        ("mix", ([CAT, DOG], [1.0]), "2 parts need as many weights"),
        ("mix", ([CAT, DOG], [0.0, 0.0]), "2 parts need as many weights of at least 0"),
        ("inpaint", (PICTURES[0], HOLE[1:], CAT), "the hole is"),
        ("inpaint", (PICTURES[0], ~(HOLE | ~HOLE), CAT), "neither all of it nor nothing"),
        ("inpaint", (np.tile(PICTURES[0], (1, 3, 1)), ASIDE, CAT), "middle square, neither all"),
        ("outpaint", (PICTURES[0], CAT, (2, 2)), "pixels must be a whole number"),
        ("outpaint", (PICTURES[0], CAT, 8), "above 0 and below 16"),
        ("outpaint", (PICTURES[0], CAT, (1, 2, 3, 4)), "top \\+ bottom must be left \\+ right"),
        ("reconstruct", ([],), "no images: give at least one"),
        ("translate", (PICTURES[0], " "), "the prompt is empty"),
        ("translate", (Path("none.png"), CAT), "no image file none.png"),
        ("inpaint", (PICTURES[0], HOLE, " "), "the prompt is empty"),
        ("outpaint", (PICTURES[0], " ", 2), "the prompt is empty"),
        ("mix", ([" ", PICTURES[0]],), "the prompt is empty"),
    ],
)
def test_what_cannot_be_done_is_refused(pipe, name, arguments, message, compilations):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        getattr(manipulate, name)(pipe, *arguments)
    assert compilations == []


def test_inpainting_has_its_own_sampler(pipe, compilations):
    with pytest.raises(ValueError, match="eta is nothing for inpainting, whose sampler is DDPM"):
        manipulate.inpaint(pipe, PICTURES[0], HOLE, CAT, eta=0.5)
    assert compilations == []


def test_fractions_are_refused():
    with pytest.raises(ValueError, match="seed must be a whole number, got 0.5"):
        each_seed(0.5, 1)
    with pytest.raises(ValueError, match="best_of must be a whole number, got 1.5"):
        check_count("best_of", 1.5)


def test_without_an_image_tower_pictures_are_not_read(pipe):
    with pytest.raises(ValueError, match="tiny has no image tower"):
        replace(pipe, clip=None).embed([PICTURES[0]])


def test_embeddings_may_have_lengths_of_their_own(pipe):
    """As Karlo's have: what is done to directions leaves the length."""
    decoder = pipe.config.decoder
    raw = replace(decoder, conditioning=replace(decoder.conditioning, unit_length=False))
    karlo, told = replace(pipe, config=replace(pipe.config, decoder=raw)), []
    found, wanted = karlo.embed([PICTURES[0]]), pipe.embed([PICTURES[0]])
    length = np.linalg.norm(found)
    assert abs(length - 1) > 0.1
    np.testing.assert_allclose(found, length * wanted, rtol=1e-4)

    def draw(self, embeddings, *_, seeds, **__):
        told.append(np.linalg.norm(embeddings, axis=1))
        return [jnp.zeros((len(seeds), 16, 16, 3))]

    patch = pytest.MonkeyPatch()
    patch.setattr(type(pipe), "draw", draw)
    manipulate.textdiff(karlo, PICTURES[0], CAT, DOG, (0.0, 0.5), steps=STEPS)
    manipulate.mix(karlo, [PICTURES[0], PICTURES[0]])
    patch.undo()
    np.testing.assert_allclose(np.concatenate(told), length, rtol=1e-4)


def test_a_prior_reads_what_the_text_tower_writes(pipe):
    prior = config.DiffusionPrior(
        16, 5, 32, 1, 2, config.Schedule("cosine", prediction="x0"), text_dim=32, scale=4.0
    )
    with pytest.raises(ValueError, match="a prior of tiny reads 5 hidden states of 32, CLIP's"):
        replace(pipe, config=replace(pipe.config, prior=prior))


def test_a_prior_with_a_table_of_its_own_is_refused(pipe):
    prior = config.DiffusionPrior(
        16, 5, 32, 1, 2, config.Schedule("cosine", prediction="x0"), vocab_size=100, scale=4.0
    )
    with pytest.raises(ValueError, match="a prior of tiny reads token ids with a table of its own"):
        replace(pipe, config=replace(pipe.config, prior=prior))


def test_methods_refuse_before_they_work(pipe, compilations):
    embeddings, plans = np.ones((2, 16), np.float32), pipe.settings.plans(pipe.config)
    with pytest.raises(ValueError, match="guidance must be a number of at least 1"):
        pipe.invert([PICTURES[0]], 4, 1, guidance=0.5)
    with pytest.raises(ValueError, match="guidance must be a number of at least 1"):
        pipe.draw(embeddings, plans, seeds=np.zeros(2, np.int32), guidance=float("nan"))
    for seeds, texts in ((np.zeros(3, np.int32), ()), (np.zeros(2, np.int32), [CAT])):
        with pytest.raises(ValueError, match="2 embeddings, . seeds and . texts must be as many"):
            pipe.draw(embeddings, plans, seeds=seeds, texts=texts)
    assert compilations == []


def test_recipes_of_numpy_numbers_can_be_stored():
    settings = Settings().completed(steps=np.int64(5), upsampler_steps=np.array([2, 3]))
    assert json.loads(json.dumps(settings.recipe()))["upsampler_steps"] == [2, 3]


def test_a_decoder_with_its_own_text_transformer_is_refused(pipe):
    text = config.GlideText(100, 8, dim=24, layers=1, heads=2, vector_dim=64)
    conditioning = replace(pipe.config.decoder.conditioning, text_dim=None)
    decoder = replace(pipe.config.decoder, conditioning=conditioning, text=text)
    with pytest.raises(ValueError, match="the decoder of tiny reads its text with a transformer"):
        replace(pipe, config=replace(pipe.config, decoder=decoder))


def test_a_variance_must_be_there(pipe):
    settings = Settings(upsampler_sampler="ddpm learned")
    with pytest.raises(ValueError, match="ddpm learned is for networks that predict a variance"):
        settings.check("tiny", pipe.config)
