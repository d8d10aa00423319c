"""The pipeline on tiny random networks: seeds, compilations, checks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
import tiny_pipeline
from PIL import Image
from tiny_pipeline import CAT, DOG, PICTURE, assert_same, pixels

from sdjax.config import Schedule
from sdjax.diffusion.loop import begin, image_keys, initial_noise
from sdjax.diffusion.samplers import sampling_plan
from sdjax.diffusion.solvers import SLOTS
from sdjax.image.preprocess import to_float
from sdjax.pipelines import stages
from sdjax.pipelines.images import RECIPE, Images
from sdjax.pipelines.request import complete
from sdjax.text.clip_text import TextOutput


@pytest.fixture
def compilations():
    """The names of the compilations while the test runs."""
    found = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(details.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


# What is drawn


def test_images_come_prompt_by_prompt_with_seeds_counted_up(pipe, four):
    assert isinstance(four, Images) and len(four) == 4
    assert all(image.size == (8, 8) and image.mode == "RGB" for image in four)
    recipes = [image.info[RECIPE] for image in four]
    assert [(r["prompt"], r["seed"]) for r in recipes] == [(CAT, 7), (CAT, 8), (DOG, 7), (DOG, 8)]
    assert recipes[0] == {
        "prompt": CAT, "seed": 7, "negative": "", "steps": 3, "guidance": 4.0,
        "guidance_rescale": 0.0, "sampler": "ddim", "spacing": "leading", "offset": 1, "eta": 0.0,
        "width": 8, "height": 8, "model": "tiny",
    }  # fmt: skip
    drawn = pixels(four)
    assert drawn.std() > 5
    for i in range(4):
        for j in range(i):
            assert np.abs(drawn[i] - drawn[j]).max() > 3


def test_an_image_alone_is_the_image_in_a_batch(pipe, four):
    assert_same(pipe(CAT, seed=8), [four[1]])
    assert_same(pipe(DOG, seed=7), [four[2]])


def test_twenty_calls_compile_each_function_once(pipe, compilations):
    """Words, seeds, steps, guidance, eta, strength, samplers, spacings and schedules are data."""
    small = {"size": (4, 8)}  # as in no other test
    pipe(CAT, **small), pipe(CAT, image=PICTURE, strength=0.5, **small)
    assert compilations.count("jit(denoise)") == 1  # with an image or without
    pipe(CAT, guidance=1.0, **small)
    assert compilations.count("jit(denoise)") == 2
    del compilations[:]
    names = ["ddim", "ddpm", "k_euler_a", "heun", "DPM++ 2M Karras", "plms", "unipc", "lms"]
    schedule = tiny_pipeline.SCHEDULE
    schedules = [schedule, replace(schedule, zero_snr=True), Schedule("cosine", prediction="v")]
    drawn = []
    for k in range(20):
        name = names[k % len(names)]
        options = {"eta": 0.1 * k % 1} if name in ("ddim", "heun") else {}
        options |= {"image": PICTURE, "strength": 0.3 + 0.03 * k} if k % 3 == 0 else {}
        other = replace(pipe, config=replace(pipe.config, schedule=schedules[k % 3]))
        drawn += other(
            [CAT, DOG][k % 2],
            seed=k * 10**8,
            steps=5 + (45 * k) // 19,
            guidance=1.0 if k % 7 == 6 else 1.01 + k / 2,
            guidance_rescale=k / 20,
            sampler=name,
            negative="a house" * (k % 2),
            **options,
            **small,
        )
    assert compilations == []
    found = pixels(drawn)
    for i in range(20):
        for j in range(i):
            assert np.abs(found[i] - found[j]).max() > 0


def test_what_was_compiled_ahead_is_not_compiled_again(pipe, compilations):
    call = {"n": 3, "size": (8, 4)}  # as in no other test
    times = pipe.precompile([CAT, DOG], **call)
    assert compilations.count("jit(denoise)") == compilations.count("jit(decode)") == 1
    assert list(times) == ["denoise", "decode"]
    assert all(seconds > 0 for timing in times.values() for seconds in timing)
    del compilations[:]
    drawn = pipe([DOG, CAT], seed=5, steps=7, **call)
    assert compilations == []
    assert_same(drawn[1:2], pipe(DOG, seed=6, steps=7, size=(8, 4)))


def test_nothing_is_compiled_ahead_for_several_devices(pipe, compilations):
    with pytest.raises(ValueError, match="several devices"):
        pipe.precompile(CAT, devices=jax.devices())
    assert compilations == []


def test_another_schedule_is_another_image(pipe, four):
    other = replace(pipe, config=replace(pipe.config, schedule=Schedule("cosine", prediction="v")))
    assert np.abs(pixels(other(CAT, seed=7)) - pixels(four[:1])).max() > 3


def test_other_weights_compile_nothing(pipe, compilations):
    before = pipe(CAT)
    other = replace(pipe, params=jax.tree.map(lambda x: 1.5 * x, pipe.params))
    del compilations[:]
    after = other(CAT)
    assert compilations == []
    assert np.abs(pixels(after) - pixels(before)).max() > 3


def test_a_progress_bar_changes_no_pixel(pipe, capsys):
    plain = pipe(CAT, seed=3, steps=23)
    watched = pipe(CAT, seed=3, steps=23, progress=True)
    np.testing.assert_array_equal(pixels(watched), pixels(plain))
    assert "23/23" in capsys.readouterr().err


@pytest.mark.parametrize("branches", [1, 2])
def test_guidance_off_calls_the_network_for_the_prompt_alone(pipe, monkeypatch, branches):
    seen = []

    class Recorder(stages.UNet):
        def apply(self, params, x, timesteps, context, vector, *, method, rngs):
            assert method is None and rngs is None
            seen.append(x.shape[0])
            assert timesteps.shape[0] == context.shape[0] == vector.shape[0] == x.shape[0]
            return jnp.zeros_like(x)

    monkeypatch.setattr(stages, "UNet", Recorder)
    jax.eval_shape(
        lambda state, text, guidance: stages.denoise.__wrapped__(
            pipe.config.unet,
            pipe.params["unet"],
            state,
            text,
            sampling_plan(pipe.config.schedule, 3, 50),
            image_keys(jnp.arange(3)),
            guidance,
            jnp.float32(0),
            prediction="v",
        ),
        jnp.zeros((3, SLOTS, 4, 4, 4)),
        TextOutput(jnp.zeros((3, branches, 12, 32)), jnp.zeros((3, branches, 16))),
        jnp.float32(3),
    )
    assert seen == [3 * branches]


def test_guidance_off_and_another_size(pipe):
    plain = pipe(CAT, guidance=1.0, size=(8, 12))
    assert plain[0].size == (12, 8)
    negative = pipe(CAT, guidance=1.0, size=(8, 12), negative="a dog")
    np.testing.assert_array_equal(pixels(plain), pixels(negative))


def test_guidance_one_is_the_limit_of_guidance(pipe):
    off, nearly = pipe(CAT, guidance=1.0, size=(8, 12)), pipe(CAT, guidance=1.0001, size=(8, 12))
    assert np.abs(pixels(off) - pixels(nearly)).max() <= 1


@pytest.mark.parametrize("sampler", ["k_euler_a", "dpm++ 2m"])
def test_any_sampler_draws_the_same_image_in_any_batch(pipe, sampler):
    four = pipe([CAT, DOG], n=2, seed=7, sampler=sampler)
    assert_same(pipe(DOG, seed=8, sampler=sampler), [four[3]])
    assert_same(pipe([DOG, CAT], n=2, seed=7, sampler=sampler), [*four[2:], *four[:2]])


# Beginnings and trajectories


def test_noise_may_be_given(pipe):
    noise = initial_noise(image_keys(jnp.array([5])), (4, 4, 4))
    np.testing.assert_array_equal(pixels(pipe(CAT, latents=noise)), pixels(pipe(CAT, seed=5)))


def test_a_trajectory_is_a_value_beside_the_images(pipe):
    images, walk = pipe(CAT, seed=3, steps=4, trajectory=True)
    np.testing.assert_array_equal(pixels(images), pixels(pipe(CAT, seed=3, steps=4)))
    np.testing.assert_array_equal(walk.timesteps, [751, 501, 251, 1])
    assert walk.calls.x.shape == walk.calls.x0.shape == (4, 1, 4, 4, 4)
    start = initial_noise(image_keys(jnp.array([3])), (4, 4, 4))
    np.testing.assert_allclose(walk.calls.x[0], start, atol=1e-6)
    without, with_text = walk.calls.branches
    guided = without + 4.0 * (with_text - without)
    np.testing.assert_allclose(walk.calls.eps, guided, atol=1e-4)
    autoencoder = pipe.config.autoencoder, pipe.params["autoencoder"]
    decoded = stages.decode(*autoencoder, walk.latents)
    np.testing.assert_array_equal(np.asarray(decoded), pixels(images))
    floats = stages.decode_float(*autoencoder, walk.latents)
    np.testing.assert_allclose(to_float(decoded), jnp.clip(floats, -1, 1), atol=0.5 / 127.5 + 1e-6)


def test_a_trajectory_with_a_progress_bar(pipe):
    _, plain = pipe(CAT, seed=3, steps=4, trajectory=True)
    _, watched = pipe(CAT, seed=3, steps=4, trajectory=True, progress=True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(watched), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_leading_times_have_an_offset_and_no_signal_at_the_end_means_trailing(pipe):
    _, walk = pipe(CAT, steps=4, offset=0, trajectory=True)
    np.testing.assert_array_equal(walk.timesteps, [750, 500, 250, 0])
    model = replace(pipe, defaults=replace(pipe.defaults, offset=3))
    images, walk = model(CAT, steps=4, trajectory=True)
    np.testing.assert_array_equal(walk.timesteps, [753, 503, 253, 3])
    assert images[0].info[RECIPE]["offset"] == 3

    schedule = replace(tiny_pipeline.SCHEDULE, zero_snr=True)
    model = replace(pipe, config=replace(pipe.config, schedule=schedule))
    images, walk = model(CAT, steps=4, trajectory=True)
    np.testing.assert_array_equal(walk.timesteps, [999, 749, 499, 249])
    recipe = images[0].info[RECIPE]
    assert recipe["spacing"] == "trailing" and "offset" not in recipe


def test_an_image_is_redrawn_from_where_it_was_left(pipe):
    _, walk = pipe(CAT, seed=3, steps=10, image=PICTURE, strength=0.55, trajectory=True)
    np.testing.assert_array_equal(walk.timesteps, [401, 301, 201, 101, 1])
    x0 = stages.encode(pipe.config.autoencoder, pipe.params["autoencoder"], to_float(PICTURE[None]))
    noise = initial_noise(image_keys(jnp.array([3])), (4, 4, 4))
    plan = sampling_plan(pipe.config.schedule, 10, strength=0.55)
    np.testing.assert_allclose(walk.calls.x[0], begin(plan, noise, x0), atol=1e-5)
    recipe = pipe(CAT, image=Image.fromarray(PICTURE), size=8, start="ldm")[0].info[RECIPE]
    assert (recipe["strength"], recipe["start"]) == (0.75, "ldm")


def test_the_inverse_walks_from_an_image_to_noise(pipe):
    options = {"image": PICTURE, "sampler": "ddim inverse", "guidance": 1.0, "steps": 20}
    _, walk = pipe(CAT, trajectory=True, **options)
    assert walk.timesteps[0] == 1 and walk.timesteps[-1] == 951
    again = pipe(CAT, latents=walk.latents, guidance=1.0, steps=20, trajectory=True)[1].latents
    x0 = walk.calls.x[0]
    assert np.abs(again - x0).mean() < 0.3 * np.abs(walk.latents - x0).mean()


# Precision and gradients


def test_the_schedule_survives_a_model_in_bfloat16(pipe):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), pipe.params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    _, exact = replace(pipe, params=wide)(CAT, steps=50, trajectory=True)
    _, found = replace(pipe, params=low)(CAT, steps=50, trajectory=True)
    np.testing.assert_array_equal(found.timesteps, exact.timesteps)
    np.testing.assert_array_equal(found.calls.x[0], exact.calls.x[0])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    error = np.abs(found.latents - exact.latents).max()
    assert 0 < error < 0.1  # the network computed in bfloat16


def test_the_final_image_has_gradients_for_noise_and_guidance(pipe):
    plan = sampling_plan(pipe.config.schedule, 3, 4)
    rows = pipe.tokenizer(["", CAT])
    text = stages.encode_text(pipe.config.text, pipe.params["text"], rows, pipe.tokenizer.eot_id)
    text = jax.tree.map(lambda x: x[None], text)
    unet = tiny.SMALLER_UNET, tiny.unet_params(tiny.SMALLER_UNET)
    keys = image_keys(jnp.array([1]))
    x = initial_noise(keys, (4, 4, 4))

    def loss(x, guidance, remat=True):
        state = stages.first_state(plan, x, None)
        scales = guidance, jnp.float32(0)
        state, _ = stages.denoise(
            *unet, state, text, plan, keys, *scales, prediction="v", remat=remat
        )
        image = stages.decode_float(
            pipe.config.autoencoder, pipe.params["autoencoder"], state[:, 0]
        )
        return jnp.mean(image**2)

    guidance = jnp.float32(4.0)
    for remat in (True, False):
        program = str(jax.make_jaxpr(lambda *a, r=remat: loss(*a, remat=r))(x, guidance))
        assert ("remat" in program) == remat
    by_x, by_guidance = jax.jit(jax.grad(loss, (0, 1)))(x, guidance)
    loss = jax.jit(loss)
    away, h = jax.random.normal(jax.random.key(1), x.shape), 2e-2
    slope = (loss(x + h * away, guidance) - loss(x - h * away, guidance)) / (2 * h)
    assert jnp.vdot(by_x, away).item() == pytest.approx(slope.item(), rel=2e-2)
    slope = (loss(x, guidance + h) - loss(x, guidance - h)) / (2 * h)
    assert by_guidance.item() == pytest.approx(slope.item(), rel=2e-3)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [CAT, ""]}, "the prompt is empty"),
        ({"n": 0}, "n, the number of images, must be at least 1, got 0"),
        ({"n": -2}, "n, the number of images, must be at least 1, got -2"),
        ({"seed": -1}, "seed must be between 0 and 2147483647, got -1"),
        ({"seed": 2**31}, "seed must be between 0 and 2147483647"),
        ({"seed": 2**31 - 1, "n": 2}, "seed must be between 0 and 2147483646"),
        ({"steps": 0}, "steps must be between 1 and 999, got 0"),
        ({"steps": -5}, "steps must be between 1 and 999, got -5"),
        ({"steps": 1001}, "steps must be between 1 and 999, got 1001"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be between 0 and 1, got 1.5"),
        ({"spacing": "wide"}, "unknown spacing 'wide': choose among leading, trailing"),
        ({"sampler": "lms", "eta": 0.5}, "lms takes no eta, got 0.5"),
        ({"sampler": "unclip"}, "unclip is for networks that predict a variance"),
        ({"sampler": "ddim inverse"}, "ddim inverse walks from an image to noise: give an image"),
        ({"strength": 0.5}, "strength 0.5 says how much of an image to redraw: none given"),
        ({"start": "ldm"}, "start 'ldm' .* begins with noise alone"),
        ({"spacing": "karras", "offset": 1}, "offset 1 is added .* not to the spacing 'karras'"),
        ({"image": PICTURE, "strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"image": PICTURE, "strength": 0.1}, "strength 0.1 leaves none of 3 steps"),
        ({"image": PICTURE[:6]}, "the size 6x8 does not fit tiny"),
        (
            {"latents": np.zeros((1, 4, 4, 3))},
            r"latents must be noise of shape \(1, 4, 4, 4\), got",
        ),
        ({"guidance": 0.5}, r"guidance must be a number of at least 1 \(1 is off\), got 0.5"),
        ({"guidance": -1.0}, "guidance must be a number of at least 1"),
        ({"guidance": float("nan")}, "guidance must be a number of at least 1"),
        ({"guidance": float("inf")}, "guidance must be a number of at least 1"),
        ({"eta": -0.1}, "eta must be between 0 and 1, got -0.1"),
        ({"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
        ({"eta": float("nan")}, "eta must be between 0 and 1, got nan"),
        ({"sampler": "eular"}, "unknown sampler 'eular': choose among ddim, ddim inverse, ddpm"),
        ({"mode": "single", "devices": jax.devices()}, "mode 'single' does not fit 4 devices"),
        ({"devices": []}, "mode 'mesh' does not fit 0 devices"),
        ({"size": 0}, "the size 0x0 does not fit tiny"),
        ({"size": -8}, "the size -8x-8 does not fit tiny"),
        ({"size": 10}, "10x10 does not fit tiny: .* multiples of 4; it was trained at 8"),
        ({"size": (8, 6)}, "the size 8x6 does not fit tiny"),
        ({"prompt": "a cat, Gothic style"}, "does not know the style 'gothic': .* noto, flat"),
        ({"negative": "a dog, oil style"}, "does not know the style 'oil'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(pipe, compilations, arguments, words):
    arguments = {"prompt": CAT, **arguments}
    with pytest.raises(ValueError, match=words):
        pipe(**arguments)
    assert compilations == []


def test_any_style_goes_where_the_model_names_none(pipe):
    free = replace(pipe, styles=())
    with pytest.warns(UserWarning, match="tiny was never shown the words: gothic"):
        free("a cat, gothic style")


def test_unknown_words_are_told_and_do_no_harm(pipe):
    with pytest.warns(UserWarning, match="tiny was never shown the words: purple, zebra"):
        images = pipe("a purple zebra")
    assert len(images) == 1
    with pytest.warns(UserWarning, match="never shown the words: fog"):
        pipe(CAT, negative="fog")


def test_the_end_of_a_long_prompt_is_told(pipe):
    with pytest.warns(UserWarning, match="too long, this is ignored: 'dog dog'"):
        pipe("a cat " + "dog " * 10)


def test_an_offset_is_a_whole_number(pipe):
    request = complete(
        pipe.name, pipe.config, pipe.defaults, prompts=[CAT], n=1, seed=0, steps=3, guidance=None,
        guidance_rescale=0.0, negative="", size=None, sampler=None, spacing=None, offset=2,
        eta=0.0, image=None, strength=None, start="diffusers", latents=None,
    )  # fmt: skip
    object.__setattr__(request, "offset", 1.5)  # past the types that are checked in tests alone
    with pytest.raises(ValueError, match="offset must be a whole number, got 1.5"):
        request.__post_init__()
