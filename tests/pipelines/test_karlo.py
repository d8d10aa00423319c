"""A folder of Karlo draws: its own counts, its own times, its last step's own network."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny_models as tiny
from weights.published import KARLO, PRIOR, WIDE_IMAGE

import sdjax
from sdjax.config import Unclip
from sdjax.weights.config_json import to_json
from sdjax.weights.conversion import convert_checkpoint, export_model
from sdjax.weights.files import save_model
from sdjax.weights.layouts import component_shapes

TIMES = [999, 832, 666, 500, 333, 166, 0]
"""Of 7 steps, in the reference."""


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """Read from the folder that diffusers would write, with CLIP's whole vocabulary."""
    text = replace(KARLO.text, vocab_size=49_408)
    system = Unclip(text, KARLO.decoder, KARLO.upsamplers, PRIOR)
    shapes = component_shapes(system)
    params = {name: tiny.fill(shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    folder = tmp_path_factory.mktemp("karlo")
    save_model(
        folder / "ours", params, {"kind": "unclip", "name": "karlo", "config": to_json(system)}
    )
    export_model(folder / "ours", folder / "theirs", "diffusers")
    return sdjax.load(folder / "theirs")


def test_it_draws(pipe):
    drawn = pipe("a cat", seed=0, steps=2, prior_steps=2, upsampler_steps=(2,))
    pixels = np.asarray(drawn[0])
    assert pixels.shape == (32, 32, 3) and pixels.std() > 1


def test_one_that_varies_pictures_sees_them_as_long_as_clip_makes_them(tmp_path):
    text = replace(KARLO.text, vocab_size=49_408)
    system = replace(KARLO, text=text, prior=None, image=WIDE_IMAGE)
    shapes = component_shapes(system)
    params = {name: tiny.fill(shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    model = {"kind": "unclip", "name": "karlo", "config": to_json(system)}
    save_model(tmp_path / "ours", params, model)
    export_model(tmp_path / "ours", tmp_path / "theirs", "diffusers")
    convert_checkpoint(tmp_path / "theirs", tmp_path / "again")
    for folder in ("theirs", "again"):
        pipe = sdjax.load(tmp_path / folder)
        found = pipe.embed([np.zeros((20, 20, 3), np.uint8)])
        assert found.shape == (1, 32) and abs(np.linalg.norm(found) - 1) > 0.01
        assert pipe.priors == {}


def test_it_visits_the_times_of_the_reference(pipe):
    settings = pipe.settings
    assert (settings.prior_steps, settings.steps, settings.guidance) == (25, 25, 8.0)
    (plan,) = settings.upsampler_plans(pipe.config)
    calls = jax.device_get(plan.calls)
    assert calls.timestep[calls.active].tolist() == TIMES


def test_its_last_step_is_the_last_networks(pipe):
    """Without weights in the other one a run of one step stays as it was, one of two does not."""
    upsampler = pipe.params["upsampler_0"]
    unet = jax.tree.map(np.zeros_like, upsampler["unet"])
    cut = replace(pipe, params={**pipe.params, "upsampler_0": {**upsampler, "unet": unet}})

    def picture(model, steps):
        counts = {"steps": 2, "prior_steps": 2, "upsampler_steps": (steps,)}
        return np.asarray(model("a cat", seed=0, **counts)[0], float)

    np.testing.assert_array_equal(picture(cut, 1), picture(pipe, 1))
    assert np.abs(picture(cut, 2) - picture(pipe, 2)).max() > 1
