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

Gradients are those of the plain convolution.
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
Way = Literal["direct", "winograd", "neighbours", "nine"]

PADDING = ((1, 1), (1, 1))
FEWEST_CHANNELS = 256
"""On both sides, below which XLA's convolution is the fastest measured."""
FEWEST_TILES = 128
"""2 x 2 pixels, in the whole batch, from which Winograd's way is faster than the neighbours'."""
NEIGHBOUR_CHANNELS = 512
"""On both sides, from which the neighbours' way is faster than XLA's on small maps."""


def convolve(x: FeatureMap, kernel: Kernel, strides: Any, padding: Any, **rest: Any) -> FeatureMap:
    """`jax.lax.conv_general_dilated` of height, width and channels, in the fastest way known.

    Made to be the `conv_general_dilated` of a `flax.linen.Conv` without dilation or groups.
    """
    plain = partial(jax.lax.conv_general_dilated, **rest)
    way = best_way(x.shape, kernel.shape, x.dtype)
    same = tuple(strides) == (1, 1) and tuple(map(tuple, padding)) == PADDING
    if way == "direct" or not same:
        return plain(x, kernel, strides, padding)
    return jax.lax.platform_dependent(x, kernel, cpu=partial(_by, way), default=_direct)


def best_way(shape: tuple[int, ...], kernel: tuple[int, ...], dtype: DTypeLike) -> Way:
    """The fastest way measured on a CPU for a map [batch, height, width, channels].

    Of stride 1 and padding 1.
    """
    batch, height, width, _ = shape
    channels = min(kernel[2:])
    if kernel[:2] != (3, 3) or channels < FEWEST_CHANNELS:
        return "direct"
    if dtype == jnp.bfloat16:
        return "nine"
    if dtype != jnp.float32:
        return "direct"
    if batch * height * width < 4 * FEWEST_TILES:
        return "neighbours" if channels >= NEIGHBOUR_CHANNELS else "direct"
    return "winograd" if height % 2 == 0 and width % 2 == 0 else "direct"


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by(way: Way, x: FeatureMap, kernel: Kernel) -> FeatureMap:
    # Inside a branch a kernel is transformed when its turn comes: XLA would do all at once and keep
    # them, 2 GB for Stable Diffusion's UNet. The condition is false, which XLA cannot know; as it
    # is of the kernel, neither images nor devices come to depend on each other.
    return jax.lax.cond(kernel[0, 0, 0, 0] > jnp.inf, _direct, WAYS[way], x, kernel)


@_by.defjvp
def _by_jvp(way: Way, primals: Any, tangents: Any) -> tuple[FeatureMap, FeatureMap]:
    """A convolution is linear in the map and in the kernel."""
    (x, kernel), (dx, dkernel) = primals, tangents
    return _by(way, x, kernel), _direct(dx, kernel) + _direct(x, dkernel)


def _direct(x: FeatureMap, kernel: Kernel) -> FeatureMap:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), PADDING, dimension_numbers=("NHWC", "HWIO", "NHWC")
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
    y = jnp.stack([jnp.stack(row, 1) for row in rows], 1)
    y = y.reshape(batch, height // 2, width // 2, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def neighbours(x: FeatureMap, kernel: Kernel) -> FeatureMap:
    """One product of [pixels, 9 channels] and [9 channels, features]."""
    beside = jnp.concatenate(_shifted(x), axis=-1)
    y = beside.reshape(-1, beside.shape[-1]) @ kernel.reshape(beside.shape[-1], -1)
    return y.reshape(*x.shape[:-1], -1)


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


def _shifted(x: FeatureMap) -> list[FeatureMap]:
    """The neighbours of every pixel, in the order of a kernel's rows and columns."""
    height, width, padded = x.shape[1], x.shape[2], _padded(x)
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


WAYS: dict[Way, Callable[[FeatureMap, Kernel], FeatureMap]] = {
    "winograd": winograd,
    "neighbours": neighbours,
    "nine": nine,
}
