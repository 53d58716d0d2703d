"""Training runs, and the compiled steps that many runs share."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_optax.experiments import methods, rates
from entropy_optax.experiments.checkpoints import Checkpoints
from entropy_optax.experiments.compiled import Step, compile_step, draw, num_draws
from entropy_optax.experiments.compiled import member as member_of
from entropy_optax.experiments.runs import Log, Member, Progress, Run, Stopped
from entropy_optax.experiments.settings import Settings, num_copies, num_replicas
from entropy_optax.experiments.tasks import Task


class Experiment:
    """Runs any optimizer and seed of one experiment, compiling each step once.

    Args:
      settings: checked settings.
      task: the network and its data.
    """

    def __init__(self, settings: Settings, task: Task):
        self.settings = settings
        self.task = task
        self._compiled: dict[Any, Step] = {}

    def run(
        self,
        optimizer: str,
        seed: int,
        settings: Settings | None = None,
        *,
        test: bool = True,
        report: Callable[[Progress], None] = lambda progress: None,
        checkpoints: Checkpoints | None = None,
        keep: Callable[[str, int, Any, Any], None] | None = None,
    ) -> Run:
        """Trains once.

        Args:
          optimizer: its name.
          seed: of initialisation, order of the batches, dropout and noise.
          settings: other hyperparameters than the experiment's, for a grid.
          test: whether to read the test split, at the end and never before.
          report: called after each `report_every` gradients.
          checkpoints: where to save, and to go on from if there is something.
          keep: see `run_together`.

        Returns:
          The result.
        """
        member = Member(seed, settings or self.settings)
        return self.run_together(
            optimizer,
            [member],
            test=test,
            report=report,
            checkpoints=checkpoints,
            keep=keep,
        )[0]

    def run_together(
        self,
        optimizer: str,
        members: Sequence[Member],
        *,
        test: bool = True,
        report: Callable[[Progress], None] = lambda progress: None,
        checkpoints: Checkpoints | None = None,
        keep: Callable[[str, int, Any, Any], None] | None = None,
    ) -> list[Run]:
        """Trains several runs at once, under `jax.vmap` if there are two or more.

        Args:
          optimizer: its name.
          members: the runs.
          test: whether to read the test split, at the end and never before.
          report: called after each `report_every` gradients of each member.
          checkpoints: where to save, and to go on from if there is something.
          keep: called at the end of each run with the optimizer's name, the seed and
            the params and model state that were evaluated last.

        Returns:
          The results in the order of the members.

        Raises:
          ValueError: if the members differ in more than numbers that are traced.
          RuntimeError: if the optimizer counted other gradients than were asked for.
          Stopped: if `checkpoints` was asked to stop; the newest state is saved.
        """
        settings = members[0].settings
        same = {
            (_program(optimizer, m.settings), m.settings.evaluate_every)
            for m in members
        }
        if len(same) > 1:
            raise ValueError("members: differ in more than numbers that are traced")
        chunk = settings.report_every
        start = time.perf_counter()
        init, advance, place = self._step(optimizer, settings, len(members))
        data = place(self.task.data)
        compile_seconds = time.perf_counter() - start
        traced = [methods.split_settings(optimizer, m.settings)[0] for m in members]
        traced = jax.tree.map(lambda *leaves: jnp.stack(leaves), *traced)
        keys = jnp.stack([jax.random.key(m.seed) for m in members])
        arrays = init(traced, keys)
        logs = [Log() for _ in members]
        # The best params so far are a copy only where they are not the newest.
        chosen = [
            self._evaluated(optimizer, m.settings, member_of(arrays, i))
            for i, m in enumerate(members)
        ]
        chosen = jax.tree.map(lambda *leaves: jnp.stack(leaves), *chosen)
        begin = 0
        if checkpoints is not None and (saved := checkpoints.restore(arrays, chosen)):
            arrays, chosen, begin = saved.arrays, saved.chosen, saved.gradients
            logs = [Log(**log) for log in saved.logs]
        replicas = num_replicas(settings, optimizer) or 1
        skip = num_draws(settings, optimizer, begin)
        draws = num_draws(settings, optimizer, chunk)
        streams = [
            itertools.islice(self.task.indices(m.seed), skip, None) for m in members
        ]
        for done in range(begin + chunk, settings.num_gradients + 1, chunk):
            # Wait for all devices, here and in `score`, not the first alone: where they
            # share few cores, XLA locks up in a collective if one still has 32
            # computations in its queue.
            jax.block_until_ready((arrays, chosen))
            start = time.perf_counter()
            indices = draw(streams, draws)
            arrays, losses = advance(arrays, traced, data, indices)
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
                    state = jax.block_until_ready(member_of(arrays, i))
                    at = self._evaluated(optimizer, member.settings, state)
                    variables = self.task.variables(*at)
                    measured = log.last = self.task.score(variables, "validation")
                    value = getattr(measured, self.task.metric)
                    if not log.curve or value < log.best:
                        log.best, log.chosen, log.chosen_gradients = (
                            value,
                            measured,
                            done * replicas,
                        )
                        put = lambda all_, new, i=i: all_.at[i].set(new)
                        chosen = jax.tree.map(put, chosen, at)
                    log.curve.append((done * replicas, value))
                    log.evaluation_seconds += time.perf_counter() - start
                rate = rates.current_rate(optimizer, member.settings, done - chunk)
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
        if keep is not None:
            for i, member in enumerate(members):
                state = member_of(arrays, i)
                at = self._evaluated(optimizer, member.settings, state)
                keep(optimizer, member.seed, *at)
        return [
            self._result(
                optimizer,
                member,
                log,
                member_of(arrays, i),
                member_of(chosen, i),
                compile_seconds if i == 0 else 0.0,
                test,
            )
            for i, (member, log) in enumerate(zip(members, logs, strict=True))
        ]

    def _evaluated(self, optimizer: str, settings: Settings, state: Any) -> Any:
        traced, _ = methods.split_settings(optimizer, settings)
        method = methods.make_method(
            optimizer, settings, traced, key=jax.random.key(0), carry_init=None
        )
        params = method.eval_params(state["opt_state"], state["params"])
        model_state = state["model_state"]
        if num_copies(settings, optimizer) is not None:
            # Of any copy: where they matter they are estimated anew at the centre.
            model_state = jax.tree.map(lambda leaf: leaf[0], model_state)
        # Copies, because the step donates its state.
        return jax.tree.map(jnp.copy, (params, model_state))

    def _result(
        self,
        optimizer: str,
        member: Member,
        log: Log,
        state: Any,
        chosen: Any,
        compile_seconds: float,
        test: bool,
    ) -> Run:
        settings = member.settings
        counted = methods.num_gradients(optimizer, settings, state["opt_state"])
        wanted = settings.num_gradients * (num_replicas(settings, optimizer) or 1)
        if counted != wanted:
            raise RuntimeError(
                f"{optimizer} counted {counted} gradients instead of {wanted}"
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

    def _step(self, optimizer: str, settings: Settings, count: int) -> Step:
        key = _program(optimizer, settings), count
        if key not in self._compiled:
            self._compiled[key] = compile_step(self.task, optimizer, settings, count)
        return self._compiled[key]


def _program(optimizer: str, settings: Settings) -> tuple[Any, ...]:
    # All that a compiled step of one task depends on.
    traced, static = methods.split_settings(optimizer, settings)
    names = (
        *("num_gradients", "report_every", "rate_schedule", "step_at", "step_factor"),
        *("clip_norm", "clip_value", "replicas", "devices"),
    )
    fields = (getattr(settings, name) for name in names)
    return (optimizer, *traced, *static.items(), *fields)
