"""Training state on disk, by Orbax: every save is whole or not there."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from sdjax.training.state import TrainState


class Checkpoints:
    """The last two states of a run, under `folder/checkpoints`.

    Orbax writes into a temporary folder and renames it, so a process killed while saving leaves
    the previous checkpoint as the latest one.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Store the state under its step number; a step already stored is left alone."""
        step = int(state.step)
        if step != self.latest():
            host = jax.tree.map(np.asarray, state)
            self._manager.save(step, args=ocp.args.StandardSave(host._asdict()))

    def restore(self, like: TrainState) -> TrainState:
        """The newest state; `like` gives the tree, shapes and dtypes.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the stored state is of another model or optimizer.
        """
        step = self.latest()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory} to resume from")
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like._asdict())
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except ValueError as error:
            raise ValueError(f"checkpoint {step} is of another model: {error}") from error
        leaves = zip(jax.tree.leaves_with_path(target), jax.tree.leaves(restored), strict=True)
        for (path, wanted), found in leaves:
            if wanted.shape != found.shape:
                raise ValueError(
                    f"checkpoint {step} is of another model: {jax.tree_util.keystr(path)} is "
                    f"{found.shape}, this preset wants {wanted.shape}"
                )
        return TrainState(**jax.tree.map(jax.numpy.asarray, restored))

    def close(self) -> None:
        """Finish and free Orbax's resources."""
        self._manager.close()
