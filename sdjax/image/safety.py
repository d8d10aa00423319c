"""The safety checker of Stable Diffusion 1: does an image show what the model should not draw?"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from sdjax.config import SafetyChecker as SafetyCheckerConfig
from sdjax.image.clip_image import ClipImage, unit
from sdjax.image.preprocess import clip_images
from sdjax.nn.functional import Params, apply
from sdjax.shapes import Images

LENIENCE = 0.01
"""Taken off every threshold once a special concept is found."""


class Safety(NamedTuple):
    """What the checker found. A score above zero means that the concept is there.

    flagged: [batch], whether any concept is; a special one alone does not flag an image.
    scores: [batch, concepts], cosines less thresholds, to three digits.
    special_scores: [batch, special_concepts], likewise.
    """

    flagged: Bool[Array, " batch"]
    scores: Float[Array, "batch concepts"]
    special_scores: Float[Array, "batch special_concepts"]


class SafetyChecker(nn.Module):
    """Cosines between an image's CLIP vector and those of concepts, against thresholds.

    CompVis/stable-diffusion-safety-checker; the concepts were published as vectors, not in words.
    """

    config: SafetyCheckerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Images) -> Safety:
        """Args: images as CLIP expects them (see `sdjax.image.preprocess.clip_images`)."""
        c = self.config
        vector = unit(ClipImage(c.image, self.dtype, name="image")(image))

        def margins(name: str, count: int) -> Float[Array, "batch {count}"]:
            shape = (count, c.image.projection_dim)
            concepts = self.param(name, nn.initializers.normal(1.0), shape)
            thresholds = self.param(f"{name}_thresholds", nn.initializers.zeros, (count,))
            cosines = jnp.matmul(vector, unit(concepts).T, precision=jax.lax.Precision.HIGHEST)
            return cosines - thresholds

        special = margins("special_concepts", c.special_concepts)
        found = jnp.round(special, 3) > 0
        # One special concept makes the next ones easier to find too, in the order of the file.
        before = jnp.cumsum(found, axis=1) - found > 0
        special_scores = jnp.round(special + LENIENCE * before, 3)
        anywhere = found.any(axis=1, keepdims=True)
        scores = jnp.round(margins("concepts", c.concepts) + LENIENCE * anywhere, 3)
        return Safety((scores > 0).any(axis=1), scores, special_scores)


def check_safety(
    config: SafetyCheckerConfig,
    params: Params,
    images: Sequence[Image.Image]
    | UInt8[np.ndarray, "batch height width 3"]
    | Float[np.ndarray, "batch height width 3"],
) -> Safety:
    """The checker's findings on Pillow images, or on an array: uint8, or float in [-1, 1]."""
    return _check(config, params, clip_images(images, config.image.image_size))


@functools.partial(jax.jit, static_argnums=0)
def _check(config: SafetyCheckerConfig, params: Params, image: Images) -> Safety:
    return apply(SafetyChecker(config), params, image)
