"""The autoregressive prior: the codes of a CLIP image embedding, one after the other.

It removes no noise, but takes the place of the diffusion prior, and so is its neighbour.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sdjax import config
from sdjax.denoisers.prior import Memory, causal_block, check_text, empty_memory, extend
from sdjax.nn.layers import layer_norm
from sdjax.nn.transformer import LAYER_NORM_EPSILON
from sdjax.shapes import Mask, Sequence, Vectors


class AutoregressivePrior(nn.Module):
    """A causal transformer over [text, text embedding, dot product, codes] (section 2.2).

    Where arXiv 2204.06125 is silent we choose: the order of the prefix; the text's hidden states
    are projected and stand in it, padding unseen; the text embedding is scaled to elements of about
    1; the dot product and the codes share one table of embeddings and one output layer, which
    gains of their own, channel by channel, turn into other directions for each; the dot product is
    predicted too, and counts in the loss like any code; and blocks as in the diffusion prior.
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
        # It begins with nothing to say: with what is known without it.
        self.out = nn.Dense(c.buckets, kernel_init=nn.initializers.zeros, dtype=self.dtype)

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
        return self._logits(x[:, self.config.text_tokens :], self.out_gain)

    def begin(
        self, text_embedding: Vectors, text: Sequence, mask: Mask
    ) -> tuple[Float[Array, "batch buckets"], Memory]:
        """Logits of the dot product, and the memory of the prefix, with room for all codes."""
        memory = empty_memory(self.config, mask, self.dtype)
        return self._extend(self._prefix(text_embedding, text, mask), memory)

    def step(
        self, token: Int[Array, " batch"], memory: Memory
    ) -> tuple[Float[Array, "batch buckets"], Memory]:
        """Logits of the next code, told the last one; the cost is the same for each."""
        code = memory.caches[0].used - self.config.text_tokens - 1
        return self._extend(self._embed(token[:, None], self.code_gain[code]), memory)

    def _prefix(self, text_embedding: Vectors, text: Sequence, mask: Mask) -> Sequence:
        check_text(self.config, text, mask)
        # Elements of a unit vector are small; of the size of 1 they are heard from the start.
        embedding = self.text_embedding(self.config.embedding_dim**0.5 * text_embedding)
        return jnp.concatenate([self.text(text), embedding[:, None]], axis=1)

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
