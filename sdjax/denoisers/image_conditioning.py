"""What tells DALL-E 2's decoder an image embedding and a text (arXiv 2204.06125, section 2.1)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool

from sdjax.config import ImageConditioning as ImageConditioningConfig
from sdjax.nn.layers import layer_norm
from sdjax.nn.transformer import LAYER_NORM_EPSILON
from sdjax.shapes import Sequence, Vectors


class ImageConditioning(nn.Module):
    """An image embedding and a text to the `vector` and the `context` that the UNet reads.

    vector = project(image embedding) + text vector, which the UNet adds to its time embedding;
    context = [tokens made of the image embedding, text states]. The paper says that the tokens are
    concatenated to the text's and not on which side: they go first here, as in Karlo, so that their
    positions do not depend on the text's length.
    """

    config: ImageConditioningConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        embedding: Vectors,
        dropped: Bool[Array, " batch"],
        states: Sequence,
        text_vector: Vectors,
    ) -> tuple[Vectors, Sequence]:
        """(vector [batch, vector_dim], context [batch, tokens + text tokens, context_dim]).

        Args:
            embedding: CLIP's image embedding [batch, embedding_dim], before the config's `scale`.
            dropped: where a learned embedding takes its place: training without, and guidance.
            states: of the text, [batch, text tokens, text_dim], or context_dim if the text arrives
                ready.
            text_vector: CLIP's text embedding, or vector_dim numbers if the text arrives ready.
        """
        c = self.config
        null = self.param("null_embedding", nn.initializers.normal(0.02), (c.embedding_dim,))
        embedding = jnp.where(dropped[:, None], null, c.scale * embedding).astype(self.dtype)
        vector = nn.Dense(c.vector_dim, dtype=self.dtype, name="image_vector")(embedding)
        tokens = nn.Dense(c.tokens * c.context_dim, dtype=self.dtype, name="image_tokens")(
            embedding
        )
        if c.text_dim is not None:
            text_vector = nn.Dense(c.vector_dim, dtype=self.dtype, name="text_vector")(text_vector)
            states = nn.Dense(c.context_dim, dtype=self.dtype, name="text_states")(states)
            norm = layer_norm(LAYER_NORM_EPSILON, name="norm_text", dtype=self.dtype)
            states = norm(states)
        context = [tokens.reshape(-1, c.tokens, c.context_dim), states.astype(self.dtype)]
        return vector + text_vector.astype(self.dtype), jnp.concatenate(context, axis=1)
