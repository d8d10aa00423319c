"""The compiled parts of DALL-E 2 between an image embedding and the finished picture.

Each is one run of the sampling loop. Static are the sizes of the networks, shapes, whether there is
guidance and whether the plan has learned variance: text to image, inversion, a picture redrawn and
a picture with holes are the same program, told other numbers.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sdjax import config
from sdjax.denoisers.image_conditioning import ImageConditioning
from sdjax.denoisers.unet import UNet
from sdjax.diffusion.guidance import guide
from sdjax.diffusion.inpainting import Known, keep_known
from sdjax.diffusion.loop import Denoise, begin, sample
from sdjax.diffusion.samplers import Plan
from sdjax.image.degrade import enlarge
from sdjax.nn.functional import Params, apply, dtype_of
from sdjax.shapes import Images, Keys, Scalar, Timesteps


class Told(NamedTuple):
    """What the decoder is told of each image: for guidance twice, without everything and with it.

    The branches of an image stay together, on the second axis.
    """

    embedding: Float[Array, "batch branches dim"]  # CLIP's, of the image
    dropped: Bool[Array, "batch branches"]  # where it is not told
    states: Float[Array, "batch branches tokens text_dim"]  # of the text
    vector: Float[Array, "batch branches vector_dim"]
    mask: Bool[Array, "batch branches tokens"]  # where there is text


class Given(NamedTuple):
    """Pictures that a stage begins with, of its own size; the plan and the mask say how much."""

    noise: Images  # standard normal, or as it was inverted
    image: Images  # in [-1, 1]; 0 where there is none
    known: Known  # 1 where the image stays as it is


@partial(jax.jit, static_argnames="decoder")
def decode(
    decoder: config.Decoder,
    params: Params,
    given: Given,
    told: Told,
    plan: Plan,
    keys: Keys,
    guidance: Scalar,
) -> Images:
    """A small picture of an image embedding and a text.

    Args:
        decoder: sizes of the networks.
        params: their trees "unet" and "conditioning".
        given: noise, picture and mask.
        told: see `Told`; with one branch `guidance` does not matter.
        plan: see `sdjax.diffusion.samplers.sampling_plan`.
        keys: one per image.
        guidance: scale, on what the network predicts; the variance is that of the branch told all.
    """
    branches = told.embedding.shape[1]
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), told)
    vector, context = apply(
        ImageConditioning(decoder.conditioning, dtype_of(params["conditioning"])),
        params["conditioning"],
        *(rows.embedding, rows.dropped, rows.states, rows.vector),
    )
    mask = None
    if decoder.conditioning.mask_padding:
        tokens = ((0, 0), (decoder.conditioning.tokens, 0))
        mask = jnp.pad(rows.mask, tokens, constant_values=True)
    network = UNet(decoder.unet, dtype_of(params["unet"]))

    def predict(x: Images, timesteps: Timesteps) -> Array:
        each = [jnp.repeat(values, branches, axis=0) for values in (x, timesteps)]
        output = apply(network, params["unet"], *each, context, vector, None, mask)
        if branches == 1:
            return output
        pairs = output.reshape(-1, 2, *output.shape[1:])
        without, told = pairs[:, 0], pairs[:, 1]
        colours = x.shape[-1]
        guided = guide(without[..., :colours], told[..., :colours], guidance)
        return jnp.concatenate([guided, told[..., colours:]], axis=-1)

    return _walk(predict, plan, given, keys, decoder.schedule.prediction)


@partial(jax.jit, static_argnames="upsampler")
def upsample(
    upsampler: config.Upsampler,
    params: Params,
    given: Given,
    small: Images,
    plan: Plan,
    keys: Keys,
) -> Images:
    """A larger picture of a small one.

    Args:
        upsampler: sizes of the network.
        params: its tree "unet", and "last_unet" where the last step has a network of its own.
        given: noise, picture and mask.
        small: in [-1, 1].
        plan: see `sdjax.diffusion.samplers.sampling_plan`.
        keys: one per image.
    """
    network = UNet(upsampler.unet, dtype_of(params["unet"]))
    seen = enlarge(small, upsampler.image_size, upsampler.resize)
    times = jnp.where(plan.calls.active, plan.calls.timestep, jnp.inf)

    def predict(x: Images, timesteps: Timesteps) -> Array:
        inputs = jnp.concatenate([x, seen], axis=-1)
        if not upsampler.own_last_step:
            return apply(network, params["unet"], inputs, timesteps)
        return jax.lax.cond(
            timesteps[0] <= times.min(),
            lambda: apply(network, params["last_unet"], inputs, timesteps),
            lambda: apply(network, params["unet"], inputs, timesteps),
        )

    return _walk(predict, plan, given, keys, upsampler.schedule.prediction)


def _walk(
    predict: Denoise, plan: Plan, given: Given, keys: Keys, prediction: config.Prediction
) -> Images:
    denoise = keep_known(predict, plan, given.image, given.known, prediction)
    first = begin(plan, given.noise, given.image)
    return sample(denoise, plan, first, keys, prediction=prediction)[0]
