"""Traces of a Hessian or a Gauss-Newton matrix."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_optax.measure._checks import check_at_least, check_finite, check_params
from entropy_optax.measure._curvature import Curvature, flat_product, random_signs
from entropy_optax.measure._estimate import MIN_PROBES, Estimate, estimate
from entropy_optax.measure._objective import Function, Params, as_pytree


class Traces(NamedTuple):
    """Sums over a spectrum.

    Attributes:
      trace: of A, the sum of its eigenvalues.
      trace_of_square: of A², the sum of their squares.
    """

    trace: Estimate
    trace_of_square: Estimate


def traces(
    f: Function,
    params: Params,
    *,
    key: jax.Array,
    num_probes: int = 100,
    curvature: Curvature = "hessian",
) -> Traces:
    """Traces of A and A², by Hutchinson's estimator: means of z'Az and of ||Az||².

    Args:
      f: the loss, an `Objective` or any function of the params.
      params: where.
      key: PRNG key of the probes, vectors of random signs.
      num_probes: random vectors, 30 or more.
      curvature: of the Hessian, or of the Gauss-Newton matrix.

    Returns:
      Both with standard errors over the probes.

    Raises:
      MeasureError: for too few probes, or products that are not finite.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(jnp.array([3.0, -1.0]) * x**2)
      >>> found = measure.traces(f, jnp.zeros(2), key=jax.random.key(0))
      >>> print(found.trace, "and", found.trace_of_square)
      2 ± 0 and 10 ± 0
    """
    check_params(params)
    check_at_least("num_probes", num_probes, MIN_PROBES, "too few for a standard error")
    keys = jax.random.split(key, num_probes)
    samples = np.asarray(_quadratic_forms(as_pytree(f), params, keys, curvature))
    check_finite("matrix-vector products", samples)
    return Traces(*(estimate(column) for column in samples.T))


@partial(jax.jit, static_argnames="curvature")
def _quadratic_forms(f: Any, params: Any, keys: jax.Array, curvature: Any) -> Any:
    multiply = flat_product(f, params, curvature)
    like, _ = ravel_pytree(params)

    def one(key: jax.Array) -> jax.Array:
        probe = random_signs(key, like)
        product = multiply(probe)
        return jnp.stack([probe @ product, product @ product])

    return jax.lax.map(one, keys)
