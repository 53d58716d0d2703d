"""Checks and conversions of arguments that every module shares."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

ScalarOrSchedule = float | jax.Array | optax.Schedule


def check_scalar(
    name: str, value: Any, *, maximum: float = float("inf"), positive: bool = False
) -> None:
    """Raise if a scalar known now is outside ``[0, maximum]``.

    Schedules and traced values (under ``optax.inject_hyperparams``) pass: their value
    is not known when the transformation is built.

    Args:
      name: the argument's name, for the message.
      value: a number, an array of one number, or a schedule.
      maximum: the largest value allowed.
      positive: whether 0 is not allowed.

    Raises:
      ValueError: if the value is no number, negative, NaN or larger than ``maximum``.
    """
    if callable(value):
        return
    try:
        number = float(value)
    except jax.errors.ConcretizationTypeError:
        return
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be a number or a schedule, got {value!r}."
        ) from None
    if positive and not 0.0 < number <= maximum:
        raise ValueError(f"{name} must be above 0, got {value}.")
    if not 0.0 <= number <= maximum:
        wanted = "at least 0" if maximum == float("inf") else f"in [0, {maximum:g}]"
        raise ValueError(f"{name} must be {wanted}, got {value}.")


def check_num_steps(num_steps: Any) -> int:
    """Return the number of inner steps as an ``int``.

    Args:
      num_steps: number of inner steps L.

    Returns:
      L.

    Raises:
      ValueError: if it is not a whole number known now, or less than 1.
    """
    try:
        steps = operator.index(num_steps)
    except (TypeError, jax.errors.JAXTypeError):
        raise ValueError(
            "num_steps must be an int that is known when the transformation is built, "
            f"got {num_steps!r}. Under optax.inject_hyperparams name it in static_args."
        ) from None
    if steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {steps}.")
    return steps


def at_step(value: ScalarOrSchedule, count: ArrayLike) -> jax.Array:
    """Return the scalar in force at a step, in the default float precision.

    Args:
      value: a number or a schedule.
      count: the step at which a schedule is evaluated.

    Returns:
      A float array of shape ``()``.
    """
    # An integer of default precision: a quotient of int32 would stay in float32.
    count = jnp.asarray(count, dtype=jnp.result_type(int))
    scalar: Any = value(count) if callable(value) else value
    return jnp.asarray(scalar, dtype=jnp.result_type(float))


def is_constant(value: Any) -> TypeGuard[float]:
    """Return whether a scalar is a plain number, known when a function is traced."""
    return isinstance(value, numbers.Real | np.ndarray)


def typed_key(key: jax.Array | int) -> jax.Array:
    """Return a typed PRNG key of its own, which shares no buffer with the user's.

    Args:
      key: a typed key, a legacy ``uint32`` key or an integer seed.

    Returns:
      A typed key.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return copy(key)
    if isinstance(key, jax.Array | np.ndarray) and key.ndim:
        return jax.random.wrap_key_data(jnp.array(key, copy=True))
    return jax.random.key(key)


def copy(tree: Any) -> Any:
    """Return a tree of new buffers, so that the old ones can be donated."""
    # The dtype is named, or a Python number would stay weakly typed and compile twice.
    return jax.tree.map(
        lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype, copy=True), tree
    )


def like_leaf(scalar: ArrayLike, leaf: Any) -> jax.Array:
    """Return a scalar in a leaf's dtype, so that it never promotes the leaf."""
    return jnp.asarray(scalar).astype(leaf.dtype)


def map_unmasked(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map over the leaves that ``optax.masked`` and ``optax.partition`` left in a tree.

    Args:
      fn: function of one leaf of each tree.
      tree: a tree which may hold ``optax.MaskedNode``; these are returned as they are.
      *rest: trees of the same structure, whole or masked in the same places.

    Returns:
      A tree like ``tree``.
    """
    return jax.tree.map(
        lambda leaf, *others: leaf if _is_masked(leaf) else fn(leaf, *others),
        tree,
        *rest,
        is_leaf=_is_masked,
    )


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
