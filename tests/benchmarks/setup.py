"""Make the environments that `sdjax bench --vs` compares with, once.

    python tests/benchmarks/setup.py [diffusers] [diffusers-flax] [--dir FOLDER]

Each gets a virtual environment of its own below the user's cache folder, with pinned versions, and
the worker of `sdjax bench` beside it. An environment that is there is brought up to date.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from sdjax.bench import measuring
from sdjax.bench.peers import PEERS, WORKER, default_folder

PINNED = {
    "diffusers": ("torch==2.13.0", "diffusers==0.35.2", "transformers<5", "safetensors"),
    "diffusers-flax": (
        "jax==0.10.2",
        "flax==0.12.8",
        "diffusers==0.35.2",
        "transformers<5",
        "safetensors",
    ),
}
"""Of diffusers the last version with Flax networks; of JAX that which sdjax was measured with."""
INDEX = {"diffusers": ("--extra-index-url", "https://download.pytorch.org/whl/cpu")}
"""PyTorch for CPUs alone, which is much smaller, is in an index of its own."""
HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"{', '.join(PEERS)} (all)")
    parser.add_argument("--dir", type=Path, default=default_folder(), help="where (%(default)s)")
    options = parser.parse_args()
    peers = options.peers or list(PEERS)
    if unknown := set(peers) - set(PEERS):
        parser.error(f"no peer {sorted(unknown)[0]!r}: choose among {', '.join(PEERS)}")
    options.dir.mkdir(parents=True, exist_ok=True)
    for name in peers:
        done = make(name, options.dir)
        if done:
            return done
    for path in (*HERE.glob("*.py"), Path(measuring.__file__)):
        if path.stem not in ("setup", "table"):  # what this side needs
            shutil.copy(path, options.dir)
    assert (options.dir / WORKER).is_file()
    print(f"ready: {', '.join(peers)} in {options.dir}")
    return 0


def make(name: str, folder: Path) -> int:
    """The environment of one peer; the exit status of pip."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *INDEX.get(name, ()), *PINNED[name]]
    print(shlex.join(command), flush=True)
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
