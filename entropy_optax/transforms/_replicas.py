"""Replicas of an optimizer over a leading axis, and the pull that couples them."""

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
from entropy_optax.transforms._checks import check_num_replicas, check_replica_axis
from entropy_optax.transforms._inner import is_key, norm
from entropy_optax.transforms._one_gradient import LocalEntropyState

_AXIS = "entropy_optax_replicas"


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
        rho = at_step(coupling, state.count)
        offsets = jax.tree.map(_offset, params)
        pulled = map_unmasked(
            lambda u, d: u + like_leaf(rho, u) * d.astype(u.dtype), updates, offsets
        )
        count = optax.safe_increment(state.count)
        return pulled, AddReplicaPullState(count, rho, norm(offsets))

    return optax.GradientTransformationExtraArgs(init, update)


def _offset(param: jax.Array) -> jax.Array:
    # In float32: the mean of bfloat16 weights would be rounded to one of them.
    wide = param.astype(jnp.result_type(param, jnp.float32))
    try:
        # Under vmap nothing is gathered: it is the array itself with its axis. (On an
        # explicit mesh pmean gives its result the axis's sharding.)
        return wide - jnp.mean(jax.lax.all_gather(wide, _AXIS), axis=0)
    except NameError:
        raise ValueError(
            "add_replica_pull works within replicate(optimizer, num_replicas) alone: "
            "there is no axis of replicas here."
        ) from None


def replicate(
    optimizer: optax.GradientTransformation, num_replicas: int
) -> optax.GradientTransformationExtraArgs:
    r"""Run replicas of an optimizer side by side, over a leading axis of the params.

    Every leaf of params, gradients and state has a leading axis of length
    ``num_replicas``. Each replica takes the steps that ``optimizer`` takes alone, with
    noise of its own; only :func:`add_replica_pull` within it couples them. A chain is
    of Parle's kind, with any inner and outer optimizer::

      eo.replicate(
          eo.local_entropy(
              optax.chain(eo.add_replica_pull(0.1), optax.sgd(1.0)),
              eo.sgld(0.1, momentum=0.9),
              num_steps=25,
              gamma=0.01,
          ),
          num_replicas=3,
      )

    (:func:`parle`, :func:`replicated_sgd` and :func:`elastic_averaging` are of this
    form.) Shard the leading axis over a mesh, ``jax.device_put(params,
    NamedSharding(mesh, P("replica")))``, and each device trains its own replicas:
    between two pulls nothing is communicated. Evaluate at :func:`center_params`.

    ``update(grads, state, params, *, grad_fn, **extra_args)``: ``grads`` and ``params``
    have the leading axis, and so has every other argument, as ``batches`` and
    ``carry``, each of which is handed on to its replica: ``batches`` of an inner loop
    have the leading axes ``(num_replicas, num_steps - 1)``. Functions, as ``grad_fn``,
    are called for one replica, without the axis.

    Args:
      optimizer: any transformation. Its state must not depend on values of the params
        through Python's control flow, as under ``jax.vmap``.
      num_replicas: n, at least 1.

    Returns:
      A transformation whose state is that of ``optimizer`` with the leading axis (but
      for the inner count of a local entropy, which is one for all, so that its outer
      step runs once in L calls; within a wrapper such as ``optax.MultiSteps`` it is
      computed at each call, and selected: wrap outside instead). The first replica's
      PRNG keys are those of ``optimizer`` itself, the others' are folded from them.

    Raises:
      ValueError: if ``num_replicas`` is less than 1; in ``init`` and ``update`` if a
        leaf has not the leading axis, or the state holds an array of PRNG keys.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> tx = eo.replicate(optax.adam(0.1), num_replicas=3)
      >>> params = eo.replica_params(jnp.ones(2), 3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates.shape
      (3, 2)
    """
    num_replicas = check_num_replicas(num_replicas)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> optax.OptState:
        check_replica_axis("params", params, num_replicas)
        one = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params
        )
        axes = _axes(jax.eval_shape(inner.init, one))
        return jax.vmap(
            lambda params: _with_own_keys(inner.init(params)),
            axis_name=_AXIS,
            axis_size=num_replicas,
            out_axes=axes,
        )(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        functions = {k: v for k, v in extra_args.items() if callable(v)}
        arrays = {k: v for k, v in extra_args.items() if k not in functions}
        for name, tree in {"grads": updates, "params": params, **arrays}.items():
            check_replica_axis(name, tree, num_replicas)

        def update_one(
            updates: Any, state: Any, params: Any, arrays: Any
        ) -> tuple[optax.Updates, optax.OptState]:
            return inner.update(updates, state, params, **arrays, **functions)

        axes = _axes(state)
        moves, new_state = jax.vmap(
            update_one,
            in_axes=(0, axes, 0, 0),
            out_axes=(0, axes),
            axis_name=_AXIS,
            axis_size=num_replicas,
        )(updates, state, params, arrays)
        return moves, jax.tree.map(_placed_like, new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _axes(state: optax.OptState) -> Any:
    """Return 0 for each leaf, but None for the inner count of a local entropy.

    With one count for all replicas "is this the last step?" has one answer, and the
    outer step with its communication stays in the branch of a real condition. A wrapper
    that selects between states, as ``optax.MultiSteps``, does so for each replica: what
    lies in one keeps the axis.
    """

    def axis(path: tuple[Any, ...], node: Any) -> Any:
        in_chains = all(isinstance(k, jax.tree_util.SequenceKey) for k in path)
        if not (isinstance(node, LocalEntropyState) and in_chains):
            return jax.tree.map(lambda _: 0, node)
        return jax.tree.map(lambda _: 0, node)._replace(inner_count=None)

    return jax.tree_util.tree_map_with_path(
        axis, state, is_leaf=lambda node: isinstance(node, LocalEntropyState)
    )


def _placed_like(new: jax.Array, old: jax.Array) -> jax.Array:
    # On an explicit mesh what is one for all replicas comes out of vmap unsharded.
    spec = jax.typeof(old).sharding.spec
    if jax.typeof(new).sharding.spec == spec:
        return new
    return jax.sharding.reshard(new, spec)


def _with_own_keys(state: optax.OptState) -> optax.OptState:
    """Return one replica's state with keys folded by its number; number 0 keeps its."""
    replica = jax.lax.axis_index(_AXIS).astype(jnp.uint32)

    def own(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if not is_key(path, leaf):
            return leaf
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if leaf.ndim > (0 if typed else 1):
            raise ValueError(
                f"optimizer{jax.tree_util.keystr(path)}: its state holds an array of "
                f"keys of shape {leaf.shape}, wanted single ones. Replicas of replicas "
                "are one axis of all of them."
            )
        # jax.random.split takes the numbers from 0 up: these are never its own.
        folded = jax.random.fold_in(leaf, jnp.uint32(0) - replica)
        if not typed:  # a legacy key
            return jnp.where(replica == 0, leaf, folded)
        # As words: the checker of key reuse takes a choice between keys for a use.
        words, others = jax.random.key_data(leaf), jax.random.key_data(folded)
        words = jnp.where(replica == 0, words, others)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))

    return jax.tree_util.tree_map_with_path(own, state)
