import numpy as np
import pytest
from golden_rule import golden

from sdjax.torch_noise import CpuGenerator, CudaGenerator, philox, torch_noise


@pytest.mark.parametrize(
    "stream", golden("torch_noise")["streams"], ids=lambda stream: str(stream["seed"])
)
def test_cpu_noise_is_pytorchs(stream):
    generator = CpuGenerator(stream["seed"])
    for draw in stream["draws"]:
        normals = generator.randn(*draw["shape"])
        assert normals.dtype == np.float32 and normals.shape == tuple(draw["shape"])
        found = normals.reshape(-1)[draw["index"]]
        np.testing.assert_allclose(found, draw["values"], atol=3e-6, err_msg=str(draw["shape"]))


# Random123's file kat_vectors: counter, key and result of philox4x32 with 10 rounds.
KNOWN_WORDS = [
    "00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1",
]


@pytest.mark.parametrize("words", KNOWN_WORDS, ids=["zeros", "ones", "pi"])
def test_philox_gives_its_authors_vectors(words):
    counter, key, result = np.split(
        np.array([int(w, 16) for w in words.split()], np.uint32), [4, 6]
    )
    np.testing.assert_array_equal(philox(np.stack([counter, counter]), key), [result, result])


# Printed by PyTorch on real GPUs, to four decimals.


def test_successive_draws_on_a_gpu():
    generator = CudaGenerator(42)
    for printed in (
        [0.1940, 2.1614, -0.1721, 0.8491],
        [0.1391, -0.1082, -0.7174, 0.7566],
        [-0.5187, 1.2268, 0.6255, -0.9117],
    ):
        np.testing.assert_allclose(generator.randn(4), printed, atol=6e-5)


def test_a_draw_of_two_laps_is_an_rtx_a4000s():
    # torch.cuda.FloatTensor(1000, 100).normal_(5, 5**.5), seed 14: PyTorch issue 97097
    drawn = 5 + 5**0.5 * CudaGenerator(14, threads=48 * 1536).randn(1000, 100)
    printed = {
        0: [2.8731, 5.2727, 2.9889, 1.6853, 9.6331, 6.6319],
        2: [6.5552, 4.0857, 4.2315, 2.7704, 3.5479, 3.3063],
        997: [8.6297, 2.3137, 6.2596, 7.9358, 4.4697, 2.7475],
        999: [2.7337, 2.2106, 7.7815, 8.2207, 6.5395, 4.2604],
    }
    for row, values in printed.items():
        np.testing.assert_allclose(drawn[row, [0, 1, 2, -3, -2, -1]], values, atol=6e-5)
    np.testing.assert_array_equal(  # below the number of threads every GPU agrees
        CudaGenerator(14, 256 * 80).randn(256 * 80), CudaGenerator(14).randn(256 * 80)
    )


@pytest.mark.parametrize(
    ("threads", "printed"),
    [(108 * 2048, [0.1549, -0.6797, -0.1656]), (132 * 2048, [-0.6970, -0.7780, 0.3267])],
    ids=["A100", "H100"],
)
def test_a_draw_of_many_laps(threads, printed):
    # PyTorch issue 143086, seed 1: eleven and nine blocks for each thread
    generator = CudaGenerator(1, threads)
    drawn = generator.randn(49 * 12 * 112 * 144)
    np.testing.assert_allclose(drawn[:3], [-0.2963, 2.6764, -0.1408], atol=6e-5)
    np.testing.assert_allclose(drawn[-3:], printed, atol=6e-5)
    assert abs(drawn.mean()) < 1e-3 and abs(drawn.std() - 1) < 1e-3
    # The next draw begins after all of these blocks.
    other = CudaGenerator(1, threads)
    for _ in range(-(-drawn.size // (4 * threads))):
        other.randn(1)
    np.testing.assert_array_equal(generator.randn(5), other.randn(5))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_noise_of_a_batch(device):
    make = CpuGenerator if device == "cpu" else CudaGenerator
    one = torch_noise(7, (2, 8, 6, 4), device)
    assert one.shape == (2, 8, 6, 4) and one.dtype == np.float32
    np.testing.assert_array_equal(one.transpose(0, 3, 1, 2), make(7).randn(2, 4, 8, 6))
    each = torch_noise([7, 8], (2, 8, 6, 4), device)
    np.testing.assert_array_equal(each[1:], torch_noise(8, (1, 8, 6, 4), device))
    np.testing.assert_array_equal(each[:1], torch_noise(7, (1, 8, 6, 4), device))
    assert not np.allclose(each[1], one[1])
    np.testing.assert_array_equal(torch_noise(np.array([7, 8]), (2, 8, 6, 4), device), each)


def test_seeds_of_a_gpu_have_64_bits_and_of_a_cpu_32():
    high = 5 + 2**32
    assert np.array_equal(CpuGenerator(high).randn(20), CpuGenerator(5).randn(20))
    assert not np.allclose(CudaGenerator(high).randn(20), CudaGenerator(5).randn(20))
    assert np.array_equal(CudaGenerator(-1).randn(20), CudaGenerator(2**64 - 1).randn(20))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="2 seeds for 3 images"):
        torch_noise([1, 2], (3, 8, 8, 4))
    with pytest.raises(ValueError, match="2 seeds for 3 images"):
        torch_noise(np.array([1, 2]), (3, 8, 8, 4))
    with pytest.raises(ValueError, match="got 18446744073709551616"):
        CpuGenerator(2**64)
    with pytest.raises(ValueError, match="multiple of 256.*got 100"):
        CudaGenerator(0, threads=100)
