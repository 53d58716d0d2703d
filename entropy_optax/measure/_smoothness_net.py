"""How smooth a network's loss and its local entropy are at a point, for T -> 0."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp
from scipy import optimize

from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_params,
    check_positive,
)
from entropy_optax.measure._curvature import flat_product
from entropy_optax.measure._objective import Function, Params, as_pytree
from entropy_optax.measure._smoothness import Smoothness

_NEWTON_STEPS = 5


class PointSmoothness(NamedTuple):
    """Slopes and curvatures of f and G at one point, with what they are worth.

    Attributes:
      constants: of f at x, and of G at x; the largest along a path is a lower bound on
        the Lipschitz constants over all of it.
      proximal_point: p, a tree like the params.
      distance: ||x - p||.
      residual: ||∇f(p) + gamma (p - x)||, 0 at the proximal point. It moves the slope
        of G by this much times gamma / (gamma + its smallest eigenvalue) at most.
      eigenvalue_error: of the extreme eigenvalues of ∇²f, from their Lanczos residual r
        and their gap to the next Ritz value: the smaller of r and r² / gap,
        and no less than the rounding of the dtype.
      entropy_eigenvalue_error: of those of ∇²G: the same at p, mapped.
    """

    constants: Smoothness
    proximal_point: Params
    distance: float
    residual: float
    eigenvalue_error: float
    entropy_eigenvalue_error: float


def proximal_point(
    f: Function, params: Params, gamma: float, *, max_steps: int = 1000
) -> tuple[Params, float]:
    """Minimises `f(p) + gamma/2 ||p - x||²` from p = x, by SciPy's L-BFGS.

    Local entropy's <x'> at temperature 0, if the minimum that is found is the lowest.
    For gamma above the largest -eigenvalue of ∇²f there is one minimum.

    Args:
      f: the loss.
      params: x, a tree of floats.
      gamma: scope.
      max_steps: of L-BFGS.

    Returns:
      p, a tree like the params, and the norm of the gradient that is left.

    Raises:
      MeasureError: if gamma is not positive or the loss is not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2)
      >>> p, residual = measure.proximal_point(f, jnp.ones(2), gamma=1.0)
      >>> print(*(f"{value:.3f}" for value in p))
      0.500 0.250
    """
    check_params(params)
    check_positive("gamma", gamma)
    flat, unravel = ravel_pytree(params)
    start, f = np.asarray(flat, np.float64), as_pytree(f)

    def gradient_at(vector: np.ndarray) -> tuple[float, np.ndarray]:
        tree = unravel(jnp.asarray(vector, flat.dtype))
        loss, gradient = _loss_and_gradient(f, tree)
        check_finite("loss", loss)
        gradient = np.asarray(ravel_pytree(gradient)[0], np.float64)
        return float(loss), gradient + gamma * (vector - start)

    first, steepest = gradient_at(start)
    norm = float(np.linalg.norm(steepest))
    if norm == 0:
        return params, 0.0
    # In these units the way is about 1 long, whatever gamma and the loss are.
    scale = norm / gamma

    def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = gradient_at(start + scale * z)
        pull = gamma / 2 * scale**2 * float(z @ z)
        return (loss - first + pull) / (scale * norm), gradient / norm

    options = {"maxiter": max_steps, "ftol": 1e-15, "gtol": 1e-7, "maxcor": 20}
    zero = np.zeros_like(start)
    found = optimize.minimize(
        scaled, zero, jac=True, method="L-BFGS-B", options=options
    )
    point = start + scale * found.x
    residual = float(np.linalg.norm(gradient_at(point)[1]))
    # The rounding of the loss has ended that search; gradients are good for more.
    for _ in range(_NEWTON_STEPS):
        _, left = gradient_at(point)
        tree = unravel(jnp.asarray(point, flat.dtype))
        if residual == 0:
            break
        # Of norm 1, so that squares of tiny numbers do not vanish.
        left = jnp.asarray(left / residual, flat.dtype)
        move = np.asarray(_newton(f, tree, left, gamma), np.float64) * residual
        if not np.all(np.isfinite(move)):
            break
        tried = point - move
        after = float(np.linalg.norm(gradient_at(tried)[1]))
        if not after < residual:
            break
        point, residual = tried, after
    return unravel(jnp.asarray(point, flat.dtype)), residual


def smoothness_at(
    f: Function, params: Params, gamma: float, *, key: jax.Array, num_steps: int = 64
) -> PointSmoothness:
    """Measures slopes and extreme curvatures of f and of local entropy at x.

    At temperature 0, where G is the Moreau envelope: `∇G = gamma (x - p)`, and
    `∇²G = gamma H (H + gamma I)^-1` with H = ∇²f(p) at the proximal point p. It rises
    with the eigenvalues of H, so that its extreme ones are those of H, mapped: they are
    found by Lanczos with matfree, power iteration with a memory. At the temperatures
    that training uses (T = 5e-9 in the paper) this is the limit that matters.

    Args:
      f: the loss.
      params: x.
      gamma: scope.
      key: PRNG key of the first Lanczos vector.
      num_steps: of Lanczos, at each of the two points. Watch `eigenvalue_error`.

    Returns:
      The constants at this point, and their errors.

    Raises:
      MeasureError: if the loss is not finite, gamma is not positive, or no proximal
        point was found: where ∇²f(p) has an eigenvalue of -gamma or less p is none.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(jnp.array([-0.5, 1.0, 3.0]) * x**2)
      >>> found = measure.smoothness_at(f, jnp.ones(3), 1.0, key=jax.random.key(0))
      >>> constants = found.constants
      >>> print(f"{constants.entropy_lowest:.3f} {constants.entropy_highest:.3f}")
      -1.000 0.750
    """
    check_at_least("num_steps", num_steps, 2)
    point, residual = proximal_point(f, params, gamma)
    f = as_pytree(f)
    _, gradient = _loss_and_gradient(f, params)
    slope = float(jnp.linalg.norm(ravel_pytree(gradient)[0]))
    check_finite("gradient", slope)
    away = ravel_pytree(jax.tree.map(jnp.subtract, params, point))[0]
    distance = float(jnp.linalg.norm(away))
    size = away.size
    steps = min(num_steps, size)
    values, errors = _extremes(f, params, key, steps)
    at_p, p_errors = _extremes(f, point, key, steps)
    if at_p[0] <= -gamma:
        raise MeasureError(
            f"gamma: got {gamma}, but the Hessian at the proximal point has an"
            f" eigenvalue of {at_p[0]:.4g}, so it is none; wanted a larger gamma"
        )
    mapped = gamma * at_p / (gamma + at_p)
    entropy_errors = p_errors * (gamma / (gamma + at_p)) ** 2
    constants = [slope, *values, gamma * distance, *mapped]
    return PointSmoothness(
        Smoothness(*map(float, constants)),
        point,
        distance,
        residual,
        float(errors.max()),
        float(entropy_errors.max()),
    )


@jax.jit
def _loss_and_gradient(f: Any, params: Params) -> Any:
    return jax.value_and_grad(f)(params)


@jax.jit
def _newton(f: Any, params: Params, gradient: jax.Array, gamma: jax.Array) -> Any:
    multiply = flat_product(f, params, "hessian")
    product = lambda v: multiply(v) + gamma * v
    return jax.scipy.sparse.linalg.cg(product, gradient, tol=1e-3, maxiter=100)[0]


def _extremes(
    f: Any, params: Params, key: jax.Array, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    # Smallest and largest eigenvalue, and the error of each.
    diagonal, beside, last = jax.device_get(_lanczos(f, params, key, num_steps))
    check_finite("Hessian", diagonal[0])
    # Where the Krylov space is exhausted nothing is left, or rounding.
    eps = np.finfo(diagonal.dtype).eps
    size = np.abs(diagonal[0]) + np.nan_to_num(np.abs(beside)).max(initial=0)
    ends = np.flatnonzero(~(np.abs(beside) > 10 * eps * size))
    if ends.size:
        diagonal, beside, last = diagonal[: ends[0] + 1], beside[: ends[0]], 0.0
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    residuals = np.abs(last * vectors[-1, [0, -1]])
    gaps = np.diff(values)[[0, -1]] if len(values) > 1 else np.ones(2)
    return values[[0, -1]], np.minimum(
        residuals, residuals**2 / np.maximum(gaps, 1e-30)
    )


@partial(jax.jit, static_argnums=3)
def _lanczos(f: Any, params: Params, key: jax.Array, num_steps: int) -> Any:
    flat, _ = ravel_pytree(params)
    product = flat_product(f, params, "hessian")
    first = jax.random.normal(key, flat.shape, flat.dtype)
    tridiagonalise = decomp.tridiag_sym(num_steps, materialize=False, reortho="full")
    found = tridiagonalise(product, first)
    diagonal, beside = found.J_small
    return diagonal, beside, jnp.linalg.norm(found.residual)
