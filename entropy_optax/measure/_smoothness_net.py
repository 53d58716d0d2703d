"""How smooth a network's loss and its local entropy are at a point, for T -> 0."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
)
from entropy_optax.measure._curvature import num_params, random_normals
from entropy_optax.measure._lanczos import tridiagonalise
from entropy_optax.measure._objective import Function, Params, as_pytree
from entropy_optax.measure._proximal import ProximalPoint, proximal_point
from entropy_optax.measure._smoothness import Smoothness


class PointSmoothness(NamedTuple):
    """Slopes and curvatures of f and G at one point, with what they are worth.

    Attributes:
      constants: of f at x, and of G at x; the largest along a path is a lower bound on
        the Lipschitz constants over all of it.
      proximal_point: p, see `ProximalPoint`. Its residual moves the slope of G by this
        much times gamma / (gamma + the smallest eigenvalue there) at most.
      distance: ||x - p||.
      eigenvalue_error: of the extreme eigenvalues of ∇²f, from their Lanczos residual r
        and their gap to the next Ritz value: the smaller of r and r² / gap,
        and no less than the rounding of the dtype.
      entropy_eigenvalue_error: of those of ∇²G: the same at p, mapped.
    """

    constants: Smoothness
    proximal_point: ProximalPoint
    distance: float
    eigenvalue_error: float
    entropy_eigenvalue_error: float


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
    point = proximal_point(f, params, gamma)
    slope = float(_gradient_norm(as_pytree(f), params))
    check_finite("gradient", slope)
    distance = float(np.linalg.norm(point.shift))
    values, errors = _extremes(f, params, key, num_steps)
    at_p, p_errors = _extremes(f, point.params, key, num_steps)
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
        float(errors.max()),
        float(entropy_errors.max()),
    )


@jax.jit
def _gradient_norm(f: Any, params: Params) -> jax.Array:
    return jnp.linalg.norm(ravel_pytree(jax.grad(f)(params))[0])


def _extremes(
    f: Any, params: Params, key: jax.Array, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    # Smallest and largest eigenvalue, and the error of each. One step more than is used
    # says what is left after the others: 0 where the Krylov space is exhausted.
    steps = min(num_steps + 1, num_params(params))
    # From a normal vector: one of signs may well be an eigenvector.
    (matrix,) = tridiagonalise(f, params, key[None], steps, probe=random_normals)
    used = min(num_steps, max(1, int(np.sum(np.any(matrix != 0, axis=1)))))
    last = matrix[used, used - 1] if used < steps else 0.0
    values, vectors = np.linalg.eigh(matrix[:used, :used])
    residuals = np.abs(last * vectors[-1, [0, -1]])
    gaps = np.diff(values)[[0, -1]] if used > 1 else np.ones(2)
    errors = np.minimum(residuals, residuals**2 / np.maximum(gaps, 1e-30))
    eps = np.finfo(jax.tree.leaves(params)[0].dtype).eps
    return values[[0, -1]], np.maximum(errors, eps * np.abs(values).max())
