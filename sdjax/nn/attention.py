"""Scaled dot-product attention (arXiv 1706.03762, equation 1): the one attention of sdjax."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sdjax.shapes import Mask, Sequence

QUERY_BLOCK = 512
"""Queries handled at once when the score matrix would be large."""
LEAST_BLOCK = 128
"""On a CPU, where `QUERY_BLOCK` is the number for all images together, the least for each."""
MAX_SCORES = 1 << 20
"""Largest tokens x tokens matrix kept whole, per head."""
MAX_SCORES_TOGETHER = 1 << 17
"""Largest one of which a CPU handles all heads at once; beyond it, one after the other is faster,
as the scores of one head stay in its caches."""
MAX_CUDNN_HEAD = 128
"""Largest head that cuDNN's fused attention takes on every GPU it runs on."""


def dot_product_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch tokens heads head_dim"],
    value: Float[Array, "batch tokens heads head_dim"],
    *,
    causal: bool = False,
    mask: Mask | None = None,
    start: Int[Array, ""] | int = 0,
) -> Float[Array, "batch queries heads head_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V, exact; products summed, and softmax taken, in float32.

    Large inputs go through in blocks of queries, so the tokens x tokens matrix is never stored
    whole; those in 16 bits, on NVIDIA's GPUs, through cuDNN's fused attention, which stores none of
    it and has gradients, but no forward-mode derivative (`jax.jvp`). With `causal`, a query sees
    the keys up to its own position, of which the first query's is `start`; with `mask`, those where
    it is True, of which there must be one.
    """
    head = partial(_attend, causal=causal, mask=mask, start=start)

    def together(query: Array, key: Array, value: Array) -> Array:
        return jax.vmap(head, in_axes=2, out_axes=2)(query, key, value)

    def one_by_one(query: Array, key: Array, value: Array) -> Array:
        each = [x.transpose(2, 0, 1, 3) for x in (query, key, value)]
        # So many that the scores stay in the caches.
        block = max(LEAST_BLOCK, QUERY_BLOCK // query.shape[0])
        return jax.lax.map(lambda one: head(*one, block=block), each).transpose(1, 2, 0, 3)

    if query.shape[1] * key.shape[1] <= MAX_SCORES_TOGETHER:
        return together(query, key, value)
    ways = {"cpu": one_by_one}
    if not causal and mask is None and _fits_cudnn(query, key) and _has_cudnn():
        ways["cuda"] = _by_cudnn
    return jax.lax.platform_dependent(query, key, value, **ways, default=together)


def _by_cudnn(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _fits_cudnn(query: Array, key: Array) -> bool:
    """Odd lengths have no gradient there; of such there are CLIP's 77 tokens, which are few."""
    (_, queries, _, head_dim), tokens = query.shape, key.shape[1]
    even = queries % 2 == tokens % 2 == head_dim % 8 == 0
    return query.dtype.itemsize == 2 and even and head_dim <= MAX_CUDNN_HEAD


def _has_cudnn() -> bool:
    """Whether the GPUs here run cuDNN's fused attention: NVIDIA's since compute capability 8.0."""
    try:
        devices = jax.devices("cuda")
        some = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
        jax.eval_shape(_by_cudnn, some, some, some)  # cuDNN is there, and new enough for them
    except (RuntimeError, NotImplementedError):
        return False
    return all(float(device.compute_capability) >= 8.0 for device in devices)


def _attend(
    query: Float[Array, "batch queries head_dim"],
    key: Float[Array, "batch tokens head_dim"],
    value: Float[Array, "batch tokens head_dim"],
    *,
    causal: bool,
    mask: Mask | None,
    start: Int[Array, ""] | int,
    block: int | None = None,
) -> Float[Array, "batch queries head_dim"]:
    """`dot_product_attention` of one head, in blocks of `block` queries (`QUERY_BLOCK`)."""
    batch, queries, head_dim = query.shape
    tokens, block = key.shape[1], block or QUERY_BLOCK
    scale = head_dim**-0.5
    if query.dtype == jnp.float32:  # cheaper than the scores; in 16 bits one rounding more
        query, scale = query * scale, 1.0

    def attend(some: Array, first: Array | int) -> Array:
        scores = jnp.einsum("bqd,bkd->bqk", some, key, preferred_element_type=jnp.float32) * scale
        if causal:
            position = first + jnp.arange(some.shape[1])
            visible = position[:, None] >= jnp.arange(tokens)[None, :]
            scores = jnp.where(visible, scores, -jnp.inf)
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, -jnp.inf)
        # The sum of a softmax is divided by at the end: once for each query, not for each score.
        top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum(
            "bqk,bkd->bqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
        )
        return (out / total).astype(value.dtype)

    if queries * tokens <= MAX_SCORES:
        return attend(query, start)
    missing = -queries % block
    padded = jnp.pad(query, ((0, 0), (0, missing), (0, 0)))
    blocks = padded.reshape(batch, -1, block, head_dim).swapaxes(0, 1)
    starts = start + jnp.arange(blocks.shape[0]) * block
    # Recomputed for gradients, which would otherwise store every block's scores.
    out = jax.lax.map(jax.checkpoint(lambda args: attend(*args)), (blocks, starts))
    return out.swapaxes(0, 1).reshape(batch, -1, head_dim)[:, :queries]


class Cache(NamedTuple):
    """Keys and values of a sequence so far, in arrays with room for all of it."""

    key: Float[Array, "batch room heads head_dim"]
    value: Float[Array, "batch room heads head_dim"]
    used: Int[Array, ""]  # positions that are filled


class Attention(nn.Module):
    """Multi-head attention of `x` to itself, or to `context` where one is given.

    With `joint` it sees both: the keys and values of the context, with projections of their own, go
    before those of `x` (GLIDE, arXiv 2112.10741, section 4).
    """

    heads: int
    head_dim: int
    bias: bool  # on query, key and value: CLIP, ADM and the autoencoder yes, Stable Diffusion no
    causal: bool = False
    dtype: DTypeLike = jnp.float32
    joint: bool = False
    zero: bool = False  # the last projection starts at zero

    def __call__(
        self, x: Sequence, context: Sequence | None = None, mask: Mask | None = None
    ) -> Sequence:
        """`mask` says which positions of what is attended to (the context if given) are seen."""
        return self._attend(x, context, mask, None)[0]

    def extend(self, x: Sequence, cache: Cache, mask: Mask | None) -> tuple[Sequence, Cache]:
        """The next positions, `x`, of a causal sequence: what they see is computed once.

        `mask` is over all the cache's room.
        """
        out, extended = self._attend(x, None, mask, cache)
        assert extended is not None
        return out, extended

    @nn.compact
    def _attend(
        self, x: Sequence, context: Sequence | None, mask: Mask | None, cache: Cache | None
    ) -> tuple[Sequence, Cache | None]:
        def project(name: str, inputs: Array) -> Array:
            width = self.heads * self.head_dim
            y = nn.Dense(width, use_bias=self.bias, dtype=self.dtype, name=name)(inputs)
            return y.reshape(*y.shape[:2], self.heads, self.head_dim)

        source = x if context is None or self.joint else context
        key, value = project("key", source), project("value", source)
        if self.joint and context is not None:
            key = jnp.concatenate([project("context_key", context), key], axis=1)
            value = jnp.concatenate([project("context_value", context), value], axis=1)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (0, x.shape[1])), constant_values=True)
        start = 0
        if cache is not None:
            start = cache.used
            key = jax.lax.dynamic_update_slice_in_dim(cache.key, key, start, axis=1)
            value = jax.lax.dynamic_update_slice_in_dim(cache.value, value, start, axis=1)
            cache = Cache(key, value, start + x.shape[1])
        query = project("query", x)
        out = dot_product_attention(
            query, key, value, causal=self.causal, mask=mask, start=start
        ).reshape(*x.shape[:2], -1)
        init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        return nn.Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="out")(out), cache
