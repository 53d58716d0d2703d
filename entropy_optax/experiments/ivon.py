"""IVON, a relative: a Gaussian over the weights whose spread is learnt as they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class IVONState(NamedTuple):
    """State of :func:`ivon`.

    Attributes:
      count: updates so far.
      mean: m, where to evaluate.
      gradient: mean of the gradients, not yet corrected for its start at 0.
      curvature: h, an estimate of the Hessian's diagonal.
    """

    count: Any
    mean: Any
    gradient: Any
    curvature: Any


def ivon(
    learning_rate: optax.Schedule,
    ess: Any,
    weight_decay: Any,
    *,
    curvature: float,
    decays: tuple[float, float],
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Improved variational online Newton, one gradient per update.

    Between two calls the params are a draw of the Gaussian of mean m and variance
    :math:`\sigma^2 = 1 / (\lambda (h + \delta))`. With the gradient g at it

    .. math::
      \hat h &= g\, (\theta - m) / \sigma^2, \qquad
      \bar g \leftarrow b_1 \bar g + (1 - b_1)\, g \\
      h &\leftarrow b_2 h + (1 - b_2)\, \hat h
          + \tfrac12 (1 - b_2)^2 (h - \hat h)^2 / (h + \delta) \\
      m &\leftarrow m - \eta\, (\bar g / (1 - b_1^t) + \delta m) / (h + \delta)

    The first gradient is taken at m itself, where the loop starts, and leaves h alone.

    Args:
      learning_rate: eta, of the number of updates done.
      ess: lambda, the effective sample size.
      weight_decay: delta, the precision of the prior per example, above 0 or with h.
      curvature: h at the start.
      decays: b1 and b2.
      key: PRNG key of the draws.

    Returns:
      The transformation.

    References:
      Shen et al., `Variational learning is effective for large deep networks
      <https://arxiv.org/abs/2402.17641>`_, ICML 2024, algorithm 1.
    """
    b1, b2 = decays

    def init(params: Any) -> IVONState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        full = jax.tree.map(lambda leaf: jnp.full_like(leaf, curvature), params)
        return IVONState(jnp.zeros([], jnp.int32), params, zeros, full)

    def update(updates: Any, state: Any, params: Any = None, **unused: Any) -> Any:
        count = state.count + 1
        learn = jnp.where(state.count > 0, 1 - b2, 0.0)

        def new_curvature(h: Any, g: Any, draw: Any, m: Any) -> Any:
            found = g * (draw - m) * ess * (h + weight_decay)
            away = learn * (found - h)
            return h + away + away**2 / (2 * (h + weight_decay))

        h = jax.tree.map(new_curvature, state.curvature, updates, params, state.mean)
        gradient = optax.tree.update_moment(updates, state.gradient, b1, 1)
        rate, unbiased = learning_rate(state.count), 1 - b1**count
        mean = jax.tree.map(
            lambda m, g, h: (
                m - rate * (g / unbiased + weight_decay * m) / (h + weight_decay)
            ),
            state.mean,
            gradient,
            h,
        )
        noise = optax.tree.random_like(jax.random.fold_in(key, count), params)
        moves = jax.tree.map(
            lambda m, h, n, p: m + n / jnp.sqrt(ess * (h + weight_decay)) - p,
            mean,
            h,
            noise,
            params,
        )
        return moves, IVONState(count, mean, gradient, h)

    return optax.GradientTransformationExtraArgs(init, update)
