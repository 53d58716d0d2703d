"""Where to evaluate, and what it cost so far."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from entropy_optax.transforms._one_gradient import LocalEntropyState
from entropy_optax.transforms._random_weight_perturbation import (
    RandomWeightPerturbationState,
)
from entropy_optax.transforms._scale_by_local_entropy import ScaleByLocalEntropyState

_STATES = (
    LocalEntropyState,
    RandomWeightPerturbationState,
    ScaleByLocalEntropyState,
)


def _local_entropy_states(state: optax.OptState) -> list:
    """Return every local entropy's state in the state of a chain or wrapper.

    Those of :func:`random_weight_perturbation`, its limit, included.

    Raises:
      ValueError: if there is none.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _STATES))
    found = [node for node in nodes if isinstance(node, _STATES)]
    if not found:
        raise ValueError(
            "state must hold that of local_entropy, scale_by_local_entropy or "
            f"random_weight_perturbation, got {type(state).__name__} without one."
        )
    return found


def eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """Return the outer iterate x, also in the middle of a cycle.

    With one gradient per call the params are x' within a cycle; x is where to evaluate
    and what to keep. With the whole loop in one update, x is the params themselves.
    With :func:`random_weight_perturbation` x is what the params perturb, the same for
    all of its replicas.

    Args:
      state: the state of a transformation which holds a local entropy (a chain, a
        wrapper, the members of an ensemble under ``jax.vmap``, ...).
      params: the params of the training loop.

    Returns:
      x, a tree like ``params``.

    Raises:
      ValueError: if the state holds no local entropy.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp, optax
      >>> tx = eo.entropy_sgd(1.0, num_steps=2, temperature=0.0)
      >>> params = jnp.array([1.0])
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jnp.array([2.0]), state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(f"{params[0]:.2f} {eo.eval_params(state, params)[0]:.2f}")
      0.62 1.00
    """
    for found in _local_entropy_states(state):
        if isinstance(found, LocalEntropyState):
            params = _anchor(found, params)
        elif isinstance(found, RandomWeightPerturbationState):
            params = _unperturbed(found, params)
    return params


def outer_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """Return x if the state holds a local entropy, the params themselves otherwise."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _STATES))
    if any(isinstance(node, _STATES) for node in nodes):
        return eval_params(state, params)
    return params


def _filled(anchor: optax.Params, params: optax.Params) -> optax.Params:
    # Masked leaves are the params' own: this local entropy does not move them.
    return jax.tree.map(
        lambda a, p: p if isinstance(a, optax.MaskedNode) else a,
        anchor,
        params,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def _unperturbed(
    state: RandomWeightPerturbationState, params: optax.Params
) -> optax.Params:
    # Under vmap the state has leading axes; that of the replicas comes after them.
    outer = jnp.ndim(state.num_gradients)

    def spread(x: jax.Array, param: jax.Array) -> jax.Array:
        ones = (1,) * (jnp.ndim(param) - x.ndim)
        return jnp.broadcast_to(
            x.reshape(x.shape[:outer] + ones + x.shape[outer:]), jnp.shape(param)
        )

    return jax.tree.map(spread, _filled(state.anchor, params), params)


def _anchor(state: LocalEntropyState, params: optax.Params) -> optax.Params:
    def pick(anchor: jax.Array, param: jax.Array) -> jax.Array:
        # Under vmap the count has leading axes: align them with the leaf's.
        first = state.inner_count == 0
        first = first.reshape(first.shape + (1,) * (jnp.ndim(param) - first.ndim))
        return jnp.where(first, param, anchor)

    return jax.tree.map(pick, _filled(state.anchor, params), params)


def num_gradients(state: optax.OptState) -> jax.Array:
    """Return the number of gradients spent so far, the unit of every comparison.

    Args:
      state: the state of a transformation which holds one local entropy.

    Returns:
      An integer of shape ``()``, or of the ensemble's shape under ``jax.vmap``.
      Gradients accumulated outside, by ``optax.MultiSteps`` say, are not seen.

    Raises:
      ValueError: if the state holds no local entropy, or several.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp
      >>> tx = eo.entropy_sgd(1.0, num_steps=2)
      >>> params = jnp.array([1.0])
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = jax.jit(tx.update)(params, state, params)
      >>> print(eo.num_gradients(state))
      3
    """
    found = _local_entropy_states(state)
    if len(found) > 1:
        raise ValueError(
            f"state must hold one local entropy, got {len(found)}, each with its own "
            "count: optax.tree.get_all_with_path(state, 'num_gradients') lists them."
        )
    return found[0].num_gradients
