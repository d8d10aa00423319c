"""CLIP's vision transformer: images to one vector in the space shared with text."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sdjax.config import ImageTower
from sdjax.nn.functional import keep
from sdjax.nn.layers import layer_norm
from sdjax.nn.transformer import LAYER_NORM_EPSILON, TransformerBlock
from sdjax.shapes import Images, Vectors


class ClipImage(nn.Module):
    """ViT with a class token (arXiv 2010.11929), normalised before the first block."""

    config: ImageTower
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Images) -> Vectors:
        """Images in the range the model was trained on -> float32 [batch, projection_dim].

        The result is not normalised to unit length. Keeps "hidden", [batch, tokens, dim]: the
        class token and the patches after the last block, before the last norm.
        """
        c = self.config
        if image.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(
                f"this image tower reads images of {(c.image_size, c.image_size, 3)}, got "
                f"{image.shape[1:]}: resize them (sdjax.image.preprocess.clip_images does)"
            )

        def norm(name: str) -> nn.LayerNorm:
            return layer_norm(LAYER_NORM_EPSILON, name=name, dtype=self.dtype)

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
                epsilon=LAYER_NORM_EPSILON,
                dtype=self.dtype,
                name=f"block_{layer}",
            )(x)
        keep(self, "hidden", x.astype(jnp.float32))
        x = norm("norm_out")(x[:, 0])
        project = nn.Dense(c.projection_dim, use_bias=False, dtype=self.dtype, name="projection")
        return project(x).astype(jnp.float32)


def unit(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """Unit vectors x / |x| along the last axis: cosines become dot products."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
