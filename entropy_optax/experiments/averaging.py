"""Two rivals that evaluate elsewhere than at the params, in the form of the others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class LookaheadState(NamedTuple):
    """State of `lookahead`.

    Attributes:
      inner: state of `optax.lookahead`.
      slow: the slow parameters.
    """

    inner: Any
    slow: Any


def lookahead(
    optimizer: optax.GradientTransformation, sync_period: int, slow_step_size: float
) -> optax.GradientTransformationExtraArgs:
    """`optax.lookahead` for loops that know one set of params: the fast ones.

    Args:
      optimizer: moves the fast params.
      sync_period: updates between two moves of the slow params.
      slow_step_size: share of the way that they move.

    Returns:
      The transformation; the slow params are in its state.
    """
    tx = optax.lookahead(optimizer, sync_period, slow_step_size)

    def init(params: Any) -> LookaheadState:
        pair = optax.LookaheadParams(params, params)
        return LookaheadState(tx.init(pair), jax.tree.map(jnp.copy, params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, LookaheadState]:
        del extra_args
        pair = optax.LookaheadParams(params, state.slow)
        moves, inner = tx.update(updates, state.inner, pair)
        slow = optax.apply_updates(state.slow, moves.slow)  # pyright: ignore[reportAttributeAccessIssue]
        return moves.fast, LookaheadState(inner, slow)  # pyright: ignore[reportAttributeAccessIssue]

    return optax.GradientTransformationExtraArgs(init, update)


class AverageState(NamedTuple):
    """State of `average_iterates`.

    Attributes:
      inner: state of the optimizer.
      total: weighted sum of the iterates.
      weight: sum of the weights.
    """

    inner: Any
    total: Any
    weight: jax.Array


def average_iterates(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformationExtraArgs:
    """Keeps an exponential moving average of the iterates of an optimizer.

    `s <- d s + (1 - d) x` and `w <- d w + (1 - d)` after each update, from 0; the
    average is `s / w`, which the iterates alone weigh in, not the start.

    Args:
      optimizer: moves the params, and is not changed by the average.
      decay: d, in [0, 1).

    Returns:
      The transformation; `average` reads the average from its state.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> AverageState:
        return AverageState(
            optimizer.init(params),
            optax.tree.zeros_like(params),
            jnp.zeros([], jnp.float32),
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, AverageState]:
        updates, inner = optimizer.update(updates, state.inner, params, **extra_args)
        new = optax.apply_updates(params, updates)
        total = optax.tree.update_moment(new, state.total, decay, 1)
        weight = decay * state.weight + (1 - decay)
        return updates, AverageState(inner, total, weight)

    return optax.GradientTransformationExtraArgs(init, update)


def average(state: AverageState) -> Any:
    """The average of the iterates so far.

    Args:
      state: of `average_iterates`, after one update or more.

    Returns:
      A tree like the params.
    """
    return jax.tree.map(lambda total: total / state.weight, state.total)
