"""3x3 convolution: the one place that decides how it is computed, by shape, type and platform.

Accelerators keep XLA's own convolution. XLA's on a CPU is good for few channels and large maps; for
many channels (all but the outermost layers of the published models) three other ways are faster,
all of which make it a product of matrices, which a CPU does best:

- Winograd's F(2 x 2, 3 x 3) (arXiv 1509.09308, section 4.1): 16 products instead of 36 for each
  2 x 2 pixels, in float32;
- one product with all nine neighbours of every pixel side by side, where there are so few pixels
  that transforming the kernel would cost more than it saves, in float32;
- nine products summed in float32, for bfloat16: processors with matrix units (AMX) run these, and
  no convolution, in them.

A map whose pixels were all repeated, as in every upsampling, needs 9 of Winograd's 16 products, and
none of the repeated pixels: that is the fastest for any number of channels.

Derivatives are those of the plain convolution; of small doubled maps, of the 9 products too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.shapes import FeatureMap

Kernel = Float[Array, "3 3 channels features"]
Compute = Callable[[FeatureMap, Kernel], FeatureMap]
Way = Literal["direct", "winograd", "neighbours", "nine", "halved", "doubled"]

PADDING = ((1, 1), (1, 1))
FEWEST_CHANNELS = 256
"""On both sides, below which XLA's convolution is the fastest measured."""
FEWEST_TILES = 128
"""2 x 2 pixels, in the whole batch, from which Winograd's way is faster than the neighbours'."""
NEIGHBOUR_CHANNELS = 512
"""On both sides, from which the neighbours' way is faster than XLA's on small maps."""
MOST_WEIGHTS = 2 * 10**6
"""Channels times features that are transformed at once: 16 numbers each, 128 MB."""
SMALL_MAP = 1 << 19
"""Numbers, of all images, in a map to be doubled, up to which the derivatives of its 9 products are
the fastest measured: three to four times as fast."""
SMALL_KERNEL = 1 << 17
"""Channels times features up to which it does not matter when kernels are transformed for them."""


def convolve(x: FeatureMap, kernel: Kernel, strides: Any, padding: Any, **rest: Any) -> FeatureMap:
    """`jax.lax.conv_general_dilated` of height, width and channels, in the fastest way known.

    Made to be the `conv_general_dilated` of a `flax.linen.Conv` without dilation or groups. Where a
    `precision` is asked for, XLA's own convolution keeps it.
    """
    way = best_way(x.shape, kernel.shape, x.dtype, tuple(strides))
    as_it_is = tuple(map(tuple, padding)) != PADDING or rest.get("precision") is not None
    if way == "direct" or as_it_is:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **rest)
    return jax.lax.platform_dependent(x, kernel, cpu=partial(_by, way), default=PLAIN[way])


def convolve_doubled(
    x: FeatureMap, kernel: Kernel, strides: Any, padding: Any, **rest: Any
) -> FeatureMap:
    """`convolve` of the map with every pixel repeated, to twice the height and width.

    Strides are 1 and the padding is `PADDING`.
    """
    if x.dtype != jnp.float32 or rest.get("precision") is not None:
        return convolve(double(x), kernel, strides, padding, **rest)
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(_by, "doubled"), default=PLAIN["doubled"]
    )


def double(x: FeatureMap) -> FeatureMap:
    """Twice the height and width, every pixel repeated."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def best_way(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    dtype: DTypeLike,
    strides: tuple[int, ...] = (1, 1),
) -> Way:
    """The fastest way measured on a CPU for a map [batch, height, width, channels].

    Of padding 1.
    """
    batch, height, width, _ = shape
    channels = min(kernel[2:])
    if kernel[:2] != (3, 3) or channels < FEWEST_CHANNELS:
        return "direct"
    even = height % 2 == 0 and width % 2 == 0
    pixels = batch * height * width // (strides[0] * strides[1])
    few = pixels < 4 * FEWEST_TILES and channels >= NEIGHBOUR_CHANNELS
    if strides == (2, 2):
        return "halved" if few and even and dtype == jnp.float32 else "direct"
    if strides != (1, 1):
        return "direct"
    if dtype == jnp.bfloat16:
        return "nine"
    if dtype != jnp.float32:
        return "direct"
    if pixels < 4 * FEWEST_TILES:
        return "neighbours" if few else "direct"
    return "winograd" if even else "direct"


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by(way: Way, x: FeatureMap, kernel: Kernel) -> FeatureMap:
    # Inside a branch a kernel is transformed when its turn comes: XLA would do all at once and keep
    # them, 2 GB for Stable Diffusion's UNet. The condition is false, which XLA cannot know; as it
    # is of the kernel, neither images nor devices come to depend on each other.
    channels = kernel.shape[2]
    parts = -(-channels * kernel.shape[3] // MOST_WEIGHTS) if way == "winograd" else 1

    def part(i: int) -> FeatureMap:
        some = slice(channels * i // parts, channels * (i + 1) // parts)

        def of(by: Callable[..., FeatureMap]) -> Callable[[FeatureMap, Kernel], FeatureMap]:
            return lambda x, kernel: by(x[..., some], kernel[:, :, some])

        return jax.lax.cond(kernel[0, 0, i, 0] > jnp.inf, of(PLAIN[way]), of(WAYS[way]), x, kernel)

    return sum((part(i) for i in range(1, parts)), part(0))


@_by.defjvp
def _by_jvp(way: Way, primals: Any, tangents: Any) -> tuple[FeatureMap, FeatureMap]:
    """A convolution is linear in the map and in the kernel."""
    (x, kernel), (dx, dkernel) = primals, tangents
    small = x.size <= SMALL_MAP and kernel.shape[2] * kernel.shape[3] <= SMALL_KERNEL
    linear = winograd_doubled if way == "doubled" and small else PLAIN[way]
    return _by(way, x, kernel), linear(dx, kernel) + linear(x, dkernel)


def _direct(x: FeatureMap, kernel: Kernel, stride: int = 1) -> FeatureMap:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), PADDING, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def winograd(x: FeatureMap, kernel: Kernel) -> FeatureMap:
    """Y = A^T [ (G g G^T) . (B^T d B) ] A, summed over channels (arXiv 1509.09308, equation 8).

    Every 2 x 2 tile Y of the output comes from the 4 x 4 tile d of the input around it; G, B and A
    are theirs of equation 7, written out. Height and width are even. The error is about twice that
    of the plain convolution, 1e-6 of the output.
    """
    batch, height, width, channels = x.shape
    padded = _padded(x)

    def every_second(a: Array, axis: int) -> tuple[Array, ...]:
        last = a.shape[axis] - 3
        return tuple(jax.lax.slice_in_dim(a, i, i + last, 2, axis) for i in range(4))

    def g(w: Any) -> tuple[Array, ...]:  # G
        return w[0], (w[0] + w[1] + w[2]) / 2, (w[0] - w[1] + w[2]) / 2, w[2]

    def b(d: tuple[Array, ...]) -> tuple[Array, ...]:  # B^T
        return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]

    def a(m: list[Array]) -> tuple[Array, Array]:  # A^T
        return m[0] + m[1] + m[2], m[1] - m[2] - m[3]

    kernels = [g(row) for row in g(kernel)]  # 4 4 of [channels, features]
    tiles = [b(every_second(row, 2)) for row in b(every_second(padded, 1))]
    products = [
        [tiles[i][j].reshape(-1, channels) @ kernels[i][j] for j in range(4)] for i in range(4)
    ]
    columns = [a([products[i][j] for i in range(4)]) for j in range(4)]
    rows = [a([columns[j][i] for j in range(4)]) for i in range(2)]  # 2 2 of [tiles, features]
    return _assembled(rows, batch, height // 2, width // 2)


def winograd_doubled(x: FeatureMap, kernel: Kernel) -> FeatureMap:
    """`winograd` of the map with every pixel repeated.

    A tile, of the four pixels of one, is made of it and its neighbours, p q r in each direction, as
    (p, q, q, r): B^T d = (p - q, 2 q, 0, q - r). So 9 products are left; the 2 is in the kernel.
    """
    batch, height, width, channels = x.shape

    def g(w: Any) -> tuple[Array, ...]:
        return w[0], w[0] + w[1] + w[2], w[2]

    def b(d: Array, axis: int) -> tuple[Array, ...]:
        last = d.shape[axis] - 2
        p, q, r = (jax.lax.slice_in_dim(d, i, i + last, 1, axis) for i in range(3))
        return p - q, q, q - r

    def a(m: list[Array]) -> tuple[Array, Array]:
        return m[0] + m[1], m[1] - m[2]

    kernels = [g(row) for row in g(kernel)]
    tiles = [b(row, 2) for row in b(_padded(x), 1)]
    products = [
        [tiles[i][j].reshape(-1, channels) @ kernels[i][j] for j in range(3)] for i in range(3)
    ]
    columns = [a([products[i][j] for i in range(3)]) for j in range(3)]
    rows = [a([columns[j][i] for j in range(3)]) for i in range(2)]
    return _assembled(rows, batch, height, width)


def _assembled(rows: list[tuple[Array, Array]], batch: int, height: int, width: int) -> FeatureMap:
    """The map of height x width tiles of 2 x 2 pixels; rows: 2 2 of [tiles, features]."""
    y = jnp.stack([jnp.stack(row, 1) for row in rows], 1)
    y = y.reshape(batch, height, width, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)


def neighbours(x: FeatureMap, kernel: Kernel, stride: int = 1) -> FeatureMap:
    """One product of [pixels, 9 channels] and [9 channels, features]."""
    beside = jnp.concatenate(_shifted(x, stride), axis=-1)
    y = beside.reshape(-1, beside.shape[-1]) @ kernel.reshape(beside.shape[-1], -1)
    return y.reshape(*beside.shape[:-1], -1)


def nine(x: FeatureMap, kernel: Kernel) -> FeatureMap:
    """A product for each of the nine places of the kernel, summed in float32."""
    channels = x.shape[-1]
    y = sum(
        jnp.matmul(
            shifted.reshape(-1, channels),
            kernel[i // 3, i % 3],
            preferred_element_type=jnp.float32,
        )
        for i, shifted in enumerate(_shifted(x))
    )
    return jnp.reshape(y, (*x.shape[:-1], -1)).astype(x.dtype)


def _padded(x: FeatureMap) -> FeatureMap:
    return jnp.pad(x, ((0, 0), *PADDING, (0, 0)))


def _shifted(x: FeatureMap, stride: int = 1) -> list[FeatureMap]:
    """The neighbours of every pixel, in the order of a kernel's rows and columns."""
    height, width, padded = x.shape[1], x.shape[2], _padded(x)
    return [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]


WAYS: dict[Way, Compute] = {
    "winograd": winograd,
    "neighbours": neighbours,
    "nine": nine,
    "halved": partial(neighbours, stride=2),
    "doubled": winograd_doubled,
}
PLAIN: dict[Way, Compute] = {
    **dict.fromkeys(WAYS, _direct),
    "halved": partial(_direct, stride=2),
    "doubled": lambda x, kernel: _direct(double(x), kernel),
}
"""What XLA is told elsewhere than on a CPU, and for gradients."""
