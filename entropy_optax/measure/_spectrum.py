"""The spectrum of a Hessian or a Gauss-Newton matrix, from its products with vectors.

For a few eigenvalues ARPACK, for the whole density stochastic Lanczos quadrature, for
small networks all eigenvalues. None of these numbers is invariant under a rescaling
of the weights that leaves the network's function as it is (Dinh et al., 2017).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from entropy_optax.measure._checks import (
    MeasureError,
    NotConverged,
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
from entropy_optax.measure._density import SpectralDensity
from entropy_optax.measure._estimate import MIN_PROBES
from entropy_optax.measure._lanczos import tridiagonalise
from entropy_optax.measure._objective import (
    Function,
    Params,
    as_pytree,
)


class ExtremeEigenvalues(NamedTuple):
    """Both ends of a spectrum.

    Attributes:
      largest: the largest eigenvalues, descending, `[num]`.
      smallest: the smallest, ascending, `[num]`: the most negative, if any is.
      largest_residuals: `||A v - lambda v||` of each, v of length 1: there is an
        eigenvalue no farther than that.
      smallest_residuals: the same for the other end.
      largest_vectors: eigenvectors, `[num, n]`, in the order of `ravel_pytree`.
      smallest_vectors: the same for the other end.
      num_products: matrix-vector products spent.
    """

    largest: np.ndarray
    smallest: np.ndarray
    largest_residuals: np.ndarray
    smallest_residuals: np.ndarray
    largest_vectors: np.ndarray
    smallest_vectors: np.ndarray
    num_products: int


def extreme_eigenvalues(
    f: Function,
    params: Params,
    *,
    key: jax.Array,
    num: int = 1,
    num_smallest: int | None = None,
    curvature: Curvature = "hessian",
    tolerance: float = 1e-5,
    max_products: int = 2000,
) -> ExtremeEigenvalues:
    """The largest and the smallest eigenvalues, by restarted Lanczos (ARPACK).

    Args:
      f: the loss, an `Objective` or any function of the params.
      params: where.
      key: PRNG key of the first vector.
      num: eigenvalues at the large end, below n / 2.
      num_smallest: eigenvalues at the small end, num by default; 0 skips that end,
        which converges slowly, or not at all, where many eigenvalues are near 0.
      curvature: of the Hessian, or of the Gauss-Newton matrix.
      tolerance: relative to each eigenvalue. In float32 the small end is right to 1e-6
        of the largest eigenvalue at best: its residual says how right.
      max_products: matrix-vector products at each end.

    Returns:
      Eigenvalues, vectors and residuals.

    Raises:
      NotConverged: if an end was not found, a MeasureError itself.
      MeasureError: if a product is not finite, or num or num_smallest is out of range.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(jnp.array([3.0, -1.0, 0.5, 0.0]) * x**2)
      >>> ends = measure.extreme_eigenvalues(f, jnp.zeros(4), key=jax.random.key(0))
      >>> print(ends.largest.round(4), ends.smallest.round(4))
      [3.] [-1.]
    """
    check_params(params)
    size = num_params(params)
    counts = {"LA": num, "SA": num if num_smallest is None else num_smallest}
    for name, count, least in (("num", num, 1), ("num_smallest", counts["SA"], 0)):
        if not least <= count < size / 2:
            raise MeasureError(
                f"{name}: got {count}, wanted {least} or more, below n / 2 of n {size}"
            )
    multiply = _host_product(f, params, curvature)
    first = np.asarray(jax.random.normal(key, (size,)), np.float64)
    counter = [0]
    if not np.any(multiply(first)):  # ARPACK stumbles over a matrix of zeros
        zeros = [np.zeros(count) for count in counts.values()]
        vectors = [np.eye(count, size) for count in counts.values()]
        return ExtremeEigenvalues(*zeros, *zeros, *vectors, num_products=1)

    def counted(vector: np.ndarray) -> np.ndarray:
        counter[0] += 1
        return multiply(vector)

    shape: Any = (size, size)
    linear: Any = scipy.sparse.linalg.LinearOperator
    operator = linear(shape, matvec=counted, dtype=np.float64)
    # SciPy's own types know integers for the tolerance alone.
    relative: Any = tolerance
    # A wide basis saves products and costs memory: half a gigabyte at most.
    basis = min(size, max(2 * max(counts.values()) + 1, min(100, 2**26 // size), 20))
    ends = {}
    for which, count in counts.items():
        if not count:  # ARPACK refuses to find none
            ends[which] = np.zeros(0), np.zeros(0), np.zeros((0, size))
            continue
        try:
            values, vectors = scipy.sparse.linalg.eigsh(
                operator,
                k=count,
                which=which,
                v0=first,
                ncv=basis,
                tol=relative,
                maxiter=max(1, max_products // basis),
            )
        except scipy.sparse.linalg.ArpackError as error:
            end = "largest" if which == "LA" else "smallest"
            raise NotConverged(
                f"{end} eigenvalues: not converged in {max_products} products; wanted a"
                " larger max_products or tolerance, or params in float64"
            ) from error
        order = np.argsort(values)[:: -1 if which == "LA" else 1]
        values, vectors = values[order], vectors.T[order]
        residuals = [
            np.linalg.norm(counted(v) - value * v)
            for value, v in zip(values, vectors, strict=True)
        ]
        ends[which] = values, np.array(residuals), vectors
    return ExtremeEigenvalues(
        *(ends[which][i] for i in range(3) for which in ("LA", "SA")),
        num_products=counter[0],
    )


def spectral_density(
    f: Function,
    params: Params,
    *,
    key: jax.Array,
    num_probes: int = MIN_PROBES,
    num_steps: int = 40,
    curvature: Curvature = "hessian",
    batch_size: int = 8,
    progress: Progress | None = None,
) -> SpectralDensity:
    """The density of all eigenvalues, by stochastic Lanczos quadrature.

    From a random vector z of signs, k Lanczos steps give the nodes and weights of a
    Gauss quadrature: `z' g(A) z / n = sum_i w_i g(theta_i)`, exact for polynomials of
    degree 2 k - 1; its mean over z is `tr g(A) / n` (Golub and Meurant, 2010; Ghorbani
    et al., 2019). Lanczos is matfree's, with full reorthogonalisation.

    Args:
      f: the loss, an `Objective` or any function of the params.
      params: where.
      key: PRNG key of the probes.
      num_probes: random vectors, 30 or more.
      num_steps: k, products with each. Quantities that need a sharp edge in the
        spectrum, like a share below a threshold, want many; `SpectralDensity.bracket`
        says whether they were enough.
      curvature: of the Hessian, or of the Gauss-Newton matrix.
      batch_size: probes run at once. Each takes the memory of a product, which is that
        of a chunk of the data, and k n floats.
      progress: called with probes done and probes in all.

    Returns:
      Nodes and weights of each probe.

    Raises:
      MeasureError: for too few probes or steps, or products that are not finite.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(jnp.array([3.0, -1.0, 0.0, 0.0]) * x**2)
      >>> found = measure.spectral_density(f, jnp.zeros(4), key=jax.random.key(0))
      >>> print(f"{found.share_within(0.1).value:.2f}")
      0.50
    """
    check_params(params)
    check_at_least("num_probes", num_probes, MIN_PROBES, "too few for a standard error")
    check_at_least("num_steps", num_steps, 2)
    size = num_params(params)
    num_steps = min(num_steps, size)
    check_at_least("batch_size", batch_size, 1)
    matrices = tridiagonalise(
        f,
        params,
        jax.random.split(key, num_probes),
        num_steps,
        curvature,
        batch_size=batch_size,
        progress=progress,
    )
    return SpectralDensity.from_tridiagonals(matrices, size)


def _host_product(f: Any, params: Any, curvature: Curvature) -> Any:
    f, dtype = as_pytree(f), ravel_pytree(params)[0].dtype

    def multiply(vector: np.ndarray) -> np.ndarray:
        found = _multiply(f, params, jnp.asarray(vector, dtype), curvature)
        check_finite("matrix-vector products", found)
        return np.asarray(found, np.float64)

    return multiply


@partial(jax.jit, static_argnames="curvature")
def _multiply(f: Any, params: Any, vector: jax.Array, curvature: Curvature) -> Any:
    return flat_product(f, params, curvature)(vector)
