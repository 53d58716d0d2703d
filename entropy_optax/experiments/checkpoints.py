"""Runs that can be killed at any moment and go on bit for bit."""

import pathlib
import signal
import time
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp


class Saved(NamedTuple):
    """What was restored.

    Attributes:
      gradients: done when it was saved.
      arrays: state of the training.
      chosen: params and model state of the best point so far.
      logs: one JSON object for each member.
    """

    gradients: int
    arrays: Any
    chosen: Any
    logs: list[dict[str, Any]]


class Checkpoints:
    """Orbax checkpoints of a run, now and then and when it is interrupted.

    Used as a context manager it takes over Ctrl-C: the first sets `stop`, and the run
    ends at the next moment at which its state is whole; a second one ends it at once.

    Args:
      folder: for the checkpoints alone; made if missing. Orbax writes each into a
        temporary folder and renames it, so that a kill leaves the one before.
      seconds: between two checkpoints, at least.
    """

    def __init__(self, folder: pathlib.Path, seconds: float = 30.0):
        self.folder = folder
        self.stop = False
        self._seconds = seconds
        self._last = time.monotonic()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,  # what a kill left half done
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
        self._handler: Any = None

    def __enter__(self) -> "Checkpoints":
        """Takes over Ctrl-C.

        Returns:
          Itself.
        """

        def handle(number: int, frame: Any) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True

        self._handler = signal.signal(signal.SIGINT, handle)
        return self

    def __exit__(self, *args: object) -> None:
        """Gives Ctrl-C back."""
        signal.signal(signal.SIGINT, self._handler)
        self._manager.close()

    @property
    def gradients(self) -> int:
        """Gradients done at the newest checkpoint.

        Returns:
          The number, 0 if there is no checkpoint.
        """
        return self._manager.latest_step() or 0

    def due(self) -> bool:
        """Whether it is time to save.

        Returns:
          True after `seconds`, or after Ctrl-C.
        """
        return self.stop or time.monotonic() - self._last >= self._seconds

    def save(self, gradients: int, arrays: Any, chosen: Any, logs: list[Any]) -> None:
        """Saves, and returns when it is on the disk.

        Args:
          gradients: done so far.
          arrays: state of the training.
          chosen: params and model state of the best point so far.
          logs: of the members; their attributes fit JSON.
        """
        self._manager.save(
            gradients,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave({"run": arrays, "chosen": chosen}),
                logs=ocp.args.JsonSave({"members": [vars(log) for log in logs]}),
            ),
        )
        self._manager.wait_until_finished()
        self._last = time.monotonic()

    def restore(self, arrays: Any, chosen: Any) -> Saved | None:
        """Restores the newest checkpoint.

        Args:
          arrays: a state of the same structure, shapes and dtypes.
          chosen: likewise.

        Returns:
          What was saved, or None if there is nothing.
        """
        gradients = self._manager.latest_step()
        if gradients is None:
            return None
        abstract = jax.tree.map(
            ocp.utils.to_shape_dtype_struct, {"run": arrays, "chosen": chosen}
        )
        restored = self._manager.restore(
            gradients,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(abstract),
                logs=ocp.args.JsonRestore(),
            ),
        )
        tree = restored["arrays"]
        return Saved(
            gradients, tree["run"], tree["chosen"], restored["logs"]["members"]
        )
