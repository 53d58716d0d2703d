"""The density under local entropy, in units in which its Gaussian is N(0, I)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_optax.measure._checks import (
    MeasureError,
    check_finite,
    check_params,
    check_positive,
)
from entropy_optax.measure._objective import Function, Params, as_pytree

_RESOLVED = 16
"""Spacings of floats in a standard deviation of the noise, at least."""


class Target(NamedTuple):
    """The density `exp(-s V(y)) N(y; 0, I)` over whitened displacements y.

    With `z = shift + y`, `V(y) = beta f(x + sigma z) + shift'y + |shift|^2 / 2`, so
    that `E exp(-V(y))` over N(0, I) is `exp(Phi)` whatever the shift is.

    Attributes:
      f: the loss, a callable pytree.
      params: x, a tree.
      sigma: 1 / sqrt(beta gamma).
      beta: 1 / T.
      shift: where the reference is centred, `[n]`, in units of sigma.
    """

    f: Any
    params: Any
    sigma: jax.Array
    beta: jax.Array
    shift: jax.Array


def make_target(
    f: Function, params: Params, gamma: float, temperature: float
) -> Target:
    """Builds the target in the params' own precision, without a shift.

    Args:
      f: the loss.
      params: x, a tree.
      gamma: the scope.
      temperature: T.

    Returns:
      The target.

    Raises:
      MeasureError: for params, gamma or a temperature that are none, a loss that is not
        a scalar, or noise that is lost in the rounding of the params.
    """
    check_params(params)
    for name, value in {"gamma": gamma, "temperature": temperature}.items():
        check_positive(name, value)
        check_finite(name, value)
    f = as_pytree(f)
    returned = jax.eval_shape(f, params)
    if getattr(returned, "shape", None) != ():
        raise MeasureError(f"f: returned {returned}, wanted a scalar")
    x, _ = ravel_pytree(params)
    scalar = lambda value: jnp.asarray(value, x.dtype)
    sigma = (temperature / gamma) ** 0.5
    largest = float(jnp.max(jnp.abs(x)))
    if sigma < _RESOLVED * float(jnp.finfo(x.dtype).eps) * largest:
        raise MeasureError(
            f"temperature, gamma: noise of standard deviation {sigma:.2g} is lost in"
            f" the rounding of params as large as {largest:.2g} in {x.dtype}; wanted a"
            " larger T / gamma, or params in float64"
        )
    return Target(f, params, scalar(sigma), scalar(1 / temperature), jnp.zeros_like(x))


def log_volume(size: int, gamma: float, temperature: float) -> float:
    """Computes the log of the Gaussian's normaliser.

    Args:
      size: n.
      gamma: the scope.
      temperature: T.

    Returns:
      `(n / 2) log(2 pi T / gamma)`, by which `F / T` is above Phi.
    """
    return float(0.5 * size * np.log(2 * np.pi * temperature / gamma))


def potential(target: Target, y: jax.Array) -> jax.Array:
    """Computes V(y), see `Target`.

    Args:
      target: which one.
      y: `[n]`.

    Returns:
      V, a scalar.
    """
    x, unravel = ravel_pytree(target.params)
    loss = target.f(unravel(x + target.sigma * (target.shift + y)))
    return target.beta * loss + jnp.sum(target.shift * (y + 0.5 * target.shift))


@partial(jax.jit, static_argnames="batch_size")
def energies_of_draws(target: Target, keys: jax.Array, *, batch_size: int) -> jax.Array:
    """Computes V of draws from N(0, I).

    Args:
      target: which one.
      keys: a PRNG key for each draw, `[N]`.
      batch_size: of them at once.

    Returns:
      V, `[N]`.
    """
    like = target.shift
    draw = lambda key: jax.random.normal(key, like.shape, like.dtype)
    return map_batches(lambda key: potential(target, draw(key)), keys, batch_size)


def far_draw(target: Target, key: jax.Array, scale: Any) -> jax.Array:
    """Draws y such that the displacement from params is `scale` times too large.

    Args:
      target: which one.
      key: PRNG key.
      scale: factor of the Gaussian's standard deviation.

    Returns:
      y, `[n]`.
    """
    like = target.shift
    return scale * jax.random.normal(key, like.shape, like.dtype) - like


@partial(jax.jit, static_argnames="batch_size")
def log_integrand_of_draws(
    target: Target, keys: jax.Array, scales: jax.Array, *, batch_size: int
) -> jax.Array:
    """Computes `-V(y) - |y|^2 / 2` of far draws.

    Args:
      target: which one.
      keys: a PRNG key for each draw, `[N]`.
      scales: see `far_draw`, `[N]`.
      batch_size: of them at once.

    Returns:
      It, `[N]`.
    """

    def function(pair: Any) -> jax.Array:
        y = far_draw(target, *pair)
        return -potential(target, y) - 0.5 * jnp.sum(y**2)

    return map_batches(function, (keys, scales), batch_size)


def map_batches(function: Callable[[Any], Any], y: Any, batch_size: int) -> Any:
    if batch_size >= len(jax.tree.leaves(y)[0]):
        return jax.vmap(function)(y)
    return jax.lax.map(function, y, batch_size=batch_size)
