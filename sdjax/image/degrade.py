"""Pictures made smaller, spoilt and larger again: what an upsampler is trained on.

DALL-E 2 (arXiv 2204.06125, section 2.1) spoils the small pictures by a Gaussian blur for its first
upsampler, and by the BSR degradation of latent diffusion (arXiv 2112.10752, appendix D.6.1), which
is that of BSRGAN (arXiv 2103.14006), for its second.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sdjax.shapes import Images

Picture = Float[Array, "height width channels"]

# BSRGAN's ranges are of photographs and several times as wide: these fit pictures of 32 pixels, and
# are too gentle for DALL-E 2's own upsampler of 256 pixels.
BLUR_SIZE = 5  # pixels of the kernel
DEVIATIONS = (0.1, 0.8)  # pixels of a blur, along both of its axes
RESAMPLED = (0.5, 0.625, 0.75, 0.875)  # of the side, before it is brought back
NOISE = (0.0, 10 / 255)  # standard deviation, of [-1, 1]
QUALITY = (60.0, 95.0)  # of JPEG


def shrink(images: Images, size: int) -> Images:
    """To size x size pixels, by the mean of the pixels that each covers."""
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(f"{height} x {width} pixels are no multiples of {size}")
    blocks = images.reshape(batch, size, height // size, size, width // size, channels)
    return blocks.mean((2, 4))


def enlarge(images: Images, size: int, resize: Literal["bilinear", "bicubic"]) -> Images:
    """To size x size pixels; the cubic is Keys' own (a = -0.5), the image's edges stay in place."""
    batch, _, _, channels = images.shape
    return jax.image.resize(images, (batch, size, size, channels), resize)


def gaussian_blur(images: Images, key: Array | None = None) -> Images:
    """DALL-E 2's blur: a kernel of 3 x 3 pixels with sigma 0.6. It is always the same.

    Args:
        images: their borders are repeated.
        key: of no use, as other degradations have one.
    """
    line = jnp.exp(-0.5 * (jnp.arange(-1.0, 2.0) / 0.6) ** 2)
    line = line / line.sum()
    return jax.vmap(_filter, (0, None))(images, jnp.outer(line, line))


def bsr(images: Images, key: Array) -> Images:
    """Blurs, resampling, noise and JPEG in random order, and JPEG at the end (arXiv 2103.14006).

    Its two blurs (one round, one with two axes), resampling by other methods there and back, noise
    (coloured or grey) and JPEG are shuffled for each picture. BSRGAN shrinks somewhere in between;
    here pictures arrive small, so that all shapes are known. Its model of a camera is left out, as
    in latent diffusion.

    Args:
        images: in [-1, 1], square, with a side that is a multiple of 8.
        key: of everything random.
    """
    height, width = images.shape[1:3]
    if height % 8 or height != width:
        raise ValueError(
            f"JPEG in blocks of 8 pixels, and squares: the pictures have {height} x {width} pixels"
        )
    return jax.vmap(_spoil)(images, jax.random.split(key, images.shape[0]))


DEGRADATIONS = {"blur": gaussian_blur, "bsr": bsr}
"""Functions of small pictures and a key, by the name in `sdjax.config.Upsampler`."""


def _spoil(image: Picture, key: Array) -> Picture:
    actions = (_blur_round, _blur_two_axes, _resample, _add_noise, _jpeg)
    key, key_order = jax.random.split(key)
    keys = jax.random.split(key, len(actions) + 1)
    order = jax.random.permutation(key_order, len(actions))

    def act(image: Picture, turn: tuple[Array, Array]) -> tuple[Picture, None]:
        number, own = turn
        return jax.lax.switch(number, actions, image, own), None

    image, _ = jax.lax.scan(act, image, (order, keys[:-1]))
    return jnp.clip(_jpeg(image, keys[-1]), -1, 1)


def _filter(image: Picture, kernel: Float[Array, "size size"]) -> Picture:
    """Each channel with the kernel, the border repeated."""
    size = kernel.shape[0]
    reach = size // 2
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width, _ = image.shape
    taps = [
        kernel[y, x] * padded[y : y + height, x : x + width]
        for y in range(size)
        for x in range(size)
    ]
    return functools.reduce(jnp.add, taps)


def _blur_round(image: Picture, key: Array) -> Picture:
    deviation = _uniform(key, DEVIATIONS)
    return _filter(image, _kernel(deviation, deviation, 0.0))


def _blur_two_axes(image: Picture, key: Array) -> Picture:
    key_1, key_2, key_angle = jax.random.split(key, 3)
    angle = _uniform(key_angle, (0.0, math.pi))
    return _filter(image, _kernel(_uniform(key_1, DEVIATIONS), _uniform(key_2, DEVIATIONS), angle))


def _kernel(
    long: Array | float, short: Array | float, angle: Array | float
) -> Float[Array, f"{BLUR_SIZE} {BLUR_SIZE}"]:
    """A normal distribution with these deviations, turned."""
    place = jnp.arange(BLUR_SIZE) - BLUR_SIZE // 2
    y, x = place[:, None], place[None]
    along, across = (
        x * jnp.cos(angle) + y * jnp.sin(angle),
        y * jnp.cos(angle) - x * jnp.sin(angle),
    )
    kernel = jnp.exp(-0.5 * ((along / long) ** 2 + (across / short) ** 2))
    return kernel / kernel.sum()


def _resample(image: Picture, key: Array) -> Picture:
    table = jnp.asarray(_resampling(image.shape[0]))
    matrix = table[jax.random.randint(key, (), 0, len(table))]
    return jnp.einsum("yh,xw,hwc->yxc", matrix, matrix, image)


@functools.cache
def _resampling(side: int) -> Float[np.ndarray, "ways {side} {side}"]:
    """To a smaller side and back, by every two methods, as matrices."""
    methods = ("nearest", "linear", "cubic")

    @jax.jit  # compiled once, and not operation by operation
    def tabulate() -> Array:
        ways = []
        for small in (round(side * share) for share in RESAMPLED):
            for down in methods:
                less = jax.image.resize(jnp.eye(side), (small, side), down)
                ways += [jax.image.resize(less, (side, side), up) for up in methods]
        return jnp.stack(ways)

    with jax.ensure_compile_time_eval():
        return np.asarray(tabulate())


def _add_noise(image: Picture, key: Array) -> Picture:
    key_size, key_kind, key_noise = jax.random.split(key, 3)
    noise = jax.random.normal(key_noise, image.shape)
    grey = jnp.broadcast_to(noise[..., :1], image.shape)
    noise = jnp.where(jax.random.bernoulli(key_kind), noise, grey)
    return image + _uniform(key_size, NOISE) * noise


# ITU-T T.81, tables K.1 and K.2; ITU-T T.871 for the colours.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
CHROMINANCE = np.full((8, 8), 99, np.float32)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
STEPS = np.stack([LUMINANCE, CHROMINANCE, CHROMINANCE])
COLOURS = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
FREQUENCY, PLACE = np.arange(8)[:, None], np.arange(8)[None]
COSINES = np.cos((2 * PLACE + 1) * FREQUENCY * np.pi / 16) / 2
COSINES = (COSINES * np.where(FREQUENCY == 0, np.sqrt(0.5), 1)).astype(np.float32)


def _jpeg(image: Picture, key: Array) -> Picture:
    """Through JPEG's rounding and back, with a random quality; colours keep their resolution."""
    quality = _uniform(key, QUALITY)
    # Independent JPEG Group's scale of the tables, for qualities from 50.
    steps = jnp.maximum(jnp.round(STEPS * (2 - quality / 50)), 1)[:, None, None]
    planes = jnp.einsum("pc,hwc->phw", COLOURS, image * 127.5 - 0.5)  # pixels - 128
    side = image.shape[0] // 8
    blocks = planes.reshape(3, side, 8, side, 8).transpose(0, 1, 3, 2, 4)
    cosines = jnp.einsum("fy,pijyx,gx->pijfg", COSINES, blocks, COSINES)
    rounded = jnp.round(cosines / steps) * steps
    blocks = jnp.einsum("fy,pijfg,gx->pijyx", COSINES, rounded, COSINES)
    planes = blocks.transpose(0, 1, 3, 2, 4).reshape(planes.shape)
    return (jnp.einsum("cp,phw->hwc", np.linalg.inv(COLOURS), planes) + 0.5) / 127.5


def _uniform(key: Array, ends: tuple[float, float]) -> Array:
    return jax.random.uniform(key, minval=ends[0], maxval=ends[1])
