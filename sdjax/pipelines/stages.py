"""The compiled parts of text to image: text tower, encoder, sampling loop, decoder.

Static, so that another value is another compilation, are the sizes of the network, shapes, what the
network predicts, what is recorded, and which shortcuts are taken. Weights, words, seeds, scales and
the whole plan, with the schedule in it, are data.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from sdjax import config
from sdjax.denoisers.unet import UNet
from sdjax.diffusion.guidance import guide, rescale
from sdjax.diffusion.loop import Trajectory, begin, begin_state, walk
from sdjax.diffusion.samplers import Plan
from sdjax.diffusion.shortcuts import guided_calls, whole_calls
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.tiling import tiled
from sdjax.nn.functional import Params, apply, dtype_of
from sdjax.parallel import Devices, Mode, parallelize
from sdjax.pipelines.asking import asking
from sdjax.shapes import Images, Keys, Latents, Scalar, Tokens
from sdjax.text.clip_text import ClipText, TextOutput, end_positions

DENOISE_STATIC = ("unet", "prediction", "trajectory", "remat", "merge")
DECODE_STATIC = ("autoencoder", "tile")


@partial(jax.jit, static_argnames=("tower", "end_id"))
def encode_text(tower: config.TextTower, params: Params, tokens: Tokens, end_id: int) -> TextOutput:
    """Hidden states and pooled vectors of token rows."""
    return apply(ClipText(tower, dtype_of(params)), params, tokens, end_positions(tokens, end_id))


@partial(jax.jit, static_argnames=("autoencoder", "tile"))
def encode(
    autoencoder: config.Autoencoder, params: Params, images: Images, tile: int | None = None
) -> Latents:
    """Images in [-1, 1] to the mean of their latents; with `tile` see `sdjax.image.tiling`."""

    def run(images: Images) -> Latents:
        posterior = apply(Autoencoder(autoencoder), params, images, method="encode")
        return posterior.mean * autoencoder.scaling_factor

    return run(images) if tile is None else tiled(run, images, tile, (autoencoder.factor, 1))


@jax.jit
def first_state(
    plan: Plan, noise: Latents, image: Latents | None
) -> Float[Array, "batch slots height width channels"]:
    """The state of the loop where a run begins: noise, or an image with noise."""
    return jnp.moveaxis(begin_state(begin(plan, noise, image)), 0, 1)


@partial(jax.jit, static_argnames=DENOISE_STATIC)
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
    interval: Float[Array, " 2"] | None = None,
    every: Int[Array, ""] | None = None,
    merge: float = 0.0,
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
        interval: noise levels sigma / alpha that are guided, the first left out; elsewhere the
            network is called for the prompt alone, and so are both branches of the trajectory.
            None is all.
        every: so many calls apart the whole network is run, see
            `sdjax.diffusion.shortcuts.whole_calls`; between them its deep part is that of the last
            such call. A part of a run begins at a multiple of it. None is always.
        merge: share of the tokens of the outermost self-attention that are merged.

    Returns:
        The state, whose first slot is x, and the trajectory or None.
    """
    guided = None if interval is None else guided_calls(plan.calls, interval)
    whole = None if every is None else whole_calls(plan.calls.active.size, every, guided)

    def combine(outputs: tuple[Array, ...]) -> Array:
        if len(outputs) == 1:
            return outputs[0]
        without, given = outputs
        return rescale(guide(without, given, guidance), given, guidance_rescale)

    shape = state.shape[0], *state.shape[2:]
    predict, memory = asking(
        UNet(unet, dtype_of(params), merge), params, text, combine, shape, guided, whole
    )
    first = jnp.moveaxis(state, 1, 0)
    found = walk(
        predict,
        plan,
        first,
        keys,
        memory=memory,
        prediction=prediction,
        trajectory=trajectory,
        remat=remat,
    )
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), found)


@partial(jax.jit, static_argnames=DECODE_STATIC)
def decode_float(
    autoencoder: config.Autoencoder, params: Params, latents: Latents, tile: int | None = None
) -> Images:
    """Latents to images of about [-1, 1], which have gradients; with `tile` see `decode`."""

    def run(latents: Latents) -> Images:
        return apply(Autoencoder(autoencoder), params, latents, method="decode")

    return run(latents) if tile is None else tiled(run, latents, tile, (1, autoencoder.factor))


@partial(jax.jit, static_argnames=DECODE_STATIC)
def decode(
    autoencoder: config.Autoencoder, params: Params, latents: Latents, tile: int | None = None
) -> UInt8[Array, "batch height width channels"]:
    """Latents to pixels in [0, 255].

    With `tile`, a number of latent pixels, in blended squares of this side: not exact, see
    `sdjax.image.tiling.tiled`, but in the memory of one of them.
    """
    images = decode_float(autoencoder, params, latents, tile)
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
    return Runners(
        share(run.denoise, batched=("state", "text", "keys"), static=DENOISE_STATIC),
        share(run.decode, batched=("latents",), static=DECODE_STATIC),
    )
