"""Trained networks on disk, and their losses as functions of the params alone."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_optax import measure
from entropy_optax.experiments.image_task import ImageTask
from entropy_optax.experiments.settings import Settings, SettingsError, from_dict
from entropy_optax.experiments.tasks import Task, make_task
from entropy_optax.experiments.text_task import TextTask


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


class Objectives(NamedTuple):
    """What is measured of a network, on the same examples.

    Attributes:
      loss: mean cross-entropy in nats, with a Gauss-Newton matrix.
      error: share of wrong predictions.
      description: of the examples, for people.
    """

    loss: measure.Objective
    error: measure.Objective
    description: str


def save(path: pathlib.Path, params: Any, model_state: Any) -> None:
    """Keeps a network, without pickle.

    Args:
      path: of an npz file.
      params: a tree of arrays.
      model_state: another one.
    """
    named = jax.tree_util.tree_leaves_with_path([params, model_state])
    arrays = {_name(key): np.asarray(leaf) for key, leaf in named}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    part.replace(path)


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


def objectives(
    task: Task, params: Any, model_state: Any, num_examples: int, chunk_size: int = 100
) -> Objectives:
    """The loss and the error on the first training examples, in evaluation mode.

    Args:
      task: network and data. Of a text the examples are windows, each read from a
        hidden state of zeros.
      params: any, to try the loss on.
      model_state: BatchNorm's statistics, `{}` without any.
      num_examples: at most.
      chunk_size: examples computed at once.

    Returns:
      Both as functions of the params.

    Raises:
      TypeError: for a task that is neither of images nor of text.
    """
    if isinstance(task, ImageTask):
        inputs, targets = (array[:num_examples] for array in task.data)
        description = f"the first {len(targets)} training images of {task.dataset.name}"
        logits = lambda p, x: task.logits(p, model_state, x)
    elif isinstance(task, TextTask):
        windows = task.data.reshape(-1, task.data.shape[-1])[:num_examples]
        inputs, targets = windows[:, :-1], windows[:, 1:]
        description = (
            f"{len(targets)} windows of {targets.shape[1]} characters of"
            f" {task.dataset.name}'s training text"
        )
        logits = task.logits
    else:
        raise TypeError(f"task: got {type(task).__name__}")
    data = {"inputs": inputs, "targets": targets}
    predict = lambda p, batch: logits(p, batch["inputs"])
    criterion = lambda outputs, batch: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(outputs, batch["targets"])
    )
    wrong = lambda p, batch: jnp.mean(
        jnp.argmax(predict(p, batch), axis=-1) != batch["targets"]
    )
    options = {"chunk_size": chunk_size}
    return Objectives(
        measure.model_objective(predict, criterion, data, params, **options),
        measure.objective(wrong, data, params, **options),
        description,
    )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
