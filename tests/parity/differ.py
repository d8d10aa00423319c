"""Which layer diverges first: a network of sdjax beside the same network in PyTorch.

    ours = record_flax(UNet(config), params, x, timesteps, context)
    theirs = record_torch(unet, lambda: unet(x, timesteps, context))
    print(report(pair(unet_table(config), ours, theirs)))

A layer here owns parameters, and the weight table says what they are called there: that pairs the
layers, and there is no second list of names. Layers that the other side fuses into one (query, key
and value in one matrix) have no partner, nor have those whose outputs count other positions (all
tokens there, the first here); what they get wrong shows in the next layer that has one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import torch

from sdjax.nn.functional import Params
from sdjax.weights.rules import Table
from sdjax.weights.tree import flatten

TOLERANCE = 1e-4
"""Largest error, in standard deviations of the PyTorch layer's output, that is not a divergence."""

LAYER_LEAVES = ("kernel", "scale", "embedding")
"""What Flax's own layers and ours call the array that PyTorch's call `weight`."""

CHANNELS_SECOND = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.GroupNorm)

Outputs = dict[str, np.ndarray]
"""The output of each layer the first time that it ran, [batch, positions, channels]."""


@dataclass(frozen=True)
class Layer:
    """One layer on both sides, and how far apart its outputs are."""

    path: str  # here
    source: str  # in PyTorch
    error: float  # largest difference / standard deviation of PyTorch's output

    def diverges(self, tolerance: float = TOLERANCE) -> bool:
        """True as well for an error that is not a number."""
        return not self.error <= tolerance


def record_flax(
    module: nn.Module, params: Params, *args: Any, method: str | None = None
) -> Outputs:
    """Outputs of every layer of `module`, by its path."""
    leaves = (path.rpartition("/") for path in flatten(params))
    paths = {layer for layer, _, leaf in leaves if leaf in LAYER_LEAVES}

    def wanted(layer: nn.Module, name: str) -> bool:
        return name == "__call__" and "/".join(layer.path) in paths

    @jax.jit
    def run(params: Params) -> Any:
        _, state = module.apply(
            {"params": params},
            *args,
            method=method,
            capture_intermediates=wanted,
            mutable=["intermediates"],
        )
        return state["intermediates"]

    captured = {path.rpartition("/"): calls for path, calls in flatten(run(params)).items()}
    return {
        layer: _flat(calls[0]) for (layer, _, name), calls in captured.items() if name == "__call__"
    }


def record_torch(module: torch.nn.Module, run: Callable[[], Any]) -> Outputs:
    """Outputs of every layer of `module` while `run()` runs, by name, in the order they came."""
    outputs: Outputs = {}

    def note(name: str, tensor: torch.Tensor, channels_second: bool) -> None:
        array = tensor.detach().clone().numpy()
        outputs.setdefault(name, _flat(np.moveaxis(array, 1, -1) if channels_second else array))

    def watch(name: str, layer: torch.nn.Module) -> Any:
        second = isinstance(layer, CHANNELS_SECOND)
        if isinstance(layer, torch.nn.MultiheadAttention):  # runs none of its own layers
            return layer.register_forward_hook(
                lambda _layer, _args, output: note(f"{name}.out_proj", output[0], False)
            )
        if isinstance(layer, torch.nn.GroupNorm) and hasattr(layer, "activation"):  # runs it too
            return layer.activation.register_forward_pre_hook(
                lambda _layer, args: note(name, args[0], second)
            )
        return layer.register_forward_hook(lambda _layer, _args, output: note(name, output, second))

    handles = [
        watch(name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.MultiheadAttention)
        or isinstance(getattr(layer, "weight", None), torch.Tensor)
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def pair(table: Table, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Layer]:
    """Every layer that both sides have, in the order that PyTorch ran them.

    Raises:
        ValueError: if there is none, as with another network's table.
    """
    paths = {source: path for path in ours for source in _sources(table, path) if source in theirs}
    layers = [
        Layer(paths[source], source, error(ours[paths[source]], output))
        for source, output in theirs.items()
        if source in paths and ours[paths[source]].shape == output.shape
    ]
    if not layers:
        raise ValueError(
            f"no layer in common: {len(ours)} here, such as {next(iter(ours), None)!r}; "
            f"{len(theirs)} in PyTorch, such as {next(iter(theirs), None)!r}"
        )
    return layers


def first_divergence(layers: Iterable[Layer], tolerance: float = TOLERANCE) -> Layer | None:
    """The first layer whose error is above `tolerance`; None if all agree."""
    return next((layer for layer in layers if layer.diverges(tolerance)), None)


def report(layers: list[Layer], tolerance: float = TOLERANCE) -> str:
    """One line per layer up to the first that diverges, with its error."""
    first = first_divergence(layers, tolerance)
    if first is None:
        worst = max(layers, key=lambda layer: layer.error)
        return f"all {len(layers)} layers agree; the worst is {worst.path}, {worst.error:.1e}"
    shown = layers[: layers.index(first) + 1]
    lines = [f"{layer.error:8.1e}  {layer.path}  <->  {layer.source}" for layer in shown]
    return "\n".join([*lines, f"first divergence: {first.path} ({len(shown)} of {len(layers)})"])


def error(ours: Any, theirs: Any) -> float:
    """Largest absolute difference, in standard deviations of `theirs`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {ours.shape} here, {theirs.shape} in PyTorch")
    return float(np.abs(ours - theirs).max() / (theirs.std() or 1.0))


def _sources(table: Table, path: str) -> list[str]:
    """The PyTorch modules that may hold the weights of the layer at `path`."""
    names = [name for leaf in LAYER_LEAVES for name, *_ in table.sources(f"{path}/{leaf}")]
    return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]


def _flat(output: Any) -> np.ndarray:
    array = np.asarray(output)
    return array.reshape(array.shape[0], -1, array.shape[-1])
