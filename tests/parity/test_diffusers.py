"""UNets and autoencoders of diffusers, tiny and random, beside ours."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
pytest.importorskip("diffusers", reason="needs the extra 'parity'")
pytest.importorskip("open_clip", reason="needs the extra 'parity'")

import jax
import jax.numpy as jnp
import torch
from parity import tiny_torch
from parity.differ import error
from parity.torch_side import noise, ours, run, tensors

from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.weights.foreign import diffusers_autoencoder
from sdjax.weights.foreign_unets import diffusers_unet
from sdjax.weights.rules import convert
from sdjax.weights.stable_diffusion import (
    autoencoder_shapes,
    autoencoder_table,
    unet_shapes,
    unet_table,
)

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # in standard deviations of the output


@pytest.mark.parametrize("name", tiny_torch.UNETS)
def test_unet(name):
    batch, height, width = (3, 16, 8) if "sd1" in name else (1, 8, 24)
    theirs = tiny_torch.unet(name)
    config = diffusers_unet(dict(theirs.config))
    x = noise(batch, config.in_channels, height, width)
    times = torch.tensor([999, 0, 421])[:batch]
    context = noise(batch, 7, 24, seed=2)
    vector = None if config.vector_dim is None else noise(batch, config.vector_dim, seed=3)
    labels = None if config.labels is None else torch.tensor([7, 0, 49])[:batch]
    extra = labels if vector is None else vector
    want = run(theirs, x, times, context, class_labels=extra).sample
    params = convert(tensors(theirs), unet_table(config), unet_shapes(config))
    found = jax.jit(UNet(config).apply)(
        {"params": params},
        ours(x),
        ours(times).astype(jnp.float32),
        ours(context),
        None if vector is None else ours(vector),
        None if labels is None else ours(labels),
    )
    assert error(found, ours(want)) <= TOLERANCE


@pytest.mark.parametrize(("name", "shape"), [("f8", (3, 16, 40)), ("f4", (1, 24, 8))])
def test_autoencoder(name, shape):
    batch, height, width = shape
    theirs = tiny_torch.autoencoder(name)
    config = diffusers_autoencoder(dict(theirs.config))
    params = convert(tensors(theirs), autoencoder_table(config), autoencoder_shapes(config))
    apply = jax.jit(Autoencoder(config).apply, static_argnames="method")

    image = noise(batch, 3, height, width)
    want = run(theirs.encode, image).latent_dist
    found = apply({"params": params}, ours(image), method="encode")
    assert error(found.mean, ours(want.mean)) <= TOLERANCE
    assert error(found.logvar, ours(want.logvar)) <= TOLERANCE

    latents = noise(batch, config.latent_channels, height // config.factor, width // config.factor)
    want = run(theirs.decode, latents / theirs.config.scaling_factor).sample
    found = apply({"params": params}, ours(latents), method="decode")
    assert error(found, ours(want)) <= TOLERANCE
