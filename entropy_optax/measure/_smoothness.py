"""How smooth local entropy is: the paper's lemma, and five bounds that are true.

Everything is said of `G = -F / beta = -T log ∫ exp(-(f(x') + gamma/2 ||x - x'||^2) / T)
dx'`, a loss in the units of f (T = 1 / beta is the temperature; T -> 0 is the Moreau
envelope). The constants of F, the log-partition function, are beta times those of G.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entropy_optax.measure._checks import MeasureError, check_finite, check_positive


class Smoothness(NamedTuple):
    """Lipschitz constants of f, of G, and of their gradients.

    Attributes:
      slope: largest ||∇f||, the Lipschitz constant of f: the paper's alpha.
      lowest: smallest eigenvalue of ∇²f.
      highest: its largest.
      entropy_slope: largest ||∇G||.
      entropy_lowest: smallest eigenvalue of ∇²G.
      entropy_highest: its largest.
    """

    slope: float
    lowest: float
    highest: float
    entropy_slope: float
    entropy_lowest: float
    entropy_highest: float

    @property
    def smoothness(self) -> float:
        """Lipschitz constant of ∇f, its largest |eigenvalue|: the paper's beta."""
        return max(abs(self.lowest), abs(self.highest))

    @property
    def entropy_smoothness(self) -> float:
        """Lipschitz constant of ∇G."""
        return max(abs(self.entropy_lowest), abs(self.entropy_highest))


class SmoothnessBounds(NamedTuple):
    """What is true of G at any temperature; see `smoothness_bounds`.

    Attributes:
      slope: (i), no ||∇G|| is above it.
      scope: (ii), no eigenvalue of ∇²G is above it.
      highest: (iii), nor above it, which is lower.
      lowest: (iv) and (v), no eigenvalue of ∇²G is below it; -inf if nothing is known.
    """

    slope: float
    scope: float
    highest: float
    lowest: float

    @property
    def smoothness(self) -> float:
        """No |eigenvalue| of ∇²G is above it."""
        return max(abs(self.lowest), abs(self.highest))


def smoothness_bounds(
    gamma: float, *, lowest: float, highest: float, slope: float = float("inf")
) -> SmoothnessBounds:
    """Five bounds on local entropy, for a spectrum of ∇²f within [-b, B] everywhere.

    With ∇G = <∇f(x')> and ∇²G = gamma I - gamma² Cov(x') / T, at any temperature:

    - (i) `||∇G|| <= sup ||∇f||`: it is a mean of gradients;
    - (ii) `∇²G <= gamma`: a covariance is not negative;
    - (iii) `∇²G <= gamma B / (gamma + B)`: Cramér and Rao's bound on the covariance;
    - (iv) `∇²G >= -gamma b / (gamma - b)` if gamma > b: Brascamp and Lieb's;
    - (v) `∇²G >= gamma mu / (gamma + mu)` if f is mu-strongly convex: likewise.

    Positive curvature always shrinks. Negative curvature can grow: local entropy can be
    less smooth than f, and `lemma_counterexample` is.

    Args:
      gamma: scope.
      lowest: -b, or mu: no eigenvalue of ∇²f is below it anywhere. May be -inf.
      highest: B, none is above it. May be inf.
      slope: largest ||∇f||.

    Returns:
      The bounds.

    Raises:
      MeasureError: if gamma is not positive, `lowest` is above `highest`, or `highest`
        is -gamma or less, where the integral diverges.

    Examples:
      >>> from entropy_optax import measure
      >>> measure.smoothness_bounds(2.0, lowest=-1.0, highest=2.0)
      SmoothnessBounds(slope=inf, scope=2.0, highest=1.0, lowest=-2.0)
    """
    check_positive("gamma", gamma)
    if not lowest <= highest:
        raise MeasureError(f"lowest: got {lowest} above highest, {highest}")
    if highest <= -gamma:
        raise MeasureError(
            f"highest: got {highest} with gamma {gamma}; wanted more than -gamma, or"
            " the integral of local entropy diverges"
        )
    if np.isinf(gamma):  # G is f
        return SmoothnessBounds(slope, gamma, highest, lowest)
    upper = gamma if np.isinf(highest) else _shrink(highest, gamma)
    lower = _shrink(lowest, gamma) if lowest > -gamma else -np.inf
    return SmoothnessBounds(slope, gamma, float(upper), float(lower))


def lemma_margin(eigenvalues: ArrayLike, gamma: float) -> float:
    """The largest c for which the paper's lemma has its assumption at these points.

    Lemma 2 of Chaudhari et al. (2017) assumes that no eigenvalue of ∇²f lies in
    `[-2 gamma - c, c]`, for a c > 0, at any x. Where one is near 0 that fails; where
    they change sign along a path it fails in between. If all are below `-2 gamma` the
    integral of local entropy diverges, so it holds on the whole space for strongly
    convex f alone.

    Args:
      eigenvalues: of ∇²f, at one point or at many.
      gamma: scope.

    Returns:
      c, in units of curvature: the assumption holds below it. If it is 0 or negative
      the lemma says nothing.

    Raises:
      MeasureError: if there are none, or some are not finite.

    Examples:
      >>> from entropy_optax import measure
      >>> measure.lemma_margin([0.5, 40.0], gamma=1.0)
      0.5
      >>> measure.lemma_margin([-3.0, 40.0], gamma=1.0)
      1.0
      >>> measure.lemma_margin([-0.1, 40.0], gamma=1.0)  # says nothing
      -0.1
    """
    check_positive("gamma", gamma)
    eigenvalues = np.asarray(eigenvalues, float)
    if not eigenvalues.size:
        raise MeasureError("eigenvalues: got none")
    check_finite("eigenvalues", eigenvalues)
    return float(np.min(np.maximum(eigenvalues, -eigenvalues - 2 * gamma)))


def lemma_bounds(
    slope: float, smoothness: float, gamma: float, c: float
) -> tuple[float, float]:
    """The paper's smoothness lemma as printed: `alpha/(1+c/gamma)`, `beta/(1+c/gamma)`.

    Its proof takes `(I + ∇²f/gamma)^-1` as constant in x. Outside its assumption it is
    false: see `lemma_counterexample`. Within it, for c-strongly convex f, the second
    half follows from bound (iii) of `smoothness_bounds`, since c <= beta.

    Args:
      slope: alpha, largest ||∇f||.
      smoothness: beta, largest |eigenvalue| of ∇²f.
      gamma: scope.
      c: of the assumption, see `lemma_margin`.

    Returns:
      What it says of ||∇G|| and of |eigenvalues| of ∇²G.

    Raises:
      MeasureError: if gamma or c is not positive: there is no lemma then.

    Examples:
      >>> from entropy_optax import measure
      >>> measure.lemma_bounds(slope=2.0, smoothness=40.0, gamma=1.0, c=1.0)
      (1.0, 20.0)
    """
    check_positive("gamma", gamma)
    if not c > 0:
        raise MeasureError(
            f"c: got {c}, wanted above 0: without a gap around 0 in the spectrum of f"
            " the lemma says nothing, use smoothness_bounds"
        )
    return slope / (1 + c / gamma), smoothness / (1 + c / gamma)


def quadratic_smoothness(
    eigenvalues: ArrayLike, gamma: float, radius: float = 1.0
) -> Smoothness:
    """Constants of f = ½ x'Hx and its local entropy over a ball around 0, exact.

    ∇²G = gamma H (H + gamma I)^-1 at every temperature: the Gaussian's covariance does
    not depend on x, and temperature only adds a constant to G.

    Args:
      eigenvalues: of H, above -gamma.
      gamma: scope.
      radius: of the ball, which bounds the slopes.

    Returns:
      The constants.

    Raises:
      MeasureError: if gamma or the radius is not positive, or an eigenvalue is -gamma
        or less, where the integral diverges.

    Examples:
      >>> from entropy_optax import measure
      >>> found = measure.quadratic_smoothness([-0.5, 3.0], gamma=1.0)
      >>> found.entropy_lowest, found.entropy_highest
      (-1.0, 0.75)
    """
    check_positive("gamma", gamma)
    check_positive("radius", radius)
    eigenvalues = np.asarray(eigenvalues, float)
    if not eigenvalues.size:
        raise MeasureError("eigenvalues: got none")
    check_finite("eigenvalues", eigenvalues)
    if eigenvalues.min() <= -gamma:
        raise MeasureError(
            f"eigenvalues: the smallest is {eigenvalues.min():g}, wanted above -gamma,"
            f" {-gamma:g}, or the integral of local entropy diverges"
        )
    smoothed = _shrink(eigenvalues, gamma)
    constants: list[float] = []
    for values in (eigenvalues, smoothed):
        slope = radius * np.abs(values).max()
        constants += [float(slope), float(values.min()), float(values.max())]
    return Smoothness(*constants)


def _shrink(eigenvalues: ArrayLike, gamma: float) -> np.ndarray:
    # Written so that gamma or an eigenvalue may be large.
    eigenvalues = np.asarray(eigenvalues, float)
    return eigenvalues / (1 + eigenvalues / gamma)
