"""A least-squares problem as a task for the runner, small enough to follow by hand."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from entropy_optax.experiments.evaluate import Score
from entropy_optax.experiments.image_task import minibatches
from entropy_optax.experiments.runs import Run

_GENERATOR = np.random.default_rng(1)
INPUTS = _GENERATOR.normal(size=(8, 3)).astype(np.float32)
TARGETS = _GENERATOR.normal(size=8).astype(np.float32)
BATCH = 2


class ToyTask:
    """Two parts of params, minibatches of two, and noise in place of dropout.

    The model state counts the gradients; `scored` keeps what was evaluated, and where.
    """

    metric: Literal["error", "loss"] = "error"
    description = "toy"
    batches_per_epoch = len(TARGETS) // BATCH

    def __init__(self):
        self.data = (jnp.asarray(INPUTS), jnp.asarray(TARGETS))
        self.scored = []

    def init(self, key):
        w = jax.random.normal(key, (3,))
        return {"b": jnp.zeros([]), "w": w}, {"taken": jnp.zeros([], jnp.int32)}

    def indices(self, seed):
        return minibatches(len(TARGETS), BATCH, seed)

    def gather(self, data, indices):
        return data[0][indices], data[1][indices]

    def loss(self, params, model_state, batch, number, key):
        inputs, targets = batch
        factors = 1 + 0.3 * jax.random.normal(key, (3,))
        outputs = inputs @ (factors * params["w"]) + params["b"]
        loss = jnp.mean((outputs - targets) ** 2) / 2
        return loss, {"taken": model_state["taken"] + 1}

    def variables(self, params, model_state):
        return {"params": params, **model_state}

    def score(self, variables, split):
        variables = jax.tree.map(np.asarray, variables)
        self.scored.append((split, variables))
        params = variables["params"]
        outputs = INPUTS @ params["w"] + params["b"]
        loss = float(np.mean((outputs - TARGETS) ** 2) / 2)
        return Score(error=loss, loss=loss)

    def points(self):
        """What was evaluated on the validation split, as vectors `(b, w)`."""
        return [
            np.concatenate([[v["params"]["b"]], v["params"]["w"]])
            for split, v in self.scored
            if split == "validation"
        ]


class ByHand:
    """The same problem in NumPy's float64; `gradient` counts its calls.

    The runner splits a run's key into those of the initialisation, of the noise and of
    the dropout, and gradient number n draws from the latter folded with n.
    """

    def __init__(self, seed):
        init, _, self._dropout = jax.random.split(jax.random.key(seed), 3)
        self.start = np.append(0.0, jax.random.normal(init, (3,)).astype(float))
        self._stream = minibatches(len(TARGETS), BATCH, seed)
        self._batches = []
        self.taken = 0

    def gradient(self, x, number=None):
        number = self.taken if number is None else number
        self.taken += 1
        while len(self._batches) <= number:
            self._batches.append(next(self._stream))
        at = self._batches[number]
        key = jax.random.fold_in(self._dropout, number)
        factors = 1 + 0.3 * np.asarray(jax.random.normal(key, (3,)), float)
        inputs = np.column_stack([np.ones(BATCH), INPUTS[at] * factors])
        return inputs.T @ (inputs @ x - TARGETS[at]) / BATCH


def made_up_run(optimizer: str, seed: int, settings: Any, score: Any, test: Any) -> Run:
    """Return a run that ended with a score, without training."""
    return Run(
        optimizer=optimizer,
        seed=seed,
        gradients=settings.num_gradients,
        seconds=0.0,
        evaluation_seconds=0.0,
        compile_seconds=0.0,
        training_loss=0.1,
        curve=(),
        validation_last=score,
        chosen_gradients=0,
        validation_chosen=score,
        test_last=test,
        test_chosen=test,
    )
