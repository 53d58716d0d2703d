"""A spectral density in the form that stochastic Lanczos quadrature gives it."""

from typing import NamedTuple

import numpy as np

from entropy_optax.measure._checks import MeasureError, check_finite, check_positive
from entropy_optax.measure._estimate import Estimate, estimate


class SpectralDensity:
    """The density of eigenvalues; made by `spectral_density`.

    Args:
      nodes: Ritz values of each probe, `[probes, k]`.
      weights: of the nodes, summing to 1 for each probe, `[probes, k]`.
      num_params: n, the number of eigenvalues.
      half: nodes and weights after half the steps, for `truncation`.

    Attributes:
      nodes: as given.
      weights: as given.
      num_params: n.
    """

    def __init__(
        self,
        nodes: np.ndarray,
        weights: np.ndarray,
        num_params: int,
        half: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.nodes = np.asarray(nodes, np.float64)
        self.weights = np.asarray(weights, np.float64)
        self.num_params = num_params
        self._half = half

    @classmethod
    def from_tridiagonals(
        cls, tridiagonals: np.ndarray, num_params: int
    ) -> "SpectralDensity":
        """Makes it from Lanczos matrices.

        Args:
          tridiagonals: of each probe, `[probes, k, k]`.
          num_params: n.

        Returns:
          The density.
        """
        # The first k / 2 steps are the leading block: nothing is run twice.
        half = max(1, tridiagonals.shape[1] // 2)
        return cls(
            *_quadrature(tridiagonals),
            num_params,
            _quadrature(tridiagonals[:, :half, :half]),
        )

    @property
    def num_steps(self) -> int:
        """Lanczos steps, k."""
        return self.nodes.shape[1]

    def share_below(self, threshold: float) -> Estimate:
        """The share of eigenvalues within `[-threshold, threshold]`.

        Args:
          threshold: above 0.

        Returns:
          The share, between 0 and 1. Where the spectrum is dense around the threshold
          k nodes cannot resolve the edge: the share is then biased by several per
          cent, which the standard error does not see. `truncation` is a hint.

        Raises:
          MeasureError: if the threshold is not above 0.
        """
        check_positive("threshold", threshold)
        near = np.abs(self.nodes) <= threshold
        return estimate(np.sum(self.weights * near, axis=1))

    def share_negative(self, threshold: float = 0.0) -> Estimate:
        """The share of eigenvalues below `-threshold`.

        Args:
          threshold: 0 or more.

        Returns:
          The share, between 0 and 1.
        """
        return estimate(np.sum(self.weights * (self.nodes < -threshold), axis=1))

    def truncation(self, threshold: float) -> float:
        """By how much half as many Lanczos steps would change `share_below`.

        Args:
          threshold: as there.

        Returns:
          The absolute difference. Where it is well above the standard error, more
          steps are needed; where it is not, they may be all the same.

        Raises:
          MeasureError: if what half the steps gave is not known.
        """
        if self._half is None:
            raise MeasureError("half: got None, wanted nodes and weights")
        nodes, weights = self._half
        half = np.sum(weights * (np.abs(nodes) <= threshold), axis=1)
        return abs(float(np.mean(half)) - self.share_below(threshold).value)

    def trace(self) -> Estimate:
        """The sum of all eigenvalues.

        Returns:
          Hutchinson's estimate from the same probes.
        """
        return estimate(self.num_params * np.sum(self.weights * self.nodes, axis=1))

    def trace_of_square(self) -> Estimate:
        """The sum of their squares.

        Returns:
          Its estimate from the same probes.
        """
        squares = self.weights * self.nodes**2
        return estimate(self.num_params * np.sum(squares, axis=1))

    def log_determinant(self, gamma: float) -> Estimate:
        """`log det(I + A / gamma)`, which Laplace's local entropy needs.

        Args:
          gamma: the scope, above minus the smallest eigenvalue.

        Returns:
          Its estimate from the same probes.

        Raises:
          MeasureError: if a node lies at -gamma or below.
        """
        if not 1 + self.nodes.min() / gamma > 0:
            raise MeasureError(
                f"gamma: got {gamma:g}, the spectrum reaches {self.nodes.min():.4g}:"
                " wanted a matrix I + A / gamma that is positive definite"
            )
        logs = self.weights * np.log1p(self.nodes / gamma)
        return estimate(self.num_params * np.sum(logs, axis=1))

    def curve(self, grid: np.ndarray, width: float) -> "Curve":
        """The density on a grid, each node blurred by a Gaussian.

        Args:
          grid: eigenvalues at which it is wanted, `[m]`.
          width: standard deviation of the Gaussian.

        Returns:
          The density and its standard error at each point.

        Raises:
          MeasureError: if the width is not above 0.
        """
        check_positive("width", width)
        grid = np.asarray(grid, np.float64)
        distance = (grid[:, None, None] - self.nodes) / width
        blurred = np.exp(-(distance**2) / 2) / (width * np.sqrt(2 * np.pi))
        samples = np.sum(self.weights * blurred, axis=2)
        errors = samples.std(axis=1, ddof=1) / samples.shape[1] ** 0.5
        return Curve(grid, samples.mean(axis=1), errors)

    def histogram(self, edges: np.ndarray) -> "Curve":
        """The share of eigenvalues in each bin.

        Args:
          edges: of the bins, ascending, `[m + 1]`.

        Returns:
          Lower edges, shares and their standard errors, `[m]` each.
        """
        edges = np.asarray(edges, np.float64)
        samples = np.stack(
            [
                np.histogram(nodes, edges, weights=weights)[0]
                for nodes, weights in zip(self.nodes, self.weights, strict=True)
            ],
            axis=1,
        )
        errors = samples.std(axis=1, ddof=1) / samples.shape[1] ** 0.5
        return Curve(edges[:-1], samples.mean(axis=1), errors)


class Curve(NamedTuple):
    """A function on a grid.

    Attributes:
      grid: where, `[m]`.
      values: of the function, `[m]`.
      standard_errors: of the values, `[m]`.
    """

    grid: np.ndarray
    values: np.ndarray
    standard_errors: np.ndarray


def cut_exhausted(tridiagonals: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
    """Takes out what Lanczos made of rounding.

    Where a Krylov space is exhausted the next basis vector is noise and not orthogonal
    to the others. Uncoupled from the first vector it has no weight.

    Args:
      tridiagonals: of each probe, `[probes, k, k]`.
      overlaps: the largest scalar product of each basis vector with those before it,
        `[probes, k]`.

    Returns:
      The matrices in float64, with zeros from the first such vector on.

    Raises:
      MeasureError: if a product was not finite.
    """
    cut = np.array(tridiagonals, np.float64)
    check_finite("matrix-vector products", cut[:, 0, 0])
    for matrix, overlap in zip(cut, overlaps, strict=True):
        lost = ~(overlap < 1e-3)  # NaN, too
        if np.any(lost):
            k = int(np.argmax(lost))
            matrix[k:] = matrix[:, k:] = 0.0
    check_finite("matrix-vector products", cut)
    return cut


def _quadrature(tridiagonals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(tridiagonals)
    return values, vectors[:, 0, :] ** 2
