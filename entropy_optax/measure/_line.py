"""What is known of local entropy along a line."""

from typing import NamedTuple

import numpy as np

from entropy_optax.measure._estimate import Estimate


class LocalEntropyLine(NamedTuple):
    """Phi along `(1 - t) a + t b`, relative to a.

    Attributes:
      t: the points, `[P]`, from 0 to 1.
      phi: `Phi(t) - Phi(0)`, `[P]`; NaN if not converged.
      standard_error: of it, cumulative, `[P]`.
      slope: `dPhi / dt = -beta <grad (-F), b - a>`, `[P]`.
      slope_error: its standard error, `[P]`.
      quadrature_error: how much `phi` at b moves with every second point left out, the
        even or the odd ones.
      converged: whether all gates were passed.
      num_samples: chains.
      reasons: why not.
      num_gradients: spent.
    """

    t: np.ndarray
    phi: np.ndarray
    standard_error: np.ndarray
    slope: np.ndarray
    slope_error: np.ndarray
    quadrature_error: float
    converged: bool
    num_samples: int
    reasons: tuple[str, ...]
    num_gradients: int


class LocalEntropyDifference(NamedTuple):
    """Phi at b minus Phi at a, or a refusal.

    Attributes:
      phi: the difference; NaN if not converged.
      standard_error: of it; NaN if not converged.
      converged: whether all gates were passed.
      line: what it was integrated from.
    """

    phi: float
    standard_error: float
    converged: bool
    line: LocalEntropyLine

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval for the difference.

        Args:
          level: its coverage.

        Returns:
          The lower and the upper end; NaN if not converged.
        """
        count = self.line.num_samples
        return Estimate(self.phi, self.standard_error, count).interval(level)
