"""`sdjax bench`: how long networks take here, beside other implementations."""

import argparse
import json
from pathlib import Path

WHAT = ("unet", "vae", "text", "pipeline", "train")


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    bench = commands.add_parser(
        "bench",
        help="time a network, beside other implementations",
        description="Time a network with random weights: first call and repeated calls, memory, "
        "operations a second. With --vs, beside others with the same weights and inputs, in turn; "
        "a ratio below 1 means that sdjax is faster.",
    )
    bench.add_argument("what", nargs="?", choices=WHAT, default="unet", help="(unet)")
    bench.add_argument(
        "--preset", help="sd15, sd21-v, mini, or a name in `sdjax models` (sd15; train: mini)"
    )
    bench.add_argument(
        "--vs",
        nargs="+",
        default=[],
        metavar="PEER",
        help="diffusers (PyTorch), diffusers-flax; `tests/benchmarks/setup.py` installs them",
    )
    bench.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    bench.add_argument("--pairs", type=int, default=5, help="timings of each side (5)")
    bench.add_argument("--batch", type=int, help="rows of a call (2; vae and pipeline: 1)")
    bench.add_argument("--size", type=int, help="pixels, height and width (the model's own)")
    bench.add_argument("--steps", type=int, help="of a pipeline (10)")
    bench.add_argument("--dir", type=Path, help="of the peers' environments (in the user's cache)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, too")
    bench.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    import jax.numpy as jnp

    from sdjax.bench.cases import Sizes
    from sdjax.bench.report import report
    from sdjax.bench.run import Plan, bench, check

    if args.json is not None and not args.json.parent.is_dir():
        raise FileNotFoundError(f"cannot write {args.json}: there is no folder {args.json.parent}")
    sizes = Sizes(args.batch, args.size, args.steps, jnp.dtype(args.dtype))
    preset = args.preset or ("mini" if args.what == "train" else "sd15")
    found = bench(Plan(args.what, preset, sizes, args.vs, args.pairs, args.dir))
    if args.json is not None:
        partial = args.json.with_name(f".{args.json.name}.partial")
        partial.write_text(json.dumps(found, indent=2) + "\n")
        partial.replace(args.json)
    print(report(found))
    for result in found["results"]:
        check(result)
