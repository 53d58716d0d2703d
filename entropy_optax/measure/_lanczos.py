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
    Progress,
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
    *,
    probe: Probe = random_signs,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> np.ndarray:
    """Runs Lanczos with full reorthogonalisation from each of some random vectors.

    Where a Krylov space is exhausted the next basis vector is rounding: it is coupled
    to the others by rounding, or not orthogonal to them. From there on the matrix is 0:
    uncoupled from the first vector it has no weight.

    Args:
      f: the loss.
      params: where, n numbers.
      keys: a PRNG key for each vector, `[probes]`.
      num_steps: k, n at most.
      curvature: which matrix.
      probe: draws a vector.
      batch_size: of them at once.
      progress: called with vectors done and vectors in all.

    Returns:
      Tridiagonal matrices, `[probes, k, k]`, float64.

    Raises:
      MeasureError: if a product is not finite.
    """
    f, total = as_pytree(f), len(keys)
    size = min(batch_size, total)
    found = []
    for start in range(0, total, size):
        # The last batch is filled up with others: one shape, one compilation.
        picked = keys[(start + np.arange(size)) % total]
        batch = _tridiagonalise(f, params, picked, num_steps, curvature, probe)
        count = min(size, total - start)
        found.append([np.asarray(part)[:count] for part in batch])
        if progress is not None:
            progress(start + count, total)
    matrices, overlaps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    eps = np.finfo(matrices.dtype).eps
    matrices = matrices.astype(np.float64)
    check_finite("matrix-vector products", matrices[:, 0, 0])
    for matrix, overlap in zip(matrices, overlaps, strict=True):
        finite = np.isfinite(np.tril(matrix)).all(axis=1)
        beside = np.abs(np.diag(matrix, -1))
        scale = abs(matrix[0, 0]) + np.nan_to_num(beside, posinf=0).max(initial=0)
        lost = ~(overlap < _ORTHOGONAL) | ~finite
        lost[1:] |= ~(beside > 10 * eps * scale)
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
