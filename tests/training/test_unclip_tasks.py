"""Decoder and upsampler trained for two steps on real pictures; what they are shown is right."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from sdjax import config, presets
from sdjax.data import emoji
from sdjax.training import unclip_tasks
from sdjax.training.loop import train
from sdjax.training.parts import RECIPES, make_task
from sdjax.training.state import Recipe
from sdjax.training.unclip_tasks import decoder_task, small_pixels, upsampler_task
from sdjax.weights.config_json import from_json
from sdjax.weights.files import load_model

RECIPE = Recipe(steps=2, batch=4, learning_rate=1e-3, warmup=1)
DECODER = replace(
    tiny.DECODER,
    conditioning=replace(tiny.DECODER.conditioning, embedding_dim=160, text_dim=192),
    image_size=16,
)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """The first forty of each split, previews in three steps."""
    load = emoji.load

    def few(split, styles=None):
        data = load(split, styles)
        first = slice(40)
        return replace(
            data,
            images=data.images[first],
            concepts=data.concepts[first],
            styles=data.styles[first],
        )

    monkeypatch.setattr(emoji, "load", few)
    monkeypatch.setattr(unclip_tasks, "PREVIEW_STEPS", 3)


def test_a_decoder_is_trained_and_kept(tmp_path):
    task = decoder_task(DECODER, RECIPE, "mini")
    params = tiny.decoder_params(DECODER)
    made = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, made)
    quick = replace(task, init=lambda key: params)  # to initialise takes long to compile
    state = train(quick, RECIPE, tmp_path, quiet=True)
    components, model = load_model(tmp_path / "model")
    assert model["kind"] == "decoder" and from_json(config.Decoder, model["config"]) == DECODER
    assert (model["training"]["drop_text"], model["training"]["jitter"]) == (0.5, 0.5)
    for stored, kept in zip(
        jax.tree.leaves(components["decoder"]), jax.tree.leaves(state.average), strict=True
    ):
        np.testing.assert_allclose(stored, kept, atol=2e-3)
    assert (tmp_path / "preview_0000002.png").exists()


def test_every_picture_goes_with_its_own_embedding_and_caption():
    task = decoder_task(DECODER, replace(RECIPE, batch=40), "mini")
    batch = task.batch(0)
    data = emoji.load("train", presets.MINI_STYLES)
    clip = unclip_tasks.load_clip("mini")
    embeddings, pixels = clip.image_embeddings(data.images), small_pixels(data.images, 16)
    for shown, embedding in zip(batch["pixels"], batch["embedding"], strict=True):
        (same,) = np.nonzero((pixels == shown).all((1, 2, 3)))
        assert len(same)
        for i in same:
            np.testing.assert_allclose(embedding, embeddings[i], atol=1e-5)
    texts = clip.text_embeddings(data.captions())
    given = batch["vector"] / np.linalg.norm(batch["vector"], axis=1, keepdims=True)
    plain = [int(i) for i in np.argmax(batch["embedding"] @ embeddings.T, axis=1)]
    same = (given * texts[plain]).sum(1) > 0.9999
    assert 0.3 < same.mean() < 0.95  # half of the time, or more, the picture's plain caption
    assert (given * texts[plain]).sum(1).min() > 0.2
    np.testing.assert_allclose(np.linalg.norm(batch["embedding"], axis=1), 1, atol=2e-3)
    assert batch["states"].shape == (40, 24, 192) and batch["vector"].shape == (40, 160)
    assert (batch["vector"] != batch["empty_vector"]).any(1).all()


@pytest.mark.parametrize("stage", [0, 1])
def test_an_upsampler_is_trained_and_kept(tmp_path, stage):
    model = replace(presets.MINI_UPSAMPLERS[stage], unet=tiny.UPSAMPLER.unet)
    task = upsampler_task(model, RECIPE, crop=16)
    assert task.batch(0)["pixels"].shape == (4, model.image_size, model.image_size, 3)
    params = {"unet": tiny.unet_params(model.unet)}
    train(replace(task, init=lambda key: params), RECIPE, tmp_path, quiet=True)
    components, described = load_model(tmp_path / "model")
    assert set(components["upsampler"]) == {"unet"}
    assert from_json(config.Upsampler, described["config"]) == model
    assert described["kind"] == "upsampler" and described["training"]["crop"] == 16
    assert (tmp_path / "preview_0000002.png").exists()


def test_small_pixels_are_rounded_means():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    wanted = pictures.reshape(2, 2, 4, 2, 4, 3).mean((2, 4))
    found = small_pixels(pictures, 2)
    assert found.dtype == np.uint8 and np.abs(found - wanted).max() <= 0.5 + 1e-3


def test_the_mini_fits_its_budget():
    """The bundled decoder and upsamplers, in float16, with room for two priors and CLIP."""
    sizes = []
    for model in (presets.MINI_DECODER.unet, *(u.unet for u in presets.MINI_UPSAMPLERS)):
        x = jnp.zeros((1, 16, 16, model.in_channels))
        context = None if model.context_dim is None else jnp.zeros((1, 28, model.context_dim))
        vector = None if model.vector_dim is None else jnp.zeros((1, model.vector_dim))
        network = unclip_tasks.UNet(model)
        key = jax.random.key(0)
        shapes = jax.eval_shape(network.init, key, x, jnp.zeros(1), context, vector)
        sizes.append(2 * sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    assert sum(sizes) < 17e6, sizes
    assert not any(
        any(u.unet.attention) or u.unet.middle_attention for u in presets.MINI_UPSAMPLERS
    )


def test_the_papers_clip_is_a_value_that_training_accepts():
    """Its sizes go through the loss, without weights: nearly a billion of them."""
    task = make_task("clip", "dalle2", RECIPE)
    params = jax.eval_shape(task.init, jax.random.key(0))
    value, _ = jax.eval_shape(task.loss, params, task.batch(0), jax.random.key(0))
    assert value.shape == () and params["image"]["position_embedding"].shape[0] == 257
    with pytest.raises(ValueError, match="no training preset 'dalle2': choose mini$"):
        make_task("decoder", "dalle2", RECIPE)


@pytest.mark.parametrize(("part", "size"), [("upsampler-1", 32), ("upsampler-2", 64)])
def test_upsamplers_are_parts_of_the_training(part, size):
    assert make_task(part, "mini", RECIPE).batch(0)["pixels"].shape[1] == size
    assert part in RECIPES


def test_the_decoder_needs_a_clip():
    with pytest.raises(ValueError, match="decoder needs --clip"):
        make_task("decoder", "mini", RECIPE)


def test_a_decoder_that_hides_padding_is_refused():
    model = replace(DECODER, conditioning=replace(DECODER.conditioning, mask_padding=True))
    with pytest.raises(ValueError, match="leave out text, mask_padding"):
        decoder_task(model, RECIPE, "mini")


def test_other_lengths_and_two_networks_are_refused():
    told = replace(DECODER.conditioning, unit_length=False)
    with pytest.raises(ValueError, match="leave out text, mask_padding and unit_length"):
        decoder_task(replace(DECODER, conditioning=told), RECIPE, "mini")
    with pytest.raises(ValueError, match="leave out own_last_step"):
        upsampler_task(replace(tiny.UPSAMPLER, own_last_step=True), RECIPE, crop=8)
