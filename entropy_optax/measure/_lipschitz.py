"""Local entropy of functions of one variable by quadrature, and how smooth it is."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_positive,
)
from entropy_optax.measure._smoothness import Smoothness

Scalar = Callable[[jax.Array], jax.Array]

_MAX_POINTS = 100_000
_WIDENINGS = 10


class Smoothed(NamedTuple):
    """Local entropy and its derivatives, each like the points.

    Attributes:
      value: `G = -F / beta`.
      slope: G'.
      curvature: G''.
    """

    value: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray


def smoothed_1d(
    f: Scalar, points: ArrayLike, gamma: float, *, temperature: float = 1.0
) -> Smoothed:
    """Computes G = -F / beta and two derivatives in one dimension, by quadrature.

    `G' = gamma (x - <x'>)` and `G'' = gamma - gamma² Var(x') / T`, with moments by the
    trapezoidal rule, which converges faster than any power for smooth f. At temperature
    0, G is the Moreau envelope: `G' = f'(p)` and `G'' = gamma f''(p) / (gamma +
    f''(p))` at the proximal point p, by bisection.

    Args:
      f: of JAX, scalar to scalar, smooth; evaluated in float64.
      points: x, `[n]`.
      gamma: scope.
      temperature: T = 1 / beta, in units of f.

    Returns:
      G, G' and G'' at the points.

    Raises:
      MeasureError: if an argument is out of range, the integral diverges or is too
        narrow for the grid, or at temperature 0 if gamma is not above -min f'', where
        G has kinks.

    Examples:
      >>> from entropy_optax import measure
      >>> found = measure.smoothed_1d(lambda x: x**2, [0.0, 1.0], gamma=2.0)
      >>> [round(float(curvature), 6) for curvature in found.curvature]
      [1.0, 1.0]
    """
    check_positive("gamma", gamma)
    check_at_least("temperature", temperature, 0)
    x = np.atleast_1d(np.asarray(points, float))
    check_finite("points", x)
    if temperature == 0:
        return _envelope(f, x, gamma)
    y = _grid(f, x, gamma, temperature)
    energy = _evaluate(f, y)
    rows = max(1, 4_000_000 // len(y))
    parts = [
        _moments(energy, y, x[i : i + rows], gamma, temperature)
        for i in range(0, len(x), rows)
    ]
    return Smoothed(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def smoothness_1d(
    f: Scalar,
    interval: tuple[float, float],
    gamma: float,
    *,
    temperature: float = 1.0,
    num_points: int = 401,
) -> Smoothness:
    """Lipschitz constants of f, f', G and G' on an interval, by quadrature.

    The largest of a grid is below the largest of the interval by the order of the
    spacing squared. G at the ends of the interval also knows of f beyond them.

    Args:
      f: as of `smoothed_1d`.
      interval: lower and upper end; a period is enough for a periodic f.
      gamma: scope.
      temperature: T = 1 / beta.
      num_points: of the grid.

    Returns:
      The constants of f and of G = -F / beta.

    Raises:
      MeasureError: as `smoothed_1d`, or if the interval is empty or the grid too small.

    Examples:
      >>> from entropy_optax import measure
      >>> double_well = lambda x: (x**2 - 1) ** 2 / 4
      >>> found = measure.smoothness_1d(double_well, (-1.5, 1.5), 4.0, temperature=0.1)
      >>> print(f"{found.lowest:.3f} {found.entropy_lowest:.3f}")
      -1.000 -1.170
    """
    lower, upper = interval
    check_at_least("num_points", num_points, 2)
    if not lower < upper:
        raise MeasureError(f"interval: got {interval}, wanted a lower and an upper end")
    x = np.linspace(lower, upper, num_points)
    slopes, curvatures = _evaluate(jax.grad(f), x), _evaluate(jax.grad(jax.grad(f)), x)
    found = smoothed_1d(f, x, gamma, temperature=temperature)
    constants: list[float] = []
    for slope, curvature in ((slopes, curvatures), (found.slope, found.curvature)):
        constants += [np.abs(slope).max(), curvature.min(), curvature.max()]
    return Smoothness(*map(float, constants))


def lemma_counterexample(
    gamma: float,
    *,
    temperature: float = 1.0,
    amplitude: float = 1.0,
    frequency: float = 3.0,
    slope: float = 0.0,
) -> Smoothness:
    """Measures `f = A cos(w x) + s x`, of which the smoothness lemma is false.

    Its second derivative is within ± A w². At the default, 9, with T = 1 and gamma 20
    the Lipschitz constant of G' is 1.09 times that of f', where the lemma promises less
    than 1 for every c: negative curvature has grown. At gamma 5 and 1 it is .53 and .01
    times. At lower temperatures it is worse, up to
    `gamma / (gamma - A w²)`. The slope s moves G along x and adds s to G', no more: if
    s is large, sup |G'| / sup |f'| is near 1, so the lemma's first half fails with it.
    The lemma's assumption does not hold here: f'' goes through 0.

    Args:
      gamma: scope.
      temperature: T = 1 / beta. The numbers above are for 1.
      amplitude: A, in units of f.
      frequency: w, in radians per unit of x.
      slope: s.

    Returns:
      The constants over a period.

    Raises:
      MeasureError: as `smoothed_1d`.

    Examples:
      >>> from entropy_optax import measure
      >>> found = measure.lemma_counterexample(gamma=20.0)
      >>> print(f"{found.smoothness:.2f} {found.entropy_smoothness:.2f}")
      9.00 9.83
    """
    f = lambda x: amplitude * jnp.cos(frequency * x) + slope * x
    # The linear part moves G by slope / gamma: a whole period is the same anywhere.
    period = 2 * np.pi / frequency
    return smoothness_1d(f, (0.0, period), gamma, temperature=temperature)


def _moments(
    energy: np.ndarray, y: np.ndarray, x: np.ndarray, gamma: float, temperature: float
) -> Smoothed:
    away = y - x[:, None]
    logs = -(energy + gamma / 2 * away**2) / temperature
    top = logs.max(axis=1, keepdims=True)
    weights = np.exp(logs - top)
    total = weights.sum(axis=1, keepdims=True)
    mean = (weights * away).sum(axis=1, keepdims=True) / total
    variance = (weights * (away - mean) ** 2).sum(axis=1) / total[:, 0]
    value = -temperature * (top + np.log(total * (y[1] - y[0])))
    curvature = gamma - gamma**2 * variance / temperature
    return Smoothed(value[:, 0], -gamma * mean[:, 0], curvature)


def _grid(f: Scalar, x: np.ndarray, gamma: float, temperature: float) -> np.ndarray:
    # Only where there is weight for some x: far out f may be steep.
    few = np.linspace(x.min(), x.max(), 25)[:, None]
    width = 9 * (temperature / gamma) ** 0.5
    reach = width + 2 * np.abs(_evaluate(jax.grad(f), few[:, 0])).max() / gamma
    for _ in range(_WIDENINGS):
        scan = np.linspace(x.min() - reach, x.max() + reach, 20_001)
        logs = -(_evaluate(f, scan) + gamma / 2 * (scan - few) ** 2) / temperature
        held = np.any(logs > logs.max(axis=1, keepdims=True) - 45, axis=0)
        if not (held[0] or held[-1]):
            break
        reach *= 2
    else:
        raise MeasureError(
            f"gamma: with {gamma} the integral diverges or reaches farther than"
            " quadrature follows it; wanted a larger gamma or an f that rises"
        )
    first, last = np.flatnonzero(held)[[0, -1]]
    pad = (scan[1] - scan[0]) + 0.1 * (scan[last] - scan[first])
    lower, upper = scan[first] - pad, scan[last] + pad
    scan = np.linspace(lower, upper, 20_001)
    sharpest = max(0.0, float(_evaluate(jax.grad(jax.grad(f)), scan).max()))
    spacing = 0.3 * (temperature / (gamma + sharpest)) ** 0.5
    count = int((upper - lower) / spacing) + 2
    if count > _MAX_POINTS:
        raise MeasureError(
            f"temperature: at {temperature:g} the integral wants {count} points, more"
            f" than {_MAX_POINTS}; use a higher one, a shorter interval, or 0"
        )
    return np.linspace(lower, upper, max(count, 2001))


def _envelope(f: Scalar, x: np.ndarray, gamma: float) -> Smoothed:
    slope, curvature = jax.grad(f), jax.grad(jax.grad(f))
    reach = np.abs(_evaluate(slope, x)).max() / gamma + 1e-9 * (1 + np.abs(x).max())
    rises = lambda p: _evaluate(slope, p) + gamma * (p - x)
    for _ in range(30):
        if np.all(rises(x - reach) <= 0) and np.all(rises(x + reach) >= 0):
            break
        reach *= 2
    lower, upper = x - reach, x + reach
    scan = np.linspace(lower.min(), upper.max(), 20_001)
    steepest = float(_evaluate(curvature, scan).min())
    if steepest <= -gamma:
        raise MeasureError(
            f"gamma: got {gamma}, wanted above {-steepest:g}, the largest -f'' here: at"
            " temperature 0 a smaller one gives kinks"
        )
    for _ in range(100):
        middle = (lower + upper) / 2
        left = rises(middle) < 0
        lower, upper = np.where(left, middle, lower), np.where(left, upper, middle)
    p = (lower + upper) / 2
    bend = _evaluate(curvature, p)
    value = _evaluate(f, p) + gamma / 2 * (x - p) ** 2
    return Smoothed(value, _evaluate(slope, p), gamma * bend / (gamma + bend))


def _evaluate(f: Scalar, x: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        values = np.asarray(jax.vmap(f)(jnp.asarray(x, jnp.float64)), np.float64)
    check_finite("f", values)
    return values
