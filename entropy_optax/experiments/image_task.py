"""Classification of images as a task for the runner."""

from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_optax.experiments.data import DataError, Dataset
from entropy_optax.experiments.evaluate import Evaluator, Score
from entropy_optax.experiments.models import MODELS
from entropy_optax.experiments.settings import Settings


def minibatches(num_examples: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Draws minibatches without replacement within an epoch, for ever.

    Args:
      num_examples: to draw from.
      batch_size: examples per minibatch; what is left of an epoch is dropped.
      seed: the same seed gives the same sequence, whatever the optimizer.

    Yields:
      Indices, `[batch_size]`.
    """
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(num_examples)
        for start in range(0, num_examples - batch_size + 1, batch_size):
            yield order[start : start + batch_size].astype(np.int32)


def model_options(settings: Settings) -> dict[str, Any]:
    """What the settings say about the network itself.

    Args:
      settings: of the experiment.

    Returns:
      Arguments of the network's class.
    """
    options = {}
    if settings.dropout_rate is not None:
        options["dropout_rate"] = settings.dropout_rate
    if settings.features is not None:
        options["features"] = settings.features
    return options


def training_loss(
    model: Any, params: Any, model_state: Any, batch: Any, key: jax.Array
) -> tuple[jax.Array, Any]:
    """Mean cross-entropy of a network in training mode.

    Args:
      model: the network.
      params: of it.
      model_state: BatchNorm's statistics.
      batch: images and labels.
      key: PRNG key of the dropout.

    Returns:
      The loss in nats, and the new statistics.
    """
    images, labels = batch
    logits, updated = model.apply(
        {"params": params, "batch_stats": model_state},
        images,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses), updated.get("batch_stats", {})


class ImageTask:
    """Classification of images.

    Args:
      settings: checked settings.
      dataset: the data.

    Raises:
      DataError: if the data set is too small for the batch or the model, or the model
        has no such option.
    """

    metric: Literal["error", "loss"] = "error"

    def __init__(self, settings: Settings, dataset: Dataset):
        count = len(dataset.train.labels)
        if settings.batch_size > count:
            raise DataError(
                f"--batch-size: got {settings.batch_size}, {dataset.name} has"
                f" {count} training examples"
            )
        if settings.features is not None:
            raise DataError("--features: is for LSTMs, of other models it is fixed")
        height, width = dataset.train.images.shape[1:3]
        least = {"lenet": 18, "lenet_small": 16}.get(settings.model, 1)
        if min(height, width) < least:
            raise DataError(
                f"--model {settings.model} wants images of {least} x {least} pixels or"
                f" more, {dataset.name} has {height} x {width}"
            )
        self.dataset = dataset
        self.description = (
            f"{dataset.name}: {count} training, {len(dataset.validation.labels)}"
            f" validation, {len(dataset.test.labels)} test images"
        )
        self.batches_per_epoch = count // settings.batch_size
        options = {"num_classes": dataset.num_classes} | model_options(settings)
        self._batch_size = settings.batch_size
        self._model = MODELS[settings.model](**options)
        self._evaluator = Evaluator(self._model, dataset.train, settings.batch_size)
        self.data = (
            jnp.asarray(dataset.train.images),
            jnp.asarray(dataset.train.labels),
        )

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Initialises.

        Args:
          key: PRNG key.

        Returns:
          Params, and BatchNorm's statistics, `{}` without any.
        """
        first = self.data[0][:1]
        variables = self._model.init(key, first, train=False)
        return variables["params"], variables.get("batch_stats", {})

    def indices(self, seed: int) -> Iterator[np.ndarray]:
        """Names the minibatches of a run.

        Args:
          seed: of the order.

        Returns:
          Indices of examples, `[batch_size]` each.
        """
        return minibatches(len(self.data[1]), self._batch_size, seed)

    def gather(self, data: Any, indices: jax.Array) -> Any:
        """Picks examples.

        Args:
          data: images and labels.
          indices: of examples.

        Returns:
          Images and labels.
        """
        images, labels = data
        return images[indices], labels[indices]

    def loss(
        self, params: Any, model_state: Any, batch: Any, number: jax.Array, key: Any
    ) -> tuple[jax.Array, Any]:
        """Mean cross-entropy with dropout.

        Args:
          params: of the network.
          model_state: BatchNorm's statistics.
          batch: images and labels.
          number: not used.
          key: PRNG key of the dropout.

        Returns:
          The loss in nats, and the new statistics.
        """
        return training_loss(self._model, params, model_state, batch, key)

    def logits(self, params: Any, model_state: Any, images: jax.Array) -> jax.Array:
        """Predicts in evaluation mode.

        Args:
          params: of the network.
          model_state: BatchNorm's statistics, `{}` without any.
          images: as those of the data set.

        Returns:
          Logits, `[batch, num_classes]`.
        """
        variables = {"params": params, "batch_stats": model_state}
        logits: Any = self._model.apply(variables, images, train=False)
        return logits

    def variables(self, params: Any, model_state: Any) -> Any:
        """Re-estimates BatchNorm's statistics.

        Args:
          params: to evaluate.
          model_state: statistics of the right structure.

        Returns:
          Variables of the network.
        """
        return self._evaluator.variables(params, model_state)

    def score(self, variables: Any, split: Literal["validation", "test"]) -> Score:
        """Measures.

        Args:
          variables: from `variables`.
          split: its name.

        Returns:
          Error in per cent and mean cross-entropy.
        """
        return self._evaluator.score(variables, getattr(self.dataset, split))
