"""The models that are timed, with their batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from entropy_optax.experiments.language_models import CharLSTM, Transformer
from entropy_optax.experiments.models import AllCNN, LeNet, MnistFC

NUM_STEPS = 20


class Problem(NamedTuple):
    """A loss, its first params and NUM_STEPS different batches.

    Attributes:
      name: of the model.
      batch: what one batch is, in words.
      loss_fn: ``(params, batch_stats, batch, rng_key) -> (loss, batch_stats)``.
      params: tree of float32 arrays.
      batch_stats: BatchNorm's running statistics, ``{}`` without BatchNorm.
      batches: tuple of arrays with the leading axis NUM_STEPS.
    """

    name: str
    batch: str
    loss_fn: Callable[..., Any]
    params: Any
    batch_stats: Any
    batches: Any


def _problem(name: str, model: Any, inputs: jax.Array, targets: jax.Array, batch: str):
    def carry(inputs):
        # Every window of a text starts from zeros, for a model that has a state.
        has_state = hasattr(model, "initial_carry")
        return (model.initial_carry(len(inputs)),) if has_state else ()

    def init(key):
        return model.init(key, inputs[0], *carry(inputs[0]), train=False)

    variables = jax.jit(init)(jax.random.key(0))

    def loss_fn(params, batch_stats, batch, rng_key):
        inputs, targets = batch
        before = carry(inputs)
        out, new = model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            *before,
            train=True,
            rngs={"dropout": rng_key},
            mutable=["batch_stats"],
        )
        logits = out[0] if before else out
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(losses), new.get("batch_stats", {})

    batch_stats = variables.get("batch_stats", {})
    return Problem(
        name, batch, loss_fn, variables["params"], batch_stats, (inputs, targets)
    )


def _images(name: str, model: Any, batch: int, shape: tuple[int, ...]) -> Problem:
    # Random pixels: how long a gradient takes does not depend on their values.
    keys = jax.random.split(jax.random.key(1))
    inputs = jax.random.normal(keys[0], (NUM_STEPS, batch, *shape))
    targets = jax.random.randint(keys[1], (NUM_STEPS, batch), 0, 10)
    return _problem(name, model, inputs, targets, f"{batch}")


def _text(name: str, model: Any, batch: int, length: int) -> Problem:
    text = jax.random.randint(
        jax.random.key(1), (NUM_STEPS, batch, length + 1), 0, model.vocab_size
    )
    return _problem(name, model, text[..., :-1], text[..., 1:], f"{batch} x {length}")


def make(name: str, batch: int | None = None) -> Problem:
    """Return a problem by its name; on a CPU the two largest have smaller batches."""
    on_cpu = jax.default_backend() == "cpu"
    mnist, cifar = (28, 28, 1), (32, 32, 3)
    return {
        # So small that the calls themselves take a good part of the time.
        "mnistfc-16": lambda: _images(
            "mnistfc-16", MnistFC(features=(16,)), batch or 16, mnist
        ),
        "mnistfc-64": lambda: _images(
            "mnistfc-64", MnistFC(features=(64, 64)), batch or 128, mnist
        ),
        "mnistfc": lambda: _images("mnistfc", MnistFC(), batch or 128, mnist),
        "lenet": lambda: _images("lenet", LeNet(), batch or 128, mnist),
        "lenet-xla": lambda: _images(
            "lenet-xla",
            LeNet(conv_general_dilated=jax.lax.conv_general_dilated),
            batch or 128,
            mnist,
        ),
        "allcnn": lambda: _images(
            "allcnn", AllCNN(), batch or (8 if on_cpu else 128), cifar
        ),
        "char-lstm": lambda: _text("char-lstm", CharLSTM(), batch or 128, 50),
        "transformer": lambda: _text(
            "transformer", Transformer(), batch or (4 if on_cpu else 64), 128
        ),
        "transformer-64": lambda: _text(
            "transformer-64", Transformer(), batch or 64, 128
        ),
    }[name]()


NAMES = ("mnistfc", "lenet", "allcnn", "char-lstm", "transformer")
