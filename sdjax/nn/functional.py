"""Linen modules as functions of a parameter tree: the calls used outside the networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

Params = dict[str, Any]
"""A parameter tree: nested dicts whose paths read like the architecture."""


def init_params(module: nn.Module, key: Array, *args: Any) -> Params:
    """Fresh parameters of a module for arguments of these shapes."""
    return module.init(key, *args)["params"]  # pyright: ignore[reportReturnType]


def dtype_of(params: Params) -> DTypeLike:
    """The type of the parameters, in which UNets and text towers then compute.

    Whatever it is, statistics of norms, softmaxes, timesteps and schedules are float32.
    """
    return jnp.result_type(*jax.tree.leaves(params))


def apply(
    module: nn.Module,
    params: Params,
    *args: Any,
    method: str | None = None,
    dropout: Array | None = None,
) -> Any:
    """`module(*args)`, or its method of that name, with these parameters.

    With the key `dropout` the network drops activations, as in training.
    """
    rngs = None if dropout is None else {"dropout": dropout}
    return module.apply({"params": params}, *args, method=method, rngs=rngs)


def keep(module: nn.Module, name: str, value: Array) -> None:
    """Called inside a network: set an inner result aside for `inspect`, for nothing without it."""
    module.sow("intermediates", name, value, init_fn=lambda: value, reduce_fn=lambda _, new: new)


def inspect(module: nn.Module, params: Params, *args: Any) -> tuple[Any, Params]:
    """`apply`, and what the module and its parts have set aside: (output, {name: value})."""
    kept: Any
    output, kept = module.apply({"params": params}, *args, mutable=["intermediates"])
    return output, kept.get("intermediates", {})
