"""The judge: a picture to its concept and its style. It grades generators and trains none."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.config import Judge
from sdjax.image.clip_image import unit
from sdjax.nn.layers import conv3x3, space_to_depth
from sdjax.nn.resnet import ResBlock
from sdjax.shapes import Images

EPSILON = 1e-6
"""Of the norms."""
SHARPNESS = 20.0
"""What multiplies cosines in the softmax over concepts."""


class Verdict(NamedTuple):
    """What the judge makes of pictures."""

    features: Float[Array, "batch dim"]  # unit vectors
    concepts: Float[Array, "batch concepts"]  # logits
    styles: Float[Array, "batch styles"]  # logits


class JudgeNetwork(nn.Module):
    """Residual blocks for the concept, a palette for the style.

    The concept is the nearest of learned directions (a cosine softmax, arXiv 1804.07698), read off
    the last map with its layout. The style is a linear function of which colours there are and how
    much of each: sets of emoji keep to palettes of their own.
    """

    config: Judge

    @nn.compact
    def __call__(self, image: Images, natural: Images | None = None) -> Verdict:
        """Pictures in [-1, 1]; `natural` are the same in their own colours, where those differ."""
        c = self.config
        x = conv3x3(c.channels[0], name="stem", dtype=jnp.float32)(space_to_depth(image, c.patch))
        for level, width in enumerate(c.channels[1:]):
            x = ResBlock(width, c.groups, EPSILON, resample="down", name=f"level_{level}")(x)
        flat = nn.silu(x).reshape(x.shape[0], -1)
        features = unit(nn.Dense(c.embedding_dim, use_bias=False, name="embedding")(flat))
        directions = self.param(
            "directions", nn.initializers.normal(0.1), (c.concepts, c.embedding_dim)
        )
        colours = palette(image if natural is None else natural, c.shades)
        return Verdict(
            features=features,
            concepts=SHARPNESS * features @ unit(directions).T,
            styles=nn.Dense(c.styles, name="style")(c.shades**1.5 * colours),
        )


def palette(image: Images, shades: int) -> Float[Array, "batch colours"]:
    """Root of the share of each of shades^3 colours; a pixel counts for the up to 8 around it.

    The vectors have length 1: their dot products are Bhattacharyya's coefficients.
    """
    value = (jnp.clip(image, -1, 1) + 1) / 2 * (shades - 1)
    hats = jnp.maximum(0, 1 - jnp.abs(value[..., None] - jnp.arange(shades)))
    batch, height, width = image.shape[:3]
    red, green, blue = (hats[..., i, :].reshape(batch, height * width, shades) for i in range(3))
    pairs = (red[..., None] * green[..., None, :]).reshape(batch, height * width, shades**2)
    counts = jnp.einsum("bpi,bpj->bij", pairs, blue).reshape(batch, -1)
    return jnp.sqrt(counts / (height * width))
