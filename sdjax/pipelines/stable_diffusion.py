"""Text to image: tokens -> text tower -> sampling loop around the UNet -> autoencoder -> pixels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from tqdm import tqdm

from sdjax.config import StableDiffusion
from sdjax.denoisers.unet import UNet
from sdjax.diffusion.guidance import guide_doubled
from sdjax.diffusion.loop import image_keys, initial_noise, sample
from sdjax.diffusion.samplers import STEPS
from sdjax.diffusion.schedule import Plan, sampling_plan
from sdjax.image.autoencoder import Autoencoder
from sdjax.nn.functional import Params, apply
from sdjax.pipelines.images import Images
from sdjax.pipelines.words import warn_about_words
from sdjax.shapes import Keys, Latents, Scalar, Tokens
from sdjax.text.clip_text import ClipText, TextOutput, end_positions
from sdjax.text.tokenizer import Tokenizer

STEP_LIMITS = (50, 250, 1000)
"""Static sizes of the loop: a run uses the smallest that holds its steps."""


@partial(jax.jit, static_argnames=("config", "end_id"))
def encode_text(config: StableDiffusion, params: Params, tokens: Tokens, end_id: int) -> TextOutput:
    """Hidden states and pooled vectors of token rows."""
    tower = ClipText(config.text)
    return apply(tower, params["text"], tokens, end_positions(tokens, end_id))


@partial(jax.jit, static_argnames=("config", "sampler", "guided"))
def denoise(
    config: StableDiffusion,
    params: Params,
    x: Latents,
    text: TextOutput,
    plan: Plan,
    keys: Keys,
    guidance: Scalar,
    eta: Scalar,
    *,
    sampler: str,
    guided: bool,
) -> Latents:
    """The active steps of the plan. With `guided`, `text` holds [unconditional, conditional]."""
    unet = UNet(config.unet)
    vector = text.pooled if config.unet.vector_dim is not None else None

    def predict(x: Latents, timesteps: Array) -> Latents:
        if not guided:
            return apply(unet, params["unet"], x, timesteps, text.hidden, vector)
        x, timesteps = jnp.concatenate([x, x]), jnp.concatenate([timesteps, timesteps])
        output = apply(unet, params["unet"], x, timesteps, text.hidden, vector)
        return guide_doubled(output, guidance)

    x, _ = sample(
        predict, plan, x, keys, sampler=sampler, prediction=config.schedule.prediction, eta=eta
    )
    return x


@partial(jax.jit, static_argnames="config")
def decode(
    config: StableDiffusion, params: Params, latents: Latents
) -> UInt8[Array, "batch height width channels"]:
    """Latents to pixels in [0, 255]."""
    autoencoder = Autoencoder(config.autoencoder)
    images = apply(autoencoder, params["autoencoder"], latents, method="decode")
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


@dataclass(frozen=True)
class Defaults:
    """What a model uses where the caller says nothing."""

    steps: int = 50
    guidance: float = 7.5
    sampler: str = "ddim"
    spacing: Literal["leading", "trailing"] = "leading"


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
        negative: str = "",
        size: int | tuple[int, int] | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        progress: bool = False,
    ) -> Images:
        """Draw `n` images of each prompt.

        Image k of a prompt has seed `seed + k`; what else is drawn in the same call, and where in
        it, does not matter. Only the number of images, the size and the sampler's name take a new
        compilation; steps (up to the next of `STEP_LIMITS`), guidance, eta, seeds and words do not.
        Guidance 1 (off) is a program of its own, which calls the network once a step instead of
        twice.

        Args:
            prompt: one text or several; not empty.
            n: images per prompt.
            seed: of each prompt's first image, 0 to 2^31 - 1; or one for each prompt.
            steps: denoising steps; None is the model's default, like the other Nones.
            guidance: classifier-free guidance scale, at least 1; 1 is off.
            negative: what the images are guided away from, instead of from the empty text.
            size: pixels, one number or (height, width); multiples of `config.size_multiple`.
            sampler: "ddim" or "ddpm".
            eta: noise that DDIM adds back, 0 (none) to 1.
            progress: show a progress bar.

        Returns:
            A list of Pillow images that shows itself in a notebook, prompt by prompt, with the
            recipe in each image's `info`.

        Raises:
            ValueError: for a value outside these ranges, before anything is compiled.
        """
        defaults = self.defaults
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        sampler = defaults.sampler if sampler is None else sampler
        size = self.native_size if size is None else size
        height, width = size if isinstance(size, tuple) else (size, size)
        first_seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(prompts)
        self._check(prompts, n, first_seeds, steps, guidance, negative, height, width, sampler, eta)
        warn_about_words(self.name, self.tokenizer, [*prompts, negative])

        repeated = [text for text in prompts for _ in range(n)]
        seeds = np.add.outer(first_seeds, np.arange(n)).reshape(-1).astype(np.int32)
        guided = guidance != 1
        rows = [negative] * len(repeated) + repeated if guided else repeated
        text = encode_text(
            self.config, self._part("text"), self.tokenizer(rows), self.tokenizer.eot_id
        )
        x = self._loop(text, seeds, (height, width), steps, guidance, sampler, eta, progress)
        pixels = np.asarray(decode(self.config, self._part("autoencoder"), x))
        settings = {
            "negative": negative,
            "steps": steps,
            "guidance": guidance,
            "sampler": sampler,
            "eta": eta,
            "width": width,
            "height": height,
            "model": self.name,
        }
        recipes = [
            {"prompt": p, "seed": int(s), **settings} for p, s in zip(repeated, seeds, strict=True)
        ]
        return Images.from_pixels(pixels, recipes)

    @property
    def native_size(self) -> int:
        """Pixels of the images the model was trained on."""
        return self.config.image_size

    def _part(self, name: str) -> Params:
        return {name: self.params[name]}

    def _loop(
        self,
        text: TextOutput,
        seeds: np.ndarray,
        size: tuple[int, int],
        steps: int,
        guidance: float,
        sampler: str,
        eta: float,
        progress: bool,
    ) -> Latents:
        """The sampling loop; with a progress bar, the same executable on a few steps at a time."""
        config = self.config
        limit = next(limit for limit in STEP_LIMITS if steps <= limit)
        plan = sampling_plan(config.schedule, steps, limit, self.defaults.spacing)
        keys = image_keys(jnp.asarray(seeds))
        factor = config.autoencoder.factor
        shape = (size[0] // factor, size[1] // factor, config.autoencoder.latent_channels)
        x = initial_noise(keys, shape)
        chunk = max(steps // 10, 1) if progress else steps
        bar = tqdm(
            total=steps, unit="step", disable=not progress, leave=False, mininterval=0, miniters=1
        )
        for start in range(0, steps, chunk):
            part = np.arange(limit) // chunk == start // chunk
            x = denoise(
                config,
                self._part("unet"),
                x,
                text,
                plan._replace(active=plan.active & part),
                keys,
                jnp.float32(guidance),
                jnp.float32(eta),
                sampler=sampler,
                guided=guidance != 1,
            )
            if progress:
                x.block_until_ready()
                bar.update(min(chunk, steps - start))
        bar.close()
        return x

    def _check(
        self,
        prompts: list[str],
        n: int,
        seeds: list[int],
        steps: int,
        guidance: float,
        negative: str,
        height: int,
        width: int,
        sampler: str,
        eta: float,
    ) -> None:
        """Refuse bad input in words."""
        if self.config.conditioning != "text":
            raise ValueError(
                f"{self.name} draws from more than a text (its conditioning is "
                f"{self.config.conditioning!r}), and this call takes none of it: use its networks, "
                "`params` and `config`, directly"
            )
        whole = [("n", n), ("steps", steps), ("height", height), ("width", width)]
        for name, value in [*whole, *(("seed", seed) for seed in seeds)]:
            if not isinstance(value, (int, np.integer)):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        if not prompts or any(not text.strip() for text in prompts):
            raise ValueError("the prompt is empty: say what the picture should show")
        most = min(STEP_LIMITS[-1], self.config.schedule.train_steps)
        if not 1 <= steps <= most:
            raise ValueError(f"steps must be between 1 and {most}, got {steps}")
        if n < 1:
            raise ValueError(f"n, the number of images, must be at least 1, got {n}")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one for each")
        for seed in seeds:
            if not 0 <= seed <= 2**31 - n:
                raise ValueError(f"seed must be between 0 and {2**31 - n}, got {seed}")
        if not (np.isfinite(guidance) and guidance >= 1):
            raise ValueError(f"guidance must be a number of at least 1 (1 is off), got {guidance}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 and 1, got {eta}")
        if sampler not in STEPS:
            raise ValueError(f"unknown sampler {sampler!r}: choose among {', '.join(STEPS)}")
        multiple = self.config.size_multiple
        for side in (height, width):
            if side < multiple or side % multiple:
                raise ValueError(
                    f"the size {height}x{width} does not fit {self.name}: height and width must be "
                    f"multiples of {multiple}; it was trained at {self.native_size}"
                )
        if self.styles:
            for text in [*prompts, negative]:
                asked = re.search(r",\s*([\w-]+) style\W*$", text.lower())
                if asked and asked[1] not in self.styles:
                    raise ValueError(
                        f"{self.name} does not know the style {asked[1]!r}: "
                        f"choose among {', '.join(self.styles)}"
                    )
