"""Random changes of pictures on white that leave what they show: place, size, mirror, colour."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sdjax.shapes import Images

Image = Float[Array, "height width 3"]

BLUR = (0.25, 0.5, 0.25)
"""Weights of neighbouring pixels, both ways."""


def augment(
    images: Images,
    key: Key[Array, ""],
    *,
    shift: float = 5.0,
    scale: float = 0.2,
    colour: float = 0.15,
    plain: float = 0.5,
) -> Images:
    """Every picture changed in its own way.

    Args:
        images: in [-1, 1], on white.
        key: of the changes.
        shift: pixels by which a picture is moved at most, both ways.
        scale: logarithm of the most by which each side is stretched or shrunk.
        colour: logarithm of the most by which the ink of a colour, and its saturation, changes.
        plain: share of pictures that keep their colours.
    """
    keys = jax.random.split(key, 6)
    count = images.shape[0]
    ink = _place((1 - images) / 2, keys[0], shift, scale)
    mirrored = jax.random.bernoulli(keys[1], 0.5, (count, 1, 1, 1))
    ink = jnp.where(mirrored, ink[:, :, ::-1], ink)
    size = colour * (1 - jax.random.bernoulli(keys[2], plain, (count, 1, 1, 1)))
    gain = jnp.exp(size * jax.random.uniform(keys[3], (count, 1, 1, 3), minval=-1))
    saturation = jnp.exp(size * jax.random.uniform(keys[4], (count, 1, 1, 1), minval=-1))
    grey = ink.mean(-1, keepdims=True)
    ink = jnp.clip((grey + (ink - grey) * saturation) * gain, 0, 1)
    return soften(1 - 2 * ink, keys[5])


def soften(images: Images, key: Key[Array, ""]) -> Images:
    """Two pictures of five stay sharp, the others are blurred a little, in degrees."""
    ink, count = (1 - images) / 2, images.shape[0]
    amount = jnp.clip(jax.random.uniform(key, (count, 1, 1, 1), minval=-1.0, maxval=1.5), 0, 1)
    return 1 - 2 * (ink + amount * (blur(ink) - ink))


def _place(ink: Images, key: Key[Array, ""], shift: float, scale: float) -> Images:
    """Each picture stretched about its middle and moved; what comes in is white."""
    count, height, width, _ = ink.shape
    key_scale, key_sides, key_shift = jax.random.split(key, 3)
    both = jax.random.uniform(key_scale, (count, 1), minval=-scale, maxval=scale)
    sides = jax.random.uniform(key_sides, (count, 2), minval=-scale / 4, maxval=scale / 4)
    factors = jnp.exp(both + sides)
    middle = jnp.array([height, width]) / 2
    moved = jax.random.uniform(key_shift, (count, 2), minval=-shift, maxval=shift)
    offsets = middle * (1 - factors) + moved

    def one(image: Image, factor: Array, offset: Array) -> Image:
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), factor, offset, "linear", antialias=True
        )

    return jax.vmap(one)(ink, factors, offsets)


def blur(images: Images) -> Images:
    """Each pixel mixed with its neighbours; what lies outside is 0."""
    before, here, after = BLUR
    padded = jnp.pad(images, ((0, 0), (1, 1), (0, 0), (0, 0)))
    images = before * padded[:, :-2] + here * padded[:, 1:-1] + after * padded[:, 2:]
    padded = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (0, 0)))
    return before * padded[:, :, :-2] + here * padded[:, :, 1:-1] + after * padded[:, :, 2:]
