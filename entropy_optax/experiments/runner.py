"""One training run, and the compiled steps that many runs share."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_optax.experiments import methods
from entropy_optax.experiments.data import DataError, Dataset
from entropy_optax.experiments.evaluate import Evaluator, Score
from entropy_optax.experiments.models import MODELS
from entropy_optax.experiments.settings import Settings
from entropy_optax.training import TrainState, linen_carry, linen_train_step


class Progress(NamedTuple):
    """What is known after each `num_steps` gradients of a run.

    Attributes:
      optimizer: its name.
      seed: of the run.
      gradients: gradient evaluations done.
      loss: mean training loss over the newest `num_steps` gradients, in nats.
      rate: the scheduled rate that was in force.
      seconds: spent on training so far, compilation and evaluation apart.
      validation: score on the validation split, where it was measured.
    """

    optimizer: str
    seed: int
    gradients: int
    loss: float
    rate: float
    seconds: float
    validation: Score | None


class Run(NamedTuple):
    """Result of one run; "chosen" is the point of the lowest validation error.

    Attributes:
      optimizer: its name.
      seed: of the run.
      gradients: gradient evaluations, counted by the optimizer.
      seconds: spent on training, compilation and evaluation apart.
      evaluation_seconds: spent on measuring errors.
      compile_seconds: spent on compiling the step, 0 where it was compiled before.
      curve: `(gradients, validation error in per cent)` at each measurement.
      validation_last: score on the validation split after the last gradient.
      chosen_gradients: gradients at the chosen point.
      validation_chosen: score on the validation split there.
      test_last: score on the test split after the last gradient, None if not asked for.
      test_chosen: score on the test split at the chosen point.
    """

    optimizer: str
    seed: int
    gradients: int
    seconds: float
    evaluation_seconds: float
    compile_seconds: float
    curve: tuple[tuple[int, float], ...]
    validation_last: Score
    chosen_gradients: int
    validation_chosen: Score
    test_last: Score | None
    test_chosen: Score | None


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
            yield order[start : start + batch_size]


class Experiment:
    """Runs any optimizer and seed of one experiment, compiling each step once.

    Args:
      settings: checked settings.
      dataset: the data.

    Raises:
      DataError: if the data set is too small for the batch or the model.
    """

    def __init__(self, settings: Settings, dataset: Dataset):
        if settings.batch_size > len(dataset.train.labels):
            raise DataError(
                f"--batch-size: got {settings.batch_size}, {dataset.name} has"
                f" {len(dataset.train.labels)} training examples"
            )
        height, width = dataset.train.images.shape[1:3]
        if settings.model == "lenet" and min(height, width) < 18:
            raise DataError(
                f"--model lenet wants images of 18 x 18 pixels or more, {dataset.name}"
                f" has {height} x {width}"
            )
        self.settings = settings
        self.dataset = dataset
        self._model = MODELS[settings.model](num_classes=dataset.num_classes)
        self._evaluator = Evaluator(self._model, dataset.train, settings.batch_size)
        self._images = jnp.asarray(dataset.train.images)
        self._labels = jnp.asarray(dataset.train.labels)
        first = self._images[:1]
        self._variables = jax.jit(lambda key: self._model.init(key, first, train=False))
        self._compiled: dict[Any, Any] = {}

    def run(
        self,
        optimizer: str,
        seed: int,
        settings: Settings | None = None,
        *,
        test: bool = True,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> Run:
        """Trains once.

        Args:
          optimizer: its name.
          seed: of initialisation, order of the batches, dropout and noise.
          settings: other hyperparameters than the experiment's, for a grid.
          test: whether to read the test split, at the end and never before.
          report: called after each `num_steps` gradients.

        Returns:
          The result.

        Raises:
          RuntimeError: if the optimizer counted other gradients than were asked for.
        """
        settings = settings or self.settings
        num_steps = settings.entropy_sgd.num_steps
        traced, static = methods.split_settings(optimizer, settings)
        batches = minibatches(len(self._labels), settings.batch_size, seed)
        start = time.perf_counter()
        key = (optimizer, tuple(static.items()), num_steps)
        if key not in self._compiled:
            self._compiled[key] = self._compile(optimizer, settings)
        init, advance = self._compiled[key]
        compile_seconds = time.perf_counter() - start
        init_key, noise_key, dropout_key = jax.random.split(jax.random.key(seed), 3)
        state = init(traced, self._variables(init_key), noise_key, dropout_key)

        seconds = evaluation_seconds = 0.0
        curve: list[tuple[int, float]] = []
        last = chosen = None
        chosen_gradients, chosen_variables, variables = 0, {}, {}
        for done in range(num_steps, settings.num_gradients + 1, num_steps):
            start = time.perf_counter()
            indices = np.stack([next(batches) for _ in range(num_steps)]).astype(
                np.int32
            )
            state, loss = advance(state, traced, self._images, self._labels, indices)
            loss = float(loss)  # waits for the device
            seconds += time.perf_counter() - start
            measured = None
            if done % settings.evaluate_every == 0 or done == settings.num_gradients:
                start = time.perf_counter()
                # A copy, because the step donates its state.
                params = jax.tree.map(jnp.copy, state["params"])
                variables = self._evaluator.variables(params, state["batch_stats"])
                measured = last = self._evaluator.score(
                    variables, self.dataset.validation
                )
                curve.append((done, measured.error))
                if chosen is None or measured.error < chosen.error:
                    chosen, chosen_gradients = measured, done
                    chosen_variables = variables
                evaluation_seconds += time.perf_counter() - start
            in_force = methods.current_rate(optimizer, settings, done - num_steps)
            report(Progress(optimizer, seed, done, loss, in_force, seconds, measured))
        assert last is not None
        assert chosen is not None
        counted = methods.num_gradients(optimizer, state["opt_state"])
        if counted != settings.num_gradients:
            raise RuntimeError(
                f"{optimizer} counted {counted} gradients instead of"
                f" {settings.num_gradients}"
            )
        start = time.perf_counter()
        test_last = test_chosen = None
        if test:
            test_last = self._evaluator.score(variables, self.dataset.test)
            test_chosen = self._evaluator.score(chosen_variables, self.dataset.test)
        evaluation_seconds += time.perf_counter() - start
        return Run(
            optimizer=optimizer,
            seed=seed,
            gradients=counted,
            seconds=seconds,
            evaluation_seconds=evaluation_seconds,
            compile_seconds=compile_seconds,
            curve=tuple(curve),
            validation_last=last,
            chosen_gradients=chosen_gradients,
            validation_chosen=chosen,
            test_last=test_last,
            test_chosen=test_chosen,
        )

    def _compile(self, optimizer: str, settings: Settings) -> tuple[Any, Any]:
        # Returns `init(traced, variables, noise_key, dropout_key)` and
        # `advance(state, traced, images, labels, indices)`.
        model = self._model
        shapes = jax.eval_shape(self._variables, jax.random.key(0))

        def make_tx(traced: Any, key: jax.Array) -> optax.GradientTransformation:
            carry = linen_carry(shapes.get("batch_stats", {}))
            return methods.make_optimizer(
                optimizer, settings, traced, key=key, carry_init=carry
            )

        def init(traced, variables, noise_key, dropout_key) -> dict[str, Any]:
            state = TrainState.create(
                apply_fn=model.apply,
                params=variables["params"],
                tx=make_tx(traced, noise_key),
                batch_stats=variables.get("batch_stats", {}),
                rng_key=dropout_key,
            )
            return _arrays(state)

        def loss_fn(params, batch_stats, batch, rng_key):
            images, labels = batch
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                rngs={"dropout": rng_key},
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), updated.get("batch_stats", {})

        step = linen_train_step(loss_fn)

        def advance(arrays, traced, images, labels, indices):
            # The key of the noise lives in the optimizer's state; this one is not read.
            tx = make_tx(traced, jax.random.key(0))
            state = TrainState(apply_fn=model.apply, tx=tx, **arrays)
            state, metrics = step(state, (images[indices], labels[indices]))
            return _arrays(state), metrics["loss"]

        compiled_init = jax.jit(init)
        traced, _ = methods.split_settings(optimizer, settings)
        key = jax.random.key(0)
        arrays = jax.eval_shape(init, traced, shapes, key, key)
        indices = jax.ShapeDtypeStruct(
            (settings.entropy_sgd.num_steps, settings.batch_size), jnp.int32
        )
        compiled = (
            jax.jit(advance, donate_argnums=0)
            .lower(arrays, traced, self._images, self._labels, indices)
            .compile()
        )
        return compiled_init, compiled


def _arrays(state: Any) -> dict[str, Any]:
    # The optimizer is made of traced numbers and must not leave the compiled function.
    names = ("step", "params", "opt_state", "batch_stats", "rng_key")
    return {name: getattr(state, name) for name in names}
