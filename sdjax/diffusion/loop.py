"""The one sampling loop: a scan over a padded plan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdjax.config import Prediction
from sdjax.diffusion.parameterization import split
from sdjax.diffusion.samplers import STEPS, Step
from sdjax.diffusion.schedule import Plan
from sdjax.shapes import Keys, Latents, Scalar, Timesteps

PRNG = "threefry2x32"
"""Of all noise, whatever the process's default: a seed means the same picture everywhere."""

Denoise = Callable[[Latents, Timesteps], Latents]
Trajectory = Float[Array, "steps batch _height _width _channels"]


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
    """x_T of each image: step number 0; the loop's own draws are numbered from 1."""
    return normal_per_image(keys, shape, 0)


def sample(
    denoise: Denoise,
    plan: Plan,
    x: Latents,
    keys: Keys,
    *,
    sampler: str | Step,
    prediction: Prediction,
    eta: Scalar | float = 0.0,
    trajectory: bool = False,
) -> tuple[Latents, tuple[Trajectory, Trajectory] | None]:
    """Walk from noise to data.

    Args:
        denoise: network output for (latents, timesteps [batch]); guidance included.
        plan: the steps, padded; inactive ones cost nothing.
        x: starting latents [batch, height, width, channels].
        keys: one per image; step k draws from key folded with k + 1.
        sampler: a name in `samplers.STEPS`, or a step function of your own; static.
        prediction: what the network predicts; static.
        eta: noise of DDIM, 0 to 1; traced.
        trajectory: also return, for every padded step, (x after it, its x0).

    Returns:
        The final latents, and the trajectory ([max_steps, batch, ...] each) or None.
    """
    step = STEPS[sampler] if isinstance(sampler, str) else sampler
    eta = jnp.asarray(eta, jnp.float32)

    def advance(x: Latents, info: Plan, index: Array) -> tuple[Latents, Latents]:
        timesteps = jnp.full((x.shape[0],), info.timestep, jnp.float32)
        x0, eps = split(denoise(x, timesteps), x, info.alpha_bar, prediction)
        noise = normal_per_image(keys, x.shape[1:], index + 1)
        return step(x, x0, eps, info, eta, noise), x0

    def body(x: Latents, scanned: tuple[Plan, Array]) -> tuple[Latents, tuple | None]:
        info, index = scanned
        x, x0 = jax.lax.cond(info.active, lambda x: advance(x, info, index), lambda x: (x, x), x)
        return x, ((x, x0) if trajectory else None)

    return jax.lax.scan(body, x, (plan, jnp.arange(plan.active.shape[0])))
