"""A spectral density in the form that stochastic Lanczos quadrature gives it."""

from typing import NamedTuple

import numpy as np

from entropy_optax.measure._checks import MeasureError, check_positive
from entropy_optax.measure._estimate import Estimate, estimate


class SpectralDensity:
    """The density of eigenvalues; made by `spectral_density`.

    Args:
      nodes: Ritz values of each probe, `[probes, k]`.
      weights: of the nodes, summing to 1 for each probe, `[probes, k]`.
      num_params: n, the number of eigenvalues.

    Attributes:
      nodes: as given.
      weights: as given.
      num_params: n.
    """

    def __init__(self, nodes: np.ndarray, weights: np.ndarray, num_params: int):
        self.nodes = np.asarray(nodes, np.float64)
        self.weights = np.asarray(weights, np.float64)
        self.num_params = num_params

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
        values, vectors = np.linalg.eigh(tridiagonals)
        return cls(values, vectors[:, 0, :] ** 2, num_params)

    @property
    def num_steps(self) -> int:
        """Lanczos steps, k."""
        return self.nodes.shape[1]

    def share_within(self, threshold: float) -> Estimate:
        """The share of eigenvalues within `[-threshold, threshold]`.

        Args:
          threshold: above 0.

        Returns:
          The weight of the nodes there, between 0 and 1. Where the spectrum is dense
          around the threshold it can be far off with a small standard error: all probes
          put the same few nodes there. `bracket` says what is certain, and
          `share_near_zero` is the instrument for small thresholds.

        Raises:
          MeasureError: if the threshold is not above 0.
        """
        check_positive("threshold", threshold)
        near = np.abs(self.nodes) <= threshold
        return estimate(np.sum(self.weights * near, axis=1))

    def bracket(self, threshold: float) -> tuple[Estimate, Estimate]:
        """The least and the largest share within a threshold that k steps allow.

        k Lanczos steps fix the first 2 k moments of a probe's spectrum. Of all spectra
        with these moments none has less than `sum_(i<j) w_i` below node j, and none has
        more than `sum_(i<=j) w_i` up to it (Chebyshev, Markov, Stieltjes).

        Args:
          threshold: above 0.

        Returns:
          Means over the probes of both bounds.

        Raises:
          MeasureError: if the threshold is not above 0.
        """
        least, most = self.bounds(threshold)
        return estimate(least), estimate(most)

    def bounds(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """The `bracket` of each probe.

        Args:
          threshold: above 0.

        Returns:
          Lower and upper bounds, `[probes]` each.

        Raises:
          MeasureError: if the threshold is not above 0.
        """
        check_positive("threshold", threshold)
        below = np.sum(self.nodes < -threshold, axis=1)
        up_to = np.sum(self.nodes <= threshold, axis=1)
        sums = np.pad(np.cumsum(self.weights, axis=1), ((0, 0), (1, 0)))
        index = lambda i: np.clip(i, 0, self.num_steps)[:, None]
        at = lambda i: np.take_along_axis(sums, index(i), axis=1)[:, 0]
        least = np.maximum(at(up_to - 1) - at(below + 1), 0.0)
        return least, at(up_to + 1) - at(below - 1)

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
          Its estimate from the same probes; too few steps are a bias that its standard
          error does not see: compare with half as many.

        Raises:
          MeasureError: if gamma is not above 0 or a node lies at -gamma or below.
        """
        check_positive("gamma", gamma)
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
