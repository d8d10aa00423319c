"""The diffusion prior: a noised CLIP image embedding and a text to the embedding without noise."""

from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from sdjax import config
from sdjax.nn.attention import Cache
from sdjax.nn.embeddings import EmbeddingMLP, sinusoid
from sdjax.nn.layers import layer_norm
from sdjax.nn.transformer import LAYER_NORM_EPSILON, TransformerBlock
from sdjax.shapes import Mask, Sequence, Timesteps, Tokens, Vectors


class Memory(NamedTuple):
    """What a causal transformer remembers of a sequence: all that later positions depend on."""

    caches: tuple[Cache, ...]  # of each block
    mask: Mask  # over all positions: which of them are no padding


class DiffusionPrior(nn.Module):
    """A causal transformer over [text, text embedding, time, noised image embedding, query].

    The output at the last position, a learned query, is x0 (arXiv 2204.06125, section 2.2). What
    the paper leaves open is as in Karlo: learned positions, exact GELU, four times the width in the
    feed-forward layers, a norm before the output, padding of the text unseen.

    As each position sees only those before it, the text's part of the work is the same at every
    time: `begin` does it once, and `step` the rest at one noise level. Together they are a call.
    """

    config: config.DiffusionPrior
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        small = nn.initializers.normal(0.02)
        if c.vocab_size is None:
            self.text = nn.Dense(c.dim, dtype=self.dtype)
        else:
            self.text = nn.Embed(c.vocab_size, c.dim, dtype=self.dtype)
        self.text_embedding = nn.Dense(c.dim, dtype=self.dtype)
        self.time = EmbeddingMLP(c.dim, self.dtype)
        self.image_embedding = nn.Dense(c.dim, dtype=self.dtype)
        self.query = self.param("query", small, (c.dim,))
        self.position_embedding = self.param("position_embedding", small, (c.positions, c.dim))
        self.blocks = [causal_block(c, self.dtype, layer) for layer in range(c.layers)]
        self.norm_final = layer_norm(LAYER_NORM_EPSILON, name="norm_final", dtype=self.dtype)
        # It begins with 0: the mean, whether of embeddings or of what a guess leaves.
        self.out = nn.Dense(c.embedding_dim, kernel_init=nn.initializers.zeros, dtype=self.dtype)

    def __call__(
        self,
        noised: Vectors,
        time: Timesteps,
        text_embedding: Vectors,
        text: Sequence | Tokens,
        mask: Mask,
    ) -> Vectors:
        """The image embedding, in the scale of `noised`.

        Args:
            noised: [batch, embedding_dim].
            time: in [0, train_steps).
            text_embedding: the text's place in CLIP's space, times the config's scale if any.
            text: CLIP's hidden states, or token ids, as the config says.
            mask: True where there is text; the first position must be.
        """
        return self.step(noised, time, self.begin(text_embedding, text, mask))

    def begin(self, text_embedding: Vectors, text: Sequence | Tokens, mask: Mask) -> Memory:
        """What the text and its embedding leave for `step`."""
        c = self.config
        check_text(c, text, mask)
        embedding = self.text_embedding(text_embedding)[:, None]
        x = jnp.concatenate([self.text(text), embedding], axis=1)
        memory = empty_memory(c, mask, self.dtype)
        return extend(self.blocks, x + self._positions(0, x.shape[1]), memory)[1]

    def step(self, noised: Vectors, time: Timesteps, memory: Memory) -> Vectors:
        """The image embedding from one noise level."""
        c = self.config
        clock = self.time(sinusoid(time, c.dim))
        query = jnp.broadcast_to(self.query.astype(self.dtype), clock.shape)
        x = jnp.stack([clock, self.image_embedding(noised), query], axis=1)
        x = x + self._positions(c.text_tokens + 1, c.positions)
        x, _ = extend(self.blocks, x, memory)
        return self.out(self.norm_final(x[:, -1])).astype(jnp.float32)

    def _positions(self, first: int, last: int) -> Sequence:
        return jnp.asarray(self.position_embedding[None, first:last], self.dtype)


Prior = config.DiffusionPrior | config.AutoregressivePrior


def check_text(model: Prior, text: Sequence | Tokens, mask: Mask) -> None:
    """Refuse a text of another length or width than the prior was made for.

    Raises:
        ValueError: then; positions would be other ones than in training.
    """
    wanted = (model.text_tokens,) if model.text_dim is None else (model.text_tokens, model.text_dim)
    if text.shape[1:] != wanted or mask.shape != text.shape[:2]:
        raise ValueError(
            f"this prior reads texts of {wanted} numbers each, got {text.shape[1:]} with a mask of "
            f"{mask.shape[1:]}: use the tokenizer and the text tower that it was trained with"
        )


def causal_block(model: Prior, dtype: DTypeLike, layer: int) -> TransformerBlock:
    """Block `layer` of a prior."""
    return TransformerBlock(
        model.heads,
        model.dim // model.heads,
        4 * model.dim,
        "gelu",
        attention_bias=True,
        epsilon=LAYER_NORM_EPSILON,
        causal=True,
        dtype=dtype,
        dropout=model.dropout,
        name=f"block_{layer}",
    )


def empty_memory(model: Prior, mask: Mask, dtype: DTypeLike) -> Memory:
    """A memory with room for all positions of a prior; `mask` is over its text."""
    head_dim = model.dim // model.heads
    room = jnp.zeros((mask.shape[0], model.positions, model.heads, head_dim), dtype)
    cache = Cache(room, room, jnp.zeros((), jnp.int32))
    seen = jnp.pad(mask, ((0, 0), (0, model.positions - mask.shape[1])), constant_values=True)
    return Memory((cache,) * model.layers, seen)


def extend(
    blocks: Iterable[TransformerBlock], x: Sequence, memory: Memory
) -> tuple[Sequence, Memory]:
    """The next positions of a sequence through all blocks."""
    caches = []
    for block, cache in zip(blocks, memory.caches, strict=True):
        x, extended = block.extend(x, cache, memory.mask)
        caches.append(extended)
    return x, memory._replace(caches=tuple(caches))


def repeat(memory: Memory, times: int) -> Memory:
    """Each row `times` times: several continuations of one text."""
    caches = tuple(
        Cache(jnp.repeat(cache.key, times, 0), jnp.repeat(cache.value, times, 0), cache.used)
        for cache in memory.caches
    )
    return Memory(caches, jnp.repeat(memory.mask, times, 0))
