"""Prediction of text as a task for the runner."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_optax.experiments.evaluate import NUM_STREAMS, Score, TextEvaluator
from entropy_optax.experiments.image_task import model_options
from entropy_optax.experiments.language_models import LANGUAGE_MODELS
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.text import TextDataset, batchify


class TextTask:
    """Prediction of the next token, with a hidden state handed on within an epoch.

    Args:
      settings: checked settings.
      dataset: the data.
    """

    metric: Literal["error", "loss"] = "loss"

    def __init__(self, settings: Settings, dataset: TextDataset):
        self.dataset = dataset
        self.description = (
            f"{dataset.name}: {len(dataset.train)} training, {len(dataset.validation)}"
            f" validation, {len(dataset.test)} test tokens of"
            f" {dataset.vocab_size} kinds"
        )
        options = {"vocab_size": dataset.vocab_size} | model_options(settings)
        self._batch_size = settings.batch_size
        self._model = LANGUAGE_MODELS[settings.model](**options)
        windows = batchify(dataset.train, settings.batch_size, settings.sequence_length)
        self.data = jnp.asarray(windows)
        self.batches_per_epoch = len(windows)
        for split in (dataset.validation, dataset.test):
            # Too short a text is an error now, not at the end of a run.
            batchify(split, NUM_STREAMS, settings.sequence_length)
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
        return (
            np.int32(i % self.batches_per_epoch) + np.zeros([], np.int32)
            for i in itertools.count()
        )

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

    def logits(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Predicts from a hidden state of zeros, in evaluation mode.

        Args:
          params: of the network.
          tokens: `[batch, length]`.

        Returns:
          Logits of each next token, `[batch, length, vocab_size]`.
        """
        start = self._model.initial_carry(len(tokens))
        logits, _ = self._model.apply({"params": params}, tokens, start, train=False)
        return logits

    def variables(self, params: Any, model_state: Any) -> Any:
        """Wraps the params.

        Args:
          params: to evaluate.
          model_state: not used, evaluation starts from zeros.

        Returns:
          Variables of the network.
        """
        return {"params": params}

    def score(self, variables: Any, split: Literal["validation", "test"]) -> Score:
        """Measures.

        Args:
          variables: from `variables`.
          split: its name.

        Returns:
          Wrong next tokens in per cent and nats per token.
        """
        return self._evaluator.score(variables, getattr(self.dataset, split))
