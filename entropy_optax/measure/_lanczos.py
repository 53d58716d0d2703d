"""Lanczos tridiagonalisation of a loss's curvature, by matfree."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp

from entropy_optax.measure._checks import check_finite
from entropy_optax.measure._curvature import (
    Curvature,
    Probe,
    flat_product,
    random_signs,
)
from entropy_optax.measure._objective import Function, Params, as_pytree

_ORTHOGONAL = 1e-3
"""The largest scalar product of unit vectors that are taken for orthogonal."""


def tridiagonalise(
    f: Function,
    params: Params,
    keys: jax.Array,
    num_steps: int,
    curvature: Curvature = "hessian",
    probe: Probe = random_signs,
) -> np.ndarray:
    """Runs Lanczos with full reorthogonalisation from each of some random vectors.

    Where a Krylov space is exhausted the next basis vector is rounding and not
    orthogonal to the others. From there on the matrix is 0: uncoupled from the first
    vector it has no weight.

    Args:
      f: the loss.
      params: where, n numbers.
      keys: a PRNG key for each vector, `[probes]`; they run at once.
      num_steps: k, n at most.
      curvature: which matrix.
      probe: draws a vector.

    Returns:
      Tridiagonal matrices, `[probes, k, k]`, float64.

    Raises:
      MeasureError: if a product is not finite.
    """
    found = _tridiagonalise(as_pytree(f), params, keys, num_steps, curvature, probe)
    matrices, overlaps = np.array(found[0], np.float64), np.asarray(found[1])
    check_finite("matrix-vector products", matrices[:, 0, 0])
    for matrix, overlap in zip(matrices, overlaps, strict=True):
        finite = np.isfinite(np.tril(matrix)).all(axis=1)
        lost = ~(overlap < _ORTHOGONAL) | ~finite
        if np.any(lost):
            k = int(np.argmax(lost))
            matrix[k:] = matrix[:, k:] = 0.0
    check_finite("matrix-vector products", matrices)
    return matrices


@partial(jax.jit, static_argnames=("num_steps", "curvature", "probe"))
def _tridiagonalise(
    f: Any, params: Any, keys: Any, num_steps: int, curvature: Curvature, probe: Probe
) -> tuple[jax.Array, jax.Array]:
    lanczos = decomp.tridiag_sym(num_steps, reortho="full", custom_vjp=False)
    multiply = flat_product(f, params, curvature)
    like, _ = ravel_pytree(params)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        basis: Any
        matrix: Any
        basis, matrix, *_ = lanczos(multiply, probe(key, like))
        overlaps = jnp.tril(basis @ basis.T, -1)
        return matrix, jnp.max(jnp.abs(overlaps), axis=1)

    return jax.vmap(one)(keys)
