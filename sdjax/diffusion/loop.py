"""The one sampling loop: a scan over the calls of a plan."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdjax.config import Prediction
from sdjax.diffusion.parameterization import split
from sdjax.diffusion.samplers import Calls, Plan
from sdjax.diffusion.solvers import SLOTS
from sdjax.shapes import Keys, Latents, Scalar, Timesteps

PRNG = "threefry2x32"
"""Of all noise, whatever the process's default: a seed means the same picture everywhere."""

Denoise = Callable[[Latents, Timesteps], Any]
"""Network output for latents and timesteps, guidance included; or (output, what else to record)."""


class Trajectory(NamedTuple):
    """Every call of a run, padded calls included: the first axis of every array."""

    x: Float[Array, "calls batch height width channels"]  # where the network looked
    x0: Float[Array, "calls batch height width channels"]  # its opinion, as data
    eps: Float[Array, "calls batch height width channels"]  # and as noise
    extra: Any  # what `denoise` returned beside its output; None if nothing


def image_keys(seeds: Int[Array, " batch"]) -> Keys:
    """One key per image, from its own seed: the same image in any batch, slot or device."""
    return jax.vmap(lambda seed: jax.random.key(seed, impl=PRNG))(seeds)


def normal_per_image(
    keys: Keys, shape: tuple[int, ...], step: Array | int
) -> Float[Array, "batch height width channels"]:
    """Standard normal noise [batch, *shape], image i from key i folded with the step number."""

    def one(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, step), shape)

    return jax.vmap(one)(keys)


def initial_noise(keys: Keys, shape: tuple[int, ...]) -> Latents:
    """Noise of each image to start from: step number 0; the loop's own draws count from 1."""
    return normal_per_image(keys, shape, 0)


def begin(plan: Plan, noise: Latents, x0: Latents | None = None) -> Latents:
    """Where a run begins: noise, or an image `x0` with the noise of the plan's first level."""
    scaled = plan.start[1] * noise
    return scaled if x0 is None else plan.start[0] * x0 + scaled


def sample(
    denoise: Denoise,
    plan: Plan,
    x: Latents,
    keys: Keys,
    *,
    prediction: Prediction,
    clip: Scalar | float = jnp.inf,
    threshold: tuple[float, float] | None = None,
    eps_from_clipped: bool = False,
    trajectory: bool = False,
    remat: bool = False,
) -> tuple[Latents, Trajectory | None]:
    """Walk from noise to data.

    Args:
        denoise: see `Denoise`. An output with twice the channels of `x` is (prediction, share of
            the learned variance, -1 to 1), for plans with learned variance.
        plan: the calls, padded; inactive ones cost nothing.
        x: latents to start from, as `begin` gives them.
        keys: one per image; call k draws from the key folded with k + 1.
        prediction: what the network predicts; static.
        clip: x0 is clipped to [-clip, clip]; traced.
        threshold: (quantile, most) of dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3);
            static. It replaces `clip`.
        eps_from_clipped: compute eps from the clipped x0, so that both agree; static.
        trajectory: also return every call; static.
        remat: keep only the state of every call for gradients and compute the rest again; static.

    Returns:
        The final latents, and the trajectory or None.
    """

    def opinion(x: Latents, info: Calls) -> tuple[Latents, Latents, Latents, Any]:
        """(x0, eps, standard deviation of learned variance or 1, what else to record)."""
        result = denoise(x, jnp.full((x.shape[0],), info.timestep, jnp.float32))
        output, extra = result if isinstance(result, tuple) else (result, None)
        deviation = jnp.ones(())
        if output.shape[-1] == 2 * x.shape[-1]:
            output, share = jnp.split(output, 2, axis=-1)
            least, most = info.log_variance
            deviation = jnp.exp(0.5 * (least + (share + 1) / 2 * (most - least)))
        x0, eps = split(output, x, info.alpha, info.sigma, prediction)
        x0 = _limit(x0, clip, threshold)
        if eps_from_clipped:
            eps = (x - info.alpha * x0) / info.sigma
        return x0, eps, deviation, extra

    def advance(slots: Array, info: Calls, index: Array) -> tuple[Array, Trajectory]:
        x = slots[0]
        x0, eps, deviation, extra = opinion(x, info)
        noise = deviation * normal_per_image(keys, x.shape[1:], index + 1)
        inputs = jnp.concatenate([slots, jnp.stack([x0, eps, noise])])
        # In full precision: an accelerator's default would round the latents at every step.
        slots = jnp.einsum("si,i...->s...", info.state, inputs, precision="highest")
        return slots, Trajectory(x, x0, eps, extra)

    if remat:
        advance = jax.checkpoint(advance)

    def body(slots: Array, scanned: tuple[Calls, Array]) -> tuple[Array, Trajectory | None]:
        info, index = scanned
        recorded = jax.eval_shape(advance, slots, info, index)[1] if trajectory else None

        def rest(slots: Array) -> tuple[Array, Any]:
            blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), recorded)
            return slots, blank

        def go(slots: Array) -> tuple[Array, Any]:
            slots, call = advance(slots, info, index)
            return slots, call if trajectory else None

        return jax.lax.cond(info.active, go, rest, slots)

    slots = jnp.zeros((SLOTS, *x.shape), jnp.float32).at[0].set(x)
    index = jnp.arange(plan.calls.active.shape[0])
    slots, recorded = jax.lax.scan(body, slots, (plan.calls, index))
    return slots[0], recorded


def _limit(x0: Latents, clip: Scalar | float, threshold: tuple[float, float] | None) -> Latents:
    if threshold is None:
        return jnp.clip(x0, -clip, clip)
    quantile, most = threshold
    size = jnp.quantile(jnp.abs(x0.reshape(x0.shape[0], -1)), quantile, axis=1)
    size = jnp.clip(size, 1.0, most)[:, None, None, None]
    return jnp.clip(x0, -size, size) / size
