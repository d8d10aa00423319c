"""CLIP's vision transformer: images to one vector in the space shared with text."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.config import ImageTower
from sdjax.nn.transformer import LAYER_NORM_EPSILON, TransformerBlock
from sdjax.shapes import Images, Vectors


class ClipImage(nn.Module):
    """ViT with a class token (arXiv 2010.11929), normalised before the first block."""

    config: ImageTower
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Images) -> Vectors:
        """Images in the range the model was trained on -> float32 [batch, projection_dim].

        The result is not normalised to unit length.
        """
        c = self.config

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=name)

        patch = (c.patch_size, c.patch_size)
        x = nn.Conv(
            c.dim, patch, patch, padding="VALID", use_bias=False, dtype=self.dtype, name="patches"
        )(image.astype(self.dtype))
        x = x.reshape(x.shape[0], -1, c.dim)
        first = self.param("class_embedding", nn.initializers.normal(0.02), (c.dim,))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, c.dim)), x], axis=1)
        position = self.param(
            "position_embedding", nn.initializers.normal(0.01), (x.shape[1], c.dim)
        )
        x = norm("norm_in")((x + position).astype(self.dtype))
        for layer in range(c.layers):
            x = TransformerBlock(
                c.heads,
                c.dim // c.heads,
                c.mlp_dim,
                c.activation,
                attention_bias=True,
                dtype=self.dtype,
                name=f"block_{layer}",
            )(x)
        x = norm("norm_out")(x[:, 0])
        project = nn.Dense(c.projection_dim, use_bias=False, dtype=self.dtype, name="projection")
        return project(x).astype(jnp.float32)


def unit(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """Unit vectors x / |x| along the last axis: cosines become dot products."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
