"""`entropy-optax table1` on a tiny row: `python drive_table1.py SECONDS FLAGS...`.

SECONDS pass after each line of metrics, so that a kill finds a run on its way.
"""

import functools
import sys
import time

import jax

from entropy_optax.experiments import checkpoints, image_task, models, table1
from entropy_optax.experiments.cli import main

PRESET = {
    "model": "mnistfc",
    "data": "tiny",
    "batch_size": 8,
    "num_gradients": 24,
    "report_every": 2,
    "evaluate_every": 4,
    "entropy_sgd": {"num_steps": 2},
}


def shrink(patch, seconds=0.0, between=1e6):
    """Makes the row small.

    Args:
      patch: as `setattr`.
      seconds: to sleep after each line of metrics.
      between: seconds between two checkpoints.
    """
    small = functools.partial(models.MnistFC, features=(16,))
    patch(image_task, "MODELS", {"mnistfc": small})
    patch(table1, "load_preset", lambda name: {"settings": PRESET})
    patch(table1, "preset_names", lambda: ["mnistfc_short", "lenet_paper"])
    patch(
        table1,
        "Checkpoints",
        functools.partial(checkpoints.Checkpoints, seconds=between),
    )
    show = table1.ProgressDisplay.__call__

    def slowly(self, progress):
        show(self, progress)
        time.sleep(seconds)

    patch(table1.ProgressDisplay, "__call__", slowly)


if __name__ == "__main__":
    # As in the tests, for numbers are to be equal bit for bit.
    jax.config.update("jax_disable_most_optimizations", True)
    shrink(setattr, float(sys.argv[1]), between=0.0)
    sys.exit(main(sys.argv[2:]))
