"""The pull of each replica to the centre of all, which couples them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from entropy_optax._arguments import (
    ScalarOrSchedule,
    at_step,
    check_scalar,
    is_constant,
    like_leaf,
    map_unmasked,
)
from entropy_optax.transforms._inner import norm

REPLICA_AXIS = "entropy_optax_replicas"


class AddReplicaPullState(NamedTuple):
    """State of :func:`add_replica_pull`.

    Attributes:
      count: pulls done; a schedule of the coupling follows it.
      coupling: in force in the last pull.
      center_distance: ||x_a - x|| of this replica to the centre x before the last
        pull.
    """

    count: ArrayLike
    coupling: jax.Array
    center_distance: jax.Array


def add_replica_pull(
    coupling: ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the pull of each replica to the centre of all, within :func:`replicate`.

    .. math::
      u_a \leftarrow u_a + \rho\, (x_a - \bar x), \qquad
      \bar x = \frac{1}{n} \sum_{b=1}^n x_b,

    the gradient with respect to :math:`x_a` of the elastic energy
    :math:`\tfrac{\rho}{2} \sum_b \|x_b - \bar x\|^2`. Placed before the scaling by a
    learning rate :math:`\eta` it brings the replica nearer to the centre by the share
    :math:`\eta \rho`, which has to stay below 1 (at 1 the replicas meet, beyond 2 they
    part). The mean is the only communication between replicas: one all-reduce of the
    size of the params where the replicas lie on several devices. It is computed in
    float32 at least.

    Args:
      coupling: :math:`\rho`, a number or a schedule of the number of pulls done. A
        constant 0 does nothing, and communicates nothing.

    Returns:
      A transformation with the state :class:`AddReplicaPullState`, for the optimizer
      that :func:`replicate` is given, or for the outer optimizer of a local entropy
      within it.

    Raises:
      ValueError: if a constant coupling is negative; in ``update`` if ``params`` are
        missing or it is called outside :func:`replicate`.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp, optax
      >>> tx = eo.replicate(
      ...     optax.chain(eo.add_replica_pull(0.5), optax.sgd(1.0)), num_replicas=2
      ... )
      >>> params = jnp.array([[0.0], [4.0]])  # two replicas of one weight
      >>> updates, _ = tx.update(jnp.zeros((2, 1)), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates).ravel())
      [1. 3.]

    References:
      Zhang, Choromanska and LeCun, `Deep learning with elastic averaging SGD
      <https://arxiv.org/abs/1412.6651>`_, NeurIPS 2015; Chaudhari et al., `Parle:
      parallelizing stochastic gradient descent <https://arxiv.org/abs/1707.00424>`_.
    """
    check_scalar("coupling", coupling)

    def init(params: optax.Params) -> optax.OptState:
        del params
        zero = jnp.zeros([], jnp.result_type(float))
        return AddReplicaPullState(jnp.zeros([], jnp.int32), zero, zero)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        assert isinstance(state, AddReplicaPullState)
        if params is None:
            raise ValueError("params: add_replica_pull needs them, got None.")
        if is_constant(coupling) and coupling == 0:
            return updates, state
        _check_within_replicate()
        rho = at_step(coupling, state.count)
        offsets = jax.tree.map(from_center, params)
        pulled = map_unmasked(
            lambda u, d: u + like_leaf(rho, u) * d.astype(u.dtype), updates, offsets
        )
        count = optax.safe_increment(state.count)
        return pulled, AddReplicaPullState(count, rho, norm(offsets))

    return optax.GradientTransformationExtraArgs(init, update)


def _check_within_replicate() -> None:
    try:
        jax.lax.axis_index(REPLICA_AXIS)
    except NameError:
        raise ValueError(
            "add_replica_pull works within replicate(optimizer, num_replicas) alone: "
            "there is no axis of replicas here."
        ) from None


def from_center(param: jax.Array) -> jax.Array:
    """Return the offset from the centre, under ``jax.vmap`` over the replicas."""
    # In float32: the mean of bfloat16 weights would be rounded to one of them.
    return _offset(param.astype(jnp.result_type(param, jnp.float32)))


@jax.custom_batching.custom_vmap
def _offset(param: jax.Array) -> jax.Array:
    return param - param  # one alone is its own centre


@_offset.def_vmap
def _offsets(
    axis_size: int, in_batched: Any, params: jax.Array
) -> tuple[jax.Array, bool]:
    # A mean over the leading axis, and no collective over the axis of vmap, which is
    # refused within shard_map.
    del axis_size, in_batched
    return params - jnp.mean(params, axis=0, keepdims=True), True
