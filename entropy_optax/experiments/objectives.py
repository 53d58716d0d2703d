"""The loss and the error of a network as functions of the params alone."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from entropy_optax import measure
from entropy_optax.experiments.image_task import ImageTask
from entropy_optax.experiments.tasks import Task
from entropy_optax.experiments.text_task import TextTask


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
