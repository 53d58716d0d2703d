"""L gradients on L stacked batches, whatever the optimizer and the framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_optax._arguments import copy
from entropy_optax.transforms import ScaleByLocalEntropyState
from entropy_optax.transforms._checks import check_replica_axis

# (params, model_state, batch) -> ((loss, model_state), gradient at params)
ValueAndGrad = Callable[..., tuple[tuple[jax.Array, Any], optax.Updates]]


def num_batches(batches: Any, num_replicas: int | None = None) -> int:
    """Return the leading axis L that all leaves of stacked batches share.

    Args:
      batches: a tree of arrays of shape ``(L, ...)``, or of shape
        ``(num_replicas, L, ...)``.
      num_replicas: how many replicas there are, None for no such axis.

    Returns:
      L, at least 1.

    Raises:
      ValueError: if there is no leaf, or leaves differ, or L is 0, or the axis of the
        replicas has another length.
    """
    if num_replicas is not None:
        check_replica_axis("batches", batches, num_replicas)
        batches = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches
        )
    leaves = jax.tree_util.tree_leaves_with_path(batches)
    shapes = {
        f"batches{jax.tree_util.keystr(path)}": jnp.shape(leaf) for path, leaf in leaves
    }
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            "batches must be a tree of arrays with one leading axis of length L >= 1 "
            f"in common; got the shapes {shapes}."
        )
    return lengths.pop()[0]


def of_type(opt_state: optax.OptState, kind: type | tuple[type, ...]) -> list[Any]:
    """Return the nodes of a type in an optimizer's state."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]


def take_gradients(
    tx: optax.GradientTransformation,
    value_and_grad: ValueAndGrad,
    params: optax.Params,
    model_state: Any,
    opt_state: optax.OptState,
    batches: Any,
    *,
    state_name: str,
    carry_helper: str,
    num_replicas: int | None = None,
) -> tuple[optax.Params, Any, optax.OptState, jax.Array]:
    """Take L gradients: one update of L inner steps, or L ordinary updates.

    Args:
      tx: any optimizer. With :func:`entropy_optax.scale_by_local_entropy` in it, one
        update spends the L gradients; else each gradient is an update.
      value_and_grad: ``(params, model_state, batch) -> ((loss, model_state), grads)``.
      params: tree of parameters.
      model_state: tree that each gradient hands to the next.
      opt_state: state of ``tx``.
      batches: tree whose leaves have the leading axis L, after that of the replicas.
      state_name: name of ``model_state`` in the carry.
      carry_helper: the function that makes ``carry_init``, for the message.
      num_replicas: the leading axis of params, states and batches; None for none.

    Returns:
      The new params, model state and optimizer state, and the mean loss.

    Raises:
      ValueError: if ``batches`` have no common leading axis or not that of
        ``num_steps``, the optimizer was built without ``carry_init``, or it holds
        several whole inner loops.
    """
    length = num_batches(batches, num_replicas)
    over = (lambda function: function) if num_replicas is None else jax.vmap
    loops = of_type(opt_state, ScaleByLocalEntropyState)
    if not loops:

        def body(loop: Any, batch: Any) -> tuple[Any, jax.Array]:
            params, model_state, opt_state = loop
            (loss, model_state), grads = over(value_and_grad)(
                params, model_state, batch
            )
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, model_state, opt_state), jnp.asarray(loss, jnp.float32)

        if num_replicas is not None:
            batches = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batches)
        loop, losses = jax.lax.scan(body, (params, model_state, opt_state), batches)
        return *loop, jnp.mean(losses)

    if len(loops) > 1:
        raise ValueError(
            "tx must hold at most one local entropy with opaque_mode=True, got "
            f"{len(loops)}."
        )
    if loops[0].carry is None:
        raise ValueError(
            "carry_init: an optimizer with opaque_mode=True must be built with "
            f"carry_init={carry_helper}, got None."
        )

    def take(params: optax.Params, batch: Any, carry: Any) -> tuple[Any, Any]:
        (loss, new), grads = value_and_grad(params, carry[state_name], batch)
        total = carry["loss"] + jnp.asarray(loss, jnp.float32)
        return grads, {state_name: new, "loss": total}

    if num_replicas is None:
        pick = lambda i: jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), batches
        )
        first, grad_fn = pick(0), lambda p, i, carry: take(p, pick(i), carry)
        # Numbers in the batches' place: batches[1:] would be a second copy of the data.
        rest = jnp.arange(1, length)
    else:
        first = jax.tree.map(lambda leaf: leaf[:, 0], batches)
        rest = jax.tree.map(lambda leaf: leaf[:, 1:], batches)
        grad_fn = take

    def begin(params: optax.Params, batch: Any, model_state: Any) -> tuple[Any, Any]:
        zero = jnp.zeros([], jnp.float32)
        return take(params, batch, {state_name: model_state, "loss": zero})

    grads, carry = over(begin)(params, first, model_state)
    update = optax.with_extra_args_support(tx).update
    try:
        updates, opt_state = update(
            grads, opt_state, params, grad_fn=grad_fn, batches=rest, carry=carry
        )
    except ValueError as error:
        if str(error).startswith("batches"):
            error.add_note(
                f"The stacked batches given have the leading axis {length}; it must be "
                "num_steps of the optimizer."
            )
        raise
    carry = of_type(opt_state, ScaleByLocalEntropyState)[0].carry
    params = optax.apply_updates(params, updates)
    loss = jnp.mean(carry["loss"]) / length
    return params, carry[state_name], _copy_carry(opt_state), loss


def _copy_carry(opt_state: optax.OptState) -> optax.OptState:
    # The caller keeps the model state too, and one buffer in two places could not be
    # donated.
    kind = ScaleByLocalEntropyState
    return jax.tree.map(
        lambda node: (
            node._replace(carry=copy(node.carry)) if isinstance(node, kind) else node
        ),
        opt_state,
        is_leaf=lambda node: isinstance(node, kind),
    )
