"""What DALL-E 2 was famous for: pictures varied, mixed, told otherwise, filled in and redrawn.

Variations, interpolations and text diffs are done to the pair (image embedding, noise) of a picture
(arXiv 2204.06125, section 3). Every function takes an `Unclip` first and returns images, whose
recipe names the function.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from sdjax.diffusion.inpainting import inpainting_plan, shrink_known
from sdjax.diffusion.inversion import reconstruction_plan
from sdjax.diffusion.samplers import Plan
from sdjax.diffusion.spherical import mean_direction, slerp, text_difference
from sdjax.image.preprocess import square
from sdjax.pipelines.clip import Picture, Pictures, read_picture
from sdjax.pipelines.images import RECIPE, Images
from sdjax.pipelines.request import CALL_LIMITS, STRENGTH
from sdjax.pipelines.unclip import Latents, Unclip
from sdjax.pipelines.unclip_request import (
    IN_RANGE,
    Settings,
    check_count,
    check_guidance,
    check_texts,
    each_seed,
    known_pixels,
)
from sdjax.pipelines.unclip_stages import Given

STEPS, REPEATS = 33, 3
"""Of DDIM in each stage, there and back, and calls of the network for each step there: enough for a
reconstruction of more than 30 dB."""
MOST_THETA = 0.5
"""Of text diffs, as in the paper: 0.25 to 0.5."""


def reconstruct(
    pipe: Unclip, pictures: Pictures, *, steps: int = STEPS, repeats: int = REPEATS
) -> Images:
    """Pictures to embedding and noise and back: what is lost on the way is lost in all others."""
    plans = _back(pipe, steps)
    latents = pipe.invert(pictures, steps, repeats)
    recipe = {"from": "reconstruct", "steps": steps, "repeats": repeats}
    return _drawn(pipe, latents, plans, recipe)


def variations(
    pipe: Unclip,
    picture: Picture,
    n: int = 4,
    *,
    eta: float = 1.0,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = 1.0,
) -> Images:
    """Pictures of which CLIP sees the same, from the noise of this one (section 3.1).

    Args:
        pipe: the model.
        picture: of any size; the middle square is taken.
        n: how many, with seeds that count up.
        eta: noise that DDIM adds on its way: 0 is the picture again, 1 leaves least of its details.
        seed: of the first.
        steps: of DDIM in each stage.
        guidance: of the decoder by the embedding.

    Raises:
        ValueError: for numbers out of range, or a file that is no picture.
    """
    check_guidance("guidance", guidance)
    seeds, plans = each_seed(seed, 1, n), _back(pipe, steps, eta)
    latents = _repeated(pipe.invert([picture], steps, REPEATS, guidance), n)
    recipe = {"from": "variations", "eta": eta, "steps": steps, "guidance": guidance}
    return _drawn(pipe, latents, plans, recipe, seeds, guidance)


def interpolate(
    pipe: Unclip,
    first: Picture,
    last: Picture,
    n: int = 8,
    *,
    steps: int = STEPS,
    fixed_noise: bool = False,
) -> Images:
    """From one picture to another on the arc between both embeddings (section 3.2).

    Args:
        pipe: the model.
        first: of any size; the middle square is taken.
        last: likewise.
        n: pictures, both ends included.
        steps: of DDIM in each stage.
        fixed_noise: keep the noise of the first, instead of the arc between both noises; the last
            picture then shares only its embedding with `last`.

    Raises:
        ValueError: for numbers out of range, or a file that is no picture.
    """
    check_count("n, the number of pictures,", n)
    if n < 2:
        raise ValueError(f"n must be at least 2, as both ends are pictures, got {n}")
    plans = _back(pipe, steps)
    ends = pipe.invert([first, last], steps, REPEATS)
    shares = np.linspace(0, 1, n).tolist()

    def arc(pair: np.ndarray, fixed: bool = False) -> np.ndarray:
        return np.stack([slerp(pair[0], pair[1], 0.0 if fixed else share) for share in shares])

    latents = Latents(arc(ends.embeddings), tuple(arc(x, fixed_noise) for x in ends.noises))
    recipe = {"from": "interpolate", "steps": steps, "fixed_noise": fixed_noise}
    return _drawn(pipe, latents, plans, recipe, each={"share": shares})


def textdiff(
    pipe: Unclip,
    picture: Picture,
    here: str,
    there: str,
    thetas: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    *,
    steps: int = STEPS,
    guidance: float = 1.0,
) -> Images:
    """A picture, changed as one text differs from another (section 3.3).

    With z_d = (z_there - z_here) / |z_there - z_here| the embedding is slerp(z_i, z_d, theta); the
    noise stays.

    Args:
        pipe: the model.
        picture: of any size; the middle square is taken.
        here: what it shows, "a photo of a cat".
        there: what it should show, "an anime drawing of a super saiyan cat".
        thetas: how far towards it, 0 (not at all) to 1; the paper goes up to 0.25 to 0.5.
        steps: of DDIM in each stage.
        guidance: of the decoder by the embedding.

    Raises:
        ValueError: for numbers out of range; an empty text, or two that mean the same to CLIP.
    """
    check_guidance("guidance", guidance)
    check_texts([here, there])
    if not len(thetas) or any(not 0 <= theta <= 1 for theta in thetas):
        raise ValueError(f"thetas must be numbers from 0 to 1, got {list(thetas)}")
    plans, image = _back(pipe, steps), read_picture(picture)
    z_here, z_there = pipe.embed_texts([here, there])
    away = text_difference(z_there, z_here)
    latents = _repeated(pipe.invert([image], steps, REPEATS, guidance), len(thetas))
    length = np.linalg.norm(latents.embeddings[0])  # not 1 for Karlo
    begin = latents.embeddings[0] / length
    embeddings = length * np.stack([slerp(begin, away, theta) for theta in thetas])
    recipe = {
        "from": "textdiff",
        "here": here,
        "there": there,
        "steps": steps,
        "guidance": guidance,
    }
    latents = latents._replace(embeddings=embeddings)
    return _drawn(pipe, latents, plans, recipe, guidance=guidance, each={"theta": thetas})


def mix(
    pipe: Unclip,
    parts: Sequence[str | Picture],
    weights: Sequence[float] | None = None,
    *,
    n: int = 1,
    seed: int = 0,
    **options: Any,
) -> Images:
    """Pictures of several things at once: the mean direction of their image embeddings.

    Args:
        pipe: the model.
        parts: texts, or pictures: a path is a `Path`, a `str` is a text.
        weights: of the parts; equal without.
        n: how many.
        seed: of the first, and of the texts' embeddings.
        **options: of the model's call: prior, steps, guidance and so on.

    Raises:
        ValueError: for fewer than two parts, weights that are none, or parts that cancel out.
    """
    if isinstance(parts, str) or len(parts) < 2:
        raise ValueError(f"there is nothing to mix: give a list of at least two, not {parts!r}")
    weights = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
    fit = len(weights) == len(parts) and np.isfinite(weights).all() and min(weights) >= 0
    if not fit or sum(weights) == 0:
        raise ValueError(f"{len(parts)} parts need as many weights of at least 0, got {weights}")
    settings, seeds = pipe.complete(**options), each_seed(seed, 1, n)
    plans = settings.plans(pipe.config)
    texts = [part for part in parts if isinstance(part, str)]
    if texts:
        pipe.check(texts, settings)
    pictures = [read_picture(part) for part in parts if not isinstance(part, str)]
    seen = iter(pipe.embed(pictures) if pictures else ())
    told = iter(pipe.imagine(texts, np.repeat(seeds[:1], len(texts)), settings) if texts else ())
    vectors = np.stack([next(told if isinstance(part, str) else seen) for part in parts])
    lengths = np.linalg.norm(vectors, axis=1)  # not 1 for Karlo
    mean = mean_direction(vectors / lengths[:, None], np.asarray(weights, np.float64))
    mean = (np.average(lengths, weights=weights) * mean).astype(np.float32)
    drawn = pipe.draw(np.tile(mean, (n, 1)), plans, seeds=seeds, guidance=settings.guidance)
    names = [part if isinstance(part, str) else "a picture" for part in parts]
    recipe = {**settings.recipe(), "from": "mix", "parts": names, "weights": weights}
    return pipe.finish(drawn, [" + ".join(names)] * n, seeds, recipe)


def translate(
    pipe: Unclip,
    picture: Picture,
    prompt: str,
    *,
    strength: float = STRENGTH,
    n: int = 1,
    seed: int = 0,
    **options: Any,
) -> Images:
    """A picture redrawn as a text says: a sketch becomes a painting, summer winter.

    The decoder, told the embedding that the prior makes of the text, begins with the picture under
    noise (SDEdit, arXiv 2108.01073); the upsamplers follow.

    Args:
        pipe: the model.
        picture: of any size; the middle square is taken.
        prompt: what it should become.
        strength: how much of it is redrawn, above 0 to 1.
        n: how many.
        seed: of the first.
        **options: of the model's call: prior, steps, guidance and so on.

    Raises:
        ValueError: for numbers out of range, an empty prompt or an unknown style, or a file that is
            no picture.
    """
    settings, seeds = pipe.complete(**options), each_seed(seed, 1, n)
    pipe.check([prompt], settings)
    plans, image = settings.plans(pipe.config, strength), read_picture(picture)
    given = pipe.fresh(seeds)
    small = jnp.broadcast_to(pipe.pyramid([image])[0], given[0].image.shape)
    given[0] = given[0]._replace(image=small)
    recipe = {"from": "translate", "strength": strength}
    return _told(pipe, prompt, given, plans, settings, seeds, recipe)


def inpaint(
    pipe: Unclip,
    picture: Picture,
    hole: Bool[np.ndarray, "rows columns"],
    prompt: str,
    *,
    repeats: int = 4,
    jump: int = 5,
    n: int = 1,
    seed: int = 0,
    **options: Any,
) -> Images:
    """A picture with a part of it drawn anew; the rest stays as it is, pixel by pixel.

    Every stage is told the known pixels of its size; see `sdjax.diffusion.inpainting`.

    Args:
        pipe: the model.
        picture: of any size; the middle square is taken.
        hole: bool, of the picture's size, True where it is drawn anew.
        prompt: what the whole picture shows then.
        repeats: how often each stretch of the decoder's steps is walked, to agree with what is
            known; 1 is once, and fast.
        jump: steps of a stretch.
        n: how many.
        seed: of the first.
        **options: of the model's call: prior, steps, guidance and so on; but the sampler is DDPM.

    Raises:
        ValueError: for a hole of another size, or that is all or nothing of the middle square; for
            numbers out of range, or a sampler.
    """
    for name in ("sampler", "eta"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name} is nothing for inpainting, whose sampler is DDPM: leave it out"
            )
    size = pipe.sizes[-1]
    known = known_pixels(np.asarray(hole), read_picture(picture), size)
    settings, seeds = pipe.complete(**options), each_seed(seed, 1, n)
    pipe.check([prompt], settings)
    schedules, steps = pipe.schedules, (settings.steps, *settings.upsampler_steps)
    plans = [
        inpainting_plan(schedule, count, repeats if stage == 0 else 1, jump, CALL_LIMITS, IN_RANGE)
        for stage, (schedule, count) in enumerate(zip(schedules, steps, strict=True))
    ]
    given = [
        begin._replace(
            image=jnp.broadcast_to(image, begin.image.shape),
            known=jnp.broadcast_to(shrink_known(known, size // own)[:, :, None], begin.known.shape),
        )
        for begin, image, own in zip(
            pipe.fresh(seeds), pipe.pyramid([picture]), pipe.sizes, strict=True
        )
    ]
    samplers = {"sampler": "ddpm", "eta": 0.0, "upsampler_sampler": "ddpm"}
    recipe = {"from": "inpaint", **samplers, "repeats": repeats, "jump": jump}
    return _told(pipe, prompt, given, plans, settings, seeds, recipe)


def outpaint(
    pipe: Unclip, picture: Picture, prompt: str, pixels: int | Sequence[int], **options: Any
) -> Images:
    """A picture continued beyond its borders: it shrinks, and `inpaint` draws what is around it.

    Args:
        pipe: the model.
        picture: of any size; the middle square is taken.
        prompt: what the whole picture shows then.
        pixels: of the finished picture that are new, at every border, or (top, right, bottom,
            left); top + bottom must be left + right, as the picture stays square.
        **options: of `inpaint`.

    Raises:
        ValueError: for borders that leave no square of the picture, and as `inpaint`.
    """
    size = pipe.sizes[-1]
    borders = np.asarray(pixels)
    if borders.shape not in ((), (4,)) or not np.issubdtype(borders.dtype, np.integer):
        raise ValueError(f"pixels must be a whole number, or four for the borders, got {pixels!r}")
    top, right, bottom, left = np.broadcast_to(borders, 4).tolist()
    inner = size - top - bottom
    if min(top, right, bottom, left) < 0 or top + bottom != left + right or not 0 < inner < size:
        raise ValueError(
            f"the borders (top, right, bottom, left) are {(top, right, bottom, left)} pixels of "
            f"{size}: top + bottom must be left + right, above 0 and below {size}"
        )
    canvas = np.full((size, size, 3), 255, np.uint8)
    inside = slice(top, size - bottom), slice(left, size - right)
    canvas[inside] = square(read_picture(picture), inner)
    hole = np.ones((size, size), bool)
    hole[inside] = False
    images = inpaint(pipe, canvas, hole, prompt, **options)
    for image in images:
        image.info[RECIPE] |= {"from": "outpaint", "pixels": [top, right, bottom, left]}
    return images


def _back(pipe: Unclip, steps: int, eta: float = 0.0) -> list[Plan]:
    """From the noises of `Unclip.invert` to pictures."""
    return [reconstruction_plan(schedule, steps, CALL_LIMITS, eta) for schedule in pipe.schedules]


def _repeated(latents: Latents, n: int) -> Latents:
    noises = tuple(np.repeat(noise, n, axis=0) for noise in latents.noises)
    return Latents(np.repeat(latents.embeddings, n, axis=0), noises)


def _drawn(
    pipe: Unclip,
    latents: Latents,
    plans: Sequence[Plan],
    recipe: Mapping[str, Any],
    seeds: np.ndarray | None = None,
    guidance: float = 1.0,
    each: Mapping[str, Any] | None = None,
) -> Images:
    """Pictures of pairs; no text is told. `each` goes number by number into the recipes."""
    count = len(latents.embeddings)
    seeds = np.zeros(count, np.int32) if seeds is None else seeds
    given = [
        begin._replace(noise=jnp.asarray(noise))
        for begin, noise in zip(pipe.fresh(seeds), latents.noises, strict=True)
    ]
    drawn = pipe.draw(latents.embeddings, plans, seeds=seeds, guidance=guidance, given=given)
    recipe = {"sampler": "ddim", "guidance": guidance, **recipe}
    images = pipe.finish(drawn, [""] * count, seeds, recipe)
    for name, values in (each or {}).items():
        for image, value in zip(images, values, strict=True):
            image.info[RECIPE][name] = float(value)
    return images


def _told(
    pipe: Unclip,
    prompt: str,
    given: Sequence[Given],
    plans: Sequence[Plan],
    settings: Settings,
    seeds: np.ndarray,
    recipe: Mapping[str, Any],
) -> Images:
    """Pictures of a text that begin with more than noise."""
    texts = [prompt] * len(seeds)
    embeddings = pipe.imagine(texts, seeds, settings)
    drawn = pipe.draw(
        embeddings, plans, seeds=seeds, texts=texts, guidance=settings.guidance, given=given
    )
    return pipe.finish(drawn, texts, seeds, {**settings.recipe(), **recipe})
