"""Training runs, and the compiled steps that many runs share."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_optax.experiments import methods
from entropy_optax.experiments.checkpoints import Checkpoints
from entropy_optax.experiments.evaluate import Score
from entropy_optax.experiments.hyperparameters import SAMSettings
from entropy_optax.experiments.settings import Settings, gradients_per_update
from entropy_optax.experiments.tasks import Task
from entropy_optax.training import TrainState, linen_carry, linen_train_step


class Progress(NamedTuple):
    """What is known after each `report_every` gradients of a run.

    Attributes:
      optimizer: its name.
      seed: of the run.
      gradients: gradient evaluations done.
      loss: mean training loss over the newest `report_every` gradients, in nats.
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
    """Result of one run; "chosen" is the point of the lowest validation error or loss.

    Attributes:
      optimizer: its name.
      seed: of the run.
      gradients: gradient evaluations, counted by the optimizer.
      seconds: spent on training, compilation and evaluation apart; runs that were
        trained together share it.
      evaluation_seconds: spent on measuring errors.
      compile_seconds: spent on compiling the step, 0 where it was compiled before.
      training_loss: mean over the newest `report_every` gradients, in nats.
      curve: `(gradients, validation error or loss)` at each measurement.
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
    training_loss: float
    curve: tuple[tuple[int, float], ...]
    validation_last: Score
    chosen_gradients: int
    validation_chosen: Score
    test_last: Score | None
    test_chosen: Score | None


class Member(NamedTuple):
    """One of several runs that are trained together.

    Attributes:
      seed: of initialisation, order of the batches, dropout and noise.
      settings: differ between members in numbers that are traced at most.
    """

    seed: int
    settings: Settings


class Stopped(Exception):
    """A run was asked to stop and has been saved."""


class Experiment:
    """Runs any optimizer and seed of one experiment, compiling each step once.

    Args:
      settings: checked settings.
      task: the network and its data.
    """

    def __init__(self, settings: Settings, task: Task):
        self.settings = settings
        self.task = task
        self._compiled: dict[Any, Any] = {}

    def run(
        self,
        optimizer: str,
        seed: int,
        settings: Settings | None = None,
        *,
        test: bool = True,
        report: Callable[[Progress], None] = lambda progress: None,
        checkpoints: Checkpoints | None = None,
    ) -> Run:
        """Trains once.

        Args:
          optimizer: its name.
          seed: of initialisation, order of the batches, dropout and noise.
          settings: other hyperparameters than the experiment's, for a grid.
          test: whether to read the test split, at the end and never before.
          report: called after each `report_every` gradients.
          checkpoints: where to save, and to go on from if there is something.

        Returns:
          The result.
        """
        member = Member(seed, settings or self.settings)
        return self.run_together(
            optimizer, [member], test=test, report=report, checkpoints=checkpoints
        )[0]

    def run_together(
        self,
        optimizer: str,
        members: Sequence[Member],
        *,
        test: bool = True,
        report: Callable[[Progress], None] = lambda progress: None,
        checkpoints: Checkpoints | None = None,
    ) -> list[Run]:
        """Trains several runs at once, under `jax.vmap` if there are two or more.

        Args:
          optimizer: its name.
          members: the runs.
          test: whether to read the test split, at the end and never before.
          report: called after each `report_every` gradients of each member.
          checkpoints: where to save, and to go on from if there is something.

        Returns:
          The results in the order of the members.

        Raises:
          RuntimeError: if the optimizer counted other gradients than were asked for.
          Stopped: if `checkpoints` was asked to stop; the newest state is saved.
        """
        settings = members[0].settings
        chunk = settings.report_every
        start = time.perf_counter()
        init, advance = self._step(optimizer, settings, len(members))
        compile_seconds = time.perf_counter() - start
        traced = [methods.split_settings(optimizer, m.settings)[0] for m in members]
        traced = jax.tree.map(lambda *leaves: jnp.stack(leaves), *traced)
        keys = jnp.stack([jax.random.key(m.seed) for m in members])
        arrays = init(traced, keys)
        logs = [_Log() for _ in members]
        # The best params so far are a copy only where they are not the newest.
        chosen = jax.tree.map(jnp.copy, (arrays["params"], arrays["model_state"]))
        begin = 0
        if checkpoints is not None and (saved := checkpoints.restore(arrays, chosen)):
            arrays, chosen, begin = saved.arrays, saved.chosen, saved.gradients
            logs = [_Log(**log) for log in saved.logs]
        repeat = 2 if isinstance(getattr(settings, optimizer), SAMSettings) else 1
        streams = [
            itertools.islice(self.task.indices(m.seed), begin // repeat, None)
            for m in members
        ]
        for done in range(begin + chunk, settings.num_gradients + 1, chunk):
            start = time.perf_counter()
            indices = np.stack(
                [
                    np.stack([next(stream) for _ in range(chunk // repeat)])
                    for stream in streams
                ]
            )
            arrays, losses = advance(arrays, traced, self.task.data, indices)
            losses = np.asarray(losses)  # waits for the device
            seconds = time.perf_counter() - start
            last = done == settings.num_gradients
            evaluate = done % settings.evaluate_every == 0 or last
            for i, (member, log) in enumerate(zip(members, logs, strict=True)):
                log.seconds += seconds
                log.training_loss = float(losses[i])
                measured = None
                if evaluate:
                    start = time.perf_counter()
                    state = _member(arrays, i)
                    at = self._evaluated(optimizer, member.settings, state)
                    variables = self.task.variables(*at)
                    measured = log.last = self.task.score(variables, "validation")
                    value = getattr(measured, self.task.metric)
                    if not log.curve or value < log.best:
                        log.best, log.chosen, log.chosen_gradients = (
                            value,
                            measured,
                            done,
                        )
                        put = lambda all_, new, i=i: all_.at[i].set(new)
                        chosen = jax.tree.map(put, chosen, at)
                    log.curve.append((done, value))
                    log.evaluation_seconds += time.perf_counter() - start
                rate = methods.current_rate(optimizer, member.settings, done - chunk)
                report(
                    Progress(
                        optimizer,
                        member.seed,
                        done,
                        log.training_loss,
                        rate,
                        log.seconds,
                        measured,
                    )
                )
            if checkpoints is not None and not last and checkpoints.due():
                checkpoints.save(done, arrays, chosen, logs)
                if checkpoints.stop:
                    raise Stopped
        return [
            self._result(
                optimizer,
                member,
                log,
                _member(arrays, i),
                _member(chosen, i),
                compile_seconds,
                test,
            )
            for i, (member, log) in enumerate(zip(members, logs, strict=True))
        ]

    def _evaluated(self, optimizer: str, settings: Settings, state: Any) -> Any:
        eval_params = self._method(optimizer, settings).eval_params
        params = eval_params(state["opt_state"], state["params"])
        # Copies, because the step donates its state.
        return jax.tree.map(jnp.copy, (params, state["model_state"]))

    def _result(
        self,
        optimizer: str,
        member: Member,
        log: "_Log",
        state: Any,
        chosen: Any,
        compile_seconds: float,
        test: bool,
    ) -> Run:
        settings = member.settings
        counted = methods.num_gradients(optimizer, settings, state["opt_state"])
        if counted != settings.num_gradients:
            raise RuntimeError(
                f"{optimizer} counted {counted} gradients instead of"
                f" {settings.num_gradients}"
            )
        start = time.perf_counter()
        test_last = test_chosen = None
        if test:
            last = self._evaluated(optimizer, settings, state)
            test_last, test_chosen = (
                self.task.score(self.task.variables(*at), "test")
                for at in (last, chosen)
            )
        log.evaluation_seconds += time.perf_counter() - start
        assert log.last is not None
        assert log.chosen is not None
        return Run(
            optimizer=optimizer,
            seed=member.seed,
            gradients=counted,
            seconds=log.seconds,
            evaluation_seconds=log.evaluation_seconds,
            compile_seconds=compile_seconds,
            training_loss=log.training_loss,
            curve=tuple((gradients, value) for gradients, value in log.curve),
            validation_last=log.last,
            chosen_gradients=log.chosen_gradients,
            validation_chosen=log.chosen,
            test_last=test_last,
            test_chosen=test_chosen,
        )

    def _method(
        self,
        optimizer: str,
        settings: Settings,
        traced: Any = None,
        key: Any = None,
        carry: Any = None,
    ) -> methods.Method:
        if traced is None:
            traced, _ = methods.split_settings(optimizer, settings)
        # The key of the noise lives in the optimizer's state: only `init` reads it.
        key = jax.random.key(0) if key is None else key
        return methods.make_method(
            optimizer, settings, traced, key=key, carry_init=carry
        )

    def _step(self, optimizer: str, settings: Settings, count: int) -> tuple[Any, Any]:
        # `init(traced, keys)` and `advance(arrays, traced, data, indices)`, both over
        # a leading axis of members.
        traced, static = methods.split_settings(optimizer, settings)
        cache_key = (optimizer, *static.items(), *traced, settings.num_gradients, count)
        if cache_key not in self._compiled:
            init, advance = self._functions(optimizer, settings)
            over = jax.vmap if count > 1 else _over_one
            init = jax.jit(over(init))
            mapped = over(advance, in_axes=(0, 0, None, 0))
            traced = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), traced)
            keys = jnp.stack([jax.random.key(0)] * count)
            stream = self.task.indices(0)
            repeat = 2 if isinstance(getattr(settings, optimizer), SAMSettings) else 1
            one = np.stack([next(stream) for _ in range(settings.report_every // repeat)])
            indices = jax.ShapeDtypeStruct((count, *one.shape), one.dtype)
            arrays = jax.eval_shape(init, traced, keys)
            compiled = (
                jax.jit(mapped, donate_argnums=0)
                .lower(arrays, traced, self.task.data, indices)
                .compile()
            )
            self._compiled[cache_key] = init, compiled
        return self._compiled[cache_key]

    def _functions(self, optimizer: str, settings: Settings) -> tuple[Any, Any]:
        task = self.task
        _, model_state = jax.eval_shape(task.init, jax.random.key(0))
        per_update = gradients_per_update(settings, optimizer)
        repeat = 2 if isinstance(getattr(settings, optimizer), SAMSettings) else 1

        def tx(traced: Any, key: Any = None) -> optax.GradientTransformationExtraArgs:
            carry = linen_carry(model_state)
            return self._method(optimizer, settings, traced, key, carry).tx

        def init(traced: Any, key: jax.Array) -> dict[str, Any]:
            init_key, noise_key, dropout_key = jax.random.split(key, 3)
            params, state = task.init(init_key)
            state = TrainState.create(
                apply_fn=lambda: None,
                params=params,
                tx=tx(traced, noise_key),
                batch_stats=state,
                rng_key=dropout_key,
            )
            # Copies: no buffer may be donated twice.
            return jax.tree.map(jnp.copy, _arrays(state))

        def advance(arrays: Any, traced: Any, data: Any, indices: Any) -> Any:
            key = arrays["rng_key"]

            def loss_fn(params: Any, state: Any, batch: Any, _: Any) -> Any:
                batch, number = batch
                drop = jax.random.fold_in(key, number)
                return task.loss(params, state, batch, number, drop)

            step = linen_train_step(loss_fn)
            # Gradients of one minibatch have one number, and one dropout mask.
            numbers = (arrays["step"] + jnp.arange(settings.report_every)) // repeat
            indices = jnp.repeat(indices, repeat, axis=0)
            groups = jax.tree.map(
                lambda leaf: leaf.reshape(-1, per_update, *leaf.shape[1:]),
                (indices, numbers),
            )

            def body(arrays: Any, group: Any) -> Any:
                picked, numbers = group
                batches = jax.vmap(task.gather, (None, 0))(data, picked)
                state = TrainState(
                    apply_fn=lambda: None,
                    tx=tx(traced),
                    batch_stats=arrays["model_state"],
                    **{name: arrays[name] for name in _FIELDS},
                )
                state, metrics = step(state, (batches, numbers))
                return _arrays(state), metrics["loss"]

            arrays, losses = jax.lax.scan(body, arrays, groups)
            return arrays, jnp.mean(losses)

        return init, advance


class _Log:
    # What is known of a run besides its arrays; goes into a checkpoint as JSON.
    def __init__(self, **values: Any):
        self.seconds = 0.0
        self.evaluation_seconds = 0.0
        self.training_loss = float("nan")
        self.curve: list[Any] = []
        self.best = float("inf")
        self.chosen_gradients = 0
        self.last: Score | None = None
        self.chosen: Score | None = None
        vars(self).update(values)
        self.last = Score(*self.last) if self.last else None
        self.chosen = Score(*self.chosen) if self.chosen else None


_FIELDS = ("step", "params", "opt_state", "rng_key")


def _arrays(state: Any) -> dict[str, Any]:
    # The optimizer is made of traced numbers and must not leave the compiled function.
    arrays = {name: getattr(state, name) for name in _FIELDS}
    return arrays | {"model_state": state.batch_stats}


def _member(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _over_one(function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    # As jax.vmap over an axis of length 1, without batched operations.
    def mapped(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        args = [
            arg if axis is None else _member(arg, 0)
            for arg, axis in zip(args, axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*args))

    return mapped
