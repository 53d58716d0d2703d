"""The optimizers that an experiment compares, each with the same shape of schedule.

Numbers that a grid varies are traced arguments of the compiled step, so that one
compilation serves a whole grid; numbers that change the program are not.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import entropy_optax as eo
from entropy_optax.experiments import averaging, ivon, perturbed
from entropy_optax.experiments.hyperparameters import (
    AdamSettings,
    ASAMSettings,
    EMASettings,
    EntropySGDSettings,
    FilterEntropySettings,
    IVONSettings,
    LookaheadSettings,
    ParleSettings,
    SAMSettings,
    ScheduleFreeSettings,
    resolved,
)
from entropy_optax.experiments.rates import rate, shaped
from entropy_optax.experiments.settings import Settings, gradients_per_update

Hyperparameters = dict[str, jax.Array]

# Traced by name; every other field of the settings is part of the program.
_TRACED = (
    "learning_rate",
    "weight_decay",
    "radius",
    "step_size",
    "gamma",
    "temperature",
    "outer_weight_decay",
    "coupling",
    "ess",
)
_OFF_AT_0 = ("temperature", "outer_weight_decay", "coupling")


class Method(NamedTuple):
    """An optimizer as the runner sees it: one gradient per update, or L in one scan.

    Attributes:
      tx: the transformation.
      eval_params: from its state and the params to what is evaluated.
    """

    tx: optax.GradientTransformationExtraArgs
    eval_params: Callable[[Any, Any], Any]


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
    group = getattr(settings, name)
    if isinstance(group, EntropySGDSettings):
        group = resolved(group)
    values = dataclasses.asdict(group)
    # Without noise nothing is drawn, which is another program.
    names = [k for k in _TRACED if k in values and (values[k] or k not in _OFF_AT_0)]
    return {k: jnp.float32(values.pop(k)) for k in names}, values


def repeats(settings: Settings, optimizer: str) -> int:
    """How many gradients in turn an optimizer takes on one minibatch.

    Args:
      settings: of the experiment.
      optimizer: its name.

    Returns:
      2 for SAM, else 1.
    """
    return 2 if isinstance(getattr(settings, optimizer), SAMSettings) else 1


def make_method(
    name: str,
    settings: Settings,
    traced: Hyperparameters,
    *,
    key: jax.Array,
    carry_init: Any,
) -> Method:
    """Makes an optimizer; inside `jax.jit` where `traced` holds tracers.

    Args:
      name: of the optimizer.
      settings: of the experiment.
      traced: the numbers from `split_settings`.
      key: PRNG key of the Langevin noise.
      carry_init: what Entropy-SGD threads through its inner loop.

    Returns:
      The method. One update is one gradient, and for Entropy-SGD `num_steps` gradients.
    """
    group = getattr(settings, name)
    clips = _clips(settings)
    if isinstance(group, EntropySGDSettings):
        tx = _local_entropy(group, settings, traced, clips, key, carry_init)
        if isinstance(group, ParleSettings):
            return Method(eo.replicate(tx, settings.replicas), eo.center_params)
        return Method(tx, lambda state, params: params)
    decay = optax.add_decayed_weights(traced["weight_decay"])
    # SAM's second gradient of a minibatch is its only update of the base optimizer.
    per_update = repeats(settings, name)
    if isinstance(group, FilterEntropySettings):
        per_update = gradients_per_update(settings, name)
    num_updates = settings.num_gradients // per_update
    schedule = rate(shaped(group, settings), num_updates, traced["learning_rate"])
    if isinstance(group, AdamSettings):
        tx = optax.adamw(
            schedule, group.b1, group.b2, weight_decay=traced["weight_decay"]
        )
    elif isinstance(group, ScheduleFreeSettings):
        tx = optax.contrib.schedule_free_sgd(
            traced["learning_rate"],
            warmup_steps=max(1, int(group.warmup * settings.num_gradients)),
            b1=group.b1,
            weight_decay=traced["weight_decay"],
        )
        return Method(
            optax.chain(*clips, tx),
            lambda state, params: optax.contrib.schedule_free_eval_params(
                state[-1], params
            ),
        )
    elif isinstance(group, IVONSettings):
        tx = ivon.ivon(
            schedule,
            traced["ess"],
            traced["weight_decay"],
            curvature=group.curvature,
            decays=(group.b1, group.b2),
            key=key,
        )
        return Method(optax.chain(*clips, tx), lambda state, params: state[-1].mean)
    elif isinstance(group, FilterEntropySettings):
        outer = perturbed.outer_optimizer(group, schedule, traced["weight_decay"])
        tx = perturbed.filter_entropy(
            group,
            optax.chain(*clips, outer),
            traced,
            settings.num_gradients,
            key,
        )
        return Method(tx, functools.partial(perturbed.filter_entropy_params, group))
    else:
        momentum = group.momentum or None
        sgd = optax.sgd(schedule, momentum=momentum, nesterov=momentum is not None)
        tx = optax.chain(decay, sgd)
    if isinstance(group, SAMSettings):
        uphill = optax.chain(optax.contrib.normalize(), optax.sgd(traced["radius"]))
        if isinstance(group, ASAMSettings):
            uphill = perturbed.ascend_adaptively(traced["radius"], group.eta)
        # The clip belongs to the descent: the way uphill is normalised anyhow.
        tx = optax.contrib.sam(optax.chain(*clips, tx), uphill, sync_period=2)
        return Method(tx, lambda state, params: params)
    tx = optax.chain(*clips, tx)
    if isinstance(group, LookaheadSettings):
        tx = averaging.lookahead(tx, group.sync_period, group.slow_step_size)
        return Method(tx, lambda state, params: state.slow)
    if isinstance(group, EMASettings):
        tx = averaging.average_iterates(tx, group.average_decay)
        return Method(tx, lambda state, params: averaging.average(state))
    return Method(optax.with_extra_args_support(tx), lambda state, params: params)


def num_gradients(name: str, settings: Settings, opt_state: optax.OptState) -> int:
    """Gradients spent, as the optimizer itself has counted them.

    Args:
      name: of the optimizer.
      settings: of the experiment.
      opt_state: its state.

    Returns:
      The count.
    """
    group = getattr(settings, name)
    if isinstance(group, EntropySGDSettings | FilterEntropySettings):
        return int(jnp.sum(eo.num_gradients(opt_state)))
    field = "step_count" if isinstance(group, ScheduleFreeSettings) else "count"
    counts = optax.tree.get_all_with_path(opt_state, field)
    most = max(int(count) for _, count in counts)
    if isinstance(group, ScheduleFreeSettings):
        return most - 1  # Optax starts it at 1
    return most * repeats(settings, name)


def _clips(settings: Settings) -> list[optax.GradientTransformation]:
    clips = []
    if settings.clip_norm is not None:
        clips.append(optax.clip_by_global_norm(settings.clip_norm))
    if settings.clip_value is not None:
        clips.append(optax.clip(settings.clip_value))
    return clips


def _local_entropy(
    group: EntropySGDSettings,
    settings: Settings,
    traced: Hyperparameters,
    clips: list[optax.GradientTransformation],
    key: jax.Array,
    carry_init: Any,
) -> optax.GradientTransformationExtraArgs:
    num_updates = settings.num_gradients // group.num_steps
    constant = dataclasses.replace(settings, rate_schedule="constant")
    schedule = lambda which, initial: rate(
        settings if group.anneal in (which, "both") else constant, num_updates, initial
    )
    learning_rate = schedule("outer", traced["learning_rate"])
    growth = eo.exponential_scoping(1.0, group.gamma_growth)
    if group.outer == "adam":
        outer = optax.adam(learning_rate, b1=group.outer_momentum)
    else:
        momentum = group.outer_momentum or None
        outer = optax.sgd(
            learning_rate, momentum=momentum, nesterov=momentum is not None
        )
    if "coupling" in traced:
        assert isinstance(group, ParleSettings)
        together = eo.exponential_scoping(1.0, group.coupling_growth)
        pull = eo.add_replica_pull(lambda count: traced["coupling"] * together(count))
        outer = optax.chain(pull, outer)
    sampler = optax.chain(
        *clips,
        optax.add_decayed_weights(traced["weight_decay"]),
        eo.sgld(
            schedule("inner", traced["step_size"]),
            temperature=traced.get("temperature", 0.0),
            momentum=group.momentum or None,
            noise=group.noise,
            key=key,
        ),
    )
    if "outer_weight_decay" in traced:
        decay = optax.add_decayed_weights(traced["outer_weight_decay"])
        outer = optax.chain(decay, outer)
    return eo.local_entropy(
        outer,
        sampler,
        group.num_steps,
        lambda count: traced["gamma"] * growth(count),
        mean_decay=(lambda k: k / (k + 1)) if group.plain_average else group.mean_decay,
        opaque_mode=True,
        carry_init=carry_init,
    )
