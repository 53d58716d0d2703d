"""Trained networks on disk."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_optax.experiments.report import replace_arrays
from entropy_optax.experiments.settings import Settings, SettingsError, from_dict
from entropy_optax.experiments.tasks import Task, make_task


class Network(NamedTuple):
    """A trained network.

    Attributes:
      settings: of its run.
      task: its data and its architecture.
      params: at the end of the run.
      model_state: BatchNorm's statistics there, `{}` without any.
    """

    settings: Settings
    task: Task
    params: Any
    model_state: Any


def save(path: pathlib.Path, params: Any, model_state: Any) -> None:
    """Keeps a network, without pickle.

    Args:
      path: of an npz file.
      params: a tree of arrays.
      model_state: another one.
    """
    named = jax.tree_util.tree_leaves_with_path([params, model_state])
    arrays = {_name(key): np.asarray(leaf) for key, leaf in named}
    replace_arrays(path, arrays)


def keeper(run: pathlib.Path) -> Callable[[str, int, Any, Any], None]:
    """Where a run's networks go.

    Args:
      run: the run's folder.

    Returns:
      From optimizer, seed, params and model state to nothing: writes a file.
    """
    return lambda optimizer, seed, params, model_state: save(
        run / "networks" / f"{optimizer}-{seed}.npz", params, model_state
    )


def load(
    run: pathlib.Path, optimizer: str | None = None, seed: int | None = None
) -> Network:
    """Reads the network of a finished run of `train` or `table1`.

    Args:
      run: the run's folder.
      optimizer: which one, if there are several.
      seed: which one, if there are several.

    Returns:
      The network.

    Raises:
      SettingsError: if there is no such run, or no such network in it.
    """
    records = [run / "result.json", run / "results.json"]
    found = [path for path in records if path.exists()]
    if not found:
        raise SettingsError(
            f"RUN: {run} has no result.json; wanted the folder of a finished run of"
            " `train` or `table1`"
        )
    settings = from_dict(Settings, json.loads(found[0].read_text())["settings"])
    optimizer = optimizer or settings.optimizer[-1]
    seed = settings.seeds[0] if seed is None else seed
    path = run / "networks" / f"{optimizer}-{seed}.npz"
    if not path.exists():
        names = sorted(p.stem for p in path.parent.glob("*.npz"))
        raise SettingsError(
            f"--optimizer, --seed: got {optimizer}-{seed}, {run} has"
            f" {', '.join(names) or 'no networks: run it again'}"
        )
    task = make_task(settings)
    params, state = jax.eval_shape(task.init, jax.random.key(0))
    with np.load(path, allow_pickle=False) as arrays:
        leaf = lambda key, like: jnp.asarray(arrays[_name(key)], like.dtype)
        params, state = jax.tree_util.tree_map_with_path(leaf, [params, state])
    variables = task.variables(params, state)
    return Network(settings, task, params, variables.get("batch_stats", {}))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
