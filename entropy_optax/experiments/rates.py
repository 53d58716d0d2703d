"""The rate of each optimizer over a run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from entropy_optax.experiments.hyperparameters import (
    EntropySGDSettings,
    FilterEntropySettings,
    SAMSettings,
    ScheduleFreeSettings,
    resolved,
)
from entropy_optax.experiments.settings import Settings, gradients_per_update


def rate(settings: Settings, num_updates: int, initial: Any) -> Callable[[Any], Any]:
    """The rate over one optimizer's own updates.

    Args:
      settings: of the experiment; names the shape.
      num_updates: how many updates a run has.
      initial: the rate at update 0.

    Returns:
      A schedule: from the number of updates done to the rate.
    """
    if settings.rate_schedule == "constant":
        return lambda count: initial * jnp.ones_like(count, jnp.float32)
    if settings.rate_schedule == "step":
        drops: dict[int, float] = {}
        for at in (int(share * num_updates) for share in settings.step_at):
            # In a short run two falls can meet in one update.
            drops[at] = drops.get(at, 1.0) * settings.step_factor
        shape = optax.piecewise_constant_schedule(1.0, drops)
    else:
        shape = optax.cosine_decay_schedule(1.0, num_updates)
    return lambda count: initial * shape(count)


def current_rate(name: str, settings: Settings, gradients: int) -> float:
    """The scheduled rate in force after so many gradients.

    Args:
      name: of the optimizer.
      settings: of the experiment.
      gradients: number of gradients taken.

    Returns:
      The learning rate of SGD or Adam; of Entropy-SGD the inner step size, or the
      outer rate where that alone is annealed.
    """
    group = getattr(settings, name)
    if isinstance(group, EntropySGDSettings):
        group = resolved(group)
    if isinstance(group, ScheduleFreeSettings):
        warmup = max(1, int(group.warmup * settings.num_gradients))
        return group.learning_rate * min(1.0, gradients / warmup)
    per_update = 1
    initial = getattr(group, "step_size", group.learning_rate)
    if isinstance(group, EntropySGDSettings | SAMSettings | FilterEntropySettings):
        per_update = gradients_per_update(settings, name)
    if isinstance(group, EntropySGDSettings) and group.anneal == "outer":
        initial = group.learning_rate
    num_updates = settings.num_gradients // per_update
    schedule = rate(shaped(group, settings), num_updates, initial)
    return float(schedule(gradients // per_update))


def shaped(group: Any, settings: Settings) -> Settings:
    """Settings whose rate is constant for an optimizer that asks for it.

    Args:
      group: settings of the optimizer.
      settings: of the experiment.

    Returns:
      The settings.
    """
    if getattr(group, "constant_rate", False):
        return dataclasses.replace(settings, rate_schedule="constant")
    return settings
