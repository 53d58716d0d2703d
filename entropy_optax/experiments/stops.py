"""Where runs were stopped at a training loss, and how they are kept."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from entropy_optax.experiments.report import replace_arrays


class Stops(NamedTuple):
    """Where runs first were at or below each training loss.

    Attributes:
      params: as vectors, `[runs, targets, n]`, NaN where a loss was not reached.
      gradients: spent until then, `[runs, targets]`, -1 where it was not reached.
      training_loss: in nats, `[runs, targets]`.
    """

    params: np.ndarray
    gradients: np.ndarray
    training_loss: np.ndarray


def shortened(
    before: np.ndarray,
    after: np.ndarray,
    loss: Callable[[np.ndarray], float],
    target: float,
) -> np.ndarray:
    """Shortens an update so that the loss after it is the target, not below.

    Methods overshoot a target by steps of different length, and a lower loss is flatter
    for that reason alone.

    Args:
      before: params as a vector, of a loss above the target.
      after: params after the update, of a loss at or below it.
      loss: of such a vector.
      target: the loss wanted.

    Returns:
      A point between them with the loss, to 1e-3 of it, by bisection; `after` if the
      loss before was not above.
    """
    low, high = 0.0, 1.0  # the loss is above at low, at or below the target at high
    for _ in range(20):
        point = (before + high * (after - before)).astype(after.dtype)
        if loss(point) >= (1 - 1e-3) * target:
            return point
        middle = (low + high) / 2
        above = loss((before + middle * (after - before)).astype(after.dtype)) > target
        low, high = (middle, high) if above else (low, middle)
    return after


def save(path: pathlib.Path, stops: Stops) -> None:
    """Keeps stopped runs, without pickle.

    Args:
      path: of an npz file.
      stops: the runs.
    """
    replace_arrays(path, stops._asdict())


def restore(path: pathlib.Path) -> Stops:
    """Reads what `save` wrote.

    Args:
      path: of the file.

    Returns:
      The runs.
    """
    with np.load(path, allow_pickle=False) as arrays:
        return Stops(**{name: arrays[name] for name in Stops._fields})


def joined(parts: Sequence[Stops]) -> Stops:
    """Puts runs together.

    Args:
      parts: of runs each.

    Returns:
      All runs, in this order.
    """
    return Stops(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
