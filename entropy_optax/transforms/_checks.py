"""Checks of what a transformation, or each call of its update, is given."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp


def check_batches(batches: Any, length: int) -> None:
    """Check that each leaf has the leading axis of the inner loop.

    Raises:
      ValueError: if one has not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != length:
            raise ValueError(
                f"batches{jax.tree_util.keystr(path)} must have the leading axis "
                f"num_steps - 1 = {length} (the first batch gave the gradient at "
                f"params), got shape {shape}."
            )


def check_mean_of(mean_of: Any, scale_by_gamma: bool) -> None:
    """Raise if it is not known what mu is to be the mean of.

    Raises:
      ValueError: if it is neither ``"iterates"`` nor ``"gradients"``, or the gradients,
        which hold the scope already, are to be multiplied by it.
    """
    if mean_of not in ("iterates", "gradients"):
        raise ValueError(f"mean_of must be 'iterates' or 'gradients', got {mean_of!r}.")
    if mean_of == "gradients" and scale_by_gamma:
        raise ValueError(
            "scale_by_gamma: the mean of the gradients holds the scope already; got "
            "True with mean_of='gradients'."
        )


def check_num_replicas(num_replicas: Any) -> int:
    """Return the number of replicas as an ``int``.

    Raises:
      ValueError: if it is not a whole number of at least 1.
    """
    try:
        number = operator.index(num_replicas)
    except (TypeError, jax.errors.JAXTypeError):
        number = 0
    if number < 1:
        raise ValueError(
            f"num_replicas must be an int of at least 1, got {num_replicas!r}."
        )
    return number


def check_replica_axis(name: str, tree: Any, num_replicas: int) -> None:
    """Check that each leaf has the leading axis of the replicas.

    Raises:
      ValueError: if one has not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = jnp.shape(leaf)
        if shape[:1] != (num_replicas,):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have the leading axis "
                f"num_replicas = {num_replicas}, got shape {shape}."
            )


def checked_carry(carry: Any, kept: Any) -> Any:
    """Return the carry to start from: the argument's, or the one kept in the state.

    Raises:
      ValueError: if its structure, shapes or dtypes are not those of the one kept.
    """
    if carry is None:
        return kept
    if kept is None:
        raise ValueError(
            "carry: give carry_init when the transformation is built; got a carry "
            "for a transformation without one."
        )
    wanted, given = (
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
        for tree in (kept, carry)
    )
    if wanted != given:
        raise ValueError(f"carry must be like carry_init, {wanted}, got {given}.")
    return carry


def safe_add(count: jax.Array, steps: int) -> jax.Array:
    """Return the sum, or the largest integer where it would overflow."""
    largest = jnp.iinfo(count.dtype).max
    return jnp.where(count <= largest - steps, count + steps, largest)
