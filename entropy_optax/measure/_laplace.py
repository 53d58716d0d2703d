"""Laplace's approximation of local entropy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_optax.measure._bridge import rounding
from entropy_optax.measure._checks import MeasureError, check_at_least, check_positive
from entropy_optax.measure._dense import dense_hessian
from entropy_optax.measure._density import SpectralDensity
from entropy_optax.measure._estimate import MIN_PROBES, Estimate
from entropy_optax.measure._lanczos import tridiagonalise
from entropy_optax.measure._objective import Function, Params
from entropy_optax.measure._proximal import ProximalPoint, proximal_point


class LaplaceLocalEntropy(NamedTuple):
    """Laplace's approximation: not an estimate of Phi, but of its leading terms.

    Attributes:
      phi: the approximation.
      standard_error: of its log determinant, and what rounding may have done to it;
        nothing says how far Phi is from its approximation.
      log_det: of `I + H / gamma`; standard error 0 where it is dense.
      depth: `-beta (f(x*) + gamma / 2 |x* - x|^2)`, the other term.
      gradient: of -F, `gamma (x - x*)`, `[n]`.
      point: x*, see `ProximalPoint`.
      truncation: by how much k and k / 2 Lanczos steps differ in `phi`; 0 if dense.
      decrement: how much higher `log` of the integrand may be than at x*, in nats.
      method: "laplace_dense" or "laplace_lanczos".
    """

    phi: float
    standard_error: float
    log_det: Estimate
    depth: float
    gradient: np.ndarray
    point: ProximalPoint
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
    num_steps: int = 64,
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
      num_steps: k, Lanczos steps; n at most.
      max_steps: of the descent to x*.

    Returns:
      The approximation, labelled so.

    Raises:
      MeasureError: if `H(x*) + gamma I` is not positive definite, the descent did not
        arrive, k and k / 2 steps differ by more than 3 standard errors, or gamma is
        lost in the rounding of the largest eigenvalue.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(x**2)
      >>> out = measure.laplace_local_entropy(
      ...     f, jnp.zeros(2), gamma=1.0, temperature=1.0, key=jax.random.key(0)
      ... )
      >>> print(f"{out.phi:.4f} {out.method}")  # exact: -log 2
      -0.6931 laplace_dense
    """
    check_positive("temperature", temperature)
    check_at_least("num_steps", num_steps, 4)
    check_at_least("num_probes", num_probes, MIN_PROBES)
    point = proximal_point(f, params, gamma, max_steps=max_steps)
    depth = -point.value / temperature
    eps = float(jnp.finfo(ravel_pytree(params)[0].dtype).eps)
    if point.shift.size <= dense_up_to:
        hessian = dense_hessian(f, point.params).astype(np.float64)
        values = np.linalg.eigvalsh(hessian)
        _check_definite(values, gamma, eps)
        log_det = Estimate(float(np.sum(np.log1p(values / gamma))), 0.0, 0)
        curved = float(np.sum(np.abs(values) / (gamma + values)))
        truncation, method = 0.0, "laplace_dense"
    else:
        size = point.shift.size
        keys = jax.random.split(key, num_probes)
        matrices = tridiagonalise(f, point.params, keys, min(num_steps, size))
        half = max(1, matrices.shape[1] // 2)  # steps are the leading block
        density, halved = (
            SpectralDensity.from_tridiagonals(block, size)
            for block in (matrices, matrices[:, :half, :half])
        )
        values = density.nodes
        _check_definite(values, gamma, eps)
        log_det = density.log_determinant(gamma)
        within = density.weights * np.abs(values) / (gamma + values)
        curved = point.shift.size * float(np.mean(np.sum(within, axis=1)))
        change = log_det.value - halved.log_determinant(gamma).value
        truncation, method = 0.5 * abs(change), "laplace_lanczos"
    error = 0.5 * log_det.standard_error
    if truncation > 3 * max(error, 1e-3):
        raise MeasureError(
            f"num_steps: {num_steps} are too few: half as many change Phi by"
            f" {truncation:.2g}, more than 3 standard errors of {error:.2g}"
        )
    # |grad|^2 / (2 c) bounds it, with c the least curvature there.
    least = gamma + float(values.min())
    decrement = 0.5 * point.residual**2 / least / temperature
    if decrement > max(0.1, 3 * error):
        raise MeasureError(
            f"max_steps: {max_steps} steps of descent left a gradient of"
            f" {point.residual:.2g}, up to {decrement:.2g} nats from the maximiser"
        )
    # Rounding moves small eigenvalues by some eps of the largest, each in its own
    # direction, and large ones by a common factor, for vectors are not of length 1.
    root = point.shift.size**0.5
    floor = [
        0.5 * root * eps * float(np.abs(values).max()) / gamma,
        rounding(root * eps, 0.5 * curved),
        rounding(eps, abs(depth)),
    ]
    return LaplaceLocalEntropy(
        depth - 0.5 * log_det.value,
        float(np.linalg.norm([error, *floor])),
        log_det,
        depth,
        -gamma * point.shift,
        point,
        truncation,
        decrement,
        method,
    )


def _check_definite(values: np.ndarray, gamma: float, eps: float) -> None:
    smallest, largest = values.min() / gamma, np.abs(values).max() / gamma
    if eps * largest > 0.1:
        raise MeasureError(
            f"gamma: the Hessian at x* has an eigenvalue of {largest:.3g} gamma, in"
            " whose rounding gamma is lost; wanted a larger gamma, or params in float64"
        )
    if not smallest > -1:
        raise MeasureError(
            f"gamma: the Hessian at x* has the eigenvalue {smallest:.3g}"
            " gamma, wanted more than -1 gamma: x* is no maximiser of the integrand;"
            " raise gamma"
        )
