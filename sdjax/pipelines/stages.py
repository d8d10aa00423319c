"""The compiled parts of text to image: text tower, encoder, sampling loop, decoder.

Static, so that another value is another compilation, are the sizes of the network, shapes, what the
network predicts and what is recorded. Weights, words, seeds, scales and the whole plan, with the
schedule in it, are data.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from sdjax import config
from sdjax.denoisers.unet import UNet
from sdjax.diffusion.guidance import guide, rescale
from sdjax.diffusion.loop import Trajectory, begin, begin_state, walk
from sdjax.diffusion.samplers import Plan
from sdjax.image.autoencoder import Autoencoder
from sdjax.nn.functional import Params, apply, dtype_of
from sdjax.parallel import Devices, Mode, parallelize
from sdjax.shapes import Images, Keys, Latents, Scalar, Tokens
from sdjax.text.clip_text import ClipText, TextOutput, end_positions


@partial(jax.jit, static_argnames=("tower", "end_id"))
def encode_text(tower: config.TextTower, params: Params, tokens: Tokens, end_id: int) -> TextOutput:
    """Hidden states and pooled vectors of token rows."""
    return apply(ClipText(tower, dtype_of(params)), params, tokens, end_positions(tokens, end_id))


@partial(jax.jit, static_argnames="autoencoder")
def encode(autoencoder: config.Autoencoder, params: Params, images: Images) -> Latents:
    """Images in [-1, 1] to the mean of their latents."""
    posterior = apply(Autoencoder(autoencoder), params, images, method="encode")
    return posterior.mean * autoencoder.scaling_factor


@jax.jit
def first_state(
    plan: Plan, noise: Latents, image: Latents | None
) -> Float[Array, "batch slots height width channels"]:
    """The state of the loop where a run begins: noise, or an image with noise."""
    return jnp.moveaxis(begin_state(begin(plan, noise, image)), 0, 1)


@partial(jax.jit, static_argnames=("unet", "prediction", "trajectory", "remat"))
def denoise(
    unet: config.UNet,
    params: Params,
    state: Float[Array, "batch slots height width channels"],
    text: TextOutput,
    plan: Plan,
    keys: Keys,
    guidance: Scalar,
    guidance_rescale: Scalar,
    *,
    prediction: config.Prediction,
    trajectory: bool = False,
    remat: bool = False,
) -> tuple[Float[Array, "batch slots height width channels"], Trajectory | None]:
    """The active calls of the plan.

    The images are on the first axis of everything, so that several devices can share them. The
    branches of an image stay together, on the second axis of `text`: for guidance two, without the
    prompt and with it; or the prompt alone, for which the scales do not matter.

    Args:
        unet: sizes of the network.
        params: of it.
        state: as `first_state` or an earlier part of the run left it.
        text: [batch, branches, ...] of everything in it.
        plan: see `sdjax.diffusion.samplers.sampling_plan`.
        keys: one per image.
        guidance: scale.
        guidance_rescale: see `sdjax.diffusion.guidance.rescale`.
        prediction: what the network predicts.
        trajectory: also return every call, [batch, calls, ...].
        remat: for gradients, compute again between the calls rather than remember.

    Returns:
        The state, whose first slot is x, and the trajectory or None.
    """
    network = UNet(unet, dtype_of(params))
    branches = text.hidden.shape[1]
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), text)
    vector = rows.pooled if unet.vector_dim is not None else None

    def predict(x: Latents, timesteps: Array) -> tuple[Array, tuple[Array, ...]]:
        each = [jnp.repeat(values, branches, axis=0) for values in (x, timesteps)]
        output = apply(network, params, *each, rows.hidden, vector)
        if branches == 1:
            return output, (output,)
        # Not output[::2]: a stride over the images would mix those of different devices.
        pairs = output.reshape(-1, 2, *output.shape[1:])
        without, given = pairs[:, 0], pairs[:, 1]
        guided = rescale(guide(without, given, guidance), given, guidance_rescale)
        return guided, (without, given)

    first = jnp.moveaxis(state, 1, 0)
    found = walk(
        predict, plan, first, keys, prediction=prediction, trajectory=trajectory, remat=remat
    )
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), found)


@partial(jax.jit, static_argnames="autoencoder")
def decode_float(autoencoder: config.Autoencoder, params: Params, latents: Latents) -> Images:
    """Latents to images of about [-1, 1], which have gradients."""
    return apply(Autoencoder(autoencoder), params, latents, method="decode")


@partial(jax.jit, static_argnames="autoencoder")
def decode(
    autoencoder: config.Autoencoder, params: Params, latents: Latents
) -> UInt8[Array, "batch height width channels"]:
    """Latents to pixels in [0, 255]."""
    images = decode_float(autoencoder, params, latents)
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


class Runners(NamedTuple):
    """The stages that have a row for each image, as they are or shared by several devices."""

    denoise: Callable[..., tuple[Array, Trajectory | None]]
    decode: Callable[..., Array]


JITTED = Runners(denoise, decode)


def runners(run: Runners, devices: Devices | None, mode: Mode | None) -> Runners:
    """The stages, where they should run; compiles nothing.

    Args:
        run: the stages, on the devices of their arguments.
        devices: to share the images among; None is all, if there is a mode.
        mode: see `sdjax.parallel.Mode`; None is a mesh, if there are devices. Without both, the
            stages run where the parameters are.

    Raises:
        ValueError: for an unknown mode, or devices that do not fit it.
    """
    if devices is None and mode is None:
        return run
    share = partial(parallelize, mode=mode or "mesh", devices=devices)
    static = ("unet", "prediction", "trajectory", "remat")
    return Runners(
        share(run.denoise, batched=("state", "text", "keys"), static=static),
        share(run.decode, batched=("latents",), static=("autoencoder",)),
    )
