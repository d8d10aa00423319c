import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.nn import attention

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("together", [attention.MAX_SCORES_TOGETHER, 100])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_blocks_is_exact_and_so_is_its_gradient(causal, together, monkeypatch):
    """65 queries are no multiple of the block, as CLIP's image tokens are not."""
    q, k, v = (jnp.asarray(RNG.normal(size=(2, 65, 2, 4)), jnp.float32) for _ in range(3))

    def total(q):
        return (attention.dot_product_attention(q, k, v, causal=causal) ** 2).sum()

    whole, whole_slope = jax.value_and_grad(total)(q)
    monkeypatch.setattr(attention, "MAX_SCORES", 100)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    monkeypatch.setattr(attention, "LEAST_BLOCK", 16)
    monkeypatch.setattr(attention, "MAX_SCORES_TOGETHER", together)  # 100: head by head
    blocks, blocks_slope = jax.value_and_grad(total)(q)
    np.testing.assert_allclose(blocks, whole, rtol=1e-6)
    np.testing.assert_allclose(blocks_slope, whole_slope, atol=1e-5)
    temporary = jax.jit(total).lower(q).as_text()
    assert "65x65" not in temporary  # no tokens x tokens matrix anywhere
    assert "80x65" not in temporary and "16x65" in temporary


@pytest.fixture
def a_gpu(monkeypatch):
    """What is asked of the machine when a program is lowered for a GPU with cuDNN 9.10."""
    monkeypatch.setattr(attention, "_has_cudnn", lambda: True)
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000
    )


def lowered(platform, dtype, queries=4096, tokens=400, head_dim=40, **options):
    query, key = (jax.ShapeDtypeStruct((2, n, 8, head_dim), dtype) for n in (queries, tokens))

    def total(q, k, v):
        return attention.dot_product_attention(q, k, v, **options).astype(jnp.float32).sum()

    traced = jax.jit(jax.value_and_grad(total)).trace(query, key, key)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_large_attention_in_16_bits_is_given_to_cudnn(dtype, a_gpu):
    text = lowered("cuda", dtype)
    assert "@__cudnn$fmhaSoftmax(" in text and "@__cudnn$fmhaSoftmaxBackward(" in text
    assert "4096x400" not in text and "512x400" not in text  # the scores are stored nowhere
    assert "cudnn" not in lowered("cpu", dtype) + lowered("tpu", dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": jnp.float32},
        {"tokens": 16},
        {"tokens": 77},
        {"queries": 4095},
        {"head_dim": 36},
        {"head_dim": 160},
        {"causal": True},
        {"mask": jnp.ones((2, 400), bool)},
    ],
    ids=lambda options: "-".join(str(x) for x in next(iter(options.items())) if np.isscalar(x)),
)
def test_what_cudnn_cannot_take_or_need_not(options, a_gpu):
    assert "cudnn" not in lowered("cuda", **{"dtype": jnp.bfloat16, **options})


class Device:
    def __init__(self, compute_capability):
        self.compute_capability = compute_capability


@pytest.mark.parametrize(
    ("capabilities", "missing", "has"),
    [
        (["9.0"], None, True),
        (["8.0", "10.3"], None, True),
        (["9.0", "7.5"], None, False),
        (["9.0"], RuntimeError("cuDNN is not detected."), False),
        (["10.3"], NotImplementedError("Compute capability 10.3 requires ..."), False),
        (None, None, False),
    ],
)
def test_cudnn_is_used_where_all_gpus_run_it(capabilities, missing, has, monkeypatch):
    def devices(backend):
        if backend != "cuda" or capabilities is None:
            raise RuntimeError(f"Unknown backend {backend}")
        return [Device(c) for c in capabilities]

    def fused(query, key, value):
        if missing is not None:
            raise missing
        return query

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(attention, "_by_cudnn", fused)
    assert attention._has_cudnn() is has
