"""Run as a program, this file is the child process of its last test: eight devices."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
import tiny_pipeline

from sdjax.config import Schedule
from sdjax.diffusion.guidance import guide
from sdjax.diffusion.loop import image_keys, initial_noise, sample
from sdjax.diffusion.samplers import sampling_plan
from sdjax.parallel import Parallel, parallelize, replicate
from sdjax.pipelines.stages import decode_float

COMMUNICATION = re.compile(
    r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+|partition-id|replica-id"
)
PLAN = sampling_plan(Schedule("scaled_linear", prediction="eps"), 3, 4, sampler="euler a")
EMBED = nn.Embed(7, 4)
PARAMS = {"embed": EMBED.init(jax.random.key(0), jnp.zeros(1, int))["params"], "mix": jnp.eye(4)}


def draw(params, x, tokens, plan, keys, guidance, *, prediction):
    """A guided loop around a network of one layer; `tokens` are pairs, [batch, 2, tokens]."""
    words = EMBED.apply({"params": params["embed"]}, tokens).mean(axis=2)[:, :, None, None]

    def predict(x, timesteps):
        both = jnp.tanh((x @ params["mix"])[:, None] + words)
        return guide(both[:, 0], both[:, 1], guidance)

    return sample(predict, plan, x, keys, prediction=prediction)[0]


def wrapped(mode, count):
    return parallelize(
        draw,
        mode,
        batched=("x", "tokens", "keys"),
        static=("prediction",),
        devices=jax.devices()[:count],
    )


def arguments(size, params=PARAMS):
    keys = image_keys(jnp.arange(size))
    tokens = np.arange(size * 6).reshape(size, 2, 3) % 7
    return params, initial_noise(keys, (4, 4, 4)), tokens, PLAN, keys, 3.0


EVERY_WAY = [("pmap", 1), ("mesh", 1), ("pmap", 2), ("mesh", 2), ("pmap", 4), ("mesh", 4)]
each_way = pytest.mark.parametrize(("mode", "count"), EVERY_WAY)


@each_way
def test_devices_do_not_change_an_image(mode, count):
    run, alone = wrapped(mode, count), wrapped("single", 1)
    for size in (5, 8):
        found = run(*arguments(size), prediction="eps")
        wanted = alone(*arguments(size), prediction="eps")
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert found.devices() == {jax.devices()[0]}
    assert np.std(np.asarray(wanted)) > 0.1 and not np.allclose(wanted[0], wanted[1], atol=0.1)


@each_way
def test_devices_work_without_communication(mode, count):
    program = wrapped(mode, count).lower(*arguments(8), prediction="eps").compile().as_text()
    assert "while" in program and (count == 1 or f"num_partitions={count}" in program)
    assert not COMMUNICATION.findall(program)


def test_communication_would_be_seen():
    def torn(x, texts):  # [unconditional ..., conditional ...]: halves on other devices
        both = jnp.concatenate([x, x]) * texts
        return both[: len(x)] + both[len(x) :]

    run = parallelize(torn, "mesh", batched=("x", "texts"), devices=jax.devices()[:4])
    x = jnp.ones((4, 8))
    with pytest.raises(ValueError, match=r"differ in their number of rows.*'texts': \{8\}"):
        run(x, jnp.ones((8, 8)))
    run = parallelize(torn, "mesh", batched=("x",), devices=jax.devices()[:4])
    program = run.lower(x, jnp.ones((8, 8))).compile().as_text()
    assert COMMUNICATION.findall(program)


TRACES = []


def scaled(x, scale, *, sign):
    TRACES.append((*x.shape, sign))
    return sign * scale * x


@pytest.mark.parametrize(
    ("mode", "traces"),
    [
        ("single", [(6, 2, 1), (5, 2, 1), (6, 2, -1)]),
        ("pmap", [(2, 2, 1), (2, 2, -1)]),
        ("mesh", [(6, 2, 1), (6, 2, -1)]),
    ],
)
def test_one_program_for_each_shape(mode, traces):
    TRACES.clear()
    for size, scale, sign in ((6, 1.0, 1), (5, 2.0, 1), (6, 7.5, -1), (6, 3.0, 1), (5, 1.0, 1)):
        devices = jax.devices()[: 1 if mode == "single" else 3]
        run = parallelize(scaled, mode, batched=("x",), static=("sign",), devices=devices)
        x = np.arange(2.0 * size).reshape(size, 2)
        np.testing.assert_allclose(run(x, scale, sign=sign), sign * scale * x)
    assert traces == TRACES


@pytest.mark.parametrize("mode", ["single", "pmap", "mesh"])
def test_trees_of_rows_and_results(mode):
    def describe(rows, scale):
        bits = jax.vmap(lambda key: jax.random.bits(key, (2,)))(rows["keys"])
        return {"keys": rows["keys"], "bits": (bits, rows["seeds"] * scale), "none": None}

    devices = jax.devices()[: 1 if mode == "single" else 4]
    run = parallelize(describe, mode, batched=("rows",), devices=devices)
    rows = {"keys": image_keys(jnp.arange(5)), "seeds": np.arange(5), "pooled": None}
    found, wanted = run(rows, 2), describe(rows, 2)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert (jax.random.key_data(found["keys"]) == jax.random.key_data(rows["keys"])).all()
    for one, other in zip(found["bits"], wanted["bits"], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_weights_travel_once(mode):
    devices = jax.devices()[:4]
    params = replicate(PARAMS, devices)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    assert all(leaf.devices() == set(devices) for leaf in jax.tree.leaves(params))
    assert replicate(params, devices) is params
    _, _, shared, _ = wrapped(mode, 4)._prepare(arguments(4, params), {"prediction": "eps"})
    assert shared["params"] is params


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="'latents' is no argument.*x, tokens"):
        parallelize(draw, "mesh", batched=("latents",))
    with pytest.raises(ValueError, match="the batch is empty: x, tokens, keys have no rows"):
        wrapped("single", 1)(*arguments(0), prediction="eps")
    with pytest.raises(ValueError, match="'single' does not fit 2 devices"):
        wrapped("single", 2)
    with pytest.raises(ValueError, match="4 images on its first axis, got \\(\\)"):
        parallelize(lambda x: x.mean(), "single", batched=("x",))(jnp.ones((4, 2)))


def eight_devices():
    """The whole pipeline, of tiny networks: the same pictures by every way on 1 to 8 devices.

    1, 2 and 4 are the first of the eight that this process is forced to have.
    """
    assert jax.device_count() == 8
    pipe = tiny_pipeline.make_pipeline()
    unet = replace(pipe.config.unet, channels=(16,), attention=(True,), heads=(2,))
    params = {**pipe.params, "unet": tiny.unet_params(unet)}
    pipe = replace(pipe, config=replace(pipe.config, unet=unet), params=params)
    with pytest.raises(ValueError, match="unknown mode 'both': choose single, pmap or mesh"):
        pipe("cat", mode="both")

    settings = {"sampler": "euler a", "trajectory": True}
    alone, whole = pipe("cat", n=8, **settings)
    wanted = before_rounding(pipe, whole.latents)
    assert wanted.std() > 0.1
    ways = [(mode, count) for count in (1, 2, 4, 8) for mode in ("pmap", "mesh")]
    for mode, count in [("single", 1), *ways]:
        devices = jax.devices()[:count]
        there = replace(pipe, params=replicate(pipe.params, devices))
        decoder = parallelize(
            decode_float, mode, batched=("latents",), static=("autoencoder",), devices=devices
        )
        for size in (8, 7) if count > 1 else (8,):  # 7 does not divide
            images, walk = there("cat", n=size, devices=devices, mode=mode, **settings)
            found = before_rounding(there, walk.latents, decoder)
            np.testing.assert_allclose(found, wanted[:size], atol=1e-5)
            for image, other in zip(images, alone[:size], strict=True):
                assert np.abs(np.int16(image) - np.int16(other)).max() <= 1
            if size == 8:
                assert jax.tree.map(np.shape, walk) == jax.tree.map(np.shape, whole)
    without_communication(pipe, **settings)


def before_rounding(pipe, latents, decoder=decode_float):
    """Images in [-1, 1]."""
    return np.clip(decoder(pipe.config.autoencoder, pipe.params["autoencoder"], latents), -1, 1)


def without_communication(pipe, **settings):
    """With a mode alone, on all devices: the loop and the decoder do not talk."""
    calls, call = [], Parallel.__call__
    Parallel.__call__ = lambda self, *a, **k: calls.append((self, a, k)) or call(self, *a, **k)
    for mode in ("pmap", "mesh"):
        pipe("cat", n=8, mode=mode, **settings)
    for run, arguments, named in calls:
        program = run.lower(*arguments, **named).compile().as_text()
        assert "num_partitions=8" in program
        assert not COMMUNICATION.findall(program)
    assert len(calls) == 4


def test_eight_devices_draw_the_same_pictures():
    settings = {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    child = subprocess.run(
        [sys.executable, __file__], env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr


if __name__ == "__main__":
    eight_devices()
