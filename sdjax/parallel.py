"""One device, several by `pmap`, or a mesh: the same function, one level deep.

A function of flat batches says which of its arguments have a row for each image; the rest (weights,
plans, scales) is the same for all. `parallelize` cuts the rows into equal parts, one for each
device, and brings the results back as if nothing had happened:

    draw = parallelize(denoise, "mesh", batched=("x", "text", "keys"), static=("config",))
    latents = draw(config, params, x, text, plan, keys)  # any batch size

No device waits for another: images do not know of each other, so the compiled program holds no
communication, as long as `fn` keeps the parts of one image in one row. A guided pair of texts is
[batch, 2, ...], not [uncond ..., cond ...] one after the other, which would tear them apart.
"""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

Mode = Literal["single", "pmap", "mesh"]
"""How several devices are told to work: "single" has one; "pmap" runs the function on each device
with its part; "mesh" compiles one program for the whole batch, which the compiler divides."""

AXIS = "batch"
Devices = Sequence[jax.Device]


def parallelize(
    fn: Callable[..., Any],
    mode: Mode = "single",
    *,
    batched: Sequence[str],
    static: Sequence[str] = (),
    devices: Devices | None = None,
) -> "Parallel":
    """`fn`, compiled, over all `devices`.

    Wrapping the same function again costs nothing: programs are kept by function, mode, devices
    and static values, so `fn` should be defined once, not inside the caller.

    Args:
        fn: a function of arrays; every array it returns has the images on its first axis.
        mode: see `Mode`.
        batched: names of the arguments (trees of arrays) with the images on the first axis.
        static: names of the arguments that are hashable and no arrays.
        devices: to use; None is all of this process, and the first of them for "single".

    Returns:
        A function with the arguments of `fn`. Batches that do not divide are filled with copies of
        the last row, which are cut off again. The results lie on the first device.

    Raises:
        ValueError: for a name that is not an argument of `fn`, or devices that do not fit `mode`.
    """
    if mode not in ("single", "pmap", "mesh"):
        raise ValueError(f"unknown mode {mode!r}: choose single, pmap or mesh")
    if devices is None:
        devices = jax.local_devices()[: 1 if mode == "single" else None]
    if not devices or (mode == "single" and len(devices) > 1):
        raise ValueError(f"mode {mode!r} does not fit {len(devices)} devices")
    known = inspect.signature(fn).parameters
    for name in (*batched, *static):
        if name not in known:
            raise ValueError(f"{name!r} is no argument of {fn}: it has {', '.join(known)}")
    return Parallel(fn, mode, tuple(batched), tuple(static), tuple(devices))


def replicate(tree: Any, devices: Devices) -> Any:
    """A copy of every array on every device: once for weights, instead of at every call.

    What is there already stays where it is.
    """
    return _placed(tree, _shardings("mesh", tuple(devices))[1])


@dataclass(frozen=True)
class Parallel:
    """What `parallelize` returns."""

    fn: Callable[..., Any]
    mode: Mode
    batched: tuple[str, ...]
    static: tuple[str, ...]
    devices: Devices

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run, rows, shared, size = self._prepare(args, kwargs)
        results = jax.device_put(run(rows, shared), self.devices[0])
        return jax.tree.map(lambda x: self._flat(x)[:size], results)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The program of a call, not run: `lower(...).compile().as_text()` shows it."""
        run, rows, shared, _ = self._prepare(args, kwargs)
        return run.lower(rows, shared)

    def _prepare(self, args: Any, kwargs: Any) -> tuple[Any, Any, Any, int]:
        bound = inspect.signature(self.fn).bind(*args, **kwargs)
        bound.apply_defaults()
        shared = dict(bound.arguments)
        static = tuple((name, shared.pop(name)) for name in self.static)
        rows = {name: shared.pop(name) for name in self.batched}
        size = _batch_size(rows)
        padded = -(-size // len(self.devices)) * len(self.devices)
        each, whole = _shardings(self.mode, self.devices)
        rows = jax.device_put(jax.tree.map(lambda x: self._divided(x, padded), rows), each)
        shared = {name: _placed(argument, whole) for name, argument in shared.items()}
        return _program(self.fn, self.mode, self.devices, static), rows, shared, size

    def _divided(self, x: Any, padded: int) -> jax.Array:
        """The rows, with copies of the last up to `padded`; for pmap [devices, rows of each]."""
        x = jnp.asarray(x)
        if padded > x.shape[0]:
            x = x[np.minimum(np.arange(padded), x.shape[0] - 1)]
        return x.reshape(len(self.devices), -1, *x.shape[1:]) if self.mode == "pmap" else x

    def _flat(self, x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:]) if self.mode == "pmap" else x


@functools.cache
def _program(
    fn: Callable[..., Any],
    mode: Mode,
    devices: Devices,
    static: tuple[tuple[str, Hashable], ...],
) -> Any:
    """The compiled function of (rows, shared)."""

    def run(rows: Any, shared: Any) -> Any:
        results = fn(**rows, **shared, **dict(static))
        size = _batch_size(rows)
        for leaf in jax.tree.leaves(results):
            if leaf.shape[:1] != (size,):
                raise ValueError(
                    f"every result needs {size} images on its first axis, got {leaf.shape}"
                )
        return results

    if mode == "pmap":
        return jax.pmap(run, AXIS, in_axes=(0, None), devices=devices)
    return jax.jit(run, out_shardings=_shardings(mode, devices)[0])


@functools.cache
def _shardings(mode: Mode, devices: Devices) -> tuple[Sharding, Sharding]:
    """Where rows lie, and where the rest."""
    if mode == "single":
        here = jax.sharding.SingleDeviceSharding(devices[0])
        return here, here
    # Not `jax.make_mesh`: its axes are Explicit by default, and flax.linen.Embed fails on them.
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())


def _placed(tree: Any, sharding: Sharding) -> Any:
    """The arrays where they should be; faster than `device_put` where they are."""
    leaves = jax.tree.leaves(tree)
    if all(isinstance(leaf, jax.Array) and leaf.sharding == sharding for leaf in leaves):
        return tree
    return jax.device_put(tree, sharding)


def _batch_size(rows: dict[str, Any]) -> int:
    """The number of images, which every batched array must agree on."""
    sizes = {
        name: {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(tree)}
        for name, tree in rows.items()
    }
    found = set().union(*sizes.values())
    if found == {0}:
        raise ValueError(f"the batch is empty: {', '.join(rows)} have no rows")
    if len(found) != 1 or not (size := found.pop()):
        raise ValueError(f"the batched arguments differ in their number of rows: {sizes}")
    return size
