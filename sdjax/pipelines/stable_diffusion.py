"""Text to image: tokens -> text tower -> sampling loop around the UNet -> autoencoder -> pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from PIL import Image
from tqdm import tqdm

from sdjax.compilation import Timing, compiling
from sdjax.config import StableDiffusion
from sdjax.diffusion.loop import Trajectory, image_keys, initial_noise
from sdjax.diffusion.samplers import Plan, Start
from sdjax.image.preprocess import to_float
from sdjax.nn.functional import Params
from sdjax.parallel import Devices, Mode
from sdjax.pipelines.images import Images
from sdjax.pipelines.request import Defaults, Request, check_styles, complete
from sdjax.pipelines.shortcuts import Shortcuts
from sdjax.pipelines.stages import JITTED, Runners, encode, encode_text, first_state, runners
from sdjax.pipelines.words import warn_about_words
from sdjax.shapes import Keys
from sdjax.text.clip_text import TextOutput
from sdjax.text.tokenizer import Tokenizer


class Walk(NamedTuple):
    """A run in detail."""

    timesteps: Float[np.ndarray, " calls"]  # that the network was told
    calls: Trajectory  # what it said; `branches` are eps without and with the text
    latents: Float[Array, "batch height width channels"]  # the result, before the decoder


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
    run: Runners = JITTED

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int | Sequence[int] | Int[np.ndarray, " prompts"] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
        negative: str = "",
        size: int | tuple[int, int] | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        offset: int | None = None,
        eta: float = 0.0,
        image: Image.Image | np.ndarray | None = None,
        strength: float | None = None,
        start: Start = "diffusers",
        latents: Float[np.ndarray | Array, "batch height width channels"] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        reuse: int = 1,
        merge: float = 0.0,
        tile: int | None = None,
        progress: bool = False,
        trajectory: bool = False,
        devices: Devices | None = None,
        mode: Mode | None = None,
    ) -> Any:  # Images, or with a trajectory (Images, Walk)
        """Draw `n` images of each prompt.

        Image k of a prompt has seed `seed + k`; what else is drawn in the same call, and where in
        it, does not matter. Only the number of images and the size take a new compilation, and a
        run of more calls of the network than the next of `sdjax.pipelines.request.CALL_LIMITS`;
        samplers, steps, guidance, eta, strength, seeds and words do not. Guidance 1 (off) is a
        program of its own, which calls the network for the prompt alone. So is each set of
        shortcuts that are on, and each value of `merge` and `tile`.

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
            offset: added to the times of "leading".
            eta: noise that ddim adds back, or churn of euler and heun, 0 (none) to 1.
            image: redraw this one, resized to `size`: Pillow, or pixels [height, width, 3].
            strength: how much of it, above 0 to 1; None is `STRENGTH`, 1 for the inverse.
            start: how much noise it begins with, by convention: see
                `sdjax.diffusion.samplers.sampling_plan`.
            latents: standard normal noise to begin with, one for each image, instead of the seeds'.
            guidance_interval: guide only where sigma / alpha is above the first and at most the
                second number, and call the network for the prompt alone elsewhere (arXiv
                2404.07724); None is everywhere. This and the next three are faster or smaller, but
                draw another picture: see `sdjax.pipelines.shortcuts`.
            reuse: run the whole UNet in every so many calls only, and between them its outermost
                part (arXiv 2312.00858); 1 is off.
            merge: 0 (off) to 0.75, tokens of the outermost self-attention that are merged with
                others alike (arXiv 2303.17604).
            tile: side in latent pixels of the parts in which the autoencoder is run, so that a
                large image needs no more memory than one of them; None is the whole.
            progress: show a progress bar.
            trajectory: also return every call of the network.
            devices: share the images among these, such as `jax.devices()`; None is where the
                parameters are, or all, if there is a mode. Parameters are copied there in every
                call; to do that once, replace `params` by `sdjax.parallel.replicate(params,
                devices)`.
            mode: how several devices work together, see `sdjax.parallel.Mode`; None is a mesh.

        Returns:
            A list of Pillow images that shows itself in a notebook, prompt by prompt, with the
            recipe in each image's `info`. With `trajectory` a tuple of it and a `Walk`.

        Raises:
            ValueError: for a value outside these ranges, before anything is compiled.
        """
        texts = [*((prompt,) if isinstance(prompt, str) else prompt), negative]
        request = complete(
            self.name,
            self.config,
            self.defaults,
            prompts=texts[:-1],
            n=n,
            seed=seed,
            steps=steps,
            guidance=guidance,
            guidance_rescale=guidance_rescale,
            negative=negative,
            size=size,
            sampler=sampler,
            spacing=spacing,
            offset=offset,
            eta=eta,
            image=image,
            strength=strength,
            start=start,
            latents=latents,
            shortcuts=Shortcuts(guidance_interval, reuse, merge, tile),
        )
        check_styles(self.name, self.styles, texts)
        run = runners(self.run, devices, mode)  # checks before making a plan, which compiles
        plan = request.plan()
        warn_about_words(self.name, self.tokenizer, texts)

        x, calls = self._walk(request, plan, run, progress, trajectory)
        pixels = run.decode(self.config.autoencoder, self.params["autoencoder"], x, tile)
        images = Images.from_pixels(np.asarray(pixels), request.recipes())
        return images if calls is None else (images, _walk_of(plan, calls, x))

    def precompile(self, prompt: str | Sequence[str] = "a", **options: Any) -> dict[str, Timing]:
        """Compile the loop and the decoder that `pipe(prompt, **options)` would run, and draw none.

        What counts are the number of images, the size, whether there is guidance, and the steps as
        far as they need a program for more calls. Where the programs are kept, see
        `sdjax.compilation.keep_compilations`, this prepares other processes too.

        Args:
            prompt: one or several; the words do not matter.
            **options: of the call, without `devices` and `mode`.

        Returns:
            How long "denoise" and "decode" took to trace, lower and compile, in seconds.

        Raises:
            ValueError: as the call does, or for devices.
        """
        if {"devices", "mode"} & set(options):
            raise ValueError("programs for several devices are not compiled ahead: call the model")
        times: dict[str, list[Timing]] = {"denoise": [], "decode": []}
        stages = [compiling(getattr(self.run, name), times[name]) for name in times]
        replace(self, run=Runners(*stages))(prompt, **options)
        return {name: taken[0] for name, taken in times.items()}

    @property
    def native_size(self) -> int:
        """Pixels of the images the model was trained on."""
        return self.config.image_size

    def _walk(
        self, request: Request, plan: Plan, run: Runners, progress: bool, trajectory: bool
    ) -> tuple[Array, Trajectory | None]:
        """The sampling loop; with a progress bar, the same executable on a few calls at a time."""
        text, keys = self._text(request), image_keys(jnp.asarray(request.seeds))
        state = first_state(plan, self._noise(request, keys), self._image(request))
        recorded, calls = None, plan.count
        cuts = request.shortcuts
        chunk = max(calls // 10, 1) if progress else calls
        # A part begins with the whole UNet.
        chunk = -(-chunk // cuts.reuse) * cuts.reuse
        bar = tqdm(
            total=calls, unit="call", disable=not progress, leave=False, mininterval=0, miniters=1
        )
        for first in range(0, calls, chunk):
            part = np.arange(plan.calls.active.shape[0]) // chunk == first // chunk
            active = jnp.asarray(np.asarray(plan.calls.active) & part)
            state, made = run.denoise(
                self.config.unet,
                self.params["unet"],
                state,
                text,
                plan._replace(calls=plan.calls._replace(active=active)),
                keys,
                jnp.float32(request.guidance),
                jnp.float32(request.guidance_rescale),
                prediction=self.config.schedule.prediction,
                trajectory=trajectory,
                **cuts.options(),
            )
            # What is not in this part is 0.
            recorded = made if recorded is None else jax.tree.map(jnp.add, recorded, made)
            if progress:
                state.block_until_ready()
                bar.update(min(chunk, calls - first))
        bar.close()
        return state[:, 0], recorded

    def _text(self, request: Request) -> TextOutput:
        """[batch, branches, ...]: without the prompt and with it; or with it, guidance off."""
        without = [] if request.guidance == 1 else [request.negative]
        rows = self.tokenizer([row for text in request.texts for row in (*without, text)])
        text = encode_text(self.config.text, self.params["text"], rows, self.tokenizer.eot_id)
        return jax.tree.map(lambda x: x.reshape(-1, 1 + len(without), *x.shape[1:]), text)

    def _noise(self, request: Request, keys: Keys) -> Array:
        if request.latents is not None:
            return jnp.asarray(request.latents, jnp.float32)
        return initial_noise(keys, request.latent_shape[1:])

    def _image(self, request: Request) -> Array | None:
        """The latents of the image, the same for all; its posterior's mean, so without chance."""
        if request.pixels is None:
            return None
        images = to_float(request.pixels[None])
        tile = request.shortcuts.tile
        x0 = encode(self.config.autoencoder, self.params["autoencoder"], images, tile)
        return jnp.broadcast_to(x0, request.latent_shape)


def _walk_of(plan: Plan, calls: Trajectory, x: Array) -> Walk:
    """The calls that were made, in their order."""
    made = jax.tree.map(lambda values: jnp.moveaxis(values, 1, 0)[: plan.count], calls)
    return Walk(np.asarray(plan.calls.timestep)[: plan.count], made, x)
