"""A number with its standard error."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from entropy_optax.measure._checks import MeasureError

MIN_PROBES = 30
"""Fewer give a standard error that is itself a guess."""


class Estimate(NamedTuple):
    """A mean over independent samples and its standard error.

    Attributes:
      value: the mean.
      standard_error: the samples' standard deviation (ddof 1) over the root of their
        number; 0 for what is exact.
      num_samples: how many there were; 0 for what is exact.
    """

    value: float
    standard_error: float
    num_samples: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval for the mean.

        Args:
          level: its coverage, if the samples are normal.

        Returns:
          The lower and the upper end.
        """
        if not self.num_samples:
            return self.value, self.value
        t = float(stats.t.ppf(0.5 + level / 2, self.num_samples - 1))
        return self.value - t * self.standard_error, (
            self.value + t * self.standard_error
        )

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


def estimate(samples: np.ndarray) -> Estimate:
    """Estimates a mean.

    Args:
      samples: independent ones, `[n]`, n of 2 or more.

    Returns:
      Their mean with its standard error.

    Raises:
      MeasureError: for one sample, which says nothing of its error.
    """
    samples = np.asarray(samples, np.float64)
    if len(samples) < 2:
        raise MeasureError(f"samples: got {len(samples)}, wanted 2 or more")
    error = float(samples.std(ddof=1)) / len(samples) ** 0.5
    return Estimate(float(samples.mean()), error, len(samples))


def jackknife_error(left_out: np.ndarray) -> float:
    """The standard error of a statistic from its values with one sample left out.

    Args:
      left_out: the statistic without each of the samples, `[n]`.

    Returns:
      The error; of a mean that of `estimate`.
    """
    n = len(left_out)
    return float((n - 1) / n**0.5 * left_out.std(ddof=1))
