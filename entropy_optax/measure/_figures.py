"""Figures of landscapes, each a matplotlib `Figure` that touches no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from entropy_optax.measure._landscape import local_minima

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from entropy_optax.measure._noise import NoiseCurve

# Okabe and Ito's colours, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#555555"


def landscape_figure(
    x: ArrayLike, loss: ArrayLike, smoothed: Mapping[str, ArrayLike]
) -> Figure:
    """Draws a loss of one variable over its smoothed forms, with their minima.

    Args:
      x: the grid, `[N]`.
      loss: f on it, `[N]`.
      smoothed: names and values, `[N]` each, such as minus local entropies.

    Returns:
      The figure: dots at local minima, a triangle at the lowest.

    Examples:
      >>> import numpy as np
      >>> from entropy_optax import measure
      >>> x = np.arange(1000)
      >>> f = measure.paper_landscape(x)
      >>> smooth = measure.smoothed_landscape(f, gamma=1e-3)
      >>> figure = measure.landscape_figure(x, f, {"-F": smooth})
      >>> len(figure.axes)
      1
    """
    figure = new_figure(8.0, 4.0)
    axes = _axes(figure)
    x = np.asarray(x)
    curves = {"loss $f$": np.asarray(loss)} | {
        name: np.asarray(values) for name, values in smoothed.items()
    }
    for index, (name, values) in enumerate(curves.items()):
        colour = COLOURS[(index - 1) % len(COLOURS)] if index else GREY
        width = 2.2 if index else 1.2
        lowest = int(values.argmin())
        label = f"{name}, lowest at {x[lowest]:.4g}"
        axes.plot(x, values, color=colour, linewidth=width, label=label)
        minima = local_minima(values)
        axes.plot(x[minima], values[minima], "o", color=colour, markersize=3.5)
        axes.plot(
            x[lowest],
            values[lowest],
            "v",
            color=colour,
            markersize=11,
            markeredgecolor="white",
            zorder=5,
        )
    axes.set(xlabel="parameter $x$", ylabel="loss", xlim=(x[0], x[-1]))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return figure


def valleys_figure(
    grid: tuple[ArrayLike, ArrayLike],
    surfaces: Mapping[str, ArrayLike],
    paths: Mapping[str, ArrayLike],
    labels: Mapping[str, Sequence[float]],
) -> Figure:
    """Draws paths over the contours of one or more surfaces of two variables.

    Args:
      grid: the two axes, `[A]` and `[B]`.
      surfaces: titles and values, `[A, B]` each, side by side, of one colour scale.
      paths: names and points, `[R, K, 2]` each; drawn on every surface.
      labels: texts and the points that they name, `[2]` each.

    Returns:
      The figure: a ring at the start of a path, a dot at its end, a white cross at the
      lowest point of each surface.

    Examples:
      >>> import numpy as np
      >>> from entropy_optax import measure
      >>> line = np.linspace(-1, 1, 21)
      >>> bowl = line[:, None] ** 2 + line**2
      >>> path = np.array([[[1.0, 1.0], [0.5, 0.0], [0.0, 0.0]]])
      >>> figure = measure.valleys_figure(
      ...     (line, line), {"bowl": bowl}, {"a path": path}, {"here": [0.0, 0.0]}
      ... )
      >>> len(figure.axes)  # with the colour bar
      2
    """
    figure = new_figure(5.2 * len(surfaces) + 1, 4.6)
    first, second = np.asarray(grid[0]), np.asarray(grid[1])
    drawn = {title: np.asarray(values) for title, values in surfaces.items()}
    low = min(values.min() for values in drawn.values())
    high = max(np.percentile(values, 95) for values in drawn.values())
    levels = np.linspace(low, high, 25)
    panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    filled = None
    for axes, (title, values) in zip(panels, drawn.items(), strict=True):
        filled = axes.contourf(
            first, second, values.T, levels, cmap="Greys_r", extend="max", alpha=0.75
        )
        axes.contour(
            first, second, values.T, levels, colors="white", linewidths=0.3, alpha=0.6
        )
        for colour, (name, points) in zip(COLOURS, paths.items(), strict=False):
            for index, path in enumerate(np.asarray(points)):
                label = None if index else name
                axes.plot(*path.T, color=colour, linewidth=1.1, alpha=0.9, label=label)
                axes.plot(*path[0], "o", mfc="none", mec=colour, markersize=7)
                axes.plot(*path[-1], "o", mfc=colour, mec="white", ms=8, zorder=5)
        lowest = np.unravel_index(values.argmin(), values.shape)
        axes.plot(
            first[lowest[0]], second[lowest[1]], "X", mfc="w", mec="k", ms=11, zorder=6
        )
        for text, place in labels.items():
            axes.annotate(
                text,
                (place[0], place[1]),
                xytext=(0, -26),
                textcoords="offset points",
                ha="center",
                va="top",
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none"},
            )
        axes.set(title=title, xlabel="$x_1$", aspect="equal")
        axes.set(xlim=(first[0], first[-1]), ylim=(second[0], second[-1]))
    panels[0].set_ylabel("$x_2$")
    if paths:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=4, frameon=False
        )
    assert filled is not None
    figure.colorbar(filled, ax=list(panels), label="loss", shrink=0.85, format="%.1f")
    return figure


def slice_figure(alphas: ArrayLike, losses: Mapping[str, ArrayLike]) -> Figure:
    """Draws losses along a line.

    Args:
      alphas: `[A]`.
      losses: names and values, each `[A]`, or `[D, A]` for several directions, of
        which the mean and the range are drawn.

    Returns:
      The figure.

    Examples:
      >>> from entropy_optax import measure
      >>> figure = measure.slice_figure([-1, 0, 1], {"a net": [2.0, 1.0, 2.0]})
      >>> len(figure.axes)
      1
    """
    figure = new_figure(6.0, 3.8)
    axes = _axes(figure)
    alphas = np.asarray(alphas)
    for colour, (name, values) in zip(COLOURS, losses.items(), strict=False):
        lines = np.atleast_2d(np.asarray(values))
        axes.plot(alphas, lines.mean(axis=0), color=colour, linewidth=2, label=name)
        if len(lines) > 1:
            low, high = lines.min(axis=0), lines.max(axis=0)
            axes.fill_between(alphas, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=r"$\alpha$, in lengths of the filters", ylabel="loss")
    axes.legend(frameon=False)
    return figure


def plane_figure(
    alphas: ArrayLike, betas: ArrayLike, losses: Mapping[str, ArrayLike]
) -> Figure:
    """Draws losses over planes as contours, side by side, of one colour scale.

    Args:
      alphas: `[A]`.
      betas: `[B]`.
      losses: titles and values, `[A, B]` each.

    Returns:
      The figure.

    Examples:
      >>> import numpy as np
      >>> from entropy_optax import measure
      >>> line = np.linspace(-1, 1, 5)
      >>> bowl = line[:, None] ** 2 + line**2 + 0.1
      >>> len(measure.plane_figure(line, line, {"a net": bowl}).axes)
      2
    """
    figure = new_figure(3.4 * len(losses) + 1, 3.7)
    drawn = {title: np.asarray(values) for title, values in losses.items()}
    low = min(values.min() for values in drawn.values())
    high = max(values.max() for values in drawn.values())
    levels = np.linspace(low, high, 21)
    panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    filled: Any = None
    for axes, (title, values) in zip(panels, drawn.items(), strict=True):
        filled = axes.contourf(alphas, betas, values.T, levels, cmap="viridis")
        axes.contour(alphas, betas, values.T, levels, colors="white", linewidths=0.4)
        axes.plot(0, 0, "w+", markersize=10)
        axes.set(title=title, xlabel=r"$\alpha$", aspect="equal")
    panels[0].set_ylabel(r"$\beta$")
    figure.colorbar(filled, ax=list(panels), label="loss", shrink=0.9, format="%.1f")
    return figure


def noise_figure(
    curves: Mapping[str, NoiseCurve], *, xlabel: str, ylabel: str
) -> Figure:
    """Draws loss or error against the size of weight noise.

    Args:
      curves: names and curves.
      xlabel: of sigma.
      ylabel: of f.

    Returns:
      The figure: means with two standard errors to each side, the value without noise
      as a dotted line.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> curve = measure.noise_curve(
      ...     lambda w: w**2,
      ...     jnp.ones(()),
      ...     [0.1, 1.0],
      ...     kind="multiplicative",
      ...     key=jax.random.key(0),
      ... )
      >>> figure = measure.noise_figure({"w": curve}, xlabel="sigma", ylabel="f")
      >>> len(figure.axes)
      1
    """
    figure = new_figure(6.0, 3.8)
    axes = _axes(figure)
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        axes.plot(curve.sigmas, curve.values, "o-", ms=4, color=colour, label=name)
        half = 2 * curve.standard_errors
        axes.fill_between(
            curve.sigmas,
            curve.values - half,
            curve.values + half,
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
        axes.axhline(curve.baseline, color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(frameon=False)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty figure; not by pyplot, which holds global state.

    Args:
      width: in inches.
      height: in inches.

    Returns:
      The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure) -> Axes:
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25)
    return axes
