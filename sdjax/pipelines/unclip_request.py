"""What is asked of DALL-E 2: completed and checked before anything is compiled."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from sdjax import config
from sdjax.diffusion.limits import Limits
from sdjax.diffusion.samplers import Plan, find_sampler, sampling_plan
from sdjax.image.preprocess import square
from sdjax.pipelines.request import CALL_LIMITS

PRIORS = ("diffusion", "ar")
Seeds = int | Sequence[int] | Int[np.ndarray, " prompts"]
IN_RANGE = Limits(clip=1.0)
"""Pixels are in [-1, 1], and so is what is predicted of them (the paper does not say)."""


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn.

    The numbers of steps are those of table 3 of the paper (arXiv 2204.06125), the guidance that of
    its FID runs. Which times the steps are at is ours, and Karlo's for the decoder: the paper chose
    the upsamplers' by hand, and does not tell them.
    """

    prior: str = "diffusion"  # what makes an image embedding of a text
    prior_steps: int | None = None  # of the diffusion prior; None, and below: the prior's own
    prior_guidance: float | None = None
    best_of: int | None = None  # image embeddings drawn, of which the nearest to the text is kept
    steps: int = 250  # of the decoder
    sampler: str = "unclip"  # of the decoder
    eta: float = 0.0  # noise of samplers that take it, 0 to 1
    guidance: float = 1.25  # of the decoder, by embedding and text; 1 is off
    upsampler_steps: tuple[int, ...] = (27, 15)
    upsampler_sampler: str = "ddim"

    def completed(self, **changes: Any) -> "Settings":
        """With all `changes` that are not None."""
        given = {name: _plain(x) for name, x in changes.items() if x is not None}
        if isinstance(steps := given.get("upsampler_steps"), Iterable):
            given["upsampler_steps"] = tuple(map(_plain, steps))
        return replace(self, **given)

    def prior_options(self, prior: str) -> dict[str, Any]:
        """What `prior` is told; None is its own default."""
        options = {"guidance": self.prior_guidance, "candidates": self.best_of}
        return options | ({"steps": self.prior_steps} if prior == "diffusion" else {})

    def check(self, model: str, system: config.Unclip) -> None:
        """Refuse, in words, what the model cannot draw."""
        if self.prior not in PRIORS:
            raise ValueError(f"unknown prior {self.prior!r}: choose {' or '.join(PRIORS)}")
        check_guidance("guidance", self.guidance)
        check_guidance("prior_guidance", self.prior_guidance)
        for name in ("prior_steps", "best_of", "steps"):
            check_count(name, getattr(self, name))
        if self.prior_steps is not None and system.prior is not None:
            most = system.prior.schedule.train_steps
            if self.prior_steps > most:
                raise ValueError(f"prior_steps must be at most {most}, got {self.prior_steps}")
        if self.prior == "ar" and self.prior_steps is not None:
            raise ValueError("prior_steps are of the diffusion prior: leave them out, or prior")
        if not isinstance(self.upsampler_steps, tuple):
            raise ValueError(
                f"upsampler_steps must be a list, a number for each upsampler, got "
                f"{self.upsampler_steps!r}"
            )
        for steps in self.upsampler_steps:
            check_count("upsampler_steps", steps)
        if len(self.upsampler_steps) != len(system.upsamplers):
            raise ValueError(
                f"{model} has {len(system.upsamplers)} upsamplers, upsampler_steps are "
                f"{self.upsampler_steps}: give a number for each"
            )
        for name, unet in (
            (self.sampler, system.decoder.unet),
            *((self.upsampler_sampler, one.unet) for one in system.upsamplers),
        ):
            sampler, _ = find_sampler(name)
            if sampler.inverse:
                raise ValueError(f"{name} walks to noise: choose a sampler that draws")
            if sampler.learned and unet.out_channels != 6:
                raise ValueError(
                    f"{name} is for networks that predict a variance; one of {model} does not: "
                    "choose another sampler"
                )

    def recipe(self) -> dict[str, Any]:
        """What is written into each image."""
        return {**asdict(self), "upsampler_steps": list(self.upsampler_steps)}

    def plans(self, system: config.Unclip, strength: float | None = None) -> list[Plan]:
        """The calls of each stage; with a `strength` the decoder begins with a picture.

        Raises:
            ValueError: for steps, an eta or a strength out of range.
        """
        decoder = sampling_plan(
            system.decoder.schedule,
            self.steps,
            CALL_LIMITS,
            sampler=self.sampler,
            spacing=_spacing(self.sampler),
            eta=self.eta,
            strength=strength,
            limits=IN_RANGE,
        )
        return [decoder, *self.upsampler_plans(system)]

    def upsampler_plans(self, system: config.Unclip) -> list[Plan]:
        """The calls of the upsamplers."""
        return [
            sampling_plan(
                upsampler.schedule,
                steps,
                CALL_LIMITS,
                sampler=self.upsampler_sampler,
                spacing=_spacing(self.upsampler_sampler),
                limits=IN_RANGE,
            )
            for upsampler, steps in zip(system.upsamplers, self.upsampler_steps, strict=True)
        ]


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _spacing(sampler: str) -> str:
    """Of the times: the sampler's own, or from the very last on: a picture begins with noise."""
    return find_sampler(sampler)[1] or "trailing"


def check_guidance(name: str, guidance: float | None) -> None:
    """Refuse a scale below 1, which is off."""
    number = isinstance(guidance, (int, float, np.number))
    if guidance is not None and not (number and np.isfinite(guidance) and guidance >= 1):
        raise ValueError(f"{name} must be a number of at least 1 (1 is off), got {guidance!r}")


def check_count(name: str, count: Any) -> None:
    """Refuse what is no whole number of at least 1."""
    if count is None:
        return
    if not isinstance(count, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {count!r}")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")


def check_texts(texts: Sequence[str]) -> None:
    """Refuse no text, an empty one, and one instead of a list."""
    if isinstance(texts, str):
        raise ValueError(f"give a list of texts, not one: [{texts!r}]")
    if not len(texts) or any(not text.strip() for text in texts):
        raise ValueError("the prompt is empty: say what the picture should show")


def each_seed(seed: Any, rows: int, n: int = 1) -> Int[np.ndarray, " batch"]:
    """The seed of each of `n` images of each row: of the row's, or of one for all, counted up.

    Raises:
        ValueError: if there are not as many as rows, or one is out of range.
    """
    check_count("n, the number of images,", n)
    given = np.asarray(seed)
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    if given.ndim and given.shape != (rows,):
        raise ValueError(f"{given.size} seeds for {rows} prompts: give one for each")
    first = np.broadcast_to(given, (rows,)).astype(np.int64)
    if first.min() < 0 or first.max() > 2**31 - n:
        raise ValueError(f"seed must be between 0 and {2**31 - n}, got {seed}")
    return np.add.outer(first, np.arange(n)).reshape(-1).astype(np.int32)


def known_pixels(
    hole: Bool[np.ndarray, "rows columns"], picture: Image.Image, size: int
) -> Float[np.ndarray, "{size} {size}"]:
    """1 where the picture's middle square, in size x size pixels, is known, and 0 in the hole.

    Raises:
        ValueError: for a hole of another size or type, or that is all or nothing of the square.
    """
    if hole.dtype != bool:
        raise ValueError(
            f"the hole must be of True and False, got {hole.dtype}: compare, mask > 127"
        )
    shape = (picture.height, picture.width)
    if hole.shape != shape:
        raise ValueError(f"the hole is {hole.shape}, the picture {shape}: they must agree")
    pixels = Image.fromarray(hole.astype(np.uint8) * 255).convert("RGB")
    missing = square(pixels, size)[..., 0] > 0
    if missing.all() or not missing.any():
        raise ValueError(
            "the hole must be a part of the picture's middle square, neither all of it nor nothing"
        )
    return 1 - missing.astype(np.float32)
