"""What is trained: a network and its data, as pure functions and small indices.

A task hands the runner minibatches as indices, which a compiled step turns into data.
Model state is one tree: BatchNorm's statistics, or the hidden state of an LSTM.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import jax
import numpy as np

from entropy_optax.experiments.data import load
from entropy_optax.experiments.evaluate import Score
from entropy_optax.experiments.image_task import ImageTask
from entropy_optax.experiments.language_models import LANGUAGE_MODELS
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.text import load_text
from entropy_optax.experiments.text_task import TextTask

Split = Literal["validation", "test"]


class Task(Protocol):
    """What the runner needs to know.

    Attributes:
      metric: field of `Score` that the best point is chosen by.
      data: arrays on the device, from which `gather` picks.
      batches_per_epoch: minibatches in one pass over the training data.
      description: of the data, for people.
    """

    metric: Literal["error", "loss"]
    data: Any
    batches_per_epoch: int
    description: str

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Initialises; `key -> (params, model_state)`."""
        ...

    def indices(self, seed: int) -> Iterator[np.ndarray]:
        """Names the minibatches of a run, for ever."""
        ...

    def gather(self, data: Any, indices: jax.Array) -> Any:
        """Picks one minibatch, inside a compiled step."""
        ...

    def loss(
        self, params: Any, model_state: Any, batch: Any, number: jax.Array, key: Any
    ) -> tuple[jax.Array, Any]:
        """Mean loss in training, and the new model state."""
        ...

    def variables(self, params: Any, model_state: Any) -> Any:
        """Makes what `score` evaluates."""
        ...

    def score(self, variables: Any, split: Split) -> Score:
        """Measures on one split."""
        ...


def make_task(settings: Settings) -> Task:
    """Loads the data and makes the task.

    Args:
      settings: checked settings.

    Returns:
      The task.
    """
    if settings.model in LANGUAGE_MODELS:
        return TextTask(settings, load_text(settings.data))
    dataset = load(
        settings.data,
        num_train=settings.num_train,
        label_noise=settings.label_noise,
        pool=settings.pool,
    )
    return ImageTask(settings, dataset)
