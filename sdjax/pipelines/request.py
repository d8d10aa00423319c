"""What is asked of a text-to-image pipeline: completed and checked before anything is compiled."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from sdjax.config import StableDiffusion
from sdjax.diffusion.samplers import (
    Plan,
    Start,
    default_spacing,
    find_sampler,
    sampling_plan,
)
from sdjax.diffusion.times import Spacing, check_whole
from sdjax.image.preprocess import to_picture
from sdjax.pipelines.shortcuts import Shortcuts

CALL_LIMITS = (100, 500, 2000)
"""Static lengths of the loop, in calls of the network: 50, 250 and 1000 steps of two calls each."""

STRENGTH = 0.75
"""Where an image is given without one: as in the original img2img of Stable Diffusion."""


@dataclass(frozen=True)
class Defaults:
    """What a model uses where the caller says nothing."""

    steps: int = 50
    guidance: float = 7.5
    sampler: str = "ddim"
    spacing: Spacing | None = None  # None: what suits the schedule
    offset: int = 1  # of "leading" times; Stable Diffusion's


@dataclass(frozen=True, eq=False)
class Request:
    """One call of a pipeline, with the model's defaults filled in."""

    model: str  # its name
    config: StableDiffusion
    prompts: tuple[str, ...]
    n: int
    first_seeds: tuple[int, ...]  # of each prompt
    steps: int
    guidance: float
    guidance_rescale: float
    negative: str
    size: tuple[int, int]  # height and width in pixels
    sampler: str
    spacing: Spacing
    offset: int | None  # None: the times are not "leading"
    eta: float
    image: Image.Image | None
    strength: float | None  # None: no image
    start: Start
    latents: Float[np.ndarray | Array, "batch height width channels"] | None
    shortcuts: Shortcuts = Shortcuts()

    def __post_init__(self) -> None:
        """Refuse bad input in words."""
        self._check_words()
        self._check_size()
        sampler, _ = find_sampler(self.sampler)
        if sampler.learned:
            raise ValueError(
                f"{self.sampler} is for networks that predict a variance; that of {self.model} "
                "does not: choose another sampler"
            )
        if not (np.isfinite(self.guidance) and self.guidance >= 1):
            raise ValueError(
                f"guidance must be a number of at least 1 (1 is off), got {self.guidance}"
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(
                f"guidance_rescale must be between 0 and 1, got {self.guidance_rescale}"
            )
        self.shortcuts.check(self.model, self.config, sampler, self.guidance)
        if self.image is None and self.strength is not None:
            raise ValueError(
                f"strength {self.strength} says how much of an image to redraw: none given"
            )
        if self.image is None and sampler.inverse:
            raise ValueError(f"{self.sampler} walks from an image to noise: give an image")
        if self.latents is not None and self.latents.shape != self.latent_shape:
            raise ValueError(
                f"latents must be noise of shape {self.latent_shape}, got {self.latents.shape}"
            )

    @property
    def texts(self) -> list[str]:
        """The prompt of every image."""
        return [text for text in self.prompts for _ in range(self.n)]

    @property
    def seeds(self) -> np.ndarray:
        """The seed of every image: int32 [batch]."""
        return np.add.outer(self.first_seeds, np.arange(self.n)).reshape(-1).astype(np.int32)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """[batch, height, width, channels]."""
        factor, channels = self.config.autoencoder.factor, self.config.autoencoder.latent_channels
        height, width = self.size
        return len(self.prompts) * self.n, height // factor, width // factor, channels

    @property
    def pixels(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """The image to redraw, in the size of the request."""
        return None if self.image is None else np.asarray(fitted(self.image, self.size))

    def plan(self) -> Plan:
        """The calls of the network.

        Raises:
            ValueError: if the steps, eta, the strength or the spacing are out of range, or no call
                is in the guidance interval.
        """
        plan = sampling_plan(
            self.config.schedule,
            self.steps,
            CALL_LIMITS,
            sampler=self.sampler,
            spacing=self.spacing,
            offset=self.offset,
            eta=self.eta,
            strength=self.strength,
            start=self.start,
        )
        self.shortcuts.check_plan(plan)
        return plan

    def recipes(self) -> list[dict[str, Any]]:
        """What is written into each image: the arguments, of `image` and `latents` the SHA-256.

        Whoever has both draws the image again, and sees by the sums that they are the right ones.
        """
        settings: dict[str, Any] = {
            "negative": self.negative,
            "steps": self.steps,
            "guidance": self.guidance,
            "guidance_rescale": self.guidance_rescale,
            "sampler": self.sampler,
            "spacing": self.spacing,
            "eta": self.eta,
            "width": self.size[1],
            "height": self.size[0],
            "model": self.model,
            **self.shortcuts.recipe(),
        }
        if self.offset is not None:
            settings["offset"] = self.offset
        if (pixels := self.pixels) is not None:
            settings |= {"strength": self.strength, "start": self.start}
            settings["image_sha256"] = _sha256(pixels)
        recipes = [
            {"prompt": text, "seed": int(seed), **settings}
            for text, seed in zip(self.texts, self.seeds, strict=True)
        ]
        if self.latents is not None:
            for recipe, noise in zip(recipes, np.asarray(self.latents, np.float32), strict=True):
                recipe["latents_sha256"] = _sha256(noise)
        return recipes

    def _check_words(self) -> None:
        if self.config.conditioning != "text":
            raise ValueError(
                f"{self.model} draws from more than a text (its conditioning is "
                f"{self.config.conditioning!r}), and this call takes none of it: use its networks, "
                "`params` and `config`, directly"
            )
        if not self.prompts or any(not text.strip() for text in self.prompts):
            raise ValueError("the prompt is empty: say what the picture should show")
        whole = [("n", self.n), ("steps", self.steps)]
        whole += [("height", self.size[0]), ("width", self.size[1])]
        whole += [("offset", 0 if self.offset is None else self.offset)]
        for name, value in [*whole, *(("seed", seed) for seed in self.first_seeds)]:
            check_whole(name, value)
        if self.n < 1:
            raise ValueError(f"n, the number of images, must be at least 1, got {self.n}")
        if len(self.first_seeds) != len(self.prompts):
            raise ValueError(
                f"{len(self.first_seeds)} seeds for {len(self.prompts)} prompts: give one for each"
            )
        for seed in self.first_seeds:
            if not 0 <= seed <= 2**31 - self.n:
                raise ValueError(f"seed must be between 0 and {2**31 - self.n}, got {seed}")

    def _check_size(self) -> None:
        multiple = self.config.size_multiple
        height, width = self.size
        for side in self.size:
            if side < multiple or side % multiple:
                raise ValueError(
                    f"the size {height}x{width} does not fit {self.model}: height and width must "
                    f"be multiples of {multiple}; it was trained at {self.config.image_size}"
                )


def complete(
    model: str,
    config: StableDiffusion,
    defaults: Defaults,
    *,
    prompts: Sequence[str],
    seed: int | Sequence[int] | Int[np.ndarray, " prompts"],
    size: int | tuple[int, int] | None,
    steps: int | None,
    guidance: float | None,
    sampler: str | None,
    spacing: str | None,
    offset: int | None,
    image: Image.Image | np.ndarray | None,
    strength: float | None,
    **others: Any,
) -> Request:
    """The request, in which what the caller left open (None) is the model's or the image's.

    Args:
        model: its name.
        config: its sizes and schedule.
        defaults: its own.
        prompts: at least one.
        seed: of all prompts, or of each.
        size: one number, or (height, width).
        steps: see `Request`, like all that follow.
        guidance: scale.
        sampler: its name.
        spacing: if the sampler's name says none.
        offset: of "leading" times.
        image: Pillow, or pixels.
        strength: of redrawing it.
        **others: the other fields of `Request`.

    Raises:
        ValueError: for anything that cannot be drawn.
    """
    sampler = defaults.sampler if sampler is None else sampler
    chosen, named = find_sampler(sampler, spacing)
    picture = None if image is None else to_picture(image)
    if picture is not None and strength is None:
        strength = 1.0 if chosen.inverse else STRENGTH
    if size is None:
        size = (picture.height, picture.width) if picture else config.image_size
    spacing = named or defaults.spacing or default_spacing(config.schedule)
    if offset is None and spacing == "leading":
        offset = defaults.offset
    seeds = seed.tolist() if isinstance(seed, np.ndarray) else seed
    return Request(
        model=model,
        config=config,
        prompts=tuple(prompts),
        first_seeds=tuple(seeds) if isinstance(seeds, Sequence) else (seeds,) * len(prompts),
        size=size if isinstance(size, tuple) else (size, size),
        steps=defaults.steps if steps is None else steps,
        guidance=defaults.guidance if guidance is None else guidance,
        sampler=sampler,
        spacing=spacing,
        offset=offset,
        image=picture,
        strength=strength,
        **others,
    )


def check_styles(model: str, styles: Sequence[str], texts: Sequence[str]) -> None:
    """Refuse a style that a model with few of them does not know."""
    for text in texts:
        asked = re.search(r",\s*([\w-]+) style\W*$", text.lower())
        if styles and asked and asked[1] not in styles:
            raise ValueError(
                f"{model} does not know the style {asked[1]!r}: choose among {', '.join(styles)}"
            )


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An RGB image of `size`, (height, width)."""
    height, width = size
    image = to_picture(image)
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
