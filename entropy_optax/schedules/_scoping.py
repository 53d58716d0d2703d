"""Scoping: schedules of the scope gamma over the outer steps, wide first."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from entropy_optax._arguments import check_scalar

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
