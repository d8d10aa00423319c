"""Weights and inputs that both sides compute with: made here, handed over in files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.config import Config
from sdjax.weights.conversion import published
from sdjax.weights.folders import weights_name, write_configs
from sdjax.weights.layouts import component_shapes
from sdjax.weights.tensors import LazyTensor, write_safetensors
from sdjax.weights.tree import Params, flatten

INPUTS = "inputs.npz"
"""The file of inputs in the folder for a peer; images and latents are NHWC in it."""


def random_params(shapes: Params, seed: int) -> dict[str, Any]:
    """Random float32 weights that leave no layer idle, as zeros and identities would.

    Kernels have variance 1 / fan-in, embeddings 1 / dim, scales of norms are 1 + 0.2 n, all else is
    0.1 n, with n standard normal: activations stay near 1.
    """
    rng = np.random.default_rng(seed)

    def one(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if len(leaf.shape) > 1:
            fan_in = leaf.shape[-1] if "embedding" in name else np.prod(leaf.shape[:-1])
            noise *= np.float32(fan_in**-0.5)
        elif name == "scale":
            noise = 1 + np.float32(0.2) * noise
        else:
            noise *= np.float32(0.1)
        return noise

    return jax.tree.map_with_path(one, shapes)


def random_components(config: Config, seed: int = 0) -> dict[str, Params]:
    """Random weights of every component of a model."""
    shapes = component_shapes(config)
    return {name: random_params(tree, seed + i) for i, (name, tree) in enumerate(shapes.items())}


def write_model(config: Config, components: Mapping[str, Params], folder: Path) -> None:
    """Write a model as diffusers or transformers load it, into a folder that exists.

    Raises:
        ValueError: if no class of theirs can be this model.
    """
    write_configs(config, folder)
    leaves = {
        name: {path: _lazy(leaf) for path, leaf in flatten(tree).items()}
        for name, tree in components.items()
    }
    files = published(config, leaves, {}, "diffusers")
    for place, tensors in files.items():
        (folder / place).mkdir(exist_ok=True)
        write_safetensors(folder / place / weights_name(config, place), tensors, finite=False)


def write_inputs(inputs: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write the inputs of a call."""
    arrays: Any = dict(inputs)
    np.savez(folder / INPUTS, **arrays)


def component_of(config: Config) -> str:
    """The name of a lone network's only component."""
    (name,) = component_shapes(config)
    return name


def _lazy(leaf: np.ndarray) -> LazyTensor:
    return LazyTensor(leaf.shape, leaf.dtype, lambda: leaf)
