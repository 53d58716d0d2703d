"""Free energies from chains on a ladder, and the gates that they have to pass."""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from entropy_optax.measure._estimate import Estimate

MAX_DIFFERENCE = 3.0
MAX_R_HAT = 1.25
MAX_GAP = 3.0
MIN_ACCEPTANCE = 0.2


class Ladder(NamedTuple):
    """Chains on the rungs of a ladder, in both directions.

    Attributes:
      s: the rungs, `[K + 1]`, rising.
      forward: energies V of the chains on the way up, `[K + 1, T, C]`.
      backward: of those on the way down, in the same order.
      acceptance: the smallest mean acceptance at a rung.
      precision: machine epsilon of the params.
    """

    s: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    acceptance: float
    precision: float


def bridge(forward_work: np.ndarray, backward_work: np.ndarray) -> Estimate:
    """Sums Bennett's acceptance ratio over the stages of a ladder.

    With the work `w = log q_k - log q_{k+1}` of unnormalised densities, the log ratio D
    of a stage solves

        mean_k 1 / (1 + exp(w + D)) = mean_{k+1} 1 / (1 + exp(-w - D)),

    which has no error of discretisation however wide the stage is.

    Args:
      forward_work: w at samples of the lower rung, `[K, T, C]`.
      backward_work: w at samples of the upper rung, `[K, T, C]`; the same chains.

    Returns:
      The log ratio of the last normaliser to the first, with a standard error that
      knows of autocorrelation within a rung and between rungs, since it uses only that
      chains are independent.

    References:
      Bennett, `Efficient estimation of free energy differences from Monte Carlo data
      <https://doi.org/10.1016/0021-9991(76)90078-4>`_, 1976.
    """
    value, influence = 0.0, np.zeros(forward_work.shape[-1])
    for lower, upper in zip(forward_work, backward_work, strict=True):
        excess = lambda d, lower=lower, upper=upper: float(
            np.mean(special.expit(-lower - d)) - np.mean(special.expit(upper + d))
        )
        ends = -max(lower.max(), upper.max()), -min(lower.min(), upper.min())
        d = ends[0]
        if ends[0] < ends[1]:
            d = float(optimize.brentq(excess, *ends, xtol=1e-12))  # pyright: ignore
        down, up = special.expit(-lower - d), special.expit(upper + d)
        slope = np.mean(down * (1 - down)) + np.mean(up * (1 - up))
        value += d
        influence += (down.mean(0) - up.mean(0)) / max(slope, 1e-300)
    error = float(influence.std(ddof=1)) / len(influence) ** 0.5
    return Estimate(value, error, len(influence))


def bridge_energies(s: np.ndarray, energy: np.ndarray, precision: float) -> Estimate:
    """Does it for densities `exp(-s V)`.

    Args:
      s: the rungs, `[K + 1]`.
      energy: V, `[K + 1, T, C]`.
      precision: machine epsilon of the params.

    Returns:
      The log ratio of the last normaliser to the first.
    """
    widths = np.diff(s)[:, None, None]
    works = widths * energy[:-1], widths * energy[1:]
    out = bridge(*works)
    floor = rounding(precision, float(np.max(np.abs(works))))
    return out._replace(standard_error=float(np.hypot(out.standard_error, floor)))


def rounding(precision: float, size: float) -> float:
    """Bounds what energies lose by rounding, where chains have no spread.

    Args:
      precision: machine epsilon of the params.
      size: of the largest energy.

    Returns:
      A standard error.
    """
    return 4 * precision * size


class Gates(NamedTuple):
    """What speaks for and against a ladder.

    Attributes:
      forward: Phi from the chains on the way up alone; they lag behind with too large
        energies, so that Phi is too small.
      backward: Phi from the others, where it is too large.
      difference_z: forward minus backward in units of its standard error.
      worst_rung_z: the largest such number of the mean energies at one rung.
      r_hat: the largest R-hat of the energies at two neighbouring rungs.
      gap: the largest standard deviation of a log weight between rungs.
      acceptance: the smallest mean acceptance probability.
      reasons: why the ladder is refused; empty if it is not.
    """

    forward: Estimate
    backward: Estimate
    difference_z: float
    worst_rung_z: float
    r_hat: float
    gap: float
    acceptance: float
    reasons: tuple[str, ...]


def difference_z(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compares the means of two groups of chains.

    Args:
      a: a number per chain, `[..., C]`.
      b: the same of other chains.

    Returns:
      The difference of the means over its standard error, `[...]`.
    """
    error = lambda v: v.var(-1, ddof=1) / v.shape[-1]
    return (a.mean(-1) - b.mean(-1)) / np.sqrt(error(a) + error(b) + 1e-300)


def r_hat(values: np.ndarray) -> np.ndarray:
    """Computes Gelman and Rubin's R-hat.

    Args:
      values: `[..., T, C]`.

    Returns:
      The root of the variance of all over that within chains, `[...]`: 1 where chains
      mix, large where each stays in a well of its own.

    References:
      Gelman and Rubin, `Inference from iterative simulation using multiple sequences
      <https://doi.org/10.1214/ss/1177011136>`_, 1992.
    """
    steps = values.shape[-2]
    within = values.var(-2, ddof=1).mean(-1)
    between = values.mean(-2).var(-1, ddof=1)
    tiny = 1e-300
    return np.sqrt(((steps - 1) / steps * within + between + tiny) / (within + tiny))


def _worst_r_hat(energy: np.ndarray) -> float:
    # Two rungs together: chains that are stuck are so at both, noise is not.
    centred = energy - energy.mean(axis=(1, 2), keepdims=True)
    scaled = centred / (centred.std(axis=(1, 2), keepdims=True) + 1e-300)
    if len(scaled) == 1:
        return float(r_hat(scaled[0]))
    return float(r_hat(np.concatenate([scaled[:-1], scaled[1:]], axis=1)).max())


def bonferroni(count: int, chains: int) -> float:
    """Finds the z that one of many comparisons exceeds with probability 0.002.

    Args:
      count: comparisons.
      chains: in each of two groups.

    Returns:
      Student's quantile.
    """
    return float(stats.t.isf(0.001 / max(count, 1), 2 * chains - 2))


def failures(tests: dict[str, bool]) -> tuple[str, ...]:
    """Lists what failed.

    Args:
      tests: whether each failed, by what to say then.

    Returns:
      The reasons to refuse.
    """
    return tuple(reason for reason, failed in tests.items() if failed)


def check_ladder(ladder: Ladder) -> Gates:
    """Applies the gates.

    Args:
      ladder: what the chains found.

    Returns:
      The numbers and the reasons to refuse.
    """
    s, both = ladder.s, np.concatenate([ladder.forward, ladder.backward], axis=-1)
    forward = bridge_energies(s, ladder.forward, ladder.precision)
    backward = bridge_energies(s, ladder.backward, ladder.precision)
    error = np.hypot(forward.standard_error, backward.standard_error)
    z = (forward.value - backward.value) / max(error, 1e-300)
    # Rung 0 is drawn anew; exp(-0 V) says nothing of convergence.
    rungs = np.abs(difference_z(ladder.forward.mean(1), ladder.backward.mean(1)))[1:]
    worst = float(rungs.max())
    limit = bonferroni(len(rungs), ladder.forward.shape[-1])
    deviation = both.std(axis=(1, 2))
    mixing = _worst_r_hat(both[1:])
    gap = float(np.max(np.diff(s) * np.maximum(deviation[1:], deviation[:-1])))
    tests = {
        f"forward and backward differ by {z:.1f} standard errors": abs(z)
        > MAX_DIFFERENCE,
        f"mean energies at a rung differ by {worst:.1f} standard errors": worst > limit,
        f"R-hat is {mixing:.2f}, wanted {MAX_R_HAT} or less": mixing > MAX_R_HAT,
        f"a rung is {gap:.1f} standard deviations wide": gap > MAX_GAP,
        f"acceptance is {ladder.acceptance:.2f}, wanted {MIN_ACCEPTANCE} or more": (
            ladder.acceptance < MIN_ACCEPTANCE
        ),
    }
    return Gates(
        forward, backward, z, worst, mixing, gap, ladder.acceptance, failures(tests)
    )
