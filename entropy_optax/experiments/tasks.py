"""What is trained: a network and its data, as pure functions and small indices.

A task hands the runner minibatches as indices, which a compiled step turns into data.
Model state is one tree: BatchNorm's statistics, or the hidden state of an LSTM.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_optax.experiments.data import DataError, Dataset, load
from entropy_optax.experiments.evaluate import Evaluator, Score, TextEvaluator
from entropy_optax.experiments.language_models import LANGUAGE_MODELS
from entropy_optax.experiments.models import MODELS
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.text import TextDataset, batchify, load_text

Split = Literal["validation", "test"]


class Task(Protocol):
    """What the runner needs to know.

    Attributes:
      metric: field of `Score` that the best point is chosen by.
      data: arrays on the device, from which `gather` picks.
      batches_per_epoch: minibatches in one pass over the training data.
    """

    metric: Literal["error", "loss"]
    data: Any
    batches_per_epoch: int

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


class ImageTask:
    """Classification of images.

    Args:
      settings: checked settings.
      dataset: the data.

    Raises:
      DataError: if the data set is too small for the batch or the model.
    """

    metric: Literal["error", "loss"] = "error"

    def __init__(self, settings: Settings, dataset: Dataset):
        count = len(dataset.train.labels)
        if settings.batch_size > count:
            raise DataError(
                f"--batch-size: got {settings.batch_size}, {dataset.name} has"
                f" {count} training examples"
            )
        height, width = dataset.train.images.shape[1:3]
        if settings.model == "lenet" and min(height, width) < 18:
            raise DataError(
                f"--model lenet wants images of 18 x 18 pixels or more, {dataset.name}"
                f" has {height} x {width}"
            )
        self.dataset = dataset
        self.batches_per_epoch = count // settings.batch_size
        options = {"num_classes": dataset.num_classes} | _model_options(settings)
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
        images, labels = batch
        logits, updated = self._model.apply(
            {"params": params, "batch_stats": model_state},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), updated.get("batch_stats", {})

    def variables(self, params: Any, model_state: Any) -> Any:
        """Re-estimates BatchNorm's statistics.

        Args:
          params: to evaluate.
          model_state: statistics of the right structure.

        Returns:
          Variables of the network.
        """
        return self._evaluator.variables(params, model_state)

    def score(self, variables: Any, split: Split) -> Score:
        """Measures.

        Args:
          variables: from `variables`.
          split: its name.

        Returns:
          Error in per cent and mean cross-entropy.
        """
        return self._evaluator.score(variables, getattr(self.dataset, split))


class TextTask:
    """Prediction of the next token, with a hidden state handed on within an epoch.

    Args:
      settings: checked settings.
      dataset: the data.
    """

    metric: Literal["error", "loss"] = "loss"

    def __init__(self, settings: Settings, dataset: TextDataset):
        self.dataset = dataset
        options = {"vocab_size": dataset.vocab_size} | _model_options(settings)
        self._batch_size = settings.batch_size
        self._model = LANGUAGE_MODELS[settings.model](**options)
        windows = batchify(
            dataset.train, settings.batch_size, settings.sequence_length
        )
        self.data = jnp.asarray(windows)
        self.batches_per_epoch = len(windows)
        self._evaluator = TextEvaluator(self._model, settings.sequence_length)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Initialises.

        Args:
          key: PRNG key.

        Returns:
          Params; the hidden state before and after the newest minibatch and its number.
        """
        start = self._model.initial_carry(self._batch_size)
        tokens = self.data[0, :, :-1]
        variables = self._model.init(key, tokens, start, train=False)
        state = {"before": start, "after": start, "number": jnp.int32(-1)}
        return variables["params"], state

    def indices(self, seed: int) -> Iterator[np.ndarray]:
        """Names the minibatches: windows in the order of the text, epoch by epoch.

        Args:
          seed: not used; the order of a text is given.

        Returns:
          Numbers of windows, of shape `()`.
        """
        return itertools.cycle(np.arange(self.batches_per_epoch, dtype=np.int32))

    def gather(self, data: Any, indices: jax.Array) -> Any:
        """Picks a window.

        Args:
          data: all windows.
          indices: the window's number.

        Returns:
          Its number and its tokens, `[batch_size, sequence_length + 1]`.
        """
        return indices, data[indices]

    def loss(
        self, params: Any, model_state: Any, batch: Any, number: jax.Array, key: Any
    ) -> tuple[jax.Array, Any]:
        """Mean cross-entropy of the next token with dropout.

        Args:
          params: of the network.
          model_state: see `init`.
          batch: number of the window in its epoch and its tokens.
          number: of the minibatch in the run; SAM takes two gradients with one number,
            and both start from the same hidden state.
          key: PRNG key of the dropout.

        Returns:
          The loss in nats, and the new hidden state.
        """
        window, tokens = batch
        again = model_state["number"] == number
        carry = jax.tree.map(
            lambda before, after: jnp.where(
                window == 0, 0.0, jnp.where(again, before, after)
            ),
            model_state["before"],
            model_state["after"],
        )
        logits, after = self._model.apply(
            {"params": params},
            tokens[:, :-1],
            carry,
            train=True,
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(losses), {"before": carry, "after": after, "number": number}

    def variables(self, params: Any, model_state: Any) -> Any:
        """Wraps the params.

        Args:
          params: to evaluate.
          model_state: not used, evaluation starts from zeros.

        Returns:
          Variables of the network.
        """
        return {"params": params}

    def score(self, variables: Any, split: Split) -> Score:
        """Measures.

        Args:
          variables: from `variables`.
          split: its name.

        Returns:
          Wrong next tokens in per cent and nats per token.
        """
        return self._evaluator.score(variables, getattr(self.dataset, split))


def _model_options(settings: Settings) -> dict[str, Any]:
    options = {}
    if settings.dropout_rate is not None:
        options["dropout_rate"] = settings.dropout_rate
    if settings.features is not None:
        options["features"] = settings.features
    return options
