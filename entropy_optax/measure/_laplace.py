"""Laplace's approximation of local entropy, and the point it is made at."""

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
    check_positive,
)
from entropy_optax.measure._curvature import flat_product, random_signs
from entropy_optax.measure._estimate import MIN_PROBES, Estimate, estimate
from entropy_optax.measure._objective import (
    Function,
    Params,
    as_pytree,
    flat,
)


class Maximiser(NamedTuple):
    """The minimiser of the loss plus the pull.

    Attributes:
      params: x*, a tree.
      value: `f(x*) + gamma / 2 |x* - x|^2`.
      shift: x* - x, `[n]`, float64.
      gradient_norm: of that function at x*.
      num_gradients: spent.
    """

    params: Params
    value: float
    shift: np.ndarray
    gradient_norm: float
    num_gradients: int


@jax.jit
def _pulled(f: Any, params: Any, shift: jax.Array, gamma: jax.Array) -> Any:
    def loss(shift: jax.Array) -> jax.Array:
        x, unravel = ravel_pytree(params)
        return f(unravel(x + shift)) + 0.5 * gamma * jnp.sum(shift**2)

    return jax.value_and_grad(loss)(shift)


def maximiser(
    f: Function, params: Params, gamma: float, *, max_steps: int = 500
) -> Maximiser:
    """Descends to a local minimiser of `f(x') + gamma / 2 |x' - x|^2` from x.

    By SciPy's L-BFGS. It maximises the integrand of local entropy at any temperature,
    and is the limit of `<x'>` as T goes to 0 (the proximal point of f, its value there
    the Moreau envelope).

    Args:
      f: the loss.
      params: x.
      gamma: the scope.
      max_steps: of L-BFGS.

    Returns:
      The point.

    Raises:
      MeasureError: if gamma is not positive or the loss at x not finite.
    """
    check_positive("gamma", gamma)
    _, x, unravel = flat(f, params)
    function = as_pytree(f)

    def value_and_grad(shift: np.ndarray) -> tuple[float, np.ndarray]:
        at = jnp.asarray(shift, x.dtype)
        value, grad = _pulled(function, params, at, jnp.asarray(gamma, x.dtype))
        return float(value), np.asarray(grad, np.float64)

    start = np.zeros(x.size)
    check_finite("f: the loss at params", value_and_grad(start)[0])
    out = optimize.minimize(
        value_and_grad,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_steps, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 30},
    )
    shift = np.asarray(out.x)
    value, grad = value_and_grad(shift)
    return Maximiser(
        unravel(x + jnp.asarray(shift, x.dtype)),
        value,
        shift,
        float(np.linalg.norm(grad)),
        int(out.nfev) + 2,
    )


class LaplaceLocalEntropy(NamedTuple):
    """Laplace's approximation: not an estimate of Phi, but of its leading terms.

    Attributes:
      phi: the approximation, with the standard error of its log determinant.
      log_det: of `I + H / gamma`; standard error 0 where it is dense.
      depth: `-beta (f(x*) + gamma / 2 |x* - x|^2)`, the other term.
      gradient: of -F, `gamma (x - x*)`, `[n]`.
      point: x*.
      truncation: by how much k and k / 2 Lanczos steps differ in `phi`; 0 if dense.
      decrement: how much higher `log` of the integrand may be than at x*, in nats.
      method: "laplace_dense" or "laplace_lanczos".
    """

    phi: Estimate
    log_det: Estimate
    depth: float
    gradient: np.ndarray
    point: Maximiser
    truncation: float
    decrement: float
    method: str


def laplace_local_entropy(
    f: Function,
    params: Params,
    *,
    gamma: float,
    temperature: float,
    key: jax.Array,
    dense_up_to: int = 1000,
    num_probes: int = 30,
    num_matvecs: int = 64,
    max_steps: int = 500,
) -> LaplaceLocalEntropy:
    r"""Approximates local entropy by the Gaussian around the integrand's maximiser.

    .. math::
      \Phi \approx -\beta \left(f(x^*) + \tfrac{\gamma}{2} \|x^* - x\|^2\right)
        - \tfrac12 \log \det (I + H(x^*) / \gamma), \qquad
      x^* = \arg\min_{x'} f(x') + \tfrac{\gamma}{2} \|x' - x\|^2.

    Exact for quadratics and in the limit of T to 0. The log determinant is dense up to
    `dense_up_to` params, else by stochastic Lanczos quadrature (matfree).

    Args:
      f: the loss.
      params: x.
      gamma: the scope.
      temperature: T.
      key: PRNG key of the probes.
      dense_up_to: n, up to which the Hessian is a matrix.
      num_probes: of the trace, 30 or more.
      num_matvecs: k, Lanczos steps; n at most.
      max_steps: of the descent to x*.

    Returns:
      The approximation, labelled so.

    Raises:
      MeasureError: if `H(x*) + gamma I` is not positive definite, the descent did not
        arrive, or k and k / 2 steps differ by more than 3 standard errors.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(x**2)
      >>> out = measure.laplace_local_entropy(
      ...     f, jnp.zeros(2), gamma=1.0, temperature=1.0, key=jax.random.key(0)
      ... )
      >>> print(f"{out.phi.value:.4f} {out.method}")  # exact: -log 2
      -0.6931 laplace_dense
    """
    check_positive("temperature", temperature)
    check_at_least("num_probes", num_probes, MIN_PROBES)
    check_at_least("num_matvecs", num_matvecs, 4)
    point = maximiser(f, params, gamma, max_steps=max_steps)
    function, (_, x, _) = as_pytree(f), flat(f, params)
    depth = -point.value / temperature
    if x.size <= dense_up_to:
        hessian = np.asarray(_hessian(function, point.params), np.float64)
        values = np.linalg.eigvalsh(hessian)
        _check_definite(values[0] / gamma)
        log_det = Estimate(float(np.sum(np.log1p(values / gamma))), 0.0, 0)
        truncation, method = 0.0, "laplace_dense"
    else:
        log_det, truncation = _log_det(
            function, point.params, gamma, key, num_probes, min(num_matvecs, x.size)
        )
        truncation, method = 0.5 * truncation, "laplace_lanczos"
    error = 0.5 * log_det.standard_error
    if truncation > 3 * max(error, 1e-3):
        raise MeasureError(
            f"num_matvecs: {num_matvecs} are too few: half as many change Phi by"
            f" {truncation:.2g}, more than 3 standard errors of {error:.2g}"
        )
    # |grad|^2 / (2 gamma') bounds it, with gamma' the least curvature there.
    decrement = 0.5 * point.gradient_norm**2 / gamma / temperature
    if decrement > max(0.1, 3 * error):
        raise MeasureError(
            f"max_steps: {max_steps} steps of descent left a gradient of"
            f" {point.gradient_norm:.2g}, up to {decrement:.2g} nats from the maximiser"
        )
    phi = Estimate(depth - 0.5 * log_det.value, error, log_det.num_samples)
    return LaplaceLocalEntropy(
        phi, log_det, depth, -gamma * point.shift, point, truncation, decrement, method
    )


@jax.jit
def _hessian(f: Any, params: Any) -> jax.Array:
    x, _ = ravel_pytree(params)
    multiply = flat_product(f, params, "hessian")
    rows = jax.lax.map(multiply, jnp.eye(x.size, dtype=x.dtype), batch_size=32)
    return jnp.asarray(rows)


def _check_definite(smallest: float) -> None:
    if not smallest > -1:
        raise MeasureError(
            f"gamma: the Hessian at x* has the eigenvalue {smallest:.3g} gamma, wanted"
            " more than -1 gamma: x* is no maximiser of the integrand; raise gamma"
        )


@partial(jax.jit, static_argnames="num_matvecs")
def _ritz(f: Any, params: Any, gamma: Any, probe: Any, num_matvecs: int) -> jax.Array:
    multiply = flat_product(f, params, "hessian")
    product = lambda v: v + multiply(v) / gamma
    lanczos = decomp.tridiag_sym(num_matvecs, custom_vjp=False)
    return jnp.asarray(lanczos(product, probe).J_small)


def _log_det(
    f: Any, params: Any, gamma: float, key: Any, num_probes: int, k: int
) -> tuple[Estimate, float]:
    x, _ = ravel_pytree(params)
    gamma_ = jnp.asarray(gamma, x.dtype)
    draws: list[list[float]] = []
    for probe_key in jax.random.split(key, num_probes):
        probe = random_signs(params, probe_key)
        matrix = np.asarray(_ritz(f, params, gamma_, probe, k), np.float64)
        # The leading block is what half as many steps give.
        row = []
        for steps in (k, max(1, k // 2)):
            values, vectors = np.linalg.eigh(matrix[:steps, :steps])
            _check_definite(values[0] - 1)
            row.append(x.size * float(vectors[0] ** 2 @ np.log(values)))
        draws.append(row)
    both = np.array(draws)
    return estimate(both[:, 0]), abs(float(np.mean(both[:, 0] - both[:, 1])))
