"""Pictures redrawn by the whole model: as its pipeline redraws them, and only near ones kept."""

from dataclasses import replace

import numpy as np
import pytest

import sdjax
from sdjax import presets
from sdjax.data import emoji
from sdjax.image.preprocess import to_pixels
from sdjax.pipelines.stages import decode_float
from sdjax.training import redrawn
from sdjax.training.latents import encode_latents
from sdjax.training.redrawn import redraw


@pytest.fixture(scope="module")
def three():
    whole = emoji.load("train", presets.MINI_STYLES)
    parts = {name: getattr(whole, name)[:3] for name in ("images", "concepts", "styles")}
    return replace(whole, **parts)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(redrawn, "TOGETHER", 4)
    monkeypatch.setattr(redrawn, "DEPTHS", ((20, 0.15), (15, None)))


def test_they_are_redrawn_as_the_pipeline_does(three, small, monkeypatch):
    monkeypatch.setattr(redrawn, "MOST_OFF", np.inf)
    found = redraw("mini", three, seed=7)
    assert found.pictures.tolist() == [0, 1, 2, 0, 1, 2] and found.latents.dtype == np.float16
    pipe = sdjax.load("mini")
    ours = to_pixels(
        decode_float(
            pipe.config.autoencoder,
            pipe.params["autoencoder"],
            found.latents.astype(np.float32),
        )
    )
    settings = {"sampler": "ddim", "spacing": "trailing"}
    captions = three.captions()
    for i in range(3):
        image = {"image": three.images[i], "strength": 0.15}
        (a,) = pipe(captions[i], seed=7 + i, steps=20, **image, **settings)
        (b,) = pipe(captions[i], seed=10 + i, steps=15, **settings)
        for drawn, wanted in ((ours[i], a), (ours[3 + i], b)):
            gap = np.abs(drawn.astype(int) - np.asarray(wanted).astype(int))
            assert np.mean(gap) < 0.6 and gap.max() <= 16  # latents were kept in 16 bits


def test_drawings_far_from_the_picture_are_left_out(three, small, monkeypatch):
    pipe = sdjax.load("mini")
    means, _ = encode_latents(pipe.config.autoencoder, pipe.params["autoencoder"], three.images)
    monkeypatch.setattr(redrawn, "MOST_OFF", np.inf)
    every = redraw("mini", three, seed=0)
    off = np.sqrt(
        np.mean((every.latents.astype(np.float32) - means[every.pictures]) ** 2, axis=(1, 2, 3))
    )
    limit = np.sort(off)[2:4].mean()
    monkeypatch.setattr(redrawn, "MOST_OFF", limit)
    near = redraw("mini", three, seed=0)
    np.testing.assert_array_equal(near.latents, every.latents[off < limit])
    np.testing.assert_array_equal(near.pictures, every.pictures[off < limit])


def test_what_does_not_redraw_is_refused(three):
    with pytest.raises(ValueError, match="dalle2-mini does not redraw pictures"):
        redraw("dalle2-mini", three, seed=0)
