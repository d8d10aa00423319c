"""Compiled programs are kept, and found by the next process."""

import os
import subprocess
import sys

import jax
import pytest

from sdjax.compilation import keep_compilations

PROGRAM = """
import jax, jax.numpy as jnp
from sdjax import compilation

compilation.SHORTEST = 0.0
compilation.keep_compilations({folder})
heard = []
jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
jax.jit(lambda x: jnp.sin(x) + 3)(jnp.ones(5)).block_until_ready()
print(heard.count("/jax/compilation_cache/cache_hits"))
"""


def hits(folder, environment=()):
    """Programs that a new process finds, in a folder or where it looks by itself."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    text = PROGRAM.format(folder=None if folder is None else repr(str(folder)))
    done = subprocess.run(
        [sys.executable, "-c", text], env=keep | dict(environment), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_the_next_process_finds_what_was_compiled(tmp_path):
    assert hits(tmp_path / "kept") == 0
    assert hits(tmp_path / "kept") > 0
    # What is kept may be moved.
    (tmp_path / "kept").rename(tmp_path / "moved")
    assert hits(tmp_path / "moved") > 0


def test_without_a_folder_it_is_the_user_s_or_the_variable_s(tmp_path):
    assert hits(None, {"XDG_CACHE_HOME": str(tmp_path)}) == 0
    assert any((tmp_path / "sdjax" / "jax").iterdir())
    chosen = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "chosen")}
    assert hits(None, chosen) == 0
    assert hits(None, chosen) > 0


def test_a_file_is_no_folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        keep_compilations(tmp_path / "file")
    assert jax.config.jax_compilation_cache_dir == before
