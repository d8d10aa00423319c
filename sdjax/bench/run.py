"""A measurement: our side and theirs in turn, with the same weights and inputs."""

import math
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.bench.cases import TOLERANCE, Case, Sizes, text_case, unet_case, vae_case
from sdjax.bench.drawing import pipeline_case
from sdjax.bench.exchange import write_inputs, write_model
from sdjax.bench.machine import (
    PRODUCT_SIZE,
    cores,
    machine,
    product_gflops,
)
from sdjax.bench.measuring import forget_peak_memory, peak_memory
from sdjax.bench.ours import Ours, empty_cache
from sdjax.bench.peers import Peer, find_peer
from sdjax.bench.training import train_cases
from sdjax.weights.folders import write_configs

SAMPLE = 0.2
"""Seconds that one timing takes at least: shorter calls are repeated within it."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and beside what."""

    what: str
    preset: str
    sizes: Sizes
    vs: Sequence[str] = ()
    pairs: int = 5
    folder: Path | None = None  # of the peers' environments

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"--pairs must be at least 1, got {self.pairs}")
        for name in ("batch", "size", "steps"):
            value = getattr(self.sizes, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.sizes.steps is not None and self.what != "pipeline":
            raise ValueError(f"--steps is nothing for {self.what}: leave it out")
        if self.sizes.size is not None and self.what in ("text", "train"):
            raise ValueError(f"--size is nothing for {self.what}: leave it out")
        for name in self.vs:
            find_peer(name, self.folder)

    @property
    def dtype(self) -> str:
        """The name of the type that is computed with."""
        return jnp.dtype(self.sizes.dtype).name

    @property
    def rivals(self) -> list[tuple[str, str]]:
        """Peer and type: float32 always, and ours beside it."""
        dtypes = dict.fromkeys(("float32", self.dtype))
        return [(name, dtype) for name in self.vs for dtype in dtypes]


@dataclass(eq=False)
class Rival:
    """A peer in the course of a measurement."""

    peer: Peer
    dtype: str
    result: dict[str, Any]


def bench(plan: Plan) -> dict[str, Any]:
    """Measure.

    Everything that is written lies in a temporary folder, which goes whatever happens.

    Returns:
        The machine and a result for each network, as JSON has them; see `sdjax.bench.report`.

    Raises:
        ValueError, FileNotFoundError: for an unknown model, or a peer that is missing or fails.
    """
    builders = {"unet": unet_case, "vae": vae_case, "text": text_case, "pipeline": pipeline_case}
    if plan.what == "train":
        cases = train_cases(plan.preset, plan.sizes)
    else:
        _say("making random weights ...")
        cases = [builders[plan.what](plan.preset, plan.sizes)]
    with _unwinding():
        results = [measure(case, plan) for case in cases]
    return {"machine": machine(), "results": results}


def measure(case: Case, plan: Plan) -> dict[str, Any]:
    """One network on all sides."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sdjax-bench-")))
        stack.enter_context(empty_cache(folder / "cache"))
        if plan.vs:
            _hand_over(case, folder)
        ours = case.make(_taken(case))
        _say(f"{case.name}: the first call of sdjax ...")
        first = ours.first()
        rivals = [
            _start(stack, case, name, dtype, folder, plan, ours) for name, dtype in plan.rivals
        ]
        before = _products(plan, rivals)
        # The first call was the warm-up; a short one is made again, to tell how short it is.
        estimate = first["call"] if first["call"] > 1 else ours.run(1)
        calls = max(1, math.ceil(SAMPLE / estimate))
        mine = _in_turn(ours, rivals, plan.pairs, calls)
        used = peak_memory()
        for rival in rivals:
            rival.result["peak_bytes"] = rival.peer.ask("memory")["bytes"]
        after = _products(plan, rivals)  # again: a machine that others use is not always as fast
    result = {
        "what": case.name,
        "preset": plan.preset,
        "dtype": plan.dtype,
        **case.facts,
        "parameters": case.parameters,
        "gflop": ours.operations / 1e9,
        "product_gflops": {dtype: max(before[dtype], after[dtype]) for dtype in before},
        "pairs": plan.pairs,
        "calls_per_timing": calls,
        "sdjax": {
            "first": first,
            "median": statistics.median(mine),
            "seconds": mine,
            "temporary_bytes": ours.temporary_bytes,
            "peak_bytes": used,
        },
        "peers": [rival.result for rival in rivals],
    }
    return _with_rates(result)


def check(result: Mapping[str, Any]) -> None:
    """Refuse a comparison of things that differ.

    Raises:
        ValueError: if float32 outputs are not the same, or the parameters are not as many.
    """
    for peer in result["peers"]:
        where = f"{result['what']}: sdjax and {peer['name']}"
        if peer["parameters"] not in (None, result["parameters"]):
            raise ValueError(
                f"{where} have {result['parameters']:,} and {peer['parameters']:,} parameters: "
                "these are different networks"
            )
        difference = peer["difference"]
        both_exact = result["dtype"] == peer["dtype"] == "float32"
        if both_exact and difference is not None and not difference <= TOLERANCE:
            raise ValueError(
                f"{where} differ by {difference:.2g} standard deviations of the output, more than "
                f"{TOLERANCE:g}: they compute different things, and times cannot be compared"
            )


@contextmanager
def _unwinding() -> Iterator[None]:
    """To be terminated is like Ctrl-C: what is temporary goes."""
    if threading.current_thread() is not threading.main_thread():  # signals need the main thread
        yield
        return
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _hand_over(case: Case, folder: Path) -> None:
    if case.name.startswith("train"):
        write_configs(case.model, folder)
    else:
        assert case.components is not None
        _say(f"{case.name}: handing {case.parameters:,} weights over ...")
        write_model(case.model, case.components, folder)
    write_inputs(case.inputs, folder)


def _taken(case: Case) -> Mapping[str, Any]:
    """The weights, which the case then holds no more: they are large."""
    components, case.components = case.components, None
    assert components is not None
    return components


def _start(
    stack: ExitStack, case: Case, name: str, dtype: str, folder: Path, plan: Plan, ours: Ours
) -> Rival:
    """Load a peer and make its first call, which also warms it up; compare the outputs."""
    _say(f"{case.name}: the first call of {name}, {dtype} ...")
    peer = stack.enter_context(Peer(name, plan.folder))
    loaded = peer.load(case.name, folder, dtype, cores(), **case.options)
    first = peer.ask("first")["seconds"]
    wanted = ours.output()
    difference = None
    if wanted is not None:
        difference = distance(wanted, peer.output(folder / "output.npy"), case.slack)
    result = {
        "name": name,
        "dtype": dtype,
        "versions": loaded["versions"],
        "parameters": loaded["parameters"],
        "first": {"call": first},
        "difference": difference,
    }
    return Rival(peer, dtype, result)


def distance(ours: np.ndarray, theirs: np.ndarray, slack: float = 0.0) -> float:
    """Largest difference beyond `slack`, in standard deviations of our output.

    Raises:
        ValueError: if the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"our output is {ours.shape}, theirs {theirs.shape}")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    most = np.abs(ours - theirs).max()
    return float(max(most - slack, 0.0) / ours.std())


def _products(plan: Plan, rivals: Sequence[Rival]) -> dict[str, float]:
    """The fastest matrix product of any side, by type: the machine's peak, as far as is known."""
    found = {
        dtype: product_gflops(jnp.dtype(dtype), PRODUCT_SIZE)
        for dtype in dict.fromkeys(("float32", plan.dtype))
    }
    for rival in rivals:
        theirs = rival.peer.ask("product", size=PRODUCT_SIZE)["gflops"]
        found[rival.dtype] = max(found[rival.dtype], theirs)
    return found


def _in_turn(ours: Ours, rivals: Sequence[Rival], pairs: int, calls: int) -> list[float]:
    """Ours, theirs, theirs, ours, ...: each peer is compared with the call of ours beside it.

    Who is first alternates, so that a machine that grows slower or faster favours neither.
    """
    forget_peak_memory()
    for rival in rivals:
        rival.peer.ask("forget")
        rival.result |= {"seconds": [], "sdjax_seconds": []}
    mine = []
    for i in range(pairs):
        _say(f"pair {i + 1} of {pairs} ...")
        for rival in rivals:
            for who in ("sdjax", "peer") if i % 2 == 0 else ("peer", "sdjax"):
                if who == "sdjax":
                    mine.append(ours.run(calls) / calls)
                else:
                    seconds = rival.peer.ask("run", calls=calls)["seconds"] / calls
                    rival.result["seconds"].append(seconds)
            rival.result["sdjax_seconds"].append(mine[-1])
        if not rivals:
            mine.append(ours.run(calls) / calls)
    return mine


def _with_rates(result: dict[str, Any]) -> dict[str, Any]:
    """Add what follows from the times."""
    products = result["product_gflops"]

    def rates(side: dict[str, Any], dtype: str) -> None:
        side["gflops"] = result["gflop"] / side["median"]
        side["of_peak"] = side["gflops"] / products[dtype]

    rates(result["sdjax"], result["dtype"])
    for peer in result["peers"]:
        peer["median"] = statistics.median(peer["seconds"])
        peer["ratio"] = statistics.median(peer["sdjax_seconds"]) / peer["median"]
        each = [a / b for a, b in zip(peer["sdjax_seconds"], peer["seconds"], strict=True)]
        peer["ratio_range"] = [min(each), max(each)]
        rates(peer, peer["dtype"])
    return result


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
