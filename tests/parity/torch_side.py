"""What every comparison with PyTorch needs: its weights, its arrays, its layouts."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jax import Array


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights everywhere, and evaluation mode.

    Matrices and kernels get variance 1 / fan-in, scales of norms 1 + 0.2 n, all others 0.1 n, where
    n is standard normal: every layer has an influence, those that start at zero or one as well, and
    activations stay near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(generator=generator)
            if weight.ndim >= 2:
                weight.mul_(weight[0].numel() ** -0.5)
            elif weight.ndim == 1 and name.endswith("weight"):
                weight.mul_(0.2).add_(1.0)
            else:
                weight.mul_(0.1)
    return module.eval()


def tensors(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The checkpoint that PyTorch would save; the arrays share its memory."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal numbers, laid out as PyTorch has them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ours(tensor: torch.Tensor) -> Array:
    """The same array in our layout: NCHW becomes NHWC."""
    array = tensor.detach().numpy()
    return jnp.asarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def run(call: Any, *args: Any, **kwargs: Any) -> Any:
    """`call(...)` without gradients."""
    with torch.no_grad():
        return call(*args, **kwargs)
