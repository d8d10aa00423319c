"""Text to image: tokens -> text tower -> sampling loop around the UNet -> autoencoder -> pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image
from tqdm import tqdm

from sdjax.config import StableDiffusion
from sdjax.denoisers.unet import UNet
from sdjax.diffusion.guidance import guide, rescale
from sdjax.diffusion.loop import (
    Trajectory,
    begin,
    begin_state,
    image_keys,
    initial_noise,
    walk,
)
from sdjax.diffusion.samplers import Plan, Start, find_sampler
from sdjax.diffusion.times import Spacing
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.preprocess import to_float, to_picture
from sdjax.nn.functional import Params, apply
from sdjax.parallel import Devices, Mode, parallelize
from sdjax.pipelines.images import Images
from sdjax.pipelines.request import STRENGTH, Request, check_styles, fitted
from sdjax.pipelines.words import warn_about_words
from sdjax.shapes import Keys, Latents, Scalar, Tokens
from sdjax.text.clip_text import ClipText, TextOutput, end_positions
from sdjax.text.tokenizer import Tokenizer


class Walk(NamedTuple):
    """A run in detail."""

    timesteps: Float[np.ndarray, " calls"]  # that the network was told
    calls: Trajectory  # what it said; `branches` are eps without and with the text
    latents: Float[Array, "batch height width channels"]  # the result, before the decoder


@partial(jax.jit, static_argnames=("config", "end_id"))
def encode_text(config: StableDiffusion, params: Params, tokens: Tokens, end_id: int) -> TextOutput:
    """Hidden states and pooled vectors of token rows."""
    tower = ClipText(config.text)
    return apply(tower, params["text"], tokens, end_positions(tokens, end_id))


@partial(jax.jit, static_argnames="config")
def encode(config: StableDiffusion, params: Params, images: Latents) -> Latents:
    """Images in [-1, 1] to the mean of their latents."""
    posterior = apply(
        Autoencoder(config.autoencoder), params["autoencoder"], images, method="encode"
    )
    return posterior.mean * config.autoencoder.scaling_factor


@jax.jit
def first_state(plan: Plan, noise: Latents, image: Latents | None) -> Array:
    """The state of the loop where a run begins: noise, or an image with noise."""
    return begin_state(begin(plan, noise, image))


@partial(jax.jit, static_argnames=("config", "guided", "trajectory"))
def denoise(
    config: StableDiffusion,
    params: Params,
    state: Float[Array, "slots batch height width channels"],
    text: TextOutput,
    plan: Plan,
    keys: Keys,
    guidance: Scalar,
    guidance_rescale: Scalar,
    *,
    guided: bool,
    trajectory: bool = False,
) -> tuple[Array, Trajectory | None]:
    """The active calls of the plan.

    With `guided`, `text` has two rows for each image in turn: without the prompt, and with it. They
    stay together, so that several devices can share the images without a word to each other.
    """
    unet = UNet(config.unet)
    vector = text.pooled if config.unet.vector_dim is not None else None

    def predict(x: Latents, timesteps: Array) -> tuple[Array, tuple[Array, ...]]:
        if not guided:
            output = apply(unet, params["unet"], x, timesteps, text.hidden, vector)
            return output, (output,)
        twice = [jnp.repeat(rows, 2, axis=0) for rows in (x, timesteps)]
        output = apply(unet, params["unet"], *twice, text.hidden, vector)
        # Not output[::2]: a stride over the images would mix those of different devices.
        pairs = output.reshape(-1, 2, *output.shape[1:])
        without, given = pairs[:, 0], pairs[:, 1]
        guided_output = rescale(guide(without, given, guidance), given, guidance_rescale)
        return guided_output, (without, given)

    prediction = config.schedule.prediction
    return walk(predict, plan, state, keys, prediction=prediction, trajectory=trajectory)


def denoise_rows(
    config: StableDiffusion,
    params: Params,
    rows: tuple[Float[Array, "batch slots height width channels"], TextOutput, Keys],
    plan: Plan,
    guidance: Scalar,
    guidance_rescale: Scalar,
    *,
    guided: bool,
    trajectory: bool,
) -> tuple[Array, Trajectory | None]:
    """`denoise` with the images on the first axis of everything, as `parallelize` wants it."""
    state, text, keys = rows
    text = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), text)
    state, calls = denoise(
        config,
        params,
        jnp.moveaxis(state, 0, 1),
        text,
        plan,
        keys,
        guidance,
        guidance_rescale,
        guided=guided,
        trajectory=trajectory,
    )
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (state, calls))


@partial(jax.jit, static_argnames="config")
def decode(
    config: StableDiffusion, params: Params, latents: Latents
) -> UInt8[Array, "batch height width channels"]:
    """Latents to pixels in [0, 255]."""
    autoencoder = Autoencoder(config.autoencoder)
    images = apply(autoencoder, params["autoencoder"], latents, method="decode")
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


@dataclass(frozen=True)
class _Runner:
    """`denoise` and `decode` on the devices that were asked for."""

    devices: Devices | None
    mode: Mode

    def denoise(
        self,
        config: StableDiffusion,
        params: Params,
        state: Array,
        text: TextOutput,
        plan: Plan,
        keys: Keys,
        *scales: Scalar,
        guided: bool,
        trajectory: bool,
    ) -> tuple[Array, Trajectory | None]:
        settings = {"guided": guided, "trajectory": trajectory}
        if self.devices is None:
            return denoise(config, params, state, text, plan, keys, *scales, **settings)
        images = state.shape[1]
        text = jax.tree.map(lambda x: x.reshape(images, -1, *x.shape[1:]), text)
        static = ("config", "guided", "trajectory")
        run = parallelize(
            denoise_rows, self.mode, batched=("rows",), static=static, devices=self.devices
        )
        rows = (jnp.moveaxis(state, 1, 0), text, keys)
        results = run(config, params, rows, plan, *scales, **settings)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), results)

    def decode(self, config: StableDiffusion, params: Params, latents: Latents) -> Array:
        if self.devices is None:
            return decode(config, params, latents)
        run = parallelize(
            decode, self.mode, batched=("latents",), static=("config",), devices=self.devices
        )
        return run(config, params, latents)


@dataclass(frozen=True)
class Defaults:
    """What a model uses where the caller says nothing."""

    steps: int = 50
    guidance: float = 7.5
    sampler: str = "ddim"
    spacing: Spacing = "leading"


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A loaded text-to-image model. Call it with a prompt.

    `params` holds the trees "text", "unet" and "autoencoder"; they are arguments of every compiled
    function, so replaced weights need no new compilation.
    """

    name: str
    config: StableDiffusion
    params: Params
    tokenizer: Tokenizer
    defaults: Defaults = field(default_factory=Defaults)
    styles: tuple[str, ...] = ()  # the style words a small model was trained with; () is any

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
        negative: str = "",
        size: int | tuple[int, int] | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        eta: float = 0.0,
        image: Image.Image | np.ndarray | None = None,
        strength: float | None = None,
        start: Start = "diffusers",
        latents: Float[np.ndarray | Array, "batch height width channels"] | None = None,
        progress: bool = False,
        trajectory: bool = False,
        devices: Devices | None = None,
        mode: Mode = "mesh",
    ) -> Any:  # Images, or with a trajectory (Images, Walk)
        """Draw `n` images of each prompt.

        Image k of a prompt has seed `seed + k`; what else is drawn in the same call, and where in
        it, does not matter. Only the number of images and the size take a new compilation, and a
        run of more calls of the network than the next of `sdjax.pipelines.request.CALL_LIMITS`;
        samplers, steps, guidance, eta, strength, seeds and words do not. Guidance 1 (off) is a
        program of its own, which calls the network for the prompt alone.

        Args:
            prompt: one text or several; not empty.
            n: images per prompt.
            seed: of each prompt's first image, 0 to 2^31 - 1; or one for each prompt.
            steps: denoising steps; None is the model's default, like the other Nones.
            guidance: classifier-free guidance scale, at least 1; 1 is off.
            guidance_rescale: 0 to 1, how far guidance keeps the spread of the unguided output.
            negative: what the images are guided away from, instead of from the empty text.
            size: pixels, one number or (height, width); multiples of `config.size_multiple`. None
                is the image's, if one is given.
            sampler: a name in `sdjax.diffusion.samplers`, or one from other programs ("k_lms",
                "DPM++ 2M Karras").
            spacing: of the steps, see `sdjax.diffusion.times`; None is what the sampler's name
                says, or the model's default.
            eta: noise that ddim adds back, or churn of euler and heun, 0 (none) to 1.
            image: redraw this one, resized to `size`: Pillow, or pixels [height, width, 3].
            strength: how much of it, above 0 to 1; None is `STRENGTH`, 1 for the inverse.
            start: how much noise it begins with, by convention: see
                `sdjax.diffusion.samplers.sampling_plan`.
            latents: standard normal noise to begin with, one for each image, instead of the seeds'.
            progress: show a progress bar.
            trajectory: also return every call of the network.
            devices: share the images among these, such as `jax.devices()`; None is where the
                parameters are. They are copied there in every call; to do that once, replace
                `params` by `sdjax.parallel.replicate(params, devices)`.
            mode: how several devices work together: see `sdjax.parallel.Mode`.

        Returns:
            A list of Pillow images that shows itself in a notebook, prompt by prompt, with the
            recipe in each image's `info`. With `trajectory` a tuple of it and a `Walk`.

        Raises:
            ValueError: for a value outside these ranges, before anything is compiled.
        """
        defaults = self.defaults
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        sampler = defaults.sampler if sampler is None else sampler
        chosen, known_spacing = find_sampler(sampler, spacing)
        picture = None if image is None else to_picture(image)
        if picture is not None and strength is None:
            strength = 1.0 if chosen.inverse else STRENGTH
        if size is None:
            size = (picture.height, picture.width) if picture else self.native_size
        height, width = size if isinstance(size, tuple) else (size, size)
        request = Request(
            model=self.name,
            config=self.config,
            prompts=prompts,
            n=n,
            first_seeds=tuple(seed) if isinstance(seed, Sequence) else (seed,) * len(prompts),
            steps=defaults.steps if steps is None else steps,
            guidance=defaults.guidance if guidance is None else guidance,
            guidance_rescale=guidance_rescale,
            negative=negative,
            size=(height, width),
            sampler=sampler,
            spacing=known_spacing or defaults.spacing,
            eta=eta,
            image=picture,
            strength=strength,
            start=start,
            latents=latents,
        )
        plan = request.plan()
        check_styles(self.name, self.styles, [*prompts, negative])
        warn_about_words(self.name, self.tokenizer, [*prompts, negative])
        run = _Runner(devices, mode)
        x, recorded = self._loop(request, plan, run, progress, trajectory)
        pixels = np.asarray(run.decode(self.config, self._part("autoencoder"), x))
        images = Images.from_pixels(pixels, request.recipes())
        if recorded is None:
            return images
        made = jax.tree.map(lambda values: values[: plan.count], recorded)
        return images, Walk(np.asarray(plan.calls.timestep)[: plan.count], made, x)

    @property
    def native_size(self) -> int:
        """Pixels of the images the model was trained on."""
        return self.config.image_size

    def _part(self, name: str) -> Params:
        return {name: self.params[name]}

    def _loop(
        self, request: Request, plan: Plan, run: "_Runner", progress: bool, trajectory: bool
    ) -> tuple[Array, Trajectory | None]:
        """The sampling loop; with a progress bar, the same executable on a few calls at a time."""
        guided = request.guidance != 1
        texts = request.texts
        rows = [t for text in texts for t in (request.negative, text)] if guided else texts
        text = encode_text(
            self.config, self._part("text"), self.tokenizer(rows), self.tokenizer.eot_id
        )
        keys = image_keys(jnp.asarray(request.seeds))
        state = first_state(plan, self._noise(request, keys), self._image(request))
        recorded, calls = None, plan.count
        chunk = max(calls // 10, 1) if progress else calls
        bar = tqdm(
            total=calls, unit="call", disable=not progress, leave=False, mininterval=0, miniters=1
        )
        for first in range(0, calls, chunk):
            part = np.arange(plan.calls.active.shape[0]) // chunk == first // chunk
            active = jnp.asarray(np.asarray(plan.calls.active) & part)
            state, made = run.denoise(
                self.config,
                self._part("unet"),
                state,
                text,
                plan._replace(calls=plan.calls._replace(active=active)),
                keys,
                jnp.float32(request.guidance),
                jnp.float32(request.guidance_rescale),
                guided=guided,
                trajectory=trajectory,
            )
            # What is not in this part is 0.
            recorded = made if recorded is None else jax.tree.map(jnp.add, recorded, made)
            if progress:
                state.block_until_ready()
                bar.update(min(chunk, calls - first))
        bar.close()
        return state[0], recorded

    def _noise(self, request: Request, keys: Keys) -> Array:
        if request.latents is not None:
            return jnp.asarray(request.latents, jnp.float32)
        return initial_noise(keys, request.latent_shape[1:])

    def _image(self, request: Request) -> Array | None:
        """The latents of the image, the same for all; its posterior's mean, so without chance."""
        if request.image is None:
            return None
        pixels = np.asarray(fitted(request.image, request.size))
        x0 = encode(self.config, self._part("autoencoder"), to_float(pixels[None]))
        return jnp.broadcast_to(x0, request.latent_shape)
