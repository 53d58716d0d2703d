"""Checks of what each call of update is given."""

from __future__ import annotations

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
