"""The losses of pixels fall on a fixed batch; what is dropped, cropped and stopped is so."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from sdjax import presets
from sdjax.diffusion.schedule import alpha_bars
from sdjax.training import pixel_losses
from sdjax.training.pixel_losses import decoder_loss, jittered, random_crop, upsampler_loss
from sdjax.training.state import Recipe, init_state, make_step

DECODER, UPSAMPLER = tiny.DECODER, tiny.UPSAMPLER


def decoder_batch(count):
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(count, 8)).astype(np.float32)
    batch = {
        "pixels": rng.integers(0, 256, (count, 1, 1, 3), np.uint8).repeat(8, 1).repeat(8, 2),
        "embedding": embedding / np.linalg.norm(embedding, axis=1, keepdims=True),
        "states": np.ones((count, 5, 12), np.float16),
        "vector": np.ones((count, 8), np.float32),
        "empty_states": np.zeros((5, 12), np.float16),
        "empty_vector": np.zeros(8, np.float32),
    }
    return jax.tree.map(jnp.asarray, batch)


def decoder_case():
    params = tiny.decoder_params(DECODER)
    return decoder_loss(DECODER, 0.1, 0.5, 0.0), params, decoder_batch(4), {"bits_per_dim"}


def upsampler_case():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 2, 2, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    model = replace(UPSAMPLER, degradation="blur")  # quicker to compile
    params = {"unet": tiny.unet_params(model.unet)}
    return upsampler_loss(model, 8), params, {"pixels": pixels}, set()


@pytest.mark.parametrize("case", [decoder_case, upsampler_case])
def test_the_loss_falls_on_a_fixed_batch_and_every_part_learns(case):
    loss, params, batch, names = case()
    recipe = Recipe(steps=1000, batch=4, learning_rate=3e-3, warmup=1, weight_decay=0.0)
    step, state = make_step(loss, recipe), init_state(jax.tree.map(jnp.copy, params), recipe)
    values = []
    for _ in range(30):
        state, metrics = step(state, batch)
        assert names <= set(metrics)
        assert all(np.isfinite(value) for value in metrics.values())
        values.append(metrics["loss"].item())
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5]), values
    for path, moved in jax.tree.leaves_with_path(
        jax.tree.map(lambda a, b: jnp.abs(a - b).max(), state.params, params)
    ):
        if "key']['bias']" not in jax.tree_util.keystr(path):  # it has no effect
            assert moved > 1e-5, jax.tree_util.keystr(path)


# In detail, with networks that only say what they were given


@pytest.fixture
def calls(monkeypatch):
    """What the networks were given, by their class; the conditioning and the UNet answer 0."""
    seen = {}

    def answer(network, params, *inputs, dropout=None):
        seen[type(network).__name__] = inputs
        if type(network).__name__ == "ImageConditioning":
            return jnp.zeros((len(inputs[0]), 64)), jnp.zeros((len(inputs[0]), 7, 24))
        return jnp.zeros((*inputs[0].shape[:3], network.config.out_channels))

    monkeypatch.setattr(pixel_losses, "apply", answer)
    return seen


PARAMS = {"unet": {}, "conditioning": {}}


def test_image_and_text_are_dropped_independently(calls):
    batch = decoder_batch(2000)
    decoder_loss(DECODER, 0.1, 0.5, 0.0)(PARAMS, batch, jax.random.key(0))
    embedding, no_image, states, vector = calls["ImageConditioning"]
    np.testing.assert_allclose(embedding, batch["embedding"], atol=1e-6)
    no_text = states.mean((1, 2)) == 0
    assert set(np.unique(states.mean((1, 2)))) == {0, 1}
    np.testing.assert_array_equal(no_text, vector.mean(1) == 0)
    assert no_image.mean() == pytest.approx(0.1, abs=0.03)
    assert no_text.mean() == pytest.approx(0.5, abs=0.05)
    assert (no_image & no_text).mean() == pytest.approx(0.05, abs=0.02)


def test_embeddings_are_moved_by_noise_of_up_to_a_share_of_their_length(calls):
    """The angle of a vector and another, at right angles and r long, has the tangent r."""
    units = np.eye(512, dtype=np.float32)[:400]
    moved = np.asarray(jittered(jnp.asarray(units), jax.random.key(0), 0.5))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, rtol=1e-5)
    tangents = np.tan(np.arccos(np.clip((moved * units).sum(1), -1, 1)))
    assert tangents.max() < 0.6 and tangents.mean() == pytest.approx(0.25, abs=0.03)
    batch = decoder_batch(4)
    decoder_loss(DECODER, 0.1, 0.5, 0.5)(PARAMS, batch, jax.random.key(0))
    assert np.abs(calls["ImageConditioning"][0] - batch["embedding"]).max() > 1e-3


def test_the_hybrid_is_the_simple_loss_and_a_thousandth_of_the_bound(calls):
    loss = decoder_loss(DECODER, 0.1, 0.5, 0.0)
    value, metrics = loss(PARAMS, decoder_batch(100), jax.random.key(0))
    wanted = metrics["squared_error"] + 0.001 * metrics["bits_per_dim"]
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert metrics["bits_per_dim"] > 1


def test_the_bound_teaches_the_variance_alone(monkeypatch):
    """With the simple loss at its least the mean has no slope left, the variance has."""

    def said(output, monkeypatch=monkeypatch):
        def answer(network, params, *inputs, dropout=None):
            if type(network).__name__ == "ImageConditioning":
                return jnp.zeros((len(inputs[0]), 64)), jnp.zeros((len(inputs[0]), 7, 24))
            return output

        monkeypatch.setattr(pixel_losses, "apply", answer)
        loss = decoder_loss(DECODER, 0.1, 0.5, 0.0)
        return loss(PARAMS, decoder_batch(4), jax.random.key(0))

    zeros = jnp.zeros((4, 8, 8, 6))
    slope = jax.grad(lambda output: said(output)[0])(zeros)
    plain = jax.grad(lambda output: said(output)[1]["squared_error"])(zeros)
    np.testing.assert_array_equal(slope[..., :3], plain[..., :3])
    assert (jnp.abs(slope[..., 3:]) > 0).all() and (plain[..., 3:] == 0).all()


def test_the_upsampler_sees_noise_beside_the_spoilt_picture_of_the_same_place(calls):
    model = replace(UPSAMPLER, degradation="blur")
    y, x = np.mgrid[:16, :16]
    slope = np.stack([16 * y, 16 * x, 8 * (x + y)], -1).astype(np.uint8)
    batch = {"pixels": jnp.broadcast_to(slope, (300, 16, 16, 3))}
    value, _ = upsampler_loss(model, 8)(PARAMS, batch, jax.random.key(0))
    inputs, time = calls["UNet"]
    assert inputs.shape == (300, 8, 8, 6) and value > 0
    noisy, small = np.split(np.asarray(inputs), 2, axis=-1)
    clear = time < 5
    assert 1 <= clear.sum() < 5
    # Hardly any noise yet: both show the same place, the small one a little smoothed.
    assert np.abs(noisy[clear] - small[clear])[:, 2:6, 2:6].mean() < 0.1
    ab = alpha_bars(model.schedule)[np.asarray(time).astype(int)][:, None, None, None]
    assert (noisy / np.sqrt(1 - ab))[time > 990].std() == pytest.approx(1, abs=0.1)


def test_a_share_of_the_small_pictures_is_spoilt(calls, monkeypatch):
    monkeypatch.setitem(pixel_losses.DEGRADATIONS, "blur", lambda small, key: small + 10)
    model = replace(UPSAMPLER, degradation="blur")
    batch = {"pixels": jnp.zeros((2000, 16, 16, 3), jnp.uint8)}
    upsampler_loss(model, 8)(PARAMS, batch, jax.random.key(0))
    small = calls["UNet"][0][..., 3:]
    spoilt = small.mean((1, 2, 3)) > 4
    wanted = np.where(spoilt, 9.0, -1.0)[:, None, None, None]
    np.testing.assert_allclose(small, np.broadcast_to(wanted, small.shape), atol=1e-5)
    assert spoilt.mean() == pytest.approx(pixel_losses.DEGRADED, abs=0.05)


def test_an_upsampler_with_variances_learns_them_too(calls):
    model = replace(UPSAMPLER, degradation="blur", unet=replace(UPSAMPLER.unet, out_channels=6))
    batch = {"pixels": jnp.zeros((20, 16, 16, 3), jnp.uint8)}
    value, metrics = upsampler_loss(model, 8)(PARAMS, batch, jax.random.key(0))
    wanted = metrics["squared_error"] + 0.001 * metrics["bits_per_dim"]
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("crop", [0, 5, 32])
def test_a_crop_is_a_part_that_the_network_can_halve(crop):
    model = replace(UPSAMPLER, unet=presets.MINI_UPSAMPLERS[0].unet)
    with pytest.raises(ValueError, match=f"a crop of {crop} pixels: it must be a multiple of 2"):
        upsampler_loss(model, crop)


def test_crops_lie_anywhere_and_hold_together():
    y, x = jnp.mgrid[:7, :9]
    places = jnp.broadcast_to(jnp.stack([y, x], -1), (300, 7, 9, 2))
    crops = random_crop(places, jax.random.key(0), 4)
    corners = crops[:, 0, 0]
    np.testing.assert_array_equal(crops, corners[:, None, None] + places[:1, :4, :4])
    assert {tuple(corner) for corner in np.asarray(corners).tolist()} == {
        (row, column) for row in range(4) for column in range(6)
    }
