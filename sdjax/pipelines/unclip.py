"""DALL-E 2: text -> prior -> image embedding -> decoder -> upsamplers (arXiv 2204.06125).

    text --> text tower --> prior --> image embedding --> decoder --> upsamplers --> picture
                                             ^               ^
    picture --> image tower -----------------+               |
            --> DDIM backwards --> noise x_T ----------------+

A picture has two parts: an image embedding, which says what CLIP sees in it, and the noise that the
decoder draws all the rest from. What can be done with the pair is in `sdjax.pipelines.manipulate`.

>>> pipe = sdjax.load("dalle2-mini")
>>> pipe("a red apple, 3d style", seed=0)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax import config
from sdjax.config import AutoregressivePrior, DiffusionPrior, Schedule
from sdjax.diffusion.inversion import inversion_plan
from sdjax.diffusion.loop import image_keys, initial_noise
from sdjax.diffusion.samplers import Plan
from sdjax.image.clip_image import unit
from sdjax.image.degrade import shrink
from sdjax.image.preprocess import square, to_float, to_pixels
from sdjax.nn.functional import Params
from sdjax.pipelines.clip import Clip, Embeddings, Pictures, read_picture
from sdjax.pipelines.images import Images
from sdjax.pipelines.priors import Text, read_text
from sdjax.pipelines.request import CALL_LIMITS, check_styles
from sdjax.pipelines.unclip_request import (
    Seeds,
    Settings,
    check_guidance,
    check_texts,
    each_seed,
)
from sdjax.pipelines.unclip_stages import Given, Told, decode, upsample
from sdjax.pipelines.words import warn_about_words
from sdjax.shapes import Images as FloatImages
from sdjax.shapes import Keys, Vectors
from sdjax.text.tokenizer import Tokenizer

PRIOR, DECODER = 0, 1
"""What the key of an image is folded with for each part, so that no two share their noise; the
upsamplers count on."""


class Latents(NamedTuple):
    """Pictures as DALL-E 2 has them: what CLIP sees, and the noise of every stage."""

    embeddings: Embeddings
    noises: tuple[Float[np.ndarray, "batch height width 3"], ...]  # decoder, upsamplers


@dataclass(frozen=True, eq=False)
class Unclip:
    """A loaded DALL-E 2. Call it with a prompt.

    `params` holds the trees "text", "image", "decoder", "upsampler_0" and so on; they are arguments
    of every compiled function.
    """

    name: str
    config: config.Unclip
    params: Params
    tokenizer: Tokenizer
    priors: Mapping[str, Callable[..., Vectors]]  # see `sdjax.pipelines.priors`
    clip: Clip | None = None  # both towers; None if there is no image tower
    settings: Settings = field(default_factory=Settings)
    styles: tuple[str, ...] = ()  # the style words a small model was trained with; () is any

    def __post_init__(self) -> None:
        for prior in (self.config.prior, self.config.autoregressive_prior):
            if prior is not None:
                self._check_prior(prior)
        if self.config.decoder.text is not None:
            raise ValueError(
                f"the decoder of {self.name} reads its text with a transformer of its own, which "
                "this pipeline does not: use its networks, `params` and `config`, directly"
            )

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: Seeds = 0,
        prior: str | None = None,
        prior_steps: int | None = None,
        prior_guidance: float | None = None,
        best_of: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        guidance: float | None = None,
        upsampler_steps: Sequence[int] | None = None,
    ) -> Images:
        """Draw `n` images of each prompt.

        Image k of a prompt has seed `seed + k`; what else is drawn in the same call does not
        matter. The number of images and of candidates, guidance 1 (off), samplers with learned
        variance, the other prior, and more than 100 or 500 steps take new compilations; other
        numbers and words do not.

        Args:
            prompt: one text or several; not empty.
            n: images per prompt, each with an image embedding of its own.
            seed: of each prompt's first image, 0 to 2^31 - 1; or one for each prompt.
            prior: "diffusion" or "ar" (autoregressive); None is the model's, like all that follow.
            prior_steps: of the diffusion prior.
            prior_guidance: of the prior by the text, at least 1; 1 is off.
            best_of: image embeddings drawn, of which the nearest to the text is taken.
            steps: of the decoder.
            sampler: of the decoder, a name in `sdjax.diffusion.samplers`.
            eta: noise of samplers that take it, 0 to 1.
            guidance: of the decoder by image embedding and text, at least 1; 1 is off.
            upsampler_steps: a number for each upsampler.

        Returns:
            A list of Pillow images that shows itself in a notebook, prompt by prompt, with the
            recipe in each image's `info`.

        Raises:
            ValueError: for a value outside these ranges, before anything is compiled.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        settings = self.complete(
            prior=prior,
            prior_steps=prior_steps,
            prior_guidance=prior_guidance,
            best_of=best_of,
            steps=steps,
            sampler=sampler,
            eta=eta,
            guidance=guidance,
            upsampler_steps=upsampler_steps,
        )
        self.check(prompts, settings)
        seeds, plans = each_seed(seed, len(prompts), n), settings.plans(self.config)
        texts = [text for text in prompts for _ in range(n)]
        embeddings = self.imagine(texts, seeds, settings)
        drawn = self.draw(embeddings, plans, seeds=seeds, texts=texts, guidance=settings.guidance)
        return self.finish(drawn, texts, seeds, settings.recipe())

    def _check_prior(self, prior: DiffusionPrior | AutoregressivePrior) -> None:
        """It must read what CLIP's text tower writes."""
        text = self.config.text
        if prior.text_dim is None:
            raise ValueError(
                f"a prior of {self.name} reads token ids with a table of its own, which this "
                "pipeline does not: use its networks, `params` and `config`, directly"
            )
        if (prior.text_tokens, prior.text_dim) != (text.context_length, text.dim):
            raise ValueError(
                f"a prior of {self.name} reads {prior.text_tokens} hidden states of "
                f"{prior.text_dim}, CLIP's text tower writes {text.context_length} of {text.dim}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels of each stage's picture."""
        return (
            self.config.decoder.image_size,
            *(upsampler.image_size for upsampler in self.config.upsamplers),
        )

    def complete(self, **changes: object) -> Settings:
        """The model's settings with all `changes` that are not None, checked."""
        settings = self.settings.completed(**changes)
        settings.check(self.name, self.config)
        return settings

    def embed(self, pictures: Pictures) -> Embeddings:
        """CLIP's image embeddings [pictures, dim], of the length that the decoder was trained with.

        Raises:
            ValueError: the model has no image tower; there is no picture, a file is none, or there
                is one picture instead of a list.
            FileNotFoundError: there is no such file.
        """
        if self.clip is None:
            raise ValueError(f"{self.name} has no image tower, which says what is in a picture")
        unit_length = self.config.decoder.conditioning.unit_length
        return self.clip.image_embeddings(pictures, unit_length=unit_length)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """CLIP's text embeddings, unit vectors [texts, dim].

        Raises:
            ValueError: an empty text, or a style that the model does not know.
        """
        check_texts(texts)
        check_styles(self.name, self.styles, texts)
        warn_about_words(self.name, self.tokenizer, texts)
        return np.asarray(unit(self._read(texts, False).embedding))

    def check(self, texts: Sequence[str], settings: Settings) -> None:
        """Refuse texts that cannot be imagined; compiles nothing.

        Raises:
            ValueError: an empty text, a style that the model does not know, or no such prior.
        """
        check_texts(texts)
        check_styles(self.name, self.styles, texts)
        if settings.prior not in self.priors:
            known = ", ".join(self.priors) or "none"
            raise ValueError(f"{self.name} has no prior {settings.prior!r}; it has {known}")

    def imagine(
        self, texts: Sequence[str], seeds: Int[np.ndarray, " batch"], settings: Settings
    ) -> Embeddings:
        """Image embeddings of texts, by a prior [texts, dim].

        Raises:
            ValueError: see `check`.
        """
        self.check(texts, settings)
        warn_about_words(self.name, self.tokenizer, texts)
        options = settings.prior_options(settings.prior)
        keys = _stage_keys(image_keys(jnp.asarray(seeds)), PRIOR)
        found = self.priors[settings.prior](
            self._read(texts, True), self._read([""], True), keys, **options
        )
        return np.asarray(found)

    def fresh(self, seeds: Int[np.ndarray, " batch"]) -> list[Given]:
        """What each stage begins with: noise of the seeds, no picture."""
        keys, found = image_keys(jnp.asarray(seeds)), []
        for stage, size in enumerate(self.sizes):
            noise = initial_noise(_stage_keys(keys, DECODER + stage), (size, size, 3))
            found.append(Given(noise, jnp.zeros_like(noise), jnp.zeros_like(noise[..., :1])))
        return found

    def draw(
        self,
        embeddings: Embeddings,
        plans: Sequence[Plan],
        *,
        seeds: Int[np.ndarray, " batch"],
        texts: Sequence[str] = (),
        guidance: float = 1.0,
        given: Sequence[Given] | None = None,
    ) -> list[FloatImages]:
        """The picture of every stage, in [-1, 1], the last is finished.

        Args:
            embeddings: of images [batch, dim].
            plans: of each stage.
            seeds: of each image.
            texts: for the decoder, one for each image; without them only the embedding speaks.
            guidance: of the decoder.
            given: what each stage begins with; None is noise of the seeds.

        Raises:
            ValueError: for a guidance below 1, or not as many texts and seeds as embeddings.
        """
        check_guidance("guidance", guidance)
        if not len(embeddings) == len(seeds) == len(texts or embeddings):
            raise ValueError(
                f"{len(embeddings)} embeddings, {len(seeds)} seeds and {len(texts)} texts must be "
                "as many"
            )
        given = self.fresh(seeds) if given is None else given
        told = self._tell(embeddings, texts or [""] * len(embeddings), guidance)
        keys, pictures = image_keys(jnp.asarray(seeds)), []
        for stage, (begin, plan) in enumerate(zip(given, plans, strict=True)):
            small = pictures[-1] if pictures else None
            own = _stage_keys(keys, DECODER + stage)
            found = self._stage(stage, begin, told, small, plan, own, guidance)
            pictures.append(jnp.clip(found, -1, 1))
        return pictures

    def invert(
        self,
        pictures: Pictures,
        steps: int,
        repeats: int,
        guidance: float = 1.0,
    ) -> Latents:
        """The pair (embedding, noise) of pictures, by DDIM backwards through every stage.

        An upsampler is shown the small picture that the finished one shrinks to.

        Args:
            pictures: of any size; the middle square is taken.
            steps: of DDIM, in each stage; the way back must have as many.
            repeats: calls of the network for each step; see `sdjax.diffusion.inversion`.
            guidance: of the decoder; the way back must have the same.

        Raises:
            ValueError: for numbers out of range, before anything is compiled; for no picture.
        """
        check_guidance("guidance", guidance)
        plans = [
            inversion_plan(schedule, steps, repeats, CALL_LIMITS) for schedule in self.schedules
        ]
        embeddings, pyramid = self.embed(pictures), self.pyramid(pictures)
        told = self._tell(embeddings, [""] * len(embeddings), guidance)
        keys = image_keys(jnp.zeros(len(embeddings), jnp.int32))  # nothing is drawn
        noises = []
        for stage, (picture, plan) in enumerate(zip(pyramid, plans, strict=True)):
            begin = Given(jnp.zeros_like(picture), picture, jnp.zeros_like(picture[..., :1]))
            small = pyramid[stage - 1] if stage else None
            found = self._stage(stage, begin, told, small, plan, keys, guidance)
            noises.append(np.asarray(found))
        return Latents(embeddings, tuple(noises))

    @property
    def schedules(self) -> list[Schedule]:
        """Of the decoder and the upsamplers."""
        return [self.config.decoder.schedule, *(one.schedule for one in self.config.upsamplers)]

    def pyramid(self, pictures: Pictures) -> list[FloatImages]:
        """The middle square of pictures in the size of each stage, in [-1, 1]."""
        size = self.sizes[-1]
        whole = to_float(np.stack([square(read_picture(picture), size) for picture in pictures]))
        return [shrink(whole, size) for size in self.sizes]

    def finish(
        self,
        drawn: Sequence[FloatImages],
        texts: Sequence[str],
        seeds: Int[np.ndarray, " batch"],
        recipe: Mapping[str, object],
    ) -> Images:
        """The finished pictures with their recipes."""
        size = self.sizes[-1]
        shared = {"negative": "", **recipe, "width": size, "height": size, "model": self.name}
        recipes = [
            {"prompt": text, "seed": int(seed), **shared}
            for text, seed in zip(texts, seeds, strict=True)
        ]
        return Images.from_pixels(to_pixels(drawn[-1]), recipes)

    def _read(self, texts: Sequence[str], for_prior: bool) -> Text:
        """What CLIP's text tower says; only Karlo's prior is told how long embeddings are."""
        prior = self.config.prior
        normalize = for_prior and (prior is None or prior.scale is not None)
        tokens = jnp.asarray(self.tokenizer(texts))
        tower, end_id = self.config.text, self.tokenizer.eot_id
        return read_text(tower, self.params["text"], tokens, end_id, normalize)

    def _tell(self, embeddings: Embeddings, texts: Sequence[str], guidance: float) -> Told:
        without = [] if guidance == 1 else [""]
        text = self._read([row for text in texts for row in (*without, text)], False)
        batch, branches = len(embeddings), 1 + len(without)
        dropped = np.broadcast_to(np.arange(branches) < len(without), (batch, branches))

        def rows(x: Array) -> Array:
            return x.reshape(batch, branches, *x.shape[1:])

        return Told(
            jnp.repeat(jnp.asarray(embeddings)[:, None], branches, axis=1),
            jnp.asarray(dropped),
            *(rows(x) for x in (text.states, text.embedding, text.mask)),
        )

    def _stage(
        self,
        stage: int,
        given: Given,
        told: Told,
        small: FloatImages | None,
        plan: Plan,
        keys: Keys,
        guidance: float,
    ) -> FloatImages:
        if stage == 0:
            decoder, params = self.config.decoder, self.params["decoder"]
            return decode(decoder, params, given, told, plan, keys, jnp.float32(guidance))
        upsampler, params = self.config.upsamplers[stage - 1], self.params[f"upsampler_{stage - 1}"]
        return upsample(upsampler, params, given, small, plan, keys)


@jax.jit
def _stage_keys(keys: Keys, stage: Int[Array, ""] | int) -> Keys:
    return jax.vmap(lambda key: jax.random.fold_in(key, stage))(keys)
