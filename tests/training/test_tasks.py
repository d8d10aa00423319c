"""Every part trained for two steps on the real pictures, and the whole loaded and used."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_models as tiny

import sdjax
from sdjax import config, presets
from sdjax.data import emoji
from sdjax.training import tasks
from sdjax.training.loop import train
from sdjax.training.state import Recipe

RECIPE = Recipe(steps=2, batch=4, learning_rate=1e-3, warmup=1)
CLIP = config.Clip(
    replace(tiny.text_tower(presets.MINI_CLIP.text.vocab_size, 24), projection_dim=16),
    replace(tiny.IMAGE_TOWER, image_size=64, patch_size=32),
)
AUTOENCODER = replace(tiny.AUTOENCODER, patch=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the three models, trained one after the other."""
    out = tmp_path_factory.mktemp("runs")
    for name, task in [
        ("clip", lambda: tasks.clip_task(CLIP, RECIPE)),
        ("autoencoder", lambda: tasks.autoencoder_task(AUTOENCODER, RECIPE)),
        (
            "tiny",
            lambda: tasks.latent_diffusion_task(
                tiny.UNET,
                presets.MINI_SCHEDULE,
                RECIPE,
                out / "clip" / "model",
                out / "autoencoder" / "model",
            ),
        ),
    ]:
        train(task(), RECIPE, out / name, quiet=True)
    return out


def test_the_whole_is_loaded_and_draws(runs):
    pipe = sdjax.load(runs / "tiny" / "model")
    assert pipe.name == "tiny" and pipe.styles == presets.MINI_STYLES
    (image,) = pipe("a red apple, 3d style", steps=2)
    assert image.size == (64, 64)
    assert (runs / "tiny" / "preview_0000002.png").exists()
    assert (runs / "autoencoder" / "preview_0000002.png").exists()


def test_the_scale_is_measured_so_that_latents_spread_about_1(runs):
    components, model = tasks.load_model(runs / "autoencoder" / "model")
    measured = tasks.from_json(config.Autoencoder, model["config"])
    sample = emoji.load("train").images[::50]
    means, stds = tasks.encode_latents(measured, components["autoencoder"], sample)
    side = 64 // measured.factor
    assert means.shape == stds.shape == (len(sample), side, side, 4)
    assert 0.9 < means.astype(np.float32).std() < 1.1


def test_the_preset_has_a_row_for_every_word_of_the_captions():
    assert presets.MINI_CLIP.text.vocab_size == len(tasks.caption_vocabulary()) + 1


def test_captions_to_train_with():
    data = emoji.load("train", ["flat"])
    texts, rows = tasks.draw_captions(data, variants=3, seed=0)
    assert texts[0] == "" and len(set(texts)) == len(texts)
    assert rows.shape == (len(data), 3)
    assert [texts[row] for row in rows[:, 0]] == data.captions()
    again = tasks.draw_captions(data, variants=3, seed=0)
    assert again[0] == texts and (again[1] == rows).all()


def test_words_are_struck_out_now_and_then_but_never_the_frame():
    task = tasks.clip_task(CLIP, replace(RECIPE, batch=64))
    tokens = np.concatenate([task.batch(step)["tokens"] for step in range(20)])
    ends = np.concatenate([task.batch(step)["end"] for step in range(20)])
    unknown = CLIP.text.vocab_size - 1
    struck = tokens == unknown
    assert not struck[:, 0].any()
    assert not struck[np.arange(len(tokens)), ends].any()
    words = (np.arange(24) < ends[:, None]) & (np.arange(24) > 0)
    assert 0.01 < struck[words].mean() < 0.03
