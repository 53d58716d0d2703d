"""Local entropy without sampling: quadratics, and quadrature in small dimension."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_positive,
)
from entropy_optax.measure._target import log_volume

DEPTH = 45.0  # nats below the integrand's top: 1e-19 of it
MAX_ZOOMS = 60


class ExactLocalEntropy(NamedTuple):
    """Local entropy at one x, in float64.

    Attributes:
      phi: `log E exp(-beta f(x + xi))` over N(0, I / (beta gamma)), in nats.
      log_partition: `F_beta = Phi + (n / 2) log(2 pi / (beta gamma))`.
      F: `T F_beta`, in units of the loss.
      gradient: of -F, `gamma (x - <x'>)`, `[n]`.
      mean: `<x'>`, `[n]`.
      covariance: of x', `[n, n]`.
      hessian: of -F, `gamma I - beta gamma^2 covariance`, `[n, n]`.
      error: of phi by a grid of half the resolution; 0 in closed form.
    """

    phi: float
    log_partition: float
    F: float
    gradient: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    hessian: np.ndarray
    error: float


def _make(
    phi: float, x: Any, mean: Any, covariance: Any, gamma: float, T: float, error: float
) -> ExactLocalEntropy:
    n = len(x)
    total = phi + log_volume(n, gamma, T)
    hessian = gamma * np.eye(n) - gamma**2 / T * covariance
    gradient = gamma * (x - mean)
    return ExactLocalEntropy(
        float(phi), float(total), float(T * total), gradient, mean, covariance,
        hessian, error,
    )  # fmt: skip


def quadratic_local_entropy(
    hessian: Any, x: Any, *, gamma: float, temperature: float
) -> ExactLocalEntropy:
    r"""Local entropy of :math:`f(x) = \frac12 x^T H x`, in closed form.

    .. math::
      \Phi = -\tfrac12 \log \det (I + H / \gamma)
        - \tfrac{\beta}{2} x^T H (I + H / \gamma)^{-1} x, \quad
      \langle x' \rangle = (I + H / \gamma)^{-1} x, \quad
      \mathrm{Cov} = (\beta (H + \gamma I))^{-1}, \quad \beta = 1 / T.

    The Hessian of -F, :math:`H (I + H / \gamma)^{-1}`, does not depend on T.

    Args:
      hessian: H, symmetric, `[n, n]`.
      x: where, `[n]`.
      gamma: the scope, above minus the smallest eigenvalue of H.
      temperature: T.

    Returns:
      Value, gradient and Hessian.

    Raises:
      MeasureError: if `H + gamma I` is not positive definite (the integral is
        infinite), or shapes or numbers are not as above.

    Examples:
      >>> from entropy_optax import measure
      >>> out = measure.quadratic_local_entropy(
      ...     [[1.0]], [2.0], gamma=1.0, temperature=1.0
      ... )
      >>> print(f"{out.phi:.4f}", out.mean, out.gradient)  # -log(2) / 2 - 1
      -1.3466 [1.] [1.]
    """
    x, H = np.asarray(x, np.float64), np.asarray(hessian, np.float64)
    if x.ndim != 1 or H.shape != (len(x), len(x)):
        raise MeasureError(
            f"hessian, x: got shapes {H.shape} and {x.shape}, wanted (n, n) and (n,)"
        )
    check_positive("gamma", gamma)
    check_positive("temperature", temperature)
    check_finite("hessian", H)
    check_finite("x", x)
    if not np.allclose(H, H.T):
        raise MeasureError(
            "hessian: wanted a symmetric matrix, H and its transpose differ"
        )
    values, vectors = np.linalg.eigh(H)
    if not values[0] + gamma > 0:
        raise MeasureError(
            f"gamma: got {gamma}, wanted more than {-values[0]:.6g}, minus the smallest"
            " eigenvalue of the Hessian: the integral is infinite"
        )
    total = values + gamma
    coordinates = vectors.T @ x
    phi = -0.5 * np.sum(np.log1p(values / gamma))
    phi -= 0.5 / temperature * np.sum(gamma * values / total * coordinates**2)
    mean = vectors @ (gamma / total * coordinates)
    covariance = (vectors * (temperature / total)) @ vectors.T
    return _make(phi, x, mean, covariance, gamma, temperature, 0.0)


def quadrature_local_entropy(
    f: Callable[[jax.Array], jax.Array],
    x: Any,
    *,
    gamma: float,
    temperature: float,
    num_points: int | None = None,
    tolerance: float = 1e-6,
) -> ExactLocalEntropy:
    r"""Local entropy in one or two dimensions, by the trapezoid rule in float64.

    The grid widens until the integrand is 45 nats below its top all around, then closes
    in on where it is not. Seen from x at the first grid, a valley narrower than a cell
    is missed: raise `num_points`.

    Args:
      f: the loss of a vector `[n]`, as for all instruments; vectorised here.
      x: where, `[n]`, n of 1 or 2 (or a scalar, of which f is then a function).
      gamma: the scope.
      temperature: T.
      num_points: of the grid along each axis; 4001 in one dimension, 401 in two.
      tolerance: largest difference of Phi from a grid of half the resolution.

    Returns:
      Value, gradient, Hessian and the difference from half the resolution.

    Raises:
      MeasureError: if the grid is too coarse or cut off, f is not finite on it or not
        bounded below by the pull, or an argument is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> double_well = lambda x: jnp.sum((x**2 - 1) ** 2)
      >>> out = measure.quadrature_local_entropy(
      ...     double_well, [0.0], gamma=1.0, temperature=1.0
      ... )
      >>> print(f"{out.phi:.4f} {abs(out.mean[0]):.1f}")
      -0.6100 0.0
    """
    x = np.asarray(x, np.float64)
    n = x.size
    if x.ndim > 1 or n not in (1, 2):
        raise MeasureError(f"x: got shape {x.shape}, wanted (1,) or (2,)")
    check_positive("gamma", gamma)
    check_positive("temperature", temperature)
    num_points = num_points or (4001 if n == 1 else 401)
    check_at_least("num_points", num_points, 11)
    num_points += 1 - num_points % 2  # odd: every second point has the same ends
    center, shape = x.reshape(n), x.shape

    def log_integrand(axes: list[np.ndarray]) -> np.ndarray:
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        points = grid.reshape(-1, *shape)
        with jax.enable_x64(True):
            loss = np.asarray(jax.vmap(f)(jnp.asarray(points)), np.float64)
        if loss.shape != (len(points),):
            raise MeasureError(
                f"f: returned an array of shape {loss.shape[1:]}, wanted a scalar"
            )
        check_finite("f: the loss on the grid", loss)
        pull = 0.5 * gamma * np.sum((grid - center) ** 2, -1)
        return -(loss.reshape(pull.shape) + pull) / temperature

    sigma = (temperature / gamma) ** 0.5
    low, high = _support(log_integrand, center, sigma, num_points)
    axes = [np.linspace(a, b, num_points) for a, b in zip(low, high, strict=True)]
    values = log_integrand(axes)
    phi, mean, covariance = _moments(values, axes)
    half, *_ = _moments(values[(slice(None, None, 2),) * n], [a[::2] for a in axes])
    error = abs(phi - half)
    if not error <= tolerance:
        raise MeasureError(
            f"num_points: {num_points} are too few: Phi differs by {error:.2g} from"
            f" half as many, wanted {tolerance:g}"
        )
    phi -= log_volume(n, gamma, temperature)
    return _make(phi, center, mean, covariance, gamma, temperature, float(error))


def _support(
    log_integrand: Callable[[list[np.ndarray]], np.ndarray],
    center: np.ndarray,
    sigma: float,
    num_points: int,
) -> tuple[np.ndarray, np.ndarray]:
    # The box outside which the integrand is negligible.
    low, high = center - 10 * sigma, center + 10 * sigma
    for _ in range(MAX_ZOOMS):
        axes = [np.linspace(a, b, num_points) for a, b in zip(low, high, strict=True)]
        values = log_integrand(axes)
        inside = np.argwhere(values >= values.max() - DEPTH)
        first, last = inside.min(0), inside.max(0)
        cell = (high - low) / (num_points - 1)
        touches = (first == 0) | (last == num_points - 1)
        new_low, new_high = low + (first - 1) * cell, low + (last + 1) * cell
        width = high - low
        new_low = np.where(touches, low - 0.5 * width, new_low)
        new_high = np.where(touches, high + 0.5 * width, new_high)
        done = not touches.any() and np.all(new_high - new_low > 0.8 * width)
        if done:
            return low, high
        low, high = new_low, new_high
    raise MeasureError(
        "f: the integrand exp(-beta (f + pull)) does not fall off at the grid's ends;"
        " the grid would cut it off"
    )


def _moments(values: np.ndarray, axes: list[np.ndarray]) -> tuple[float, Any, Any]:
    # The trapezoid rule is a sum: at the ends the integrand is nothing.
    total = np.asarray(special.logsumexp(values))
    weights = np.exp(values - total)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    mean = weights.ravel() @ grid
    centred = grid - mean
    covariance = centred.T @ (centred * weights.reshape(-1, 1))
    cells = float(np.sum([np.log(axis[1] - axis[0]) for axis in axes]))
    return float(total) + cells, mean, covariance
