"""Checkpoints: exact, whole or absent, and refused by another model."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.training.checkpoint import Checkpoints
from sdjax.training.state import Recipe, init_state

RECIPE = Recipe(steps=10, batch=2, learning_rate=0.1)


def state_at(step, width=2, seed=0):
    """A state whose numbers differ everywhere."""
    kernel = jax.random.normal(jax.random.key(seed), (3, width))
    state = init_state({"dense": {"kernel": kernel, "bias": jnp.arange(width) / 3}}, RECIPE)
    shaken = jax.tree.map(
        lambda x: (x + 0.1 * step + 1e-7).astype(x.dtype), state._replace(step=jnp.int32(0))
    )
    return shaken._replace(step=jnp.int32(step))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def checkpoints(folder):
    manager = Checkpoints(folder)
    yield manager
    manager.close()


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_what_is_saved_is_restored_bit_for_bit(checkpoints, folder):
    checkpoints.save(state_at(3))
    assert_same(checkpoints.restore(state_at(0, seed=1)), state_at(3))
    again = Checkpoints(folder)
    assert again.latest() == 3
    assert_same(again.restore(state_at(0)), state_at(3))
    again.close()


def test_the_newest_two_stay(checkpoints, folder):
    for step in (1, 2, 5):
        checkpoints.save(state_at(step))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "5"]
    assert_same(checkpoints.restore(state_at(0)), state_at(5))


def test_a_step_already_stored_is_left_alone(checkpoints):
    checkpoints.save(state_at(4))
    checkpoints.save(state_at(4, seed=1))
    assert_same(checkpoints.restore(state_at(0)), state_at(4))


def test_half_written_folders_are_ignored(checkpoints, folder):
    checkpoints.save(state_at(4))
    half = folder / "checkpoints" / "6.orbax-checkpoint-tmp"
    (half / "default").mkdir(parents=True)
    (half / "default" / "manifest.ocdbt").write_bytes(b"half")
    again = Checkpoints(folder)
    assert again.latest() == 4
    assert_same(again.restore(state_at(0)), state_at(4))
    again.save(state_at(6))
    assert again.latest() == 6
    again.close()


def test_an_old_folder_half_deleted_does_no_harm(checkpoints, folder):
    for step in (2, 4):
        checkpoints.save(state_at(step))
    shutil.rmtree(folder / "checkpoints" / "2" / "default")
    again = Checkpoints(folder)
    assert_same(again.restore(state_at(0)), state_at(4))
    again.save(state_at(6))
    again.close()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "6"]


def test_nothing_to_restore(checkpoints):
    assert checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match="no checkpoint in .* to resume from"):
        checkpoints.restore(state_at(0))


def test_another_model_is_refused(checkpoints):
    checkpoints.save(state_at(3))
    words = r"checkpoint 3 is of another model: .*\['dense'\]\['bias'\] is \(2,\), .* wants \(5,\)"
    with pytest.raises(ValueError, match=words):
        checkpoints.restore(state_at(0, width=5))
    other = init_state({"dense": {"kernel": jnp.zeros((3, 2))}}, RECIPE)
    with pytest.raises(ValueError, match="checkpoint 3 is of another model"):
        checkpoints.restore(other)
