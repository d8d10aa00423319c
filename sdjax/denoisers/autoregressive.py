"""The autoregressive prior: the codes of a CLIP image embedding, one after the other.

It removes no noise, but takes the place of the diffusion prior, and so is its neighbour.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sdjax import config
from sdjax.denoisers.prior import Memory, causal_block, check_text, empty_memory, extend
from sdjax.nn.layers import layer_norm
from sdjax.nn.transformer import LAYER_NORM_EPSILON
from sdjax.shapes import Mask, Sequence, Vectors


def identity(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """A square matrix that leaves vectors as they are."""
    return jnp.eye(*shape, dtype=dtype)


class TextSkip(nn.Module):
    """A wide perceptron from the text embedding to the answer, past the transformer.

    One wide hidden layer is close to a kernel regression. Of a few thousand texts it learns what
    holds for new ones, where deep and narrow blocks learn the texts by heart. Not in the paper.

    Mean and whitening are of the training's plain captions. They get no gradient; weight decay
    shrinks the whitening, evenly, by some hundredths in a training.
    """

    width: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text_embedding: Vectors) -> Vectors:
        dim, zeros = text_embedding.shape[-1], nn.initializers.zeros
        mean = self.param("mean", zeros, (dim,))
        whitening = self.param("whitening", identity, (dim, dim))
        mean, whitening = jax.lax.stop_gradient((mean, whitening))
        # Some directions are heard a hundred times as loud as others: products are not rounded.
        x = jnp.matmul(text_embedding - mean, whitening, precision="highest")
        spread = nn.initializers.normal(1.0)
        hidden = nn.Dense(self.width, bias_init=spread, dtype=self.dtype, name="hidden")
        out = nn.Dense(self.features, kernel_init=zeros, dtype=self.dtype, name="out")
        # Adam moves every weight alike: the more there are, the more it moves their sum.
        return out(4 * self.width**-0.5 * nn.gelu(hidden(x), approximate=False))


class AutoregressivePrior(nn.Module):
    """A causal transformer over [text, text embedding, dot product, codes] (section 2.2).

    Where arXiv 2204.06125 is silent we choose: the order of the prefix; the text's hidden states
    are projected and stand in it, padding unseen; the text embedding is scaled to elements of about
    1; the dot product and the codes share one table of embeddings and one output layer, which
    gains of their own, channel by channel, turn into other directions for each; the dot product is
    predicted too, and counts in the loss like any code; blocks as in the diffusion prior; and a
    `TextSkip`, if there is one, has a number for each code, which tilts the logits of its buckets.
    """

    config: config.AutoregressivePrior
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        one = nn.initializers.normal(1.0)  # positions are heard from the start, as the text
        self.text = nn.Dense(c.dim, dtype=self.dtype)
        self.text_embedding = nn.Dense(c.dim, dtype=self.dtype)
        self.code_embedding = nn.Embed(c.buckets, c.dim, dtype=self.dtype)
        self.code_gain = self.param("code_gain", one, (c.codes, c.dim))
        self.position_embedding = self.param("position_embedding", one, (c.positions, c.dim))
        self.blocks = [causal_block(c, self.dtype, layer) for layer in range(c.layers)]
        self.norm_final = layer_norm(LAYER_NORM_EPSILON, name="norm_final", dtype=self.dtype)
        self.out_gain = self.param("out_gain", one, (c.codes + 1, c.dim))
        self.out = nn.Dense(c.buckets, dtype=self.dtype)
        if c.text_skip is not None:
            self.skip = TextSkip(c.text_skip, c.codes, self.dtype)

    def __call__(
        self,
        text_embedding: Vectors,
        text: Sequence,
        mask: Mask,
        tokens: Int[Array, "batch tokens"],
    ) -> Float[Array, "batch outputs buckets"]:
        """Logits of the dot product and of every code, each told those before it, for training.

        Args:
            text_embedding: the text's place in CLIP's space.
            text: hidden states.
            mask: True where there is text; the first position must be.
            tokens: buckets of the dot product and of all codes but the last.
        """
        x = jnp.concatenate(
            [self._prefix(text_embedding, text, mask), self._embed(tokens, self.code_gain)], axis=1
        )
        x = x + self.position_embedding.astype(self.dtype)
        seen = jnp.pad(mask, ((0, 0), (0, x.shape[1] - mask.shape[1])), constant_values=True)
        for block in self.blocks:
            x = block(x, mask=seen)
        logits = self._logits(x[:, self.config.text_tokens :], self.out_gain)
        if self.config.text_skip is not None:
            logits = logits.at[:, 1:].add(self._tilt(self._skip(text_embedding)))
        return logits

    def begin(
        self, text_embedding: Vectors, text: Sequence, mask: Mask
    ) -> tuple[Float[Array, "batch buckets"], Memory]:
        """Logits of the dot product, and the memory of the prefix, with room for all codes."""
        memory = empty_memory(self.config, mask, self.dtype)
        if self.config.text_skip is not None:
            memory = memory._replace(skip=self._skip(text_embedding))
        return self._extend(self._prefix(text_embedding, text, mask), memory)

    def step(
        self, token: Int[Array, " batch"], memory: Memory
    ) -> tuple[Float[Array, "batch buckets"], Memory]:
        """Logits of the next code, told the last one; the cost is the same for each."""
        code = memory.caches[0].used - self.config.text_tokens - 1
        logits, memory = self._extend(self._embed(token[:, None], self.code_gain[code]), memory)
        if memory.skip is not None:
            logits = logits + self._tilt(memory.skip[:, code])
        return logits, memory

    def _prefix(self, text_embedding: Vectors, text: Sequence, mask: Mask) -> Sequence:
        check_text(self.config, text, mask)
        embedding = self.text_embedding(self._scaled(text_embedding))
        return jnp.concatenate([self.text(text), embedding[:, None]], axis=1)

    def _scaled(self, text_embedding: Vectors) -> Vectors:
        # Elements of a unit vector are small; of the size of 1 they are heard from the start.
        return self.config.embedding_dim**0.5 * text_embedding

    def _skip(self, text_embedding: Vectors) -> Vectors:
        return self.skip(self._scaled(text_embedding)).astype(jnp.float32)

    def _tilt(self, skip: Float[Array, "... codes"]) -> Float[Array, "... codes buckets"]:
        """What is added to the logits of codes, by the number that a `TextSkip` has for each.

        It rises or falls along the buckets, as the middles of equal shares of a normal value do;
        the steeper the more buckets there are, of which the right one is so much narrower.
        """
        middle = (jnp.arange(self.config.buckets) + 0.5) / self.config.buckets
        return self.config.buckets * skip[..., None] * jax.scipy.stats.norm.ppf(middle)

    def _extend(self, x: Sequence, memory: Memory) -> tuple[Float[Array, "batch buckets"], Memory]:
        first = memory.caches[0].used + jnp.arange(x.shape[1])
        x = x + self.position_embedding[first].astype(self.dtype)
        x, memory = extend(self.blocks, x, memory)
        return self._logits(x[:, -1], self.out_gain[first[-1] - self.config.text_tokens]), memory

    def _embed(self, tokens: Int[Array, "batch tokens"], gain: Float[Array, "... dim"]) -> Sequence:
        return self.code_embedding(tokens) * gain.astype(self.dtype)

    def _logits(
        self, x: Float[Array, "... dim"], gain: Float[Array, "... dim"]
    ) -> Float[Array, "... buckets"]:
        return self.out(self.norm_final(x) * gain.astype(self.dtype)).astype(jnp.float32)
