"""One call of the UNet for all branches of all images, or for less where a shortcut allows it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from sdjax.denoisers.unet import UNet
from sdjax.diffusion.loop import Denoise, Recall
from sdjax.nn.functional import Params, apply
from sdjax.shapes import Latents, Timesteps
from sdjax.text.clip_text import TextOutput

Outputs = tuple[Array, ...]
"""Of the branches of guidance: without the prompt and with it, or with it alone."""


def asking(
    network: UNet,
    params: Params,
    text: TextOutput,
    combine: Callable[[Outputs], Array],
    shape: tuple[int, ...],
    guided: Bool[Array, " calls"] | None,
    whole: Bool[Array, " calls"] | None,
) -> tuple[Denoise | Recall, Any]:
    """The network as the loop calls it, and what it remembers at first: zeros or nothing.

    Both flags are data: what they leave out costs no time, but is part of the compiled program.

    Args:
        network: to be called.
        params: of it.
        text: [batch, branches, ...] of everything in it.
        combine: the outputs of all branches to one, which is guidance.
        shape: of the latents, [batch, height, width, channels].
        guided: calls that need all branches; the others have the last alone. None is all.
        whole: calls that run the whole network; the others reuse the deep part of the last such
            call, see `UNet.reuse`. None is all.
    """
    branches = text.hidden.shape[1]
    shown = {
        count: jax.tree.map(lambda x, n=count: x[:, -n:].reshape(-1, *x.shape[2:]), text)
        for count in ({branches} if guided is None else {1, branches})
    }

    def inputs(x: Latents, timesteps: Timesteps, count: int) -> tuple[Any, ...]:
        each = [jnp.repeat(values, count, axis=0) for values in (x, timesteps)]
        vector = shown[count].pooled if network.config.vector_dim is not None else None
        return *each, shown[count].hidden, vector

    def ask(x: Latents, t: Timesteps, index: Array, memory: Any, count: int) -> tuple[Outputs, Any]:
        """The outputs of the last `count` branches."""
        given = inputs(x, t, count)
        if whole is None:
            output = apply(network, params, *given)
        else:
            output, deep = jax.lax.cond(
                whole[index],
                lambda deep: apply(network, params, *given, method="remember"),
                lambda deep: (apply(network, params, deep, *given, method="reuse"), deep),
                memory[:, -count:].reshape(-1, *memory.shape[2:]),
            )
            memory = memory.at[:, -count:].set(deep.reshape(-1, count, *deep.shape[1:]))
        if count == 1:
            return (output,), memory
        # Not output[::2]: a stride over the images would mix those of different devices.
        pairs = output.reshape(-1, count, *output.shape[1:])
        return tuple(pairs[:, k] for k in range(count)), memory

    def recall(x: Latents, timesteps: Timesteps, index: Array, memory: Any) -> tuple[Any, Any]:
        def every(memory: Any) -> tuple[Any, Any]:
            outputs, memory = ask(x, timesteps, index, memory, branches)
            return (combine(outputs), outputs), memory

        def last(memory: Any) -> tuple[Any, Any]:
            (output,), memory = ask(x, timesteps, index, memory, 1)
            return (output, (output,) * branches), memory

        if guided is None:
            return every(memory)
        return jax.lax.cond(guided[index], every, last, memory)

    if whole is None and guided is None:
        return lambda x, timesteps: recall(x, timesteps, jnp.int32(0), ())[0], None
    if whole is None:
        return recall, ()
    given = inputs(jnp.zeros(shape), jnp.zeros(shape[0]), branches)
    deep = jax.eval_shape(lambda: apply(network, params, *given, method="remember"))[1]
    return recall, jnp.zeros((shape[0], branches, *deep.shape[1:]), deep.dtype)
