"""The proximal point: where local entropy's integrand is largest."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import optimize

from entropy_optax.measure._checks import check_finite, check_params, check_positive
from entropy_optax.measure._curvature import flat_product
from entropy_optax.measure._objective import Function, Params, as_pytree


class ProximalPoint(NamedTuple):
    """A minimiser of `f(p) + gamma/2 ||p - x||²`.

    Attributes:
      params: p, a tree like x.
      value: of that function at p: the Moreau envelope of f at x, if p is the lowest.
      shift: p - x, `[n]`, float64.
      residual: ||∇f(p) + gamma (p - x)||, 0 at a minimiser.
      num_gradients: spent, Newton's products with the Hessian aside.
    """

    params: Params
    value: float
    shift: np.ndarray
    residual: float
    num_gradients: int


def proximal_point(
    f: Function,
    params: Params,
    gamma: float,
    *,
    max_steps: int = 1000,
    newton_steps: int = 5,
) -> ProximalPoint:
    """Minimises `f(p) + gamma/2 ||p - x||²` from p = x, by L-BFGS (SciPy) and Newton.

    p maximises the integrand of local entropy at any temperature, and is the limit of
    <x'> at temperature 0, if the minimum that is found is the lowest. For gamma above
    the largest -eigenvalue of ∇²f there is one minimum.

    Args:
      f: the loss.
      params: x, a tree of floats.
      gamma: scope.
      max_steps: of L-BFGS.
      newton_steps: of Newton after it, each of up to 100 products with the Hessian:
        where the rounding of the loss ends L-BFGS gradients are good for more.

    Returns:
      The point; its residual says whether the descent arrived.

    Raises:
      MeasureError: if gamma is not positive, or the loss or its gradient at x is not
        finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2)
      >>> point = measure.proximal_point(f, jnp.ones(2), gamma=1.0)
      >>> print(*(f"{value:.3f}" for value in point.params))
      0.500 0.250
    """
    check_params(params)
    check_positive("gamma", gamma)
    check_finite("gamma", gamma)
    f = as_pytree(f)
    x, unravel = ravel_pytree(params)
    at = lambda vector: jnp.asarray(vector, x.dtype)
    zero = np.zeros(x.size)
    counter = [0]

    def pulled(shift: np.ndarray) -> tuple[float, np.ndarray]:
        counter[0] += 1
        loss, gradient = _loss_and_gradient(f, params, at(shift))
        value = float(loss) + gamma / 2 * float(shift @ shift)
        return value, np.asarray(gradient, np.float64) + gamma * shift

    first, steepest = pulled(zero)
    check_finite("f: the loss at params", first)
    check_finite("f: the gradient at params", steepest)
    norm = float(np.linalg.norm(steepest))
    if norm == 0:
        return ProximalPoint(params, first, zero, 0.0, 1)
    # In these units the way is about 1 long, whatever gamma and the loss are.
    scale = norm / gamma

    def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = pulled(scale * z)
        return (value - first) / (scale * norm), gradient / norm

    options = {"maxiter": max_steps, "ftol": 1e-15, "gtol": 1e-7, "maxcor": 20}
    found = optimize.minimize(
        scaled, zero, jac=True, method="L-BFGS-B", options=options
    )
    shift = scale * found.x
    value, left = pulled(shift)
    residual = float(np.linalg.norm(left))
    arrived = found.nit < max_steps
    for _ in range(newton_steps if arrived else 0):
        if not residual > 0:
            break
        # Of norm 1, so that squares of tiny numbers do not vanish.
        move = _newton(f, params, at(shift), at(left / residual), gamma)
        tried = shift - np.asarray(move, np.float64) * residual
        value_there, left_there = pulled(tried)
        after = float(np.linalg.norm(left_there))
        if not after < residual:
            break
        shift, value, left, residual = tried, value_there, left_there, after
    return ProximalPoint(unravel(x + at(shift)), value, shift, residual, counter[0])


@jax.jit
def _loss_and_gradient(f: Any, params: Params, shift: jax.Array) -> Any:
    x, unravel = ravel_pytree(params)
    return jax.value_and_grad(lambda shift: f(unravel(x + shift)))(shift)


@jax.jit
def _newton(
    f: Any, params: Params, shift: jax.Array, gradient: jax.Array, gamma: jax.Array
) -> Any:
    x, unravel = ravel_pytree(params)
    multiply = flat_product(f, unravel(x + shift), "hessian")
    product = lambda v: multiply(v) + gamma * v
    return jax.scipy.sparse.linalg.cg(product, gradient, tol=1e-3, maxiter=100)[0]
