"""Replicas of an optimizer over a leading axis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_optax._arguments import map_unmasked
from entropy_optax.transforms._checks import check_num_replicas, check_replica_axis
from entropy_optax.transforms._inner import is_key
from entropy_optax.transforms._one_gradient import LocalEntropyState
from entropy_optax.transforms._replica_pull import REPLICA_AXIS


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
      step runs once in L calls; within a wrapper that selects between states, such as
      ``optax.MultiSteps`` or ``optax.apply_if_finite``, it is computed at each call,
      and selected: wrap outside instead). The first replica's
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
            axis_name=REPLICA_AXIS,
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
            axis_name=REPLICA_AXIS,
            axis_size=num_replicas,
        )(updates, state, params, arrays)
        return moves, jax.tree.map(_placed_like, new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)


def along_replicas(array: jax.Array, tree: Any) -> jax.Array:
    """Return an array whose leading axis lies on an explicit mesh as a tree's does.

    There ``jax.vmap`` takes no arrays that lie in different ways.
    """
    leaves = jax.tree.leaves(tree)
    spec = jax.typeof(leaves[0]).sharding.spec if leaves else ()
    if not spec or spec[0] is None:
        return array
    return jax.sharding.reshard(array, jax.sharding.PartitionSpec(spec[0]))


def mean_of_replicas(tree: Any) -> Any:
    """Return the mean over the leading axis, computed in float32 at least."""
    return map_unmasked(
        lambda leaf: jnp.mean(
            leaf, axis=0, dtype=jnp.result_type(leaf, jnp.float32)
        ).astype(leaf.dtype),
        tree,
    )


# States of wrappers that hand every call on. Others, as optax.MultiSteps, select
# between states, and do so for each replica.
_HANDING_ON = (
    optax.MaskedState,
    optax.MultiTransformState,
    optax.InjectStatefulHyperparamsState,
)


def _axes(state: optax.OptState) -> Any:
    """Return 0 for each leaf, but None for the inner count of a local entropy.

    With one count for all replicas "is this the last step?" has one answer, and the
    outer step with its communication stays in the branch of a real condition.
    """

    def is_whole(node: Any) -> bool:
        chained = type(node) is tuple or isinstance(node, list | dict)
        return not (chained or isinstance(node, _HANDING_ON))

    def axes(node: Any) -> Any:
        every = jax.tree.map(lambda _: 0, node)
        if isinstance(node, LocalEntropyState):
            return every._replace(inner_count=None)
        return every

    return jax.tree.map(axes, state, is_leaf=is_whole)


def _placed_like(new: jax.Array, old: jax.Array) -> jax.Array:
    # On an explicit mesh what is one for all replicas comes out of vmap unsharded.
    spec = jax.typeof(old).sharding.spec
    if jax.typeof(new).sharding.spec == spec:
        return new
    return jax.sharding.reshard(new, spec)


def _with_own_keys(state: optax.OptState) -> optax.OptState:
    """Return one replica's state with keys folded by its number; number 0 keeps its."""
    replica = jax.lax.axis_index(REPLICA_AXIS).astype(jnp.uint32)

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
