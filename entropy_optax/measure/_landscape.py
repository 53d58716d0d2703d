"""The paper's Figure 2: minus local entropy of a landscape on a grid, exactly."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal, special

from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_positive,
)

Array = NDArray[np.float64]

_FAR = 12.0  # standard deviations: exp(-72) is below what float64 adds to 1
_WIDEST = 1e5  # grid points


def paper_landscape(x: ArrayLike) -> Array:
    r"""A loss of one variable as in the paper's Figure 2, whose formula is not printed.

    .. math::
      f(x) = 3 - 2.5\, e^{-(x - 300)^2 / (2 \cdot 5^2)}
               - 1.8\, e^{-(x - 650)^2 / (2 \cdot 90^2)} + 0.1 \sin(2 \pi x / 40)

    A sharp deep valley at 300, a wide shallower one at 650 and ripples, for a grid of
    1,000 points one apart. At temperature 1 the Gaussian that smooths it is
    :math:`1/\sqrt\gamma` wide: 32 points at the paper's scope of 1e-3, 141 at 5e-5. The
    lowest point of f is in the sharp valley, that of -F in the wide one at both scopes.

    Args:
      x: in units of grid points, from 0 to 999; any shape.

    Returns:
      The loss, of the same shape.

    Examples:
      >>> import numpy as np
      >>> from entropy_optax import measure
      >>> x = np.arange(1000)
      >>> f = measure.paper_landscape(x)
      >>> int(f.argmin())
      300
      >>> smooth = measure.smoothed_landscape(f, gamma=5e-5)
      >>> abs(int(smooth.argmin()) - 650) < 50
      True

    References:
      Chaudhari et al., `Entropy-SGD <https://arxiv.org/abs/1611.01838>`_, ICLR 2017,
      Figure 2.
    """
    x = np.asarray(x, np.float64)
    sharp = 2.5 * np.exp(-((x - 300) ** 2) / (2 * 5**2))
    wide = 1.8 * np.exp(-((x - 650) ** 2) / (2 * 90**2))
    return 3 - sharp - wide + 0.1 * np.sin(2 * np.pi * x / 40)


def smoothed_landscape(
    values: ArrayLike,
    spacing: float | Sequence[float] = 1.0,
    *,
    gamma: float,
    temperature: float = 1.0,
) -> Array:
    r"""Minus the local entropy of a loss that is given on a grid.

    .. math::
      -F(x, \gamma) = -T \log \left( e^{-f/T} * N(0, T/\gamma) \right)(x)

    normalised so that a constant f is its own -F; the paper's F adds
    :math:`(n/2)\, T \log(2 \pi T/\gamma)`, which moves no minimum. The convolution is a
    sum over the lattice, one axis at a time and in logarithms, so that a low
    temperature does not underflow. Its error against the integral falls faster than any
    power of the spacing for a smooth f. Beyond the grid f keeps the values of its
    border for ever: what comes out is the local entropy of a function on the whole
    space, up to the border. The limits are f for gamma to infinity and for T to 0 the
    Moreau envelope :math:`\min_{x'} f(x') + (\gamma/2) \|x - x'\|^2` over the grid.

    It is a function of the landscape as drawn: stretching x by a is the same as
    dividing gamma by a squared, so a minimum is only "wide" for a scope.

    Args:
      values: f on a regular grid of one or more dimensions.
      spacing: between neighbours, one number or one for each axis.
      gamma: the scope, in units of the loss per squared unit of x.
      temperature: T, in units of the loss; 0 is the Moreau envelope.

    Returns:
      -F on the same grid, in float64.

    Raises:
      MeasureError: if values are not finite, gamma or spacing not positive, the
        temperature negative, or the Gaussian wider than 100,000 grid points.

    Examples:
      >>> import numpy as np
      >>> from entropy_optax import measure
      >>> x = np.linspace(-9, 9, 181)
      >>> smooth = measure.smoothed_landscape(x**2 / 2, 0.1, gamma=1.0)
      >>> print(round(smooth[90], 6), round(np.log(2) / 2, 6))  # 1/2 log(1 + 1/gamma)
      0.346574 0.346574
    """
    values = np.array(values, np.float64)
    check_finite("values", values)
    check_positive("gamma", gamma)
    check_at_least("temperature", temperature, 0)
    given = np.asarray(spacing, np.float64)
    steps = given if given.ndim else np.full(values.ndim, given)
    if values.ndim == 0 or len(steps) != values.ndim:
        raise MeasureError(
            f"spacing: got {len(steps)} for values of {values.ndim} axes, wanted one"
            " number, or one for each axis"
        )
    for axis, step in enumerate(steps):
        check_positive("spacing", step)
        size = values.shape[axis]
        stiffness = gamma * step**2
        if temperature == 0:
            offsets = np.arange(size)
            cost = stiffness / 2 * (offsets[:, None] - offsets) ** 2
            smooth = lambda line, cost=cost: np.min(cost + line, axis=1)
        else:
            weights = _log_weights(size, stiffness / temperature)
            smooth = lambda line, weights=weights: (
                -temperature
                * np.asarray(special.logsumexp(weights - line / temperature, axis=1))
            )
        values = np.apply_along_axis(smooth, axis, values)
    return values


def _log_weights(size: int, precision: float) -> Array:
    # Log probabilities, [size, size], of steps on the lattice; those beyond an end of
    # the grid are the end's.
    width = 1 / math.sqrt(precision)
    if width > _WIDEST:
        raise MeasureError(
            f"gamma: the Gaussian's width sqrt(temperature/gamma) is {width:.3g} grid"
            f" points, wanted {_WIDEST:.0e} or less: a larger gamma or spacing"
        )
    log_weight = -precision / 2 * np.arange(size + math.ceil(_FAR * width)) ** 2.0
    # log of the sum from an offset on, then over both signs for the normaliser.
    tails = np.logaddexp.accumulate(log_weight[::-1])[::-1]
    later = tails[1] if tails.size > 1 else -np.inf
    log_total = np.logaddexp(log_weight[0], math.log(2) + later)
    place = np.arange(size)
    weights = log_weight[np.abs(place[:, None] - place)]
    weights[:, 0] = tails[place]
    weights[:, -1] = tails[place[::-1]]
    if size == 1:
        return np.zeros((1, 1))
    return weights - log_total


def local_minima(values: ArrayLike) -> NDArray[np.intp]:
    """Finds the local minima of a function on a line.

    Args:
      values: on a grid of one dimension.

    Returns:
      Indices of the points below their neighbours, in order; of a flat bottom the
      middle. The two ends of the grid are none.

    Raises:
      MeasureError: if values have another number of dimensions or are not finite.

    Examples:
      >>> from entropy_optax import measure
      >>> measure.local_minima([2, 1, 3, 0, 0, 0, 5])
      array([1, 4])
    """
    values = np.asarray(values, np.float64)
    check_finite("values", values)
    if values.ndim != 1:
        raise MeasureError(f"values: got {values.ndim} dimensions, wanted 1")
    return signal.find_peaks(-values)[0]
