"""Figures of spectra, noise curves and local entropy over the scope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from entropy_optax.measure._density import SpectralDensity
from entropy_optax.measure._figures import COLOURS, GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from entropy_optax.measure._local_entropy_result import LocalEntropyEstimate
    from entropy_optax.measure._noise import NoiseCurve


def spectrum_figure(
    spectra: Mapping[str, SpectralDensity | np.ndarray], near_zero: float = 1e-4
) -> Figure:
    """Draws the share of eigenvalues over a symmetric logarithmic axis.

    Args:
      spectra: by name densities, with error bars of one standard error, or arrays of
        all eigenvalues, which are drawn as outlines.
      near_zero: the axis is linear between minus and plus this.

    Returns:
      The figure.

    Examples:
      >>> import numpy as np
      >>> from entropy_optax import measure
      >>> figure = measure.spectrum_figure({"exact": np.array([-1.0, 0.0, 0.0, 3.0])})
      >>> figure.axes[0].get_yscale()
      'log'
    """
    figure, axes = _new(8.0, 4.2)
    values = [
        found.nodes if isinstance(found, SpectralDensity) else np.asarray(found)
        for found in spectra.values()
    ]
    lowest = min(float(v.min()) for v in values)
    highest = max(float(v.max()) for v in values)
    edges = _edges(lowest, highest, near_zero)
    for index, (name, found) in enumerate(spectra.items()):
        colour = COLOURS[index % len(COLOURS)]
        if isinstance(found, SpectralDensity):
            bins = found.histogram(edges)
            shares, errors = bins.values, bins.standard_errors
        else:
            shares = np.histogram(found, edges)[0] / len(found)
            errors = None
        axes.stairs(shares, edges, color=colour, linewidth=1.6, label=name)
        if errors is not None:
            seen = shares > 0
            axes.errorbar(
                _centres(edges)[seen],
                shares[seen],
                errors[seen],
                fmt="none",
                ecolor=colour,
                alpha=0.6,
            )
    axes.set_xscale("symlog", linthresh=near_zero, linscale=0.5)
    axes.set_yscale("log")
    size = max(v.shape[-1] if v.ndim == 1 else 1 for v in values)
    axes.set_ylim(bottom=min(1e-6, 0.5 / size), top=2.0)
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="share of eigenvalues in bin")
    axes.axvspan(-near_zero, near_zero, color=GREY, alpha=0.12, linewidth=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def report_noise_figure(
    noise: Mapping[str, NoiseCurve], error: NoiseCurve | None = None
) -> Figure:
    """Draws the loss, and the error rate if there is one, against the size of noise.

    Args:
      noise: curves of the loss by kind.
      error: curve of the error rate.

    Returns:
      The figure.
    """
    figure, axes = _new(8.0, 4.0)
    for index, (kind, curve) in enumerate(noise.items()):
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(
            np.append(0.0, curve.sigmas),
            np.append(curve.baseline, curve.values),
            np.append(0.0, curve.standard_errors),
            color=colour,
            marker="o",
            markersize=4,
            capsize=2,
            label=f"loss, noise in units of each {_UNITS.get(kind, kind)}",
        )
    axes.set(xlabel="relative size of the noise", ylabel="loss, nats", yscale="log")
    if error is not None:
        right: Any = axes.twinx()
        right.errorbar(
            np.append(0.0, error.sigmas),
            100 * np.append(error.baseline, error.values),
            100 * np.append(0.0, error.standard_errors),
            color=GREY,
            linestyle="--",
            marker="s",
            markersize=3,
            capsize=2,
            label="error",
        )
        right.set_ylabel("error, % (dashed)")
        right.spines["top"].set_visible(False)
        right.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


_UNITS = {"filter": "filter", "multiplicative": "weight"}


def local_entropy_figure(
    loss: float,
    temperature: float,
    estimates: Mapping[float, LocalEntropyEstimate],
) -> Figure:
    """Draws minus local entropy, `-T Phi`, against the scope; dotted what was refused.

    Args:
      loss: f at the params, to which it falls as gamma grows.
      temperature: T.
      estimates: of each gamma.

    Returns:
      The figure.
    """
    figure, axes = _new(8.0, 4.0)
    good = {g: e for g, e in sorted(estimates.items()) if e.converged}
    refused = [g for g, e in estimates.items() if not e.converged]
    axes.errorbar(
        list(good),
        [-temperature * e.phi for e in good.values()],
        [temperature * e.standard_error for e in good.values()],
        color=COLOURS[0],
        marker="o",
        markersize=4,
        capsize=2,
        label=f"minus local entropy, $-T\\,\\Phi$, T = {temperature:g}",
    )
    axes.axhline(loss, color=GREY, linestyle="--", label="loss")
    for number, gamma in enumerate(refused):
        label = "not converged" if number == 0 else None
        axes.axvline(gamma, color=COLOURS[1], linestyle=":", label=label)
    axes.set(xscale="log", xlabel="scope, gamma", ylabel="nats")
    top = axes.secondary_xaxis(
        "top",
        functions=(
            lambda g: np.sqrt(temperature / np.maximum(g, 1e-30)),
            lambda s: temperature / np.maximum(s, 1e-30) ** 2,
        ),
    )
    top.set_xlabel("standard deviation of each weight, $\\sqrt{T / \\gamma}$")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _edges(lowest: float, highest: float, near_zero: float) -> np.ndarray:
    per_decade = 4

    def side(most: float) -> np.ndarray:
        if most <= near_zero:
            return np.array([near_zero])
        count = int(np.ceil(per_decade * np.log10(most / near_zero)))
        return near_zero * 10 ** (np.arange(count + 1) / per_decade)

    return np.concatenate([-side(-lowest)[::-1], side(highest * 1.0001)])


def _centres(edges: np.ndarray) -> np.ndarray:
    left, right = edges[:-1], edges[1:]
    same = left * right > 0
    return np.where(same, np.sign(left) * np.sqrt(np.abs(left * right)), 0.0)


def _new(width: float, height: float) -> Any:
    figure = new_figure(width, height)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
