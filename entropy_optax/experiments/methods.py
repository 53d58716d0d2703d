"""The optimizers that an experiment compares, each with the same shape of schedule.

Numbers that a grid varies are traced arguments of the compiled step, so that one
compilation serves a whole grid; numbers that change the program are not.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import entropy_optax as eo
from entropy_optax.experiments.settings import Settings

Hyperparameters = dict[str, jax.Array]

# Traced by name; every other field of the settings is part of the program.
_TRACED = {
    "sgd": ("learning_rate", "weight_decay"),
    "adam": ("learning_rate", "weight_decay"),
    "entropy_sgd": (
        "step_size",
        "gamma",
        "temperature",
        "learning_rate",
        "weight_decay",
    ),
}


def split_settings(
    name: str, settings: Settings
) -> tuple[Hyperparameters, dict[str, Any]]:
    """Splits an optimizer's settings into traced and static ones.

    Args:
      name: of the optimizer.
      settings: of the experiment.

    Returns:
      float32 scalars to pass to the compiled step, and the rest.
    """
    values = dataclasses.asdict(getattr(settings, name))
    traced = {k: jnp.float32(values.pop(k)) for k in _TRACED[name]}
    return traced, values


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
        drops = {int(0.6 * num_updates): 0.1, int(0.85 * num_updates): 0.1}
        shape = optax.piecewise_constant_schedule(1.0, drops)
    else:
        shape = optax.cosine_decay_schedule(1.0, num_updates)
    return lambda count: initial * shape(count)


def make_optimizer(
    name: str,
    settings: Settings,
    traced: Hyperparameters,
    *,
    key: jax.Array,
    carry_init: Any,
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer; inside `jax.jit` where `traced` holds tracers.

    Args:
      name: of the optimizer.
      settings: of the experiment.
      traced: the numbers from `split_settings`.
      key: PRNG key of the Langevin noise.
      carry_init: what Entropy-SGD threads through its inner loop.

    Returns:
      The transformation. One update is one gradient, and for Entropy-SGD
      `num_steps` gradients.
    """
    _, static = split_settings(name, settings)
    if name == "entropy_sgd":
        num_updates = settings.num_gradients // settings.entropy_sgd.num_steps
        growth = eo.exponential_scoping(1.0, static["gamma_growth"])
        return eo.entropy_sgd(
            traced["learning_rate"],
            gamma=lambda count: traced["gamma"] * growth(count),
            num_steps=static["num_steps"],
            step_size=rate(settings, num_updates, traced["step_size"]),
            temperature=traced["temperature"],
            momentum=static["momentum"] or None,
            outer_momentum=static["outer_momentum"] or None,
            weight_decay=traced["weight_decay"],
            mean_decay=static["mean_decay"],
            opaque_mode=True,
            noise="gaussian",  # the paper's
            key=key,
            carry_init=carry_init,
        )
    schedule = rate(settings, settings.num_gradients, traced["learning_rate"])
    if name == "adam":
        tx = optax.adamw(
            schedule, static["b1"], static["b2"], weight_decay=traced["weight_decay"]
        )
    else:
        tx = optax.chain(
            optax.add_decayed_weights(traced["weight_decay"]),
            optax.sgd(schedule, momentum=static["momentum"] or None, nesterov=True),
        )
    return optax.with_extra_args_support(tx)


def current_rate(name: str, settings: Settings, gradients: int) -> float:
    """The scheduled rate in force after so many gradients.

    Args:
      name: of the optimizer.
      settings: of the experiment.
      gradients: number of gradients taken.

    Returns:
      The learning rate of SGD or Adam, the inner step size of Entropy-SGD.
    """
    per_update = settings.entropy_sgd.num_steps if name == "entropy_sgd" else 1
    initial = (
        settings.entropy_sgd.step_size
        if name == "entropy_sgd"
        else getattr(settings, name).learning_rate
    )
    schedule = rate(settings, settings.num_gradients // per_update, initial)
    return float(schedule(gradients // per_update))


def num_gradients(name: str, opt_state: optax.OptState) -> int:
    """Gradients spent, as the optimizer itself has counted them.

    Args:
      name: of the optimizer.
      opt_state: its state.

    Returns:
      The count.
    """
    if name == "entropy_sgd":
        return int(eo.num_gradients(opt_state))
    counts = optax.tree.get_all_with_path(opt_state, "count")
    return max(int(count) for _, count in counts)
