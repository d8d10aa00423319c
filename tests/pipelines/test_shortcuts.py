"""What is faster and not exact: off it is the exact program, on it does what a Python loop does."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
from tiny_pipeline import CAT, DOG, PICTURE, assert_same, pixels

from sdjax.denoisers.unet import UNet
from sdjax.diffusion.loop import begin_state, call, image_keys, initial_noise
from sdjax.diffusion.samplers import sampling_plan
from sdjax.diffusion.solvers import SLOTS
from sdjax.nn.functional import apply
from sdjax.pipelines import stages
from sdjax.pipelines.images import RECIPE
from sdjax.pipelines.shortcuts import Shortcuts
from sdjax.text.clip_text import TextOutput

STEPS = 7
INTERVAL = (0.3, 3.0)
"""Holds the calls 2, 3, 4 and 5 of 7: see `test_the_interval_is_of_sigma_over_alpha`."""


def arguments(pipe, branches=2):
    text = TextOutput(jnp.zeros((3, branches, 12, 32)), jnp.zeros((3, branches, 16)))
    plan = sampling_plan(pipe.config.schedule, 3, 50)
    state = jnp.zeros((3, SLOTS, 4, 4, 4))
    return pipe.params["unet"], state, text, plan, image_keys(jnp.arange(3)), jnp.ones(()) * 3


def program(pipe, **options):
    def run(*inputs):
        run = stages.denoise.__wrapped__
        return run(pipe.config.unet, *inputs, jnp.float32(0), prediction="v", **options)

    return str(jax.make_jaxpr(run)(*arguments(pipe)))


def by_hand(pipe, prompt, seed, scale, interval=None, every=1):
    """The run as a Python loop; the text and the network's calls are written out."""
    rows = pipe.tokenizer(["", prompt])
    text = stages.encode_text(pipe.config.text, pipe.params["text"], rows, pipe.tokenizer.eot_id)
    unet, params = UNet(pipe.config.unet), pipe.params["unet"]
    remember = jax.jit(lambda *inputs: apply(unet, params, *inputs, method="remember"))
    reuse = jax.jit(lambda *inputs: apply(unet, params, *inputs, method="reuse"))
    plan = sampling_plan(pipe.config.schedule, STEPS)
    keys = image_keys(jnp.array([seed]))
    state, deep, guided_before = begin_state(initial_noise(keys, (4, 4, 4))), {}, True

    def branch(row, whole, x, t):
        inputs = x, t, text.hidden[row : row + 1], text.pooled[row : row + 1]
        if whole:
            output, deep[row] = remember(*inputs)
            return output
        return reuse(deep[row], *inputs)

    for k in range(plan.count):
        info = jax.tree.map(lambda values, k=k: values[k], plan.calls)
        level = info.sigma / info.alpha
        guided = interval is None or bool(interval[0] < level <= interval[1])
        whole = k % every == 0 or (guided and not guided_before)
        guided_before = guided

        def denoise(x, t, guided=guided, whole=whole):
            given = branch(1, whole, x, t)
            if not guided:
                return given
            without = branch(0, whole, x, t)
            return without + scale * (given - without)

        state, _ = call(denoise, info, k, state, keys, prediction="v")
    return state[0]


# Off


def test_off_is_the_exact_program(pipe):
    plain = program(pipe)
    assert program(pipe, **Shortcuts().options()) == plain
    assert Shortcuts().recipe() == {}
    # Each way of calling the network is in the program once; the outermost part is short.
    interval, every = {"interval": jnp.array([0.0, 1.0])}, {"every": jnp.int32(2)}
    whole, both, more, all_four = (
        program(pipe, **options).count("conv_general_dilated[")
        for options in ({}, interval, every, interval | every)
    )
    part = more - whole
    assert 0 < part < whole / 2
    assert (both, all_four) == (2 * whole, 2 * (whole + part))


def test_values_at_which_nothing_is_left_out(pipe):
    plain, walk = pipe(CAT, seed=3, steps=STEPS, trajectory=True)
    whole, same = pipe(
        CAT, seed=3, steps=STEPS, guidance_interval=(0.0, float("inf")), trajectory=True
    )
    assert_same(whole, plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), same, walk)
    off = pipe(CAT, seed=3, steps=STEPS, reuse=1, merge=0.0, tile=None)
    np.testing.assert_array_equal(pixels(off), pixels(plain))


def test_a_run_of_whole_calls_is_the_plain_run(pipe):
    """Every call whole, but in the program that could reuse."""
    state, text = jnp.ones((1, SLOTS, 4, 4, 4)), arguments(pipe)[2]
    text = jax.tree.map(lambda x: 1.0 + x[:1], text)
    plan = sampling_plan(pipe.config.schedule, 3)
    scales = jnp.float32(3), jnp.float32(0)
    inputs = pipe.params["unet"], state, text, plan, image_keys(jnp.array([1])), *scales
    plain, _ = stages.denoise(pipe.config.unet, *inputs, prediction="v")
    every, _ = stages.denoise(pipe.config.unet, *inputs, prediction="v", every=jnp.int32(1))
    np.testing.assert_allclose(every, plain, atol=1e-5)


# On: as a Python loop


def test_the_interval_is_of_sigma_over_alpha(pipe):
    plan = sampling_plan(pipe.config.schedule, STEPS)
    level = np.asarray(plan.calls.sigma / plan.calls.alpha)
    inside = (level > INTERVAL[0]) & (level <= INTERVAL[1])
    assert inside.any() and not inside.all() and not inside[0] and not inside[-1]
    _, walk = pipe(CAT, seed=3, steps=STEPS, guidance_interval=INTERVAL, trajectory=True)
    without, given = walk.calls.branches
    differ = np.abs(without - given).max((1, 2, 3, 4)) > 0
    np.testing.assert_array_equal(differ, inside)
    guided = without + 4.0 * (given - without)
    np.testing.assert_allclose(walk.calls.eps, guided, atol=1e-4)


@pytest.mark.parametrize(
    ("interval", "every"), [(INTERVAL, 1), (None, 2), (None, 3), (INTERVAL, 3), (INTERVAL, 4)]
)
def test_the_loop_is_a_python_loop(pipe, interval, every):
    options = {"guidance_interval": interval, "reuse": every}
    _, walk = pipe(CAT, seed=3, steps=STEPS, trajectory=True, **options)
    wanted = by_hand(pipe, CAT, 3, 4.0, interval, every)
    np.testing.assert_allclose(walk.latents, wanted, atol=2e-3)
    plain = pipe(CAT, seed=3, steps=STEPS, trajectory=True)[1].latents
    assert np.abs(walk.latents - plain).max() > 2e-2


@pytest.mark.parametrize("branches", [1, 2])
def test_outside_of_the_interval_the_network_is_called_for_the_prompt_alone(
    pipe, monkeypatch, branches
):
    seen = []

    class Recorder(stages.UNet):
        def apply(self, params, x, timesteps, context, vector, *, method, rngs):
            seen.append(x.shape[0])
            assert timesteps.shape[0] == context.shape[0] == vector.shape[0] == x.shape[0]
            return jnp.zeros_like(x)

    monkeypatch.setattr(stages, "UNet", Recorder)
    run = stages.denoise.__wrapped__
    options = {"prediction": "v", "interval": jnp.array([0.0, 1.0])}
    jax.eval_shape(
        lambda *inputs: run(pipe.config.unet, *inputs, jnp.float32(0), **options),
        *arguments(pipe, branches),
    )
    assert set(seen) == {3, 3 * branches}


def test_the_values_are_data(pipe):
    before = stages.denoise._cache_size()
    options = {"size": (4, 8), "steps": STEPS}
    for k in range(3):
        pipe(CAT, guidance_interval=(0.1 * k, 3.0 + k), reuse=2 + k, **options)
    assert stages.denoise._cache_size() == before + 1


@pytest.mark.parametrize("options", [{"reuse": 3}, {"guidance_interval": INTERVAL, "reuse": 4}])
def test_a_progress_bar_changes_no_pixel(pipe, options):
    """It walks the run in parts, and a part must not forget what the one before remembered."""
    options = {"seed": 3, "steps": 23, **options}
    plain = pipe(CAT, **options)
    np.testing.assert_array_equal(pixels(pipe(CAT, progress=True, **options)), pixels(plain))


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_several_devices_draw_the_same(pipe, mode):
    options = {"seed": 7, "steps": STEPS, "guidance_interval": INTERVAL, "reuse": 2, "merge": 0.5}
    one = pipe([CAT, DOG], **options)
    assert_same(pipe([CAT, DOG], mode=mode, devices=jax.devices()[:2], **options), one)


def test_an_image_alone_is_the_image_in_a_batch(pipe):
    options = {"guidance_interval": INTERVAL, "reuse": 2, "merge": 0.5, "steps": STEPS}
    four = pipe([CAT, DOG], n=2, seed=7, **options)
    assert_same(pipe(DOG, seed=8, **options), [four[3]])


def test_merged_tokens_change_the_picture_a_little(pipe):
    plain = pipe(CAT, seed=3, size=16)
    gaps = [np.abs(pixels(pipe(CAT, seed=3, size=16, merge=m)) - pixels(plain)).mean()
            for m in (0.25, 0.75)]  # fmt: skip
    assert 0 < gaps[0] < gaps[1]


def test_a_large_picture_in_tiles(pipe):
    plain = pipe(CAT, seed=3, size=32)
    tiled = pipe(CAT, seed=3, size=32, tile=8)
    assert 0 < np.abs(pixels(tiled) - pixels(plain)).mean() < 30
    np.testing.assert_array_equal(pixels(pipe(CAT, seed=3, size=32, tile=16)), pixels(plain))
    redrawn = pipe(CAT, image=PICTURE, size=32, tile=8)
    assert redrawn[0].size == (32, 32)


def test_the_recipe_says_what_is_on(pipe):
    options = {"guidance_interval": INTERVAL, "reuse": 2, "merge": 0.5, "tile": 8}
    recipe = pipe(CAT, steps=STEPS, **options)[0].info[RECIPE]
    assert {name: recipe[name] for name in options} == options


# Refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance_interval": (-0.1, 1.0)}, "the first at least 0 and below the second, got"),
        ({"guidance_interval": (2.0, 1.0)}, r"two noise levels \(sigma / alpha\)"),
        ({"guidance_interval": (1.0, 1.0)}, "two noise levels"),
        ({"guidance_interval": (float("nan"), 1.0)}, "two noise levels"),
        ({"guidance_interval": (0.0, float("nan"))}, "two noise levels"),
        ({"guidance_interval": (0.1, 1.0), "guidance": 1.0}, r"but guidance is 1 \(off\)"),
        ({"guidance_interval": (50.0, 60.0)}, "holds no call of this run, whose noise levels"),
        ({"reuse": 0}, r"reuse must be at least 1 \(every call runs the whole UNet\), got 0"),
        ({"reuse": -3}, "reuse must be at least 1"),
        ({"reuse": 2, "sampler": "heun"}, "asks the network several times within a step"),
        ({"reuse": 2, "sampler": "dpm++ 2s"}, "asks the network several times within a step"),
        ({"reuse": 2, "sampler": "pndm"}, "asks the network several times within a step"),
        ({"reuse": 2, "sampler": "ddim inverse", "image": PICTURE}, "walks back exactly"),
        ({"merge": -0.1}, r"merge must be between 0 \(off\) and 0.75 of the tokens, got -0.1"),
        ({"merge": 0.8}, "merge must be between 0"),
        ({"merge": float("nan")}, "merge must be between 0"),
        ({"tile": 4}, r"tile must be at least 8 latent pixels \(of 2 pixels each\), got 4"),
    ],
)
def test_what_cannot_be_is_refused_in_words(pipe, arguments, words):
    before = stages.denoise._cache_size()
    with pytest.raises(ValueError, match=words):
        pipe(CAT, **arguments)
    assert stages.denoise._cache_size() == before


def test_a_whole_number_is_meant(pipe):
    with pytest.raises(ValueError, match="reuse must be a whole number, got 1.5"):
        check(pipe, reuse=1.5)
    with pytest.raises(ValueError, match="tile must be a whole number, got 8.5"):
        check(pipe, tile=8.5)


def check(pipe, **values):
    from sdjax.diffusion.samplers import SAMPLERS

    shortcuts = Shortcuts()
    for name, value in values.items():  # past the types that are checked in tests alone
        object.__setattr__(shortcuts, name, value)
    shortcuts.check("tiny", pipe.config, SAMPLERS["ddim"], 4.0)


@pytest.mark.parametrize(
    "unet",
    [
        replace(tiny.UNET, block="attention"),
        replace(tiny.UNET, attention=(False, False)),
        replace(tiny.UNET, cross_only=(True, True)),
    ],
)
def test_a_unet_without_self_attention_of_tokens_merges_none(pipe, unet):
    other = replace(pipe, config=replace(pipe.config, unet=unet))
    with pytest.raises(ValueError, match="merge 0.5: the UNet of tiny has no transformer"):
        other(CAT, merge=0.5)
