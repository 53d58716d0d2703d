"""Local entropy with one gradient per call, for any training loop."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from entropy_optax._arguments import (
    ScalarOrSchedule,
    at_step,
    check_num_steps,
    check_scalar,
    copy,
    like_leaf,
)
from entropy_optax.transforms._checks import check_mean_of
from entropy_optax.transforms._inner import (
    Cycle,
    InnerState,
    MeanOf,
    direction_of,
    first_mean,
    init_sampler,
    inner_step,
    norm,
    promote,
    reset_where,
)


class LocalEntropyState(NamedTuple):
    """State of :func:`local_entropy` with one gradient per call.

    Attributes:
      outer_count: outer steps done; the schedules of scope and temperature follow it.
      inner_count: inner steps done in this cycle, 0 .. num_steps - 1; 0 means that the
        params are x.
      num_gradients: gradients spent so far, the unit of every comparison.
      num_nonfinite: gradients skipped so far because they were not finite.
      gamma: scope in force in the last call.
      distance: ||x - mu|| at the end of the last complete cycle.
      displacement: mean of ||x' - x|| over the inner steps of the current cycle, or of
        the last one between two cycles.
      anchor: the outer iterate x, while ``inner_count`` is not 0.
      mean: mu, while ``inner_count`` is not 0.
      sampler_state: state of the inner chain.
      optimizer_state: state of the outer optimizer.
    """

    outer_count: jax.Array
    inner_count: jax.Array
    num_gradients: ArrayLike
    num_nonfinite: ArrayLike
    gamma: jax.Array
    distance: jax.Array
    displacement: jax.Array
    anchor: optax.Params
    mean: optax.Params
    sampler_state: optax.OptState
    optimizer_state: optax.OptState


def one_gradient_per_call(
    optimizer: optax.GradientTransformation,
    sampler: optax.GradientTransformation,
    num_steps: int,
    gamma: ScalarOrSchedule,
    *,
    mean_decay: ScalarOrSchedule,
    mean_of: MeanOf,
    scale_by_gamma: bool,
    reset_sampler: bool,
    accumulator_dtype: DTypeLike,
    skip_nonfinite: bool,
) -> optax.GradientTransformationExtraArgs:
    """Return :func:`local_entropy` with ``opaque_mode=False``; same arguments."""
    num_steps = check_num_steps(num_steps)
    check_scalar("gamma", gamma)
    check_scalar("mean_decay", mean_decay, maximum=1.0)
    check_mean_of(mean_of, scale_by_gamma)
    inner_chain = optax.with_extra_args_support(sampler)
    outer_chain = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> optax.OptState:
        return LocalEntropyState(
            outer_count=jnp.zeros([], jnp.int32),
            inner_count=jnp.zeros([], jnp.int32),
            num_gradients=jnp.zeros([], jnp.int32),
            num_nonfinite=jnp.zeros([], jnp.int32),
            gamma=jnp.zeros([], jnp.result_type(float)),
            distance=jnp.zeros([], jnp.result_type(float)),
            displacement=jnp.zeros([], jnp.result_type(float)),
            anchor=copy(params),
            mean=copy(promote(params, accumulator_dtype)),
            sampler_state=init_sampler(inner_chain, params),
            optimizer_state=copy(outer_chain.init(params)),
        )

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, LocalEntropyState)
        if params is None:
            raise ValueError("params: local_entropy needs them, got None.")

        # Line 2 of Algorithm 1, at the start of a cycle: x', mu <- x.
        is_first = state.inner_count == 0
        anchor, mean = optax.tree.where(
            is_first,
            (params, first_mean(promote(params, accumulator_dtype), mean_of)),
            (state.anchor, state.mean),
        )
        sampler_state = state.sampler_state
        if reset_sampler:
            fresh = init_sampler(inner_chain, params)
            sampler_state = reset_where(is_first, fresh, sampler_state)
        displacement = jnp.where(is_first, 0, state.displacement)
        scope = at_step(gamma, state.outer_count)
        moves, inner = inner_step(
            inner_chain,
            mean_decay,
            mean_of,
            skip_nonfinite,
            Cycle(anchor, scope, state.outer_count, num_steps, extra_args),
            optax.tree.cast_like(updates, params),
            params,
            InnerState(mean, sampler_state, displacement, state.num_nonfinite),
            state.inner_count,
        )

        def outer_step() -> tuple[optax.Updates, optax.OptState, jax.Array]:
            wide = promote(anchor, accumulator_dtype)
            direction = direction_of(wide, inner.mean, mean_of)
            distance = norm(direction)
            if scale_by_gamma:
                direction = jax.tree.map(lambda d: like_leaf(scope, d) * d, direction)
            steps, optimizer_state = outer_chain.update(
                optax.tree.cast_like(direction, params),
                state.optimizer_state,
                anchor,
                **extra_args,
            )
            # The caller adds the result to x', so undo the way from x to x'.
            jump = optax.tree.sub(optax.apply_updates(anchor, steps), params)
            return optax.tree.cast_like(jump, params), optimizer_state, distance

        def stay() -> tuple[optax.Updates, optax.OptState, jax.Array]:
            return moves, state.optimizer_state, state.distance

        is_last = state.inner_count == num_steps - 1
        new_updates, optimizer_state, distance = jax.lax.cond(is_last, outer_step, stay)
        return new_updates, LocalEntropyState(
            outer_count=jnp.where(
                is_last, optax.safe_increment(state.outer_count), state.outer_count
            ),
            inner_count=jnp.where(is_last, 0, state.inner_count + 1),
            num_gradients=optax.safe_increment(state.num_gradients),
            num_nonfinite=inner.num_nonfinite,
            gamma=scope,
            distance=distance,
            displacement=inner.displacement,
            anchor=anchor,
            mean=inner.mean,
            sampler_state=inner.sampler_state,
            optimizer_state=optimizer_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)
