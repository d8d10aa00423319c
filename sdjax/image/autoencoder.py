"""The KL autoencoder: images to latents and back (arXiv 2112.10752, section 3.1, appendix G)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from sdjax.config import Autoencoder as AutoencoderConfig
from sdjax.nn.layers import (
    BOTTOM_RIGHT,
    Downsample,
    GroupNorm,
    Upsample,
    conv3x3,
    depth_to_space,
    space_to_depth,
)
from sdjax.nn.resnet import ResBlock
from sdjax.nn.transformer import AttentionBlock
from sdjax.shapes import FeatureMap, Images, Keys, Latents

EPSILON = 1e-6
"""Of every group norm in the autoencoder."""


class Posterior(NamedTuple):
    """The encoder's diagonal Gaussian q(z | image), before the scaling factor.

    Both fields are [batch, height / factor, width / factor, latent_channels]; `logvar` is clamped
    to [-30, 20].
    """

    mean: Float[Array, "batch height width channels"]
    logvar: Float[Array, "batch height width channels"]

    def sample(self, keys: Keys) -> Float[Array, "batch height width channels"]:
        """Mean + exp(logvar / 2) * noise, the noise of image i drawn from its own key i."""
        noise = jax.vmap(lambda k: jax.random.normal(k, self.mean.shape[1:]))(keys)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Array, " batch"]:
        """KL(q || N(0, I)) of each image in nats (arXiv 1312.6114, appendix B)."""
        terms = self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * terms.sum((1, 2, 3))


class Encoder(nn.Module):
    """Images to the 2 x latent_channels moments of the posterior."""

    config: AutoencoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Images) -> FeatureMap:
        c = self.config

        def res(channels: int, name: str) -> ResBlock:
            return ResBlock(channels, c.norm_groups, EPSILON, self.dtype, name=name)

        h = space_to_depth(image.astype(self.dtype), c.patch)
        h = conv3x3(c.channels[0], name="conv_in", dtype=self.dtype)(h)
        for level, channels in enumerate(c.channels):
            for j in range(c.res_blocks):
                h = res(channels, f"down_{level}_res_{j}")(h)
            if level < len(c.channels) - 1:
                h = Downsample(BOTTOM_RIGHT, self.dtype, name=f"down_{level}_downsample")(h)
        h = res(c.channels[-1], "mid_res_0")(h)
        h = AttentionBlock(1, c.norm_groups, EPSILON, self.dtype, name="mid_attention")(h)
        h = res(c.channels[-1], "mid_res_1")(h)
        h = nn.silu(GroupNorm(c.norm_groups, EPSILON, self.dtype, name="norm_out")(h))
        return conv3x3(2 * c.latent_channels, name="conv_out", dtype=self.dtype)(h)


class Decoder(nn.Module):
    """Latents (before the scaling factor) to images."""

    config: AutoencoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: FeatureMap) -> Images:
        c = self.config

        def res(channels: int, name: str) -> ResBlock:
            return ResBlock(channels, c.norm_groups, EPSILON, self.dtype, name=name)

        h = conv3x3(c.channels[-1], name="conv_in", dtype=self.dtype)(z.astype(self.dtype))
        h = res(c.channels[-1], "mid_res_0")(h)
        h = AttentionBlock(1, c.norm_groups, EPSILON, self.dtype, name="mid_attention")(h)
        h = res(c.channels[-1], "mid_res_1")(h)
        for level, channels in reversed(list(enumerate(c.channels))):
            for j in range(c.res_blocks + 1):
                h = res(channels, f"up_{level}_res_{j}")(h)
            if level > 0:
                h = Upsample(self.dtype, name=f"up_{level}_upsample")(h)
        h = nn.silu(GroupNorm(c.norm_groups, EPSILON, self.dtype, name="norm_out")(h))
        h = conv3x3(c.image_channels * c.patch**2, name="conv_out", dtype=self.dtype)(h)
        return depth_to_space(h, c.patch).astype(jnp.float32)


class Autoencoder(nn.Module):
    """Encoder, decoder and the two 1x1 projections around the latent.

    `encode` returns the posterior before scaling; `decode` takes *scaled* latents, as they come out
    of the sampling loop.
    """

    config: AutoencoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        self.quant = nn.Dense(2 * c.latent_channels, dtype=self.dtype)
        self.post_quant = nn.Dense(c.latent_channels, dtype=self.dtype)

    def encode(self, image: Images) -> Posterior:
        """Posterior of images in [-1, 1]; height and width are multiples of `config.factor`."""
        moments = self.quant(self.encoder(image)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Latents) -> Images:
        """Images, about in [-1, 1] (not clipped), from latents times the scaling factor."""
        return self.decoder(self.post_quant(latents / self.config.scaling_factor))

    def __call__(self, image: Images, key: Key[Array, ""]) -> tuple[Images, Posterior]:
        """Encode, sample, decode: (reconstruction, posterior), as in training."""
        posterior = self.encode(image)
        z = posterior.sample(jax.random.split(key, image.shape[0]))
        return self.decode(z * self.config.scaling_factor), posterior
