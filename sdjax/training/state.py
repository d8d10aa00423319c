"""What training carries from step to step, and the pure step itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from sdjax.nn.functional import Params

Metrics = dict[str, Float[Array, ""]]
Loss = Callable[[Params, Any, Array], tuple[Float[Array, ""], Metrics]]


class TrainState(NamedTuple):
    """Everything a step changes; a pytree that Orbax stores as it is."""

    step: Int[Array, ""]  # steps done
    params: Params
    average: Params  # exponential moving average of the params: what is used in the end
    optimizer: Any


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training run."""

    steps: int
    batch: int  # examples per step
    learning_rate: float
    warmup: int = 200  # steps from 0 to the learning rate
    decay: float = 0.2  # last part of the run, in which the rate falls linearly to 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # gradients longer than this are shortened to it
    ema: float = 0.999
    seed: int = 0
    start: str | None = None  # a model whose weights the run begins with, instead of random ones

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a number above 0, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a number from 0, got {getattr(self, name)}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {self.decay}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """Warm up, stay, decay to zero: a run can be prolonged by resuming with more steps."""
    warmup = max(min(recipe.warmup, recipe.steps // 2), 1)
    decay = max(int(recipe.decay * recipe.steps), 1)
    rate = recipe.learning_rate
    return optax.join_schedules(
        [
            optax.linear_schedule(rate / warmup, rate, warmup),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, 0.0, decay),
        ],
        [warmup, max(recipe.steps - decay, warmup)],
    )


def init_key(seed: int) -> Key[Array, ""]:
    """Key of the initial weights."""
    return jax.random.split(jax.random.key(seed))[0]


def step_key(seed: int, step: Int[Array, ""] | int) -> Key[Array, ""]:
    """Key of a step: of another family than the initial weights'."""
    return jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Clipped AdamW; only matrices and kernels are decayed, not biases, norms and scalars."""
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.adamw(
            learning_rate(recipe),
            b2=0.99,
            weight_decay=recipe.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def init_state(params: Params, recipe: Recipe) -> TrainState:
    """State before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average=jax.tree.map(jnp.copy, params),  # a copy: both are donated to the step
        optimizer=make_optimizer(recipe).init(params),
    )


def update_average(average: Params, params: Params, step: Array, decay: float) -> Params:
    """Average <- d average + (1 - d) params, with d = min(decay, (1 + step) / (10 + step))."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)


def make_step(
    loss: Loss, recipe: Recipe
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """A pure, jitted `step(state, batch) -> (state, metrics)` that owns (donates) its state.

    Randomness comes from the seed and the step number alone, so a resumed run continues exactly.
    """
    optimizer = make_optimizer(recipe)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = step_key(recipe.seed, state.step)
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params, batch, key
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        average = update_average(state.average, params, state.step, recipe.ema)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **metrics}
        return TrainState(state.step + 1, params, average, optimizer_state), metrics

    return jax.jit(step, donate_argnums=0)
