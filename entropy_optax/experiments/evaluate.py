"""Error rates with BatchNorm statistics re-estimated at the evaluated parameters."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_optax.experiments.data import Split
from entropy_optax.experiments.text import batchify
from entropy_optax.training import reestimate_batch_stats

# A convolution's statistics average 1,024 images times all positions; a full pass over
# the training data before each measurement would cost more than the training.
_NUM_STATISTICS_BATCHES = 8
_EVALUATION_BATCH = 200
NUM_STREAMS = 20
"""Parts of a text that are read side by side."""


class Score(NamedTuple):
    """Measured on one split.

    Attributes:
      error: misclassified examples, in per cent.
      loss: mean cross-entropy, in nats.
    """

    error: float
    loss: float


class Evaluator:
    """Evaluates parameters of one model on the splits of one data set.

    The running statistics of BatchNorm follow the inner iterates x' of Entropy-SGD and
    lag behind the parameters of any optimizer. So every optimizer alike is evaluated
    with statistics averaged over the same training batches, dropout off.

    Args:
      model: module with a `dropout_rate`, called with `train=`.
      train: training split, whose first 8 batches give the statistics.
      batch_size: examples per such batch, as in training.
    """

    def __init__(self, model: nn.Module, train: Split, batch_size: int):
        count = max(1, min(_NUM_STATISTICS_BATCHES, len(train.images) // batch_size))
        images = train.images[: count * batch_size]
        self._batches = jnp.asarray(images.reshape(count, -1, *images.shape[1:]))
        without_dropout = model.clone(dropout_rate=0.0)

        def reestimate(params: Any, batch_stats: Any, batches: jax.Array) -> Any:
            def update_stats(stats: Any, batch: jax.Array) -> Any:
                _, updated = without_dropout.apply(
                    {"params": params, "batch_stats": stats},
                    batch,
                    train=True,
                    mutable=["batch_stats"],
                )
                return updated["batch_stats"]

            return reestimate_batch_stats(update_stats, batch_stats, batches)

        def measure(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            logits: Any = model.apply(variables, images, train=False)
            # Padding has the label -1: it counts nowhere.
            real = labels >= 0
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.maximum(labels, 0)
            )
            wrong = jnp.argmax(logits, axis=-1) != labels
            return jnp.stack([jnp.sum(real * wrong), jnp.sum(real * losses)])

        self._reestimate = jax.jit(reestimate)
        self._measure = jax.jit(measure)

    def variables(self, params: Any, batch_stats: Any) -> dict[str, Any]:
        """Puts parameters and re-estimated statistics together.

        Args:
          params: parameters x to evaluate.
          batch_stats: any statistics of the right structure, `{}` without BatchNorm.

        Returns:
          Variables for `model.apply(..., train=False)`.
        """
        if not batch_stats:
            return {"params": params}
        stats = self._reestimate(params, batch_stats, self._batches)
        return {"params": params, "batch_stats": stats}

    def score(self, variables: dict[str, Any], split: Split) -> Score:
        """Measures error and loss.

        Args:
          variables: from `variables`.
          split: the examples.

        Returns:
          The error in per cent and the mean cross-entropy.
        """
        total = np.zeros(2)
        for start in range(0, len(split.labels), _EVALUATION_BATCH):
            images = split.images[start : start + _EVALUATION_BATCH]
            labels = split.labels[start : start + _EVALUATION_BATCH]
            missing = _EVALUATION_BATCH - len(labels)
            if missing:  # one shape, one compilation
                images = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
                labels = np.pad(labels, (0, missing), constant_values=-1)
            sums = self._measure(variables, images, labels)
            total += np.asarray(jax.block_until_ready(sums))
        wrong, loss = total / len(split.labels)
        return Score(error=100 * float(wrong), loss=float(loss))


class TextEvaluator:
    """Evaluates a language model over a text, read once from its beginning.

    Args:
      model: called as those of `language_models`, with a hidden state handed on.
      length: tokens per call; the result does not depend on it.
      num_streams: parts of equal length that are read side by side, each from a hidden
        state of zeros; at most `num_streams * length` last tokens are left out.
    """

    def __init__(self, model: nn.Module, length: int, num_streams: int = NUM_STREAMS):
        self._length = length
        self._num_streams = num_streams

        def measure(variables: Any, windows: jax.Array) -> jax.Array:
            def body(carry: Any, window: jax.Array) -> tuple[Any, jax.Array]:
                inputs, targets = window[:, :-1], window[:, 1:]
                logits, carry = model.apply(variables, inputs, carry, train=False)
                losses = optax.softmax_cross_entropy_with_integer_labels(
                    logits, targets
                )
                wrong = jnp.argmax(logits, axis=-1) != targets
                return carry, jnp.stack([jnp.mean(wrong), jnp.mean(losses)])

            start: Any = model.initial_carry(windows.shape[1])
            _, means = jax.lax.scan(body, start, windows)
            return jnp.mean(means, axis=0)

        self._measure = jax.jit(measure)

    def score(self, variables: dict[str, Any], tokens: np.ndarray) -> Score:
        """Measures error and loss.

        Args:
          variables: of the model.
          tokens: of the text, `[n]`.

        Returns:
          Wrong next tokens in per cent and the mean cross-entropy in nats per token.
        """
        windows = batchify(tokens, self._num_streams, self._length)
        wrong, loss = np.asarray(self._measure(variables, jnp.asarray(windows)))
        return Score(error=100 * float(wrong), loss=float(loss))
