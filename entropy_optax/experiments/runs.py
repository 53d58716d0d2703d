"""What is known of a training run: on its way, at its end, and in a checkpoint."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from entropy_optax.experiments.evaluate import Score
from entropy_optax.experiments.settings import Settings


class Progress(NamedTuple):
    """What is known after each `report_every` gradients of a run.

    Attributes:
      optimizer: its name.
      seed: of the run.
      gradients: gradient evaluations done, of each replica.
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


def last_test_errors(runs: Sequence[Run]) -> list[float]:
    """Errors on the test split after the last gradient.

    Args:
      runs: all of which read it.

    Returns:
      One for each run, in per cent.
    """
    return [score.error for score in last_test_scores(runs)]


def last_test_scores(runs: Sequence[Run]) -> list[Score]:
    """Errors and losses on the test split after the last gradient.

    Args:
      runs: all of which read it.

    Returns:
      One for each run.
    """
    scores = []
    for run in runs:
        assert run.test_last is not None
        scores.append(run.test_last)
    return scores


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


class Log:
    """What is known of a run besides its arrays; goes into a checkpoint as JSON.

    Args:
      **values: its attributes, from a checkpoint.
    """

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
        # JSON turns a named tuple into a list.
        for name in ("last", "chosen"):
            if values.get(name):
                setattr(self, name, Score(*values[name]))
