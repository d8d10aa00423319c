"""CLIP as a system of its own: which caption fits an image, which image fits a caption.

    image --> crop --> image tower --> unit vector --+
                                                     +--> cosines [images, texts] --> ranking
    text --> tokens --> text tower --> unit vector --+

>>> clip = sdjax.load_clip("mini")
>>> clip.rank_captions("apple.png", ["a red apple", "a dog", "a car"])[0].item
'a red apple'
"""

import hashlib
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from sdjax import config
from sdjax.image.clip_image import ClipImage, unit
from sdjax.image.preprocess import normalize, square, to_picture
from sdjax.nn.functional import Params, apply
from sdjax.pipelines.models import Model, read_model
from sdjax.pipelines.words import warn_about_words
from sdjax.shapes import Images, Tokens, Vectors
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.config_json import from_json
from sdjax.weights.tree import flatten

UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are no images, or damaged ones."""

LOGIT_SCALE = math.log(100)
"""Of the published CLIPs, all of which end at the limit of training (arXiv 2103.00020, 2.5). For
files of other models that hold CLIP's towers without it."""
BATCH = 64
"""Images or texts that go through a tower at once, at most."""

Picture = str | os.PathLike[str] | Image.Image | UInt8[np.ndarray, "height width 3"]
"""An image file, a Pillow image, or pixels."""
Pictures = Sequence[Picture] | UInt8[np.ndarray, "images height width 3"]
Embeddings = Float[np.ndarray, "rows dim"]


@partial(jax.jit, static_argnames="tower")
def project_images(tower: config.ImageTower, params: Params, images: Images) -> Vectors:
    """Image embeddings, as long as the tower makes them, of images normalised as it was trained."""
    return apply(ClipImage(tower), params, images)


@partial(jax.jit, static_argnames="tower")
def embed_images(tower: config.ImageTower, params: Params, images: Images) -> Vectors:
    """Unit vectors of images, normalised as the tower was trained."""
    return unit(project_images(tower, params, images))


@partial(jax.jit, static_argnames=("tower", "end_id"))
def embed_texts(tower: config.TextTower, params: Params, tokens: Tokens, end_id: int) -> Vectors:
    """Unit vectors of token rows."""
    return unit(apply(ClipText(tower), params, tokens, end_positions(tokens, end_id)).pooled)


def similarity(
    model: config.Clip,
    params: Params,
    images: Float[Array, "images height width 3"],
    tokens: Int[Array, "texts tokens"],
    end_id: int,
) -> Float[Array, "images texts"]:
    """Cosine of every image with every text (CLIP, arXiv 2103.00020, figure 3).

    Args:
        model: both towers.
        params: their trees "image" and "text".
        images: float32 [images, height, width, 3], normalised as the tower was trained.
        tokens: token ids [texts, context_length].
        end_id: the id of the end token.
    """
    image_vectors = embed_images(model.image, params["image"], images)
    return image_vectors @ embed_texts(model.text, params["text"], tokens, end_id).T


def in_batches(function: Callable[[np.ndarray], Array], rows: np.ndarray, size: int) -> np.ndarray:
    """`function` over `size` rows at a time, so that it compiles once.

    The last batch is filled up by repeating its end, which is then cut off.
    """
    results = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        full = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        results.append(np.asarray(function(full))[: len(batch)])
    return np.concatenate(results)


def check_pictures(pictures: Pictures) -> None:
    """Refuse no picture, and one instead of a list of them.

    Raises:
        ValueError: in these cases.
    """
    if isinstance(pictures, str | os.PathLike | Image.Image):
        raise ValueError(f"give a list of images, not one: [{pictures!r}]")
    if not len(pictures):
        raise ValueError("no images: give at least one")


def read_picture(picture: Picture) -> Image.Image:
    """An image in RGB; what is transparent becomes white.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no image, or a damaged one.
    """
    if isinstance(picture, np.ndarray):
        return to_picture(picture)
    if isinstance(picture, Image.Image):
        image = picture
    else:
        path = Path(picture)
        if not os.path.isfile(path):  # unlike Path's, without an error for a name too long
            raise FileNotFoundError(f"no image file {path}")
        try:
            with Image.open(path) as opened:
                image = opened.copy()
        except UNREADABLE as error:
            raise ValueError(f"{path} is damaged or no image: {error}") from error
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class Match(NamedTuple):
    """One place of a ranking."""

    item: Any  # the caption or the image, as it was given
    index: int  # in the list that was given
    cosine: float
    probability: float  # softmax of the cosines times the model's scale, over the list


@dataclass(frozen=True, eq=False)
class Clip:
    """A loaded CLIP.

    `params` holds the trees "text" and "image" and the number "logit_scale", the natural logarithm
    of what cosines are multiplied by. `image_mean` and `image_std`, per colour of pixels in [0, 1],
    say how the image tower was trained: (pixel - mean) / std goes in.
    """

    name: str
    config: config.Clip
    params: Params
    tokenizer: Tokenizer
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of both towers' parameters in half precision, in the tree's order.

        What was trained on embeddings of one CLIP is nonsense with another's.
        """
        found = hashlib.sha256()
        for tower in ("text", "image"):
            for path, leaf in sorted(flatten(self.params[tower]).items()):
                found.update(path.encode() + np.asarray(leaf, np.float16).tobytes())
        return found.hexdigest()

    def preprocess(self, images: Pictures) -> Float[np.ndarray, "images size size 3"]:
        """What the image tower reads: shortest side to its size, centre cropped, normalised."""
        size = self.config.image.image_size
        pixels = np.stack([square(read_picture(image), size) for image in images])
        return normalize(pixels, self.image_mean, self.image_std)

    def image_embeddings(self, images: Pictures, *, unit_length: bool = True) -> Embeddings:
        """Embeddings of images [images, projection_dim].

        Args:
            images: files, Pillow images or pixels.
            unit_length: over their lengths, as CLIP compares them.

        Raises:
            ValueError: there is no image, or a file is none; one image instead of a list.
            FileNotFoundError: there is no such file.
        """
        check_pictures(images)
        tower, params = self.config.image, self.params["image"]
        size = _batch_size(len(images))
        network = embed_images if unit_length else project_images

        def embed(images: Pictures) -> Embeddings:
            return in_batches(
                lambda x: network(tower, params, jnp.asarray(x)),
                self.preprocess(images),
                size,
            )

        # Preprocessed images are larger than files: few at a time.
        starts = range(0, len(images), size)
        return np.concatenate([embed(images[start : start + size]) for start in starts])

    def text_embeddings(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors of texts [texts, projection_dim].

        Words that are cut off or unknown to the model cause a warning.

        Raises:
            ValueError: there is no text, or one of them is empty.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"give a list of at least one text, not {texts!r}")
        if any(not text.strip() for text in texts):
            raise ValueError("a text is empty: say what the image may show")
        warn_about_words(self.name, self.tokenizer, texts)
        tower, params, end_id = self.config.text, self.params["text"], self.tokenizer.eot_id
        return in_batches(
            lambda x: embed_texts(tower, params, jnp.asarray(x), end_id),
            self.tokenizer(texts),
            _batch_size(len(texts)),
        )

    def cosines(self, images: Pictures, texts: Sequence[str]) -> Float[np.ndarray, "images texts"]:
        """Cosine of every image with every text."""
        return self.image_embeddings(images) @ self.text_embeddings(texts).T

    def rank_captions(self, image: Picture, texts: Sequence[str]) -> list[Match]:
        """The texts from the best caption of the image to the worst."""
        return self.rank(texts, self.cosines([image], texts)[0])

    def rank_images(self, images: Pictures, text: str) -> list[Match]:
        """The images from the one that the text fits best to the worst."""
        return self.rank(list(images), self.cosines(images, [text])[:, 0])

    def rank(self, items: Sequence[Any], cosines: Float[np.ndarray, " items"]) -> list[Match]:
        """`items` by falling cosine, with probabilities p = softmax(exp(logit_scale) cosine)."""
        probabilities = np.asarray(jax.nn.softmax(np.exp(self.params["logit_scale"]) * cosines))
        return [
            Match(items[i], int(i), float(cosines[i]), float(probabilities[i]))
            for i in np.argsort(-cosines, kind="stable")
        ]


def _batch_size(count: int) -> int:
    """The power of two that holds `count` rows, at most `BATCH`: few sizes, few compilations."""
    return min(BATCH, 1 << max(count - 1, 0).bit_length())


def load_clip(
    model: str | os.PathLike[str] = "mini",
    *,
    dtype: DTypeLike = jnp.float32,
    family: str | config.Config | None = None,
    ema: bool | None = None,
) -> Clip:
    """Load a CLIP.

    Args:
        model: what `sdjax.load` takes: a CLIP, or a text-to-image model that carries one, as "mini"
            does.
        dtype: of the parameters in memory.
        family: what a published file cannot tell, such as "clip-vit-l-14" (OpenAI's, with the quick
            GELU) or "openclip-vit-l-14" (with the exact one); see `sdjax.load`.
        ema: as for `sdjax.load`.

    Raises:
        FileNotFoundError: if there is no such model, or a file of it is missing.
        ValueError: if it is damaged or carries no CLIP, or if `family` must be given.
    """
    return clip_of(read_model(model, dtype=dtype, family=family, ema=ema))


def clip_of(model: Model) -> Clip:
    """The CLIP that a model is, or carries.

    Raises:
        ValueError: if there is none, or model.json does not say how its images are normalised.
    """
    described = model.described
    if isinstance(model.config, config.Clip):
        towers, params = model.config, model.params["clip"]
    else:
        towers = _carried(model)
        params = {name: model.params[name] for name in ("text", "image")}
        params["logit_scale"] = jnp.float32(described.get("logit_scale", LOGIT_SCALE))
    wanted = ("image_mean", "image_std")
    if missing := [field for field in wanted if field not in described]:
        raise ValueError(
            f"{model.name}: model.json lacks {' and '.join(missing)}, of pixels in [0, 1] as its "
            "image tower was trained; save the model again"
        )
    mean, std = (tuple(described[field]) for field in wanted)
    tokenizer = Tokenizer(towers.text.context_length, towers.text.pad, described.get("vocabulary"))
    return Clip(model.name, towers, params, tokenizer, mean, std)


def _carried(model: Model) -> config.Clip:
    """The towers in a text-to-image model."""
    if isinstance(model.config, config.Unclip) and model.config.image is not None:
        return config.Clip(model.config.text, model.config.image)
    if "clip" in model.described:
        return from_json(config.Clip, model.described["clip"])
    raise ValueError(f"{model.name} carries no CLIP")
