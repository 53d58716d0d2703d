"""What is known of local entropy along a line."""

from typing import NamedTuple

import numpy as np

from entropy_optax.measure._estimate import Estimate


class LocalEntropyLine(NamedTuple):
    """Phi along `(1 - t) a + t b`, relative to a.

    Attributes:
      t: the points, `[P]`, from 0 to 1.
      phi: `Phi(t) - Phi(0)`, `[P]`; NaN if not converged.
      standard_error: of it, cumulative, with the rule's error, `[P]`.
      slope: `dPhi / dt = -beta <grad (-F), b - a>`, `[P]`; NaN if not converged.
      slope_error: its standard error, `[P]`.
      rule_error: a quarter of how much `phi` moves with every second point left out,
        the even or the odd ones; 0 where that is within its noise, `[P]`.
      converged: whether all gates were passed.
      num_samples: chains less one, which the control variate cost.
      reasons: why not.
      num_gradients: spent.
    """

    t: np.ndarray
    phi: np.ndarray
    standard_error: np.ndarray
    slope: np.ndarray
    slope_error: np.ndarray
    rule_error: np.ndarray
    converged: bool
    num_samples: int
    reasons: tuple[str, ...]
    num_gradients: int

    @property
    def difference(self) -> Estimate:
        """`Phi(b) - Phi(a)`; T times this is the difference of F. NaN if refused."""
        end = float(self.phi[-1]), float(self.standard_error[-1])
        return Estimate(*end, self.num_samples)
