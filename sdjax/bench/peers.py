"""Another implementation, in a process and an environment of its own.

The process reads one request in JSON a line and answers each with one line:

    {"do": "load", "protocol": 1, "what": "unet", "folder": ..., "dtype": "float32", "threads": 2,
     "options": {...}}                  -> {"protocol": 1, "versions": {...}, "parameters": n}
    {"do": "first"}                     -> {"seconds": s}           the first call
    {"do": "run", "calls": n}           -> {"seconds": s}           of n calls
    {"do": "save", "file": ...}         -> {}                       the output of the last call
    {"do": "product", "size": n}        -> {"gflops": g}            matrix products at their fastest
    {"do": "forget"}                    -> {}                       the peak of memory begins anew
    {"do": "memory"}                    -> {"bytes": n}             that peak

or with {"error": "words"}. At the end of its input it ends.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PROTOCOL = 1
"""Of the lines above; a worker of another one was copied by an older `setup.py`."""
WORKER = "worker.py"
PEERS = ("diffusers", "diffusers-flax")
PATIENCE = 10
"""Seconds that a worker gets to end by itself."""


def default_folder() -> Path:
    """Where the environments of the peers are, if nobody says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "sdjax" / "bench"


def find_peer(name: str, folder: Path | None = None) -> tuple[Path, Path]:
    """The Python of a peer's environment, and the worker beside it.

    Raises:
        ValueError: if there is no such peer.
        FileNotFoundError: if its environment was not made.
    """
    if name not in PEERS:
        raise ValueError(f"no peer {name!r}: choose among {', '.join(PEERS)}")
    where = folder or default_folder()
    python, worker = where / name / "bin" / "python", where / WORKER
    for path in (python, worker):
        if not path.exists():
            option = "" if folder is None else f" --dir {folder}"
            raise FileNotFoundError(
                f"there is no {path}: make the environment of {name} once, in a clone, with "
                f"`python tests/benchmarks/setup.py {name}{option}`"
            )
    return python, worker


class Peer:
    """A running worker. As a context it ends with it, whatever happens."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        """Start the worker.

        Args:
            name: of `PEERS`.
            folder: of the environments; None is `default_folder()`.

        Raises:
            ValueError, FileNotFoundError: see `find_peer`.
        """
        python, worker = find_peer(name, folder)
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [str(python), str(worker), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            start_new_session=True,  # Ctrl-C is ours to handle
        )

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def ask(self, do: str, **fields: Any) -> Mapping[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            ValueError: if the worker answers with an error, or not at all.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ValueError(f"{self.name} ended at {do!r}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.name} cannot {do}: {answer['error']}")
        return answer

    def load(self, what: str, folder: Path, dtype: str, threads: int, **options: Any) -> Any:
        """Have the worker load a model and its inputs from a folder; versions and parameters.

        Raises:
            ValueError: if it cannot, or speaks another protocol.
        """
        answer = self.ask(
            "load",
            protocol=PROTOCOL,
            what=what,
            folder=str(folder),
            dtype=dtype,
            threads=threads,
            options=options,
        )
        if answer.get("protocol") != PROTOCOL:
            raise ValueError(
                f"the worker of {self.name} is of another version of sdjax: run "
                f"`python tests/benchmarks/setup.py {self.name}` again"
            )
        return answer

    def output(self, file: Path) -> np.ndarray:
        """What the last call gave, by way of a file."""
        self.ask("save", file=str(file))
        return np.load(file)

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.returncode}"
