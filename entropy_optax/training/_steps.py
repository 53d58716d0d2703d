"""L gradients on L stacked batches, whatever the optimizer and the framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_optax._arguments import copy
from entropy_optax.transforms import (
    LocalEntropyState,
    ScaleByLocalEntropyState,
    eval_params,
)

# (params, model_state, batch) -> ((loss, model_state), gradient at params)
ValueAndGrad = Callable[..., tuple[tuple[jax.Array, Any], optax.Updates]]


def num_batches(batches: Any) -> int:
    """Return the leading axis L that all leaves of stacked batches share.

    Args:
      batches: a tree of arrays of shape ``(L, ...)``.

    Returns:
      L, at least 1.

    Raises:
      ValueError: if there is no leaf, or leaves differ, or L is 0.
    """
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


def outer_params(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """Return x if the state holds a local entropy, the params themselves otherwise."""
    if of_type(opt_state, (LocalEntropyState, ScaleByLocalEntropyState)):
        return eval_params(opt_state, params)
    return params


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
) -> tuple[optax.Params, Any, optax.OptState, jax.Array]:
    """Take L gradients: one update of L inner steps, or L ordinary updates.

    Args:
      tx: any optimizer. With :func:`entropy_optax.scale_by_local_entropy` in it, one
        update spends the L gradients; else each gradient is an update.
      value_and_grad: ``(params, model_state, batch) -> ((loss, model_state), grads)``.
      params: tree of parameters.
      model_state: tree that each gradient hands to the next.
      opt_state: state of ``tx``.
      batches: tree whose leaves have the leading axis L.
      state_name: name of ``model_state`` in the carry.
      carry_helper: the function that makes ``carry_init``, for the message.

    Returns:
      The new params, model state and optimizer state, and the mean loss.

    Raises:
      ValueError: if ``batches`` have no common leading axis or not that of
        ``num_steps``, the optimizer was built without ``carry_init``, or it holds
        several whole inner loops.
    """
    length = num_batches(batches)
    loops = of_type(opt_state, ScaleByLocalEntropyState)
    if not loops:

        def body(loop: Any, batch: Any) -> tuple[Any, jax.Array]:
            params, model_state, opt_state = loop
            (loss, model_state), grads = value_and_grad(params, model_state, batch)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, model_state, opt_state), jnp.asarray(loss, jnp.float32)

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

    def grad_fn(params: optax.Params, i: Any, carry: Any) -> tuple[Any, Any]:
        batch = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), batches
        )
        (loss, new), grads = value_and_grad(params, carry[state_name], batch)
        total = carry["loss"] + jnp.asarray(loss, jnp.float32)
        return grads, {state_name: new, "loss": total}

    start = {state_name: model_state, "loss": jnp.zeros([], jnp.float32)}
    grads, carry = grad_fn(params, 0, start)
    update = optax.with_extra_args_support(tx).update
    # Numbers in the batches' place: batches[1:] would be a second copy of the data.
    numbers = jnp.arange(1, length)
    try:
        updates, opt_state = update(
            grads, opt_state, params, grad_fn=grad_fn, batches=numbers, carry=carry
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
    return params, carry[state_name], _copy_carry(opt_state), carry["loss"] / length


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
