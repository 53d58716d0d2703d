"""One step of the inner loop, which every driver of local entropy shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.typing import ArrayLike, DTypeLike

from entropy_optax._arguments import ScalarOrSchedule, at_step, copy, like_leaf

MeanOf = Literal["iterates", "gradients"]


class InnerState(NamedTuple):
    """What one inner step hands to the next, besides the inner iterate x'.

    Attributes:
      mean: mu, the running mean of x' or of the gradients.
      sampler_state: state of the inner chain.
      displacement: mean of ||x' - x|| over the inner steps done; a skipped step leaves
        it as it was.
      num_nonfinite: gradients skipped because they were not finite, ever.
    """

    mean: optax.Params
    sampler_state: optax.OptState
    displacement: jax.Array
    num_nonfinite: ArrayLike


class SamplerKey(NamedTuple):
    """A PRNG key of the sampler: what outlives the reset of its state.

    Attributes:
      rng_key: the key, named as Optax names its own.
    """

    rng_key: jax.Array


class Cycle(NamedTuple):
    """What stays fixed during the inner steps of one outer step.

    Attributes:
      anchor: the outer iterate x.
      gamma: the scope in force.
      outer_count: outer steps done.
      num_steps: L.
      extra_args: the user's, passed on to the sampler.
    """

    anchor: optax.Params
    gamma: jax.Array
    outer_count: ArrayLike
    num_steps: int
    extra_args: dict[str, Any]


def first_mean(position: optax.Params, mean_of: MeanOf) -> optax.Params:
    """Return mu_0: x, or a zero gradient."""
    return position if mean_of == "iterates" else optax.tree.zeros_like(position)


def direction_of(
    anchor: optax.Params, mean: optax.Params, mean_of: MeanOf
) -> optax.Updates:
    """Return what takes the gradient's place: x - mu, or the mean gradient itself."""
    return optax.tree.sub(anchor, mean) if mean_of == "iterates" else mean


def promote(tree: optax.Params, dtype: DTypeLike) -> optax.Params:
    """Return a tree whose leaves have at least the precision of a dtype."""
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.result_type(p, dtype)), tree)


def norm(tree: Any) -> jax.Array:
    """Return the Euclidean norm of a tree in the default float precision."""
    return jnp.asarray(optax.tree.norm(tree), dtype=jnp.result_type(float))


def inner_step(
    sampler: optax.GradientTransformationExtraArgs,
    mean_decay: ScalarOrSchedule,
    mean_of: MeanOf,
    skip_nonfinite: bool,
    cycle: Cycle,
    grads: optax.Updates,
    position: optax.Params,
    inner: InnerState,
    step: ArrayLike,
) -> tuple[optax.Updates, InnerState]:
    """Move x' by one step of the sampler, and mu after it (Algorithm 1, lines 4 to 6).

    Args:
      sampler: the inner chain.
      mean_decay: weight of the old mean, a number or a function of ``step``.
      mean_of: what mu is the mean of.
      skip_nonfinite: whether a gradient with a NaN or an infinity changes nothing.
      cycle: what stays fixed during the inner loop.
      grads: gradient at x', a tree like the params.
      position: x'.
      inner: the state before the step.
      step: k = 0 .. L - 1.

    Returns:
      The update of x', and the state after the step.
    """

    def move() -> tuple[optax.Updates, InnerState]:
        updates, sampler_state = sampler.update(
            grads,
            inner.sampler_state,
            position,
            **{
                **cycle.extra_args,
                "anchor": cycle.anchor,
                "gamma": cycle.gamma,
                "outer_count": cycle.outer_count,
                "inner_count": step,
                "num_steps": cycle.num_steps,
                "mean_of": mean_of,
            },
        )
        updates = optax.tree.cast_like(updates, position)
        moved = optax.apply_updates(position, updates)
        decay = at_step(mean_decay, step)
        if mean_of == "gradients":
            # There is no old mean yet: a zero gradient would make it too small.
            decay = jnp.where(jnp.asarray(step) == 0, 0.0, decay)
        mean = jax.tree.map(
            lambda m, p: like_leaf(decay, m) * m + like_leaf(1 - decay, m) * p,
            inner.mean,
            optax.tree.cast_like(moved if mean_of == "iterates" else grads, inner.mean),
        )
        # Subtract in the mean's dtype: the squares of a float16 leaf overflow.
        away = jax.tree.map(
            lambda m, p, a: p.astype(m.dtype) - a.astype(m.dtype),
            mean,
            moved,
            cycle.anchor,
        )
        rate = 1 / (jnp.asarray(step, dtype=inner.displacement.dtype) + 1)
        displacement = inner.displacement + rate * (norm(away) - inner.displacement)
        return updates, InnerState(
            mean, sampler_state, displacement, inner.num_nonfinite
        )

    def stay() -> tuple[optax.Updates, InnerState]:
        count = optax.safe_increment(inner.num_nonfinite)
        return optax.tree.zeros_like(position), inner._replace(num_nonfinite=count)

    # Branches, not a product: 0 * NaN is NaN, and keys have no arithmetic.
    return jax.lax.cond(is_finite(grads), move, stay) if skip_nonfinite else move()


def is_finite(tree: Any) -> jax.Array:
    """Return whether every element of a tree is finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.array(leaves)) if leaves else jnp.array(True)


def sampler_keys(sampler_state: optax.OptState) -> tuple[SamplerKey, ...]:
    """Return the PRNG keys in a sampler's state, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(sampler_state)
    return tuple(SamplerKey(leaf) for path, leaf in leaves if is_key(path, leaf))


def with_keys(sampler_state: optax.OptState, keys: Any) -> optax.OptState:
    """Return a sampler's state with the keys that :func:`sampler_keys` returned."""
    remaining = iter(keys)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: next(remaining).rng_key if is_key(path, leaf) else leaf,
        sampler_state,
    )


def reset_where(
    condition: jax.Array, fresh: optax.OptState, sampler_state: optax.OptState
) -> optax.OptState:
    """Return the fresh state where the condition holds, the PRNG keys being kept.

    With the keys kept, no outer step replays the noise of the one before, the user's
    own ``optax.add_noise`` included.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, new, old: (
            old if is_key(path, old) else jnp.where(condition, new, old)
        ),
        fresh,
        sampler_state,
    )


def is_key(path: tuple[Any, ...], leaf: Any) -> bool:
    """Return whether a leaf of a state, with the path to it, is a PRNG key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return True
    # A legacy key is an ordinary array of integers: its name alone tells.
    return bool(path) and getattr(path[-1], "name", None) == "rng_key"


def init_sampler(
    sampler: optax.GradientTransformationExtraArgs, params: optax.Params
) -> optax.OptState:
    """Return the sampler's first state, sharing no buffer with params or keys."""
    return copy(sampler.init(params))


def convolves(body: Callable[[Any, Any], Any], loop: Any, xs: Any) -> bool:
    """Return whether the body of a scan holds one of XLA's convolutions.

    Those in a loop of the body's own do not count: they stay in it, unrolled or not.
    """
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    return _has_convolution(jax.make_jaxpr(body)(loop, first).jaxpr)


def _has_convolution(jaxpr: Jaxpr) -> bool:
    is_jaxpr = lambda value: isinstance(value, Jaxpr | ClosedJaxpr)
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        if equation.primitive.name in ("scan", "while"):
            continue
        for value in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            if is_jaxpr(value) and _has_convolution(getattr(value, "jaxpr", value)):
                return True
    return False
