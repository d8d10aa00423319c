"""The one sampling loop: a scan over the calls of a plan."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdjax.config import Prediction
from sdjax.diffusion.limits import NO_LIMITS, Limits, limit
from sdjax.diffusion.parameterization import split
from sdjax.diffusion.samplers import Calls, Plan
from sdjax.diffusion.solvers import SLOTS
from sdjax.shapes import Keys, Latents, Timesteps

PRNG = "threefry2x32"
"""Of all noise, whatever the process's default: a seed means the same picture everywhere."""

Denoise = Callable[[Latents, Timesteps], Any]
"""Network output for latents and timesteps, guidance included; or (output, what went into it)."""

Recall = Callable[[Latents, Timesteps, Int[Array, ""], Any], tuple[Any, Any]]
"""A network with a memory, which also knows the index of the call: what `Denoise` returns, and the
memory for the next call."""

State = Float[Array, "slots batch _height _width _channels"]
"""What a sampler remembers: see `sdjax.diffusion.solvers.maps`. Slot 0 is x."""


class Trajectory(NamedTuple):
    """Calls of a run: the first axis of every array. Where no call was made there is 0."""

    x: Float[Array, "calls batch height width channels"]  # where the network looked
    x0: Float[Array, "calls batch height width channels"]  # its opinion, as data
    eps: Float[Array, "calls batch height width channels"]  # and as noise
    branches: tuple[Array, ...]  # eps of each output that guidance combined

    def norms(self) -> "Trajectory":
        """The root mean square of every picture: [calls, batch] in each array."""
        return jax.tree.map(lambda values: jnp.sqrt(jnp.mean(values**2, axis=(2, 3, 4))), self)


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


def begin_state(x: Latents) -> Array:
    """The state at the start of a run, which remembers nothing."""
    return jnp.zeros((SLOTS, *x.shape), jnp.float32).at[0].set(x)


def _timesteps(info: Calls, state: State) -> Timesteps:
    """What the network is told of the time, for each image."""
    return jnp.full((state.shape[1],), info.timestep, jnp.float32)


def call(
    denoise: Denoise,
    info: Calls,
    index: Array | int,
    state: State,
    keys: Keys,
    *,
    prediction: Prediction,
    limits: Limits = NO_LIMITS,
) -> tuple[Array, Trajectory]:
    """One call of the network, and the linear map that follows it.

    Args:
        denoise: see `Denoise`. An output with twice the channels of x is (prediction, share of the
            learned variance, -1 to 1): plans with learned variance need it, others leave it.
        info: row `index` of the plan's calls.
        index: noise is drawn from each key folded with index + 1.
        state: see `State`.
        keys: one per image.
        prediction: what the network predicts; static.
        limits: see `Limits`; those of the plan. Samplers that walk along eps alone (euler, heun,
            lms, plms, deis, ...) feel them because eps follows.

    Raises:
        ValueError: if the plan needs a variance, and the network says none.
    """
    x = state[0]
    result = denoise(x, _timesteps(info, state))
    output, parts = result if isinstance(result, tuple) else (result, ())

    def opinion(output: Array) -> tuple[Array, Array]:
        return split(output.astype(jnp.float32), x, info.alpha, info.sigma, prediction)

    noise = normal_per_image(keys, x.shape[1:], index + 1)
    if output.shape[-1] == 2 * x.shape[-1]:
        output, share = jnp.split(output, 2, axis=-1)
        if info.log_variance is not None:
            least, most = info.log_variance
            noise = noise * jnp.exp(0.5 * (least + (share + 1) / 2 * (most - least)))
    elif info.log_variance is not None:
        raise ValueError(
            f"this sampler needs a network that says the variance, too: {2 * x.shape[-1]} "
            f"channels for {x.shape[-1]}, got {output.shape[-1]}"
        )
    x0, eps = opinion(output)
    limited = limit(x0, limits)
    # Both still make up x. By the change, so that without limits no digit of eps is lost.
    sigma = jnp.where(info.sigma > 0, info.sigma, jnp.inf)
    eps = eps + limits.agree * (x0 - limited) * info.alpha / sigma
    x0 = limited
    inputs = jnp.concatenate([state, jnp.stack([x0, eps, noise])])
    # In full precision: an accelerator's default would round the latents at every step.
    state = jnp.einsum("si,i...->s...", info.state, inputs, precision="highest")
    return state, Trajectory(
        x, x0, eps, tuple(opinion(part[..., : x.shape[-1]])[1] for part in parts)
    )


def walk(
    denoise: Denoise | Recall,
    plan: Plan,
    state: State,
    keys: Keys,
    *,
    memory: Any = None,
    trajectory: bool = False,
    remat: bool = False,
    **options: Any,
) -> tuple[Array, Trajectory | None]:
    """All active calls of the plan; see `sample`. A run may be walked in parts.

    With `memory`, a tree of arrays, `denoise` is a `Recall`, and this what it remembers at first;
    what it remembers in the end is dropped.
    """

    def advance(carried: tuple[Array, Any], info: Calls, index: Array) -> tuple[Any, Trajectory]:
        state, kept = carried
        ask: Any = denoise
        if memory is not None:
            told, kept = ask(state[0], _timesteps(info, state), index, kept)
            ask = lambda *_: told  # noqa: E731
        state, made = call(ask, info, index, state, keys, limits=plan.limits, **options)
        return (state, kept), made

    if remat:
        advance = jax.checkpoint(advance, prevent_cse=False)  # a scan needs no more

    def body(carried: Any, scanned: tuple[Calls, Array]) -> tuple[Any, Trajectory | None]:
        info, index = scanned
        recorded = jax.eval_shape(advance, carried, info, index)[1] if trajectory else None

        def rest(carried: Any) -> tuple[Any, Trajectory | None]:
            return carried, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), recorded)

        def go(carried: Any) -> tuple[Any, Trajectory | None]:
            carried, made = advance(carried, info, index)
            return carried, made if trajectory else None

        return jax.lax.cond(info.active, go, rest, carried)

    index = jnp.arange(plan.calls.active.shape[0])
    (state, _), made = jax.lax.scan(body, (state, memory), (plan.calls, index))
    return state, made


def sample(
    denoise: Denoise, plan: Plan, x: Latents, keys: Keys, **options: Any
) -> tuple[Array, Trajectory | None]:
    """Walk from noise to data.

    Args:
        denoise: see `Denoise`.
        plan: the calls, padded; inactive ones cost nothing.
        x: latents to start from, as `begin` gives them.
        keys: one per image; call k draws from the key folded with k + 1.
        **options: of `call`: prediction. And, static, trajectory: also return every call; remat:
            for gradients keep only the state between the calls, and compute the rest again.

    Returns:
        The final latents, and the trajectory or None.
    """
    state, recorded = walk(denoise, plan, begin_state(x), keys, **options)
    return state[0], recorded
