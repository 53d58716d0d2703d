"""An estimate of local entropy, or a refusal, and what speaks for it."""

from typing import NamedTuple

from entropy_optax.measure._estimate import Estimate

NAN = float("nan")


class LocalEntropyDiagnostics(NamedTuple):
    """What the gates saw; NaN where a method has no such number.

    Attributes:
      effective_sample_size: of plain Monte Carlo, `(sum w)^2 / sum w^2`, by its draws
        or by the chains, the smaller.
      overflow: share of its draws at which the loss is infinite.
      mean_energy_z: Monte Carlo's mean energy at s = 1 minus that of chains which
        started at modes, in standard errors: it sees a valley that no draw fell into.
      unseen: share of its time that a chain at s = 1 spent below the energies of all
        draws, or particles, the largest of all chains.
      acceptance: the smallest mean acceptance of the chains at a rung.
      forward: Phi by the chains on the way up alone; they lag above the energies.
      backward: Phi by the chains on the way down alone; they lag below.
      difference_z: their difference in standard errors.
      worst_rung_z: the largest such number of the mean energy at one rung.
      r_hat: the largest R-hat of the energy at two neighbouring rungs.
      gap: the largest standard deviation of a log weight between two rungs.
      num_rungs: of the ladder.
      num_energies: energies and gradients computed.
      reasons: why the answer was refused, or Monte Carlo's was before.
    """

    effective_sample_size: float = NAN
    overflow: float = NAN
    mean_energy_z: float = NAN
    unseen: float = NAN
    acceptance: float = NAN
    forward: Estimate = Estimate(NAN, NAN, 0)
    backward: Estimate = Estimate(NAN, NAN, 0)
    difference_z: float = NAN
    worst_rung_z: float = NAN
    r_hat: float = NAN
    gap: float = NAN
    num_rungs: int = 0
    num_energies: int = 0
    reasons: tuple[str, ...] = ()


class LocalEntropyEstimate(NamedTuple):
    """Phi with its error, or a refusal.

    Attributes:
      phi: `log E exp(-beta f(x + xi))`; NaN if not converged.
      standard_error: of it; NaN if not converged.
      bracket: sums of `-<V>_s` over the rungs, left and right, V the energy (`beta f`,
        where the reference is at the params); the integrand is monotone, so that they
        enclose Phi up to their sampling error. NaN if not converged, and where a method
        has none.
      method: "monte_carlo", "thermodynamic_integration", "tempered_smc" or
        "not_converged".
      converged: whether it passed all gates.
      num_samples: independent samples behind the standard error: chains, runs, or Monte
        Carlo's effective sample size.
      temperature: T.
      log_volume: `(n / 2) log(2 pi T / gamma)`.
      diagnostics: what the gates saw.
    """

    phi: float
    standard_error: float
    bracket: tuple[float, float]
    method: str
    converged: bool
    num_samples: int
    temperature: float
    log_volume: float
    diagnostics: LocalEntropyDiagnostics

    @property
    def log_partition(self) -> float:
        """`F_beta = Phi + (n / 2) log(2 pi T / gamma)`, the log of the integral."""
        return self.phi + self.log_volume

    @property
    def F(self) -> float:
        """`T F_beta`, local entropy in units of the loss."""
        return self.temperature * self.log_partition

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval for Phi.

        Args:
          level: its coverage.

        Returns:
          The lower and the upper end; NaN if not converged.
        """
        return Estimate(self.phi, self.standard_error, self.num_samples).interval(level)

    def __str__(self) -> str:
        if not self.converged:
            return f"not converged: {'; '.join(self.diagnostics.reasons)}"
        return f"{self.phi:.6g} ± {self.standard_error:.2g} ({self.method})"


def not_converged(
    tail: tuple[float, float], diagnostics: LocalEntropyDiagnostics
) -> LocalEntropyEstimate:
    """Refuses.

    Args:
      tail: temperature and log volume.
      diagnostics: with the reasons.

    Returns:
      NaN, so that nobody takes it for a number.
    """
    return LocalEntropyEstimate(
        NAN, NAN, (NAN, NAN), "not_converged", False, 0, *tail, diagnostics
    )
