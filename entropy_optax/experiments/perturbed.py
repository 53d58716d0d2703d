"""Optimizers that take gradients at perturbed weights: ours, and the rival ASAM's."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import entropy_optax as eo
from entropy_optax.experiments import averaging
from entropy_optax.experiments.hyperparameters import FilterEntropySettings

_GEOMETRIES: dict[str, Any] = {
    "filter": eo.filter_geometry(),
    "leaf": eo.leaf_geometry(),
    "none": None,
}


def outer_optimizer(
    group: FilterEntropySettings, schedule: optax.Schedule, weight_decay: Any
) -> optax.GradientTransformationExtraArgs:
    """The optimizer that moves the unperturbed weights.

    Args:
      group: the settings.
      schedule: the rate over its own updates.
      weight_decay: added to the gradients for SGD, decoupled for the others.

    Returns:
      SGD with Nesterov's momentum, AdamW or Muon; with the average of its iterates.
    """
    if group.outer == "sgd":
        momentum = group.momentum or None
        tx = optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.sgd(schedule, momentum=momentum, nesterov=momentum is not None),
        )
    elif group.outer == "adamw":
        tx = optax.adamw(schedule, group.momentum, weight_decay=weight_decay)
    else:
        tx = optax.contrib.muon(
            schedule,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
    if group.average_decay:
        tx = averaging.average_iterates(tx, group.average_decay)
    return optax.with_extra_args_support(tx)


def filter_entropy(
    group: FilterEntropySettings,
    outer: optax.GradientTransformation,
    traced: dict[str, jax.Array],
    num_gradients: int,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """Local entropy in the geometry of the filters, one gradient per update.

    Args:
      group: the settings.
      outer: the optimizer.
      traced: radius of the perturbations at the start, and temperature.
      num_gradients: of a run, over which the radius changes.
      key: PRNG key of the perturbations.

    Returns:
      The transformation.
    """
    geometry = _GEOMETRIES[group.geometry]
    if group.num_steps > 1:
        return _langevin(group, outer, traced, num_gradients, geometry, key)
    per_step = group.perturbations
    if per_step > 1:
        outer = optax.MultiSteps(outer, per_step).gradient_transformation()
    return eo.random_weight_perturbation(
        outer,
        _changing(traced["radius"], group.radius_end, num_gradients),
        geometry=geometry,
        antithetic=group.antithetic,
        num_replicas=group.splits if group.splits > 1 else None,
        key=key,
    )


def filter_entropy_params(group: FilterEntropySettings, state: Any, params: Any) -> Any:
    """Where to evaluate.

    Args:
      group: the settings.
      state: of `filter_entropy`.
      params: of the training loop.

    Returns:
      The unperturbed weights, or their average.
    """
    if not group.average_decay:
        where = eo.center_params if group.splits > 1 else eo.eval_params
        return where(state, params)
    kind = averaging.AverageState
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    (found,) = (node for node in nodes if isinstance(node, kind))
    return averaging.average(found)


def ascend_adaptively(radius: Any, eta: float) -> optax.GradientTransformation:
    r"""ASAM's step uphill, for `optax.contrib.sam`, which turns its sign.

    .. math::
      - \rho\, \frac{T_w^2\, g}{\|T_w\, g\|}, \qquad T_w = |w| + \eta

    for each weight w: the steepest ascent within a ball of radius rho in units of the
    weights, which rescaling layers of ReLUs against each other does not change.

    Args:
      radius: rho.
      eta: added to the size of each weight.

    Returns:
      The transformation.

    References:
      Kwon et al., `ASAM <https://arxiv.org/abs/2102.11600>`_, ICML 2021, equation 4.
    """

    def update(updates: Any, params: Any = None) -> Any:
        scales = jax.tree.map(lambda w: jnp.abs(w) + eta, params)
        scaled = optax.tree.mul(scales, updates)
        # Of a gradient of 0 the direction is none.
        norm = jnp.maximum(optax.tree.norm(scaled), jnp.finfo(jnp.float32).tiny)
        return jax.tree.map(lambda t, g: -radius * t * g / norm, scales, scaled)

    return optax.stateless(update)


def _matrices(params: Any) -> Any:
    # A convolution is the matrix from its window to its channels; biases are Adam's.
    return jax.tree.map(
        lambda leaf: (
            optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), -1)
            if leaf.ndim > 1
            else None
        ),
        params,
    )


def _changing(radius: Any, end: float, num_gradients: int) -> optax.Schedule:
    shape = optax.linear_schedule(1.0, end, num_gradients)
    return lambda count: radius * shape(count)


def _langevin(
    group: FilterEntropySettings,
    outer: optax.GradientTransformation,
    traced: dict[str, jax.Array],
    num_gradients: int,
    geometry: Any,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    # Without a loss its stationary spread is the radius, up to the step's own size.
    num_updates = num_gradients // group.num_steps
    radius = _changing(traced["radius"], group.radius_end, num_updates)
    temperature = traced["temperature"]
    gamma = lambda count: temperature / radius(count) ** 2
    sampler = eo.sgld(
        lambda count: group.pull / gamma(count),
        temperature=temperature,
        noise="gaussian",
        geometry=geometry,
        key=key,
    )
    return eo.local_entropy(
        outer,
        sampler,
        group.num_steps,
        gamma,
        mean_of="gradients",
        mean_decay=lambda k: k / (k + 1),
    )
