"""Every part trained for two steps on the real pictures, and the whole loaded and used."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

import sdjax
from sdjax import config, presets
from sdjax.data import emoji
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.preprocess import to_float
from sdjax.nn.functional import apply, init_params
from sdjax.training import parts, tasks
from sdjax.training.captions import draw_captions
from sdjax.training.latent_decoder import latent_decoder_loss, latent_decoder_task
from sdjax.training.latent_diffusion import latent_diffusion_task
from sdjax.training.latents import encode_latents, read_autoencoder
from sdjax.training.loop import train
from sdjax.training.parts import make_task
from sdjax.training.state import Recipe, init_key
from sdjax.weights.config_json import from_json
from sdjax.weights.files import load_model
from sdjax.weights.tree import flatten

RECIPE = Recipe(steps=2, batch=4, learning_rate=1e-3, warmup=1)
CLIP = config.Clip(
    replace(tiny.text_tower(presets.MINI_CLIP.text.vocab_size, 24), projection_dim=16),
    replace(tiny.IMAGE_TOWER, image_size=64, patch_size=32),
)
AUTOENCODER = replace(tiny.AUTOENCODER, patch=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the models, trained one after the other."""
    out = tmp_path_factory.mktemp("runs")
    for name, task in [
        ("clip", lambda: tasks.clip_task(CLIP, RECIPE)),
        ("autoencoder", lambda: tasks.autoencoder_task(AUTOENCODER, RECIPE)),
        (
            "tiny",
            lambda: latent_diffusion_task(
                tiny.UNET,
                presets.MINI_SCHEDULE,
                RECIPE,
                out / "clip" / "model",
                out / "autoencoder" / "model",
            ),
        ),
        ("decoded", lambda: latent_decoder_task(RECIPE, out / "autoencoder" / "model")),
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
    components, model = load_model(runs / "autoencoder" / "model")
    measured = from_json(config.Autoencoder, model["config"])
    sample = emoji.load("train").images[::50]
    means, stds = encode_latents(measured, components["autoencoder"], sample)
    side = 64 // measured.factor
    assert means.shape == stds.shape == (len(sample), side, side, 4)
    assert 0.9 < means.astype(np.float32).std() < 1.1


def test_the_decoder_alone_is_trained_further(runs):
    before, _ = load_model(runs / "autoencoder" / "model")
    after, told = load_model(runs / "decoded" / "model")
    assert told["training"]["autoencoder"]["steps"] == told["training"]["steps"] == 2
    changed = {
        part
        for part, tree in before["autoencoder"].items()
        for path, leaf in flatten(tree).items()
        if not np.array_equal(leaf, flatten(after["autoencoder"][part])[path])
    }
    assert changed == {"decoder", "post_quant"}


def test_what_is_needed_is_also_read_out_of_a_whole_model(runs):
    sizes, params, told = read_autoencoder(runs / "tiny" / "model")
    alone = read_autoencoder(runs / "autoencoder" / "model")
    assert (sizes, told) == (alone[0], alone[2])
    jax.tree.map(np.testing.assert_array_equal, params, alone[1])
    with pytest.raises(ValueError, match="has no autoencoder"):
        read_autoencoder(runs / "clip" / "model")


def test_a_run_begins_with_the_weights_of_another(runs, monkeypatch):
    monkeypatch.setattr(presets, "MINI_AUTOENCODER", AUTOENCODER)
    for start in ("autoencoder", "tiny", "decoded"):
        recipe = replace(RECIPE, start=str(runs / start / "model"))
        begun = make_task("autoencoder", "mini", recipe).init(init_key(0))
        found = load_model(recipe.start)[0]["autoencoder"]
        jax.tree.map(np.testing.assert_array_equal, begun, found)
    needed = {"autoencoder": runs / "autoencoder" / "model"}
    recipe = replace(RECIPE, start=str(runs / "decoded" / "model"))
    begun = make_task("latent-decoder", "mini", recipe, **needed).init(init_key(0))
    assert begun.keys() == {"decoder", "post_quant"}
    monkeypatch.setitem(parts.CLIPS, "mini", CLIP)
    recipe = replace(RECIPE, start=str(runs / "tiny" / "model"))
    begun = make_task("clip", "mini", recipe).init(init_key(0))
    found = load_model(runs / "clip" / "model")[0]["clip"]
    jax.tree.map(np.testing.assert_array_equal, begun, found)


def test_a_run_does_not_begin_with_what_does_not_fit(runs):
    recipe = replace(RECIPE, start=str(runs / "clip" / "model"))
    with pytest.raises(ValueError, match="cannot start autoencoder: it has no autoencoder"):
        make_task("autoencoder", "mini", recipe)
    recipe = replace(RECIPE, start=str(runs / "autoencoder" / "model"))
    with pytest.raises(ValueError, match=r"cannot start autoencoder: its \S+ is .*, wanted \("):
        make_task("autoencoder", "mini", recipe)
    with pytest.raises(FileNotFoundError, match="no model 'nothing'"):
        make_task("autoencoder", "mini", replace(RECIPE, start="nothing"))


def test_a_task_can_be_run_twice_from_the_same_start(runs, tmp_path):
    task = latent_decoder_task(RECIPE, runs / "autoencoder" / "model")
    for name in "ab":
        train(task, RECIPE, tmp_path / name, quiet=True)
    a, b = (load_model(tmp_path / name / "model")[0] for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_pictures_are_decoded_from_latents_with_noise_but_some_without():
    network = Autoencoder(AUTOENCODER)
    pixels = jnp.asarray(emoji.load("train").images[:8])
    params = init_params(network, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), jax.random.key(1))
    encoder = {name: params[name] for name in ("encoder", "quant")}
    decoder = {name: params[name] for name in ("decoder", "post_quant")}
    key, batch = jax.random.key(0), {"pixels": pixels, "encoder": encoder}
    silent, loud = (latent_decoder_loss(AUTOENCODER, 0, noise) for noise in (0.0, 9.0))
    (value, clean), (other, same) = silent(decoder, batch, key), loud(decoder, batch, key)
    np.testing.assert_allclose(clean["psnr"], same["psnr"], rtol=1e-4)
    assert abs(other / value - 1) > 1e-3
    # Without noise and moves it is the reconstruction's error, of pictures or their mirror images.
    image = to_float(pixels)
    image = jnp.concatenate([image, image[:, :, ::-1]])
    z = apply(network, params, image, method="encode").mean * AUTOENCODER.scaling_factor
    error = apply(network, params, z, method="decode") - image
    plain, mirrored = jnp.mean(jnp.abs(error) + error**2, axis=(1, 2, 3)).reshape(2, 8)
    means = [jnp.where(np.array(m), mirrored, plain).mean() for m in product((0, 1), repeat=8)]
    assert min(abs(value / mean - 1) for mean in means) < 1e-5


def test_the_preset_has_a_row_for_every_word_of_the_captions():
    assert presets.MINI_CLIP.text.vocab_size == len(tasks.caption_vocabulary()) + 1


def test_captions_to_train_with():
    data = emoji.load("train", ["flat"])
    texts, rows = draw_captions(data, variants=3, seed=0)
    assert texts[0] == "" and len(set(texts)) == len(texts)
    assert rows.shape == (len(data), 3)
    assert [texts[row] for row in rows[:, 0]] == data.captions()
    again = draw_captions(data, variants=3, seed=0)
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
