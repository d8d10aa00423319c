"""The README's table of speed, of what `sdjax bench --json` wrote into `results/`.

    python tests/benchmarks/table.py

Each file is of one command (`COMMANDS`), and all are of one machine.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from sdjax.bench.report import PARTS, seconds

RESULTS = Path(__file__).resolve().parent / "results"
HEAD = ("", "sdjax", "beside it", "ratio (of single pairs)", "temporary memory", "compilation")
COMMANDS = {
    "unet": "unet --vs diffusers diffusers-flax",
    "unet-sd21": "unet --preset sd21-v --vs diffusers",
    "vae": "vae --vs diffusers",
    "text": "text --vs diffusers",
    "pipeline": "pipeline --vs diffusers",
    "unet-bfloat16": "unet --dtype bfloat16 --vs diffusers",
    "train": "train --vs diffusers",
}
"""By file, in the order of the table: `sdjax bench COMMAND --json results/NAME.json`."""
MODELS = {"sd15": "Stable Diffusion 1", "sd21-v": "Stable Diffusion 2.1", "mini": "mini"}
PEERS = {"diffusers": "PyTorch", "diffusers-flax": "diffusers' Flax"}


def table() -> str:
    """In Markdown, a row for each network and peer that computes in the same type."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for name in COMMANDS:
        found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for result in found["results"]:
            for peer in result["peers"]:
                if peer["dtype"] == result["dtype"]:
                    rows.append(_again(result, peer))
            if result["what"] == "pipeline":
                rows.append(_first(result))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _again(result: dict[str, Any], peer: dict[str, Any]) -> tuple[str, ...]:
    """A call when everything is compiled."""
    ours = result["sdjax"]
    least, most = peer["ratio_range"]
    temporary = ours["temporary_bytes"]
    compiled = sum(ours["first"].get(part, 0.0) for part in PARTS if part != "call")
    return (
        _name(result),
        seconds(statistics.median(peer["sdjax_seconds"])),  # those beside this peer
        f"{PEERS[peer['name']]} {seconds(peer['median'])}",
        f"{peer['ratio']:.3f} ({least:.2f} to {most:.2f})",
        "" if temporary is None else f"{temporary / 2**20:,.0f} MiB",
        seconds(compiled) if compiled else "",
    )


def _first(result: dict[str, Any]) -> tuple[str, ...]:
    """The first call, with compilations on disk."""
    cached, first = result["sdjax"]["first"]["cached"], result["peers"][0]["first"]["call"]
    theirs = f"PyTorch's first {seconds(first)}"
    ratio = f"{cached / first:.3f}"
    return ("its first call, with compilations on disk", seconds(cached), theirs, ratio, "", "")


def _name(result: dict[str, Any]) -> str:
    model = MODELS[result["preset"]]
    rows = f"batch {result['batch']}"
    height, width = result.get("latents") or result.get("pixels") or (0, 0)
    type_ = "" if result["dtype"] == "float32" else f" in {result['dtype']}"
    match result["what"]:
        case "unet":
            return f"UNet of {model}{type_}, {rows}, {height} x {width} latents"
        case "vae":
            return f"decoder of {model}{type_}, {height} x {width} pixels"
        case "text":
            return f"text tower of {model}{type_}, {rows}"
        case "pipeline":
            steps = result["steps"]
            return f"a picture by {model}{type_}, {height} x {width} pixels, {steps} steps"
        case what:
            part = what.removeprefix("train ").replace("unet", "UNet")
            return f"training step of {model}'s {part}, {rows}"


if __name__ == "__main__":
    print(table())
