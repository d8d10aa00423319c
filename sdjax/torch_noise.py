"""The normal noise of PyTorch, in NumPy, so that a seed means the same picture as in PyTorch tools.

A picture of diffusers or of a web interface begins with `torch.randn`. Its numbers depend on where
they were drawn: the CPU has one Mersenne Twister for all of them, a GPU one Philox counter for each
element. Both are drawn as [batch, channels, height, width]; `torch_noise` returns sdjax's layout.

    x = torch_noise(42, (1, 64, 64, 4))              # torch.Generator().manual_seed(42)
    x = torch_noise([1, 2], (2, 64, 64, 4), "cuda")  # a list of two generators on a GPU

What agrees: the CPU's numbers within 2e-6 of PyTorch 2.15, which has its own float32 logarithm and
sine; those of published runs on A100, H100 and RTX A4000 to the four decimals they were printed
with. float16 and bfloat16 tensors drawn on the CPU are other numbers, which PyTorch computes in few
digits: they are not here. A GPU's are the float32 ones, rounded.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt32

WORD = 2.0**-32
"""The last bit of a random word, as a fraction."""
A100 = 108 * 2048
"""Threads of this GPU."""


class CpuGenerator:
    """`torch.Generator("cpu").manual_seed(seed)`: Mersenne Twister 19937.

    Draws of less than 16 numbers are made one by one in float64, larger ones in float32 in blocks.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.RandomState(_checked(seed) & 0xFFFFFFFF)
        self._second: float | None = None  # of a pair of normals, kept for the next small draw

    def randn(self, *shape: int) -> Float[np.ndarray, "..."]:
        """The next normals of the stream, as `torch.randn(shape, generator=...)`: float32."""
        size = int(np.prod(shape))
        if size < 16:
            normals = np.array([self._one() for _ in range(size)])
        else:
            normals = self._sixteens(size)
        return normals.astype(np.float32).reshape(shape)

    def _one(self) -> float:
        """Box-Muller in double precision: the cosine now, the sine at the next call."""
        if self._second is not None:
            normal, self._second = self._second, None
            return normal
        high_low = self._draw(4).astype(np.uint64).reshape(2, 2)
        words = (high_low[:, 0] << np.uint64(32)) | high_low[:, 1]
        turn, u = (words & np.uint64(2**53 - 1)) * 2.0**-53
        radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * turn
        self._second = float(radius * np.sin(angle))
        return float(radius * np.cos(angle))

    def _sixteens(self, size: int) -> Float[np.ndarray, " size"]:
        """Box-Muller in blocks of 16: 8 radii, 8 angles; the last 16 are drawn anew if cut."""
        whole = size // 16 * 16
        normals = np.empty(size, np.float32)
        normals[:whole] = self._blocks(size)[:whole]
        if size > whole:
            normals[-16:] = self._blocks(16)
        return normals

    def _blocks(self, size: int) -> Float[np.ndarray, " whole"]:
        """Draw `size` uniform numbers and turn those in full blocks into normals, in float32."""
        uniform = (self._draw(size) & np.uint32(2**24 - 1)) * np.float32(2**-24)
        blocks = uniform[: size // 16 * 16].reshape(-1, 2, 8)
        radius = np.sqrt(np.float32(-2) * np.log(1 - blocks[:, 0]))
        angle = np.float32(2 * np.pi) * blocks[:, 1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)

    def _draw(self, count: int) -> UInt32[np.ndarray, " count"]:
        return np.frombuffer(self._words.bytes(4 * count), "<u4")


class CudaGenerator:
    """`torch.Generator("cuda").manual_seed(seed)`: Philox 4x32-10, one counter for each thread.

    Every thread makes four normals at a time. The first of them fill the first elements of the
    draw, one for each thread, the second the next, and so on; then the threads begin another lap.
    As most images are smaller than the number of threads, they hold first normals only, and are the
    same on every GPU. Larger draws depend on the GPU.

    Args:
        seed: any 64-bit integer.
        threads: the most that PyTorch starts at once: multiprocessors times resident threads of
            each. 108 x 2048 for an A100 (13 latents of 64 x 64 x 4), 132 x 2048 for an H100 SXM,
            128 x 1536 for an RTX 4090.
    """

    def __init__(self, seed: int, threads: int = A100) -> None:
        seed = _checked(seed)
        if threads < 256 or threads % 256:
            raise ValueError(f"threads must be a multiple of 256, PyTorch's block; got {threads}")
        self._key = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32)
        self._threads = threads
        self._laps = 0  # blocks of four words that every thread has used

    def randn(self, *shape: int) -> Float[np.ndarray, "..."]:
        """The next normals of the stream, as `torch.randn(shape, generator=...)`: float32."""
        size = int(np.prod(shape))
        threads = min(self._threads, -(-size // 256) * 256)
        laps = -(-size // (4 * threads))
        counter = np.zeros((laps, threads, 4), np.uint32)
        counter[..., 0] = self._laps + np.arange(laps)[:, None]
        counter[..., 2] = np.arange(threads)
        self._laps += laps
        words = philox(counter.reshape(-1, 4), self._key)
        normals = _box_muller(words[:, 0::2], words[:, 1::2]).reshape(laps, threads, 4)
        return normals.transpose(0, 2, 1).reshape(-1)[:size].reshape(shape)


def philox(
    counter: UInt32[np.ndarray, "n 4"], key: UInt32[np.ndarray, "2"]
) -> UInt32[np.ndarray, "n 4"]:
    """Philox 4x32 with 10 rounds (Salmon et al. 2011, "Parallel random numbers", section 3.3)."""
    a, b, c, d = counter.astype(np.uint64).T
    k0, k1 = (int(word) for word in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        ab, cd = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            cd >> np.uint64(32) ^ b ^ np.uint64(k0),
            cd & low,
            ab >> np.uint64(32) ^ d ^ np.uint64(k1),
            ab & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def _box_muller(
    first: UInt32[np.ndarray, "n 2"], second: UInt32[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2 2"]:
    """(sine, cosine) normals of each pair of words, with cuRAND's steps in float32."""
    u = first.astype(np.float32) * np.float32(WORD) + np.float32(WORD / 2)
    step = np.float32(2 * np.pi * WORD)
    angle = second.astype(np.float32) * step + step / np.float32(2)
    radius = np.sqrt(np.float32(-2) * np.log(u))
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1)


def torch_noise(
    seed: int | Sequence[int] | Int[np.ndarray, " batch"],
    shape: tuple[int, int, int, int],
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = A100,
) -> Float[np.ndarray, "batch height width channels"]:
    """The latents a PyTorch pipeline begins with.

    Args:
        seed: one seed is one generator for the whole batch; several are one generator for each
            image, so that an image does not depend on the others.
        shape: [batch, height, width, channels] of the latents.
        device: of the generator, not of the network: many tools draw on the CPU for a GPU.
        threads: of the GPU, see `CudaGenerator`; of no matter to the CPU or to small batches.

    Returns:
        Standard normals, float32: the latents where a sampler starts at unit variance. Samplers in
        sigma space multiply them by their first sigma.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}: choose cpu or cuda")

    def generator(seed: int) -> CpuGenerator | CudaGenerator:
        return CpuGenerator(seed) if device == "cpu" else CudaGenerator(seed, threads)

    batch, height, width, channels = shape
    seeds = seed.tolist() if isinstance(seed, np.ndarray) else seed
    if isinstance(seeds, Sequence):
        if len(seeds) != batch:
            raise ValueError(f"{len(seeds)} seeds for {batch} images: give one for each, or one")
        drawn = np.stack([generator(one).randn(channels, height, width) for one in seeds])
    else:
        drawn = generator(seeds).randn(batch, channels, height, width)
    return np.ascontiguousarray(drawn.transpose(0, 2, 3, 1))


def _checked(seed: int) -> int:
    """PyTorch's range, where a negative seed counts from 2^64."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"a seed of PyTorch is between -2^63 and 2^64 - 1, got {seed}")
    return int(seed) % 2**64
