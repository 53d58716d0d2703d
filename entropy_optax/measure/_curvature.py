"""Products of a Hessian or a Gauss-Newton matrix with vectors."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_optax.measure._checks import MeasureError
from entropy_optax.measure._objective import Function, Objective, Params

Curvature = Literal["hessian", "gauss_newton"]
Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""
Probe = Callable[[jax.Array, jax.Array], jax.Array]
"""Draws a vector from a PRNG key, of the shape and dtype of another."""


def hessian_vector_product(f: Function, params: Params, vector: Params) -> Params:
    """Multiplies by the Hessian, forward over reverse.

    Args:
      f: the loss.
      params: where.
      vector: a tree like the params.

    Returns:
      A tree like the params.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: jnp.sum(x**3)
      >>> measure.hessian_vector_product(f, jnp.ones(2), jnp.array([1.0, 2.0]))
      Array([ 6., 12.], dtype=float32)
    """
    return jax.jvp(jax.grad(f), (params,), (vector,))[1]


def gauss_newton_vector_product(f: Objective, params: Params, vector: Params) -> Params:
    """Multiplies by the Gauss-Newton matrix; see `Objective`.

    Args:
      f: from `model_objective`.
      params: where.
      vector: a tree like the params.

    Returns:
      A tree like the params.

    Raises:
      MeasureError: for anything else.
    """
    if not isinstance(f, Objective):
        raise MeasureError("curvature: 'gauss_newton' wants model_objective(...)")
    return f.gauss_newton_vector_product(params, vector)


def num_params(params: Params) -> int:
    """Counts the numbers in a tree.

    Args:
      params: the tree.

    Returns:
      n.
    """
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def flat_product(f: Any, params: Any, curvature: Curvature) -> Any:
    """A matrix as a function on vectors, inside a compiled function.

    Args:
      f: the loss.
      params: where.
      curvature: which matrix.

    Returns:
      `vector -> A vector`, in the order of `ravel_pytree`.

    Raises:
      MeasureError: for an unknown name.
    """
    multiply = {
        "hessian": hessian_vector_product,
        "gauss_newton": gauss_newton_vector_product,
    }
    if curvature not in multiply:
        raise MeasureError(
            f"curvature: got {curvature!r}, wanted 'hessian' or 'gauss_newton'"
        )
    _, unravel = ravel_pytree(params)
    return lambda v: ravel_pytree(multiply[curvature](f, params, unravel(v)))[0]


def random_signs(key: jax.Array, like: jax.Array) -> jax.Array:
    """A probe for traces.

    Args:
      key: PRNG key.
      like: a vector of the shape and dtype wanted.

    Returns:
      Independent signs.
    """
    return jax.random.rademacher(key, like.shape, like.dtype)


def random_normals(key: jax.Array, like: jax.Array) -> jax.Array:
    """A vector of uniform direction.

    Args:
      key: PRNG key.
      like: a vector of the shape and dtype wanted.

    Returns:
      Independent standard normals.
    """
    return jax.random.normal(key, like.shape, like.dtype)
