"""The losses fall on a fixed batch, and are what their parts say; shifts keep the picture.

The autoencoder's loss falls in `test_loop.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from sdjax import config
from sdjax.diffusion.losses import min_snr_weight
from sdjax.diffusion.schedule import alpha_bars
from sdjax.image.preprocess import to_float
from sdjax.training import losses
from sdjax.training.losses import clip_loss, latent_diffusion_loss, random_shift
from sdjax.training.state import Recipe, init_state, make_step

CLIP = config.Clip(tiny.text_tower(20, 6), tiny.IMAGE_TOWER)
SCHEDULE = config.Schedule("scaled_linear", prediction="v")
# Four plain colours with a spot each.
PIXELS = np.broadcast_to(
    np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [250, 250, 0]], np.uint8)[:, None, None],
    (4, 16, 16, 3),
).copy()
PIXELS[:, 6:9, 6:9] = 128


def clip_case():
    params = {
        "text": tiny.text_params(CLIP.text),
        "image": tiny.image_params(CLIP.image),
        "logit_scale": jnp.float32(np.log(1 / 0.07)),
    }
    tokens = np.array([[18, word, 19, 19, 19, 19] for word in range(4)], np.int32)
    batch = {"pixels": PIXELS, "tokens": tokens, "end": np.full(4, 2, np.int32)}
    return clip_loss(CLIP, 1), params, batch, {"accuracy", "logit_scale"}


def latent_diffusion_case():
    rng = np.random.default_rng(0)
    batch = {
        "mean": rng.normal(size=(4, 4, 4, 4)).astype(np.float32),
        "std": np.full((4, 4, 4, 4), 0.1, np.float32),
        "context": rng.normal(size=(4, 6, 32)).astype(np.float16),  # as it is stored
        "vector": rng.normal(size=(4, 16)).astype(np.float32),
        "empty_context": np.zeros((6, 32), np.float16),
        "empty_vector": np.zeros(16, np.float32),
    }
    loss = latent_diffusion_loss(tiny.SMALLER_UNET, SCHEDULE, gamma=5.0, drop=0.1)
    return loss, tiny.unet_params(tiny.SMALLER_UNET), batch, {"squared_error"}


@pytest.mark.parametrize("case", [clip_case, latent_diffusion_case])
def test_the_loss_falls_on_a_fixed_batch_and_every_part_learns(case):
    loss, params, batch, names = case()
    recipe = Recipe(steps=1000, batch=4, learning_rate=3e-3, warmup=1, weight_decay=0.0)
    step, state = make_step(loss, recipe), init_state(jax.tree.map(jnp.copy, params), recipe)
    values = []
    for _ in range(20):
        state, metrics = step(state, batch)
        assert set(metrics) == {"loss", "gradient_norm", *names}
        assert all(np.isfinite(value) for value in metrics.values())
        values.append(metrics["loss"].item())
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5]), values
    for path, moved in jax.tree.leaves_with_path(
        jax.tree.map(lambda a, b: jnp.abs(a - b).max(), state.params, params)
    ):
        # Keys of attention have a bias without effect: a constant in every score.
        if "['key']['bias']" not in jax.tree_util.keystr(path):
            assert moved > 1e-5, jax.tree_util.keystr(path)


def test_clip_loss_of_equal_pairs_is_the_log_of_their_number():
    _, params, batch, _ = clip_case()
    loss = jax.jit(clip_loss(CLIP, 0))
    same = {**batch, "tokens": batch["tokens"][[0] * 4], "pixels": PIXELS[[0] * 4]}
    value, _ = loss(params, same, jax.random.key(0))
    assert value.item() == pytest.approx(np.log(4), rel=1e-5)
    _, metrics = loss({**params, "logit_scale": jnp.float32(9)}, same, jax.random.key(0))
    assert metrics["logit_scale"].item() == pytest.approx(100, rel=1e-5)


# Pixels


def test_pixels_become_floats_in_their_range():
    found = to_float(jnp.array([0, 51, 255], jnp.uint8))
    np.testing.assert_allclose(found, [-1, -0.6, 1], atol=1e-6)


def test_a_shift_moves_the_picture_and_repeats_its_border():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 9, 9, 3), np.uint8))
    shifted = random_shift(images, jax.random.key(0), 2)
    assert shifted.shape == images.shape and shifted.dtype == jnp.uint8
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    crops = np.stack([padded[:, y : y + 9, x : x + 9] for y in range(5) for x in range(5)])
    equal = (crops == np.asarray(shifted)).all((2, 3, 4))  # crops images
    assert (equal.sum(0) == 1).all()
    assert (equal.sum(1) > 0).sum() > 15  # most of the 25 places occur
    again = random_shift(images, jax.random.key(0), 2)
    np.testing.assert_array_equal(again, shifted)
    np.testing.assert_array_equal(random_shift(images, jax.random.key(1), 0), images)


# The diffusion loss in detail, with a network that only says what it was given


@pytest.fixture
def calls(monkeypatch):
    """(latents, times, context, vector) of every call of the network, which answers 0."""
    seen = []

    def answer(network, params, *inputs):
        seen.append(inputs)
        return jnp.zeros_like(inputs[0])

    monkeypatch.setattr(losses, "apply", answer)
    return seen


def diffusion_batch(count, std=0.0):
    return {
        "mean": jax.random.normal(jax.random.key(9), (count, 8, 8, 4)),
        "std": jnp.full((count, 8, 8, 4), std),
        "context": jnp.ones((count, 6, 32), jnp.float16),
        "vector": jnp.ones((count, 16)),
        "empty_context": jnp.zeros((6, 32), jnp.float16),
        "empty_vector": jnp.zeros(16),
    }


@pytest.mark.parametrize("drop", [0.0, 0.25, 1.0])
def test_captions_are_dropped_whole_and_as_often_as_asked(calls, drop):
    loss = latent_diffusion_loss(tiny.UNET, SCHEDULE, gamma=5.0, drop=drop)
    loss({}, diffusion_batch(400), jax.random.key(0))
    _, _, context, vector = calls[0]
    assert context.dtype == jnp.float32
    kept = context.mean((1, 2))
    assert set(np.unique(kept)) <= {0.0, 1.0}
    np.testing.assert_array_equal(kept, vector.mean(1))
    assert kept.mean().item() == pytest.approx(1 - drop, abs=0.07 if 0 < drop < 1 else 0)


def test_times_cover_the_schedule_evenly_and_noise_fits_them(calls):
    loss = latent_diffusion_loss(tiny.UNET, SCHEDULE, gamma=5.0, drop=0.1)
    batch = diffusion_batch(100)
    value, metrics = loss({}, batch, jax.random.key(0))
    x, times, _, _ = calls[0]
    np.testing.assert_array_equal(times // 10, np.arange(100))  # one of each ten
    assert times.dtype == jnp.float32 and len(np.unique(times % 10)) == 10
    alpha_bar = jnp.asarray(alpha_bars(SCHEDULE), jnp.float32)[times.astype(int)]
    ab = alpha_bar[:, None, None, None]
    noise = (x - jnp.sqrt(ab) * batch["mean"]) / jnp.sqrt(1 - ab)
    late = noise[50:]
    assert abs(late.mean()) < 0.03 and abs(late.std() - 1) < 0.03
    # An answer of 0 leaves the whole of v = a eps - s x0.
    wanted = jnp.mean((jnp.sqrt(ab) * noise - jnp.sqrt(1 - ab) * batch["mean"]) ** 2, (1, 2, 3))
    weight = min_snr_weight(alpha_bar, 5.0, "v")
    assert value.item() == pytest.approx(jnp.mean(weight * wanted).item(), rel=1e-3)
    assert metrics["squared_error"].item() == pytest.approx(wanted.mean().item(), rel=1e-3)


def test_latents_are_drawn_from_their_posterior(calls):
    loss = latent_diffusion_loss(tiny.UNET, SCHEDULE, gamma=5.0, drop=0.1)
    batch = diffusion_batch(100, std=0.5)
    loss({}, batch, jax.random.key(0))
    drawn = calls[0][0][:2] - batch["mean"][:2]  # hardly any noise yet
    assert drawn.std().item() == pytest.approx(0.5, rel=0.15)
