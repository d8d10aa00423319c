"""The judge: a picture to its concept and its style. It grades generators and trains none."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.config import Judge
from sdjax.image.clip_image import unit
from sdjax.nn.layers import conv3x3, layer_norm, space_to_depth
from sdjax.nn.resnet import ResBlock
from sdjax.shapes import FeatureMap, Images

EPSILON = 1e-6
"""Of all norms, and below the variances of the style head."""
SHARPNESS = 20.0
"""What multiplies cosines in the softmax over concepts."""


class Verdict(NamedTuple):
    """What the judge makes of pictures."""

    features: Float[Array, "batch dim"]  # unit vectors
    concepts: Float[Array, "batch concepts"]  # logits
    styles: Float[Array, "batch styles"]  # logits


class JudgeNetwork(nn.Module):
    """Residual blocks, then two heads.

    The concept is the nearest of learned directions (a cosine softmax, arXiv 1804.07698), read off
    the last map with its layout. The style is read off the mean and spread of the channels at every
    level, which know how something is drawn but not where (arXiv 1508.06576, equation 3).
    """

    config: Judge

    @nn.compact
    def __call__(self, image: Images) -> Verdict:
        c = self.config
        x = conv3x3(c.channels[0], name="stem", dtype=jnp.float32)(space_to_depth(image, c.patch))
        statistics = [moments(x)]
        for level, width in enumerate(c.channels[1:]):
            x = ResBlock(width, c.groups, EPSILON, resample="down", name=f"level_{level}")(x)
            statistics.append(moments(x))
        flat = nn.silu(x).reshape(x.shape[0], -1)
        features = unit(nn.Dense(c.embedding_dim, use_bias=False, name="embedding")(flat))
        directions = self.param(
            "directions", nn.initializers.normal(0.1), (c.concepts, c.embedding_dim)
        )
        drawn = layer_norm(EPSILON, name="style_norm", dtype=jnp.float32)(
            jnp.concatenate(statistics, axis=-1)
        )
        hidden = nn.silu(nn.Dense(c.style_dim, name="style_hidden")(drawn))
        return Verdict(
            features=features,
            concepts=SHARPNESS * features @ unit(directions).T,
            styles=nn.Dense(c.styles, name="style")(hidden),
        )


def moments(x: FeatureMap) -> Float[Array, "batch twice_channels"]:
    """Mean and standard deviation of every channel over the map."""
    mean = x.mean((1, 2))
    variance = jnp.square(x - mean[:, None, None]).mean((1, 2))
    return jnp.concatenate([mean, jnp.sqrt(variance + EPSILON)], axis=-1)
