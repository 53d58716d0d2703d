"""Scoping: schedules of the scope gamma over the outer steps, wide first."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from entropy_optax._arguments import check_num_steps, check_scalar

# The largest scope that every float dtype of a schedule can hold.
_LARGEST = float(np.finfo(np.float32).max)


def _checked_limit(gamma0: float, gamma1: float, max_gamma: float | None) -> float:
    check_scalar("gamma0", gamma0)
    check_scalar("gamma1", gamma1)
    limit = _LARGEST if max_gamma is None else float(max_gamma)
    if not limit >= gamma0:
        raise ValueError(
            f"max_gamma must be at least gamma0 = {gamma0:g}, got {max_gamma:g}."
        )
    return limit


def _growth(count: ArrayLike, gamma1: float, most: float) -> jax.Array:
    """Return (1 + gamma1)^count, at most ``most``, without overflow on the way."""
    exponent = jnp.asarray(count) * math.log1p(gamma1)
    return jnp.exp(jnp.minimum(exponent, math.log(most)))


def exponential_scoping(
    gamma0: float, gamma1: float, max_gamma: float | None = None
) -> optax.Schedule:
    r"""The paper's scoping, :math:`\gamma_t = \gamma_0 (1 + \gamma_1)^t`.

    Computed as :math:`\gamma_0 \exp(t \log(1 + \gamma_1))`, and held at ``max_gamma``
    (or at the largest float32) once it gets there: it never overflows. The inner loop
    is stable only while :math:`\eta' (\gamma + \lambda_{max})` is below 2 (with
    Nesterov's momentum 0.9 below 1.36), so set ``max_gamma`` in long runs.

    Args:
      gamma0: the scope at the first outer step.
      gamma1: relative growth per outer step; 0 is a constant scope.
      max_gamma: the largest scope.

    Returns:
      A schedule of the number of outer steps done.

    Raises:
      ValueError: if an argument is negative or ``max_gamma < gamma0``.

    Examples:
      >>> import entropy_optax as eo
      >>> gamma = eo.exponential_scoping(1e-4, 1e-3, max_gamma=1.0)
      >>> print(f"{gamma(0):.1e} {gamma(1000):.1e} {gamma(1_000_000):.1e}")
      1.0e-04 2.7e-04 1.0e+00

    References:
      Chaudhari et al., `Entropy-SGD <https://arxiv.org/abs/1611.01838>`_, ICLR 2017,
      section 4.3.
    """
    limit = _checked_limit(gamma0, gamma1, max_gamma)

    def schedule(count: ArrayLike) -> jax.Array:
        if gamma0 == 0.0:
            return jnp.zeros(jnp.shape(count))
        growth = _growth(count, gamma1, min(limit / gamma0, _LARGEST))
        return jnp.minimum(gamma0 * growth, limit)

    return schedule


def linear_scoping(
    gamma0: float, gamma1: float, max_gamma: float | None = None
) -> optax.Schedule:
    r"""Scoping in proportion to time, :math:`\gamma_t = \gamma_0 (1 + \gamma_1 t)`.

    Args:
      gamma0: the scope at the first outer step.
      gamma1: growth per outer step, relative to ``gamma0``.
      max_gamma: the largest scope.

    Returns:
      A schedule of the number of outer steps done.

    Raises:
      ValueError: if an argument is negative or ``max_gamma < gamma0``.

    Examples:
      >>> import entropy_optax as eo
      >>> print(eo.linear_scoping(0.1, 0.5, max_gamma=1.0)(4))
      0.3
    """
    return _power_scoping(gamma0, gamma1, 1, max_gamma)


def quadratic_scoping(
    gamma0: float, gamma1: float, max_gamma: float | None = None
) -> optax.Schedule:
    r"""Scoping that grows ever faster, :math:`\gamma_t = \gamma_0 (1 + \gamma_1 t)^2`.

    Args:
      gamma0: the scope at the first outer step.
      gamma1: growth of the root of the scope per outer step.
      max_gamma: the largest scope.

    Returns:
      A schedule of the number of outer steps done.

    Raises:
      ValueError: if an argument is negative or ``max_gamma < gamma0``.

    Examples:
      >>> import entropy_optax as eo
      >>> print(eo.quadratic_scoping(0.1, 0.5, max_gamma=1.0)(2))
      0.4
    """
    return _power_scoping(gamma0, gamma1, 2, max_gamma)


def _power_scoping(
    gamma0: float, gamma1: float, power: int, max_gamma: float | None
) -> optax.Schedule:
    limit = _checked_limit(gamma0, gamma1, max_gamma)

    def schedule(count: ArrayLike) -> jax.Array:
        if gamma0 == 0.0:
            return jnp.zeros(jnp.shape(count))
        # Bound the base: its power is then finite.
        most = min(limit / gamma0, _LARGEST) ** (1 / power)
        base = jnp.minimum(1 + gamma1 * jnp.asarray(count), most)
        return jnp.minimum(gamma0 * base**power, limit)

    return schedule


def bounded_exponential_scoping(
    gamma0: float, gamma1: float, max_gamma: float
) -> optax.Schedule:
    r"""Scoping that levels off at a final scope.

    .. math::
      \gamma_t = \gamma_\infty - (\gamma_\infty - \gamma_0) (1 + \gamma_1)^{-t}

    The distance to the final scope shrinks by the same factor in each outer step.

    Args:
      gamma0: the scope at the first outer step.
      gamma1: rate of approach per outer step.
      max_gamma: :math:`\gamma_\infty`, the scope approached.

    Returns:
      A schedule of the number of outer steps done.

    Raises:
      ValueError: if an argument is negative or ``max_gamma < gamma0``.

    Examples:
      >>> import entropy_optax as eo
      >>> gamma = eo.bounded_exponential_scoping(0.0, 1.0, max_gamma=8.0)
      >>> print([float(gamma(t)) for t in range(4)])
      [0.0, 4.0, 6.0, 7.0]
    """
    limit = _checked_limit(gamma0, gamma1, max_gamma)

    def schedule(count: ArrayLike) -> jax.Array:
        return limit - (limit - gamma0) / _growth(count, gamma1, _LARGEST)

    return schedule


def automatic_scoping(
    loss: float | jax.Array,
    distance: float | jax.Array,
    num_steps: int,
    *,
    max_gamma: float,
    factor: float = 1e4,
) -> optax.Schedule:
    r"""Scoping that begins where pull and loss weigh the same, without a scale to tune.

    .. math::
      \gamma_t = \min(\gamma_0\, c^{\min(t / t_{end}, 1)}, \gamma_{max}), \qquad
      \gamma_0 = \frac{f(x)}{\tfrac12 d^2}.

    For the coupling of replicas take the mean of their losses at the start and
    :func:`entropy_optax.replica_distance` of the params; for the scope of a local
    entropy its ``displacement`` (or ``distance``) after one cycle with ``gamma=0``.

    Args:
      loss: f(x), or the mean over the replicas; a number or an array of shape ``()``.
      distance: d, the distance from the replica, or from x', to the centre or to x.
      num_steps: :math:`t_{end}`, outer steps of the whole training.
      max_gamma: the largest scope, or coupling; there is no default, for unbounded
        growth diverges. A coupling's product with the learning rate has to stay below
        1, and replicas near each other begin with a strong one; for a scope see
        :func:`exponential_scoping`.
      factor: c, the growth over the whole training, at least 1; the paper's is 1e4.

    Returns:
      A schedule of the number of outer steps done.

    Raises:
      ValueError: if the loss is negative, the distance or ``max_gamma`` not above 0
        (replicas that all start at one point have no distance), the factor below 1 or
        ``num_steps`` below 1.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> replicas = jnp.array([[0.0], [4.0]])
      >>> coupling = eo.automatic_scoping(
      ...     loss=1.0, distance=eo.replica_distance(replicas), num_steps=100,
      ...     max_gamma=100.0,
      ... )  # fmt: skip
      >>> print(f"{coupling(0):.2f} {coupling(50):.1f} {coupling(100):.0f}")
      0.50 50.0 100

    References:
      Pittorino et al., `Entropic gradient descent algorithms and wide flat minima
      <https://arxiv.org/abs/2006.07897>`_, ICLR 2021.
    """
    check_scalar("loss", loss)
    check_scalar("distance", distance, positive=True)
    num_steps = check_num_steps(num_steps)
    check_scalar("max_gamma", max_gamma, positive=True)
    if not 1 <= factor < float("inf"):
        raise ValueError(f"factor must be finite and at least 1, got {factor}.")

    def schedule(count: ArrayLike) -> jax.Array:
        share = jnp.minimum(jnp.asarray(count) / num_steps, 1.0)
        gamma0 = jnp.asarray(loss) / (jnp.asarray(distance) ** 2 / 2)
        gamma = gamma0 * jnp.exp(share * math.log(factor))
        return jnp.minimum(gamma, max_gamma)

    return schedule
