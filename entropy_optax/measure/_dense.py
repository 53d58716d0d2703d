"""A Hessian as a whole, and its exact spectrum, for small networks."""

from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree

from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_params,
)
from entropy_optax.measure._curvature import (
    Curvature,
    Progress,
    flat_product,
    num_params,
)
from entropy_optax.measure._objective import Function, Params, as_pytree


def dense_hessian(
    f: Function,
    params: Params,
    *,
    curvature: Curvature = "hessian",
    block_size: int = 32,
    max_gigabytes: float = 2.0,
    progress: Progress | None = None,
) -> np.ndarray:
    """The whole matrix, a block of columns at a time.

    Args:
      f: the loss, an `Objective` or any function of the params.
      params: where, n numbers.
      curvature: of the Hessian, or of the Gauss-Newton matrix.
      block_size: columns computed at once; each takes the memory of a product.
      max_gigabytes: refuse a larger matrix: n = 10,000 takes 0.4 in float32, 50,000
        takes 10 and hours for its eigenvalues.
      progress: called with columns done and columns in all.

    Returns:
      The matrix, `[n, n]`, made symmetric, in the order of `ravel_pytree`.

    Raises:
      MeasureError: if it does not fit, or is not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> measure.dense_hessian(lambda x: x[0] * x[1], jnp.ones(2))
      array([[0., 1.],
             [1., 0.]], dtype=float32)
    """
    check_params(params)
    check_at_least("block_size", block_size, 1)
    size, dtype = num_params(params), np.dtype(ravel_pytree(params)[0].dtype)
    gigabytes = size**2 * dtype.itemsize / 1e9
    if gigabytes > max_gigabytes:
        raise MeasureError(
            f"max_gigabytes: got {max_gigabytes:g}, a matrix of {size} params takes"
            f" {gigabytes:.3g}; for one so large use spectral_density"
        )
    matrix = np.empty((size, size), dtype)
    for start in range(0, size, block_size):
        columns = np.arange(start, min(start + block_size, size))
        padded = np.resize(columns, min(block_size, size))  # one shape, one compilation
        block = np.asarray(_columns(as_pytree(f), params, padded, curvature))
        matrix[columns] = block[: len(columns)]
        if progress is not None:
            progress(int(columns[-1]) + 1, size)
    for start in range(0, size, 1000):  # by strips: no second matrix
        rows = slice(start, start + 1000)
        strip = (matrix[rows, start:] + matrix[start:, rows].T) / 2
        matrix[rows, start:], matrix[start:, rows] = strip, strip.T
    check_finite("Hessian", matrix)
    return matrix


def dense_spectrum(f: Function, params: Params, **options: Any) -> np.ndarray:
    """All eigenvalues, by dense linear algebra.

    In float32 values below 1e-6 of the largest are rounding; for the share near zero
    use float64 params under `jax.enable_x64`.

    Args:
      f: the loss, an `Objective` or any function of the params.
      params: where, n numbers.
      **options: as `dense_hessian` has them.

    Returns:
      The eigenvalues, ascending, `[n]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> measure.dense_spectrum(lambda x: x[0] * x[1], jnp.ones(2))
      array([-1.,  1.], dtype=float32)
    """
    matrix = dense_hessian(f, params, **options)
    return scipy.linalg.eigvalsh(matrix, overwrite_a=True, check_finite=False)


@partial(jax.jit, static_argnames="curvature")
def _columns(f: Any, params: Any, columns: Any, curvature: Curvature) -> jax.Array:
    size = ravel_pytree(params)[0].size
    multiply = flat_product(f, params, curvature)
    dtype = ravel_pytree(params)[0].dtype
    one = lambda column: multiply(jax.nn.one_hot(column, size, dtype=dtype))
    return jax.vmap(one)(columns)
