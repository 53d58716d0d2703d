"""Figures of the study of smoothness, from its record alone."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from entropy_optax.measure._figures import new_figure
from entropy_optax.measure._lipschitz import smoothed_1d

# Okabe and Ito's colours, with markers for those who cannot tell them apart.
_STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "D"), ("#CC79A7", "^"))


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures.

    Args:
      folder: of `smoothness.json`, and of the figures.

    Returns:
      Paths of the PNG files.
    """
    record = json.loads((folder / "smoothness.json").read_text())
    return [
        _counterexample(folder / "counterexample.png", record["counterexample"]),
        _one_dimension(folder / "one_dimension.png", record["one_dimension"]),
        _net(folder / "net.png", record["net"]),
    ]


def _panels(width: float) -> tuple[Figure, Any, Any]:
    figure = new_figure(width, 3.9)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.25)
    return figure, left, right


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=130)
    return path


def _plain(axes: Any, which: str = "both") -> None:
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which in (name, "both"):
            axis.set_major_formatter(lambda value, _: f"{value:g}")


def _counterexample(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    figure, left, right = _panels(10)
    x = np.linspace(0, 2 * np.pi / 3, 200)
    f = lambda x: jnp.cos(3 * x)
    left.plot(x, -9 * np.cos(3 * x), color="#666666", linestyle="--", label="$f''$")
    left.axhspan(-9, 9, color="#666666", alpha=0.08, linewidth=0)
    for gamma, (colour, _) in zip((20.0, 5.0, 1.0), _STYLES, strict=False):
        bend = smoothed_1d(f, x, gamma, temperature=1.0).curvature
        left.plot(x, bend, color=colour, label=rf"$G''$, $\gamma$ = {gamma:g}")
    left.set_xlabel("x")
    left.set_ylabel("second derivative")
    left.set_title("f = cos 3x, T = 1: negative curvature grows", fontsize=10)
    left.legend(fontsize=8, loc="upper right")
    for temperature, (colour, marker) in zip(
        dict.fromkeys(row["temperature"] for row in rows), _STYLES, strict=False
    ):
        own = [row for row in rows if row["temperature"] == temperature]
        right.plot(
            [row["gamma"] for row in own],
            [row["ratio"] for row in own],
            color=colour,
            marker=marker,
            markersize=3.5,
            label=f"T = {temperature:g}",
        )
    gammas = np.geomspace(9.3, 500, 200)
    right.plot(
        *(gammas, gammas / (gammas - 9)),
        color="#666666",
        linestyle="--",
        label="true bound (iv), T → 0",
    )
    right.axhspan(1, 30, color="#D55E00", alpha=0.1, linewidth=0)
    right.axhline(1, color="#A04000", linewidth=0.8)
    note = "less smooth than f"
    right.text(0.62, 17, note, color="#A04000", fontsize=8)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_ylim(0.005, 30)
    right.set_xlim(0.5, 500)
    _plain(right)
    right.set_xlabel(r"scope $\gamma$")
    right.set_ylabel("max |G''| / max |f''|")
    right.set_title("how smooth local entropy is, relative to f", fontsize=10)
    right.legend(fontsize=8, loc="lower right")
    return _save(figure, path)


def _one_dimension(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    figure, left, right = _panels(10)
    random = [row for row in rows if row["function"] != "double_well"]
    well = [row for row in rows if row["function"] == "double_well"]
    for (label, chosen), axes in zip(
        (
            ("20 random functions: median, and lowest to highest", random),
            ("double well on [-1.5, 1.5]", well),
        ),
        (left, right),
        strict=True,
    ):
        for temperature, (colour, marker) in zip(
            dict.fromkeys(row["temperature"] for row in chosen), _STYLES, strict=False
        ):
            own = [row for row in chosen if row["temperature"] == temperature]
            gammas = list(dict.fromkeys(row["gamma"] for row in own))
            ratios = np.array(
                [
                    [_ratio(row) for row in own if row["gamma"] == gamma]
                    for gamma in gammas
                ]
            )
            axes.plot(
                gammas,
                np.median(ratios, axis=1),
                color=colour,
                marker=marker,
                markersize=4,
                label=f"T = {temperature:g}",
            )
            axes.fill_between(
                gammas, ratios.min(axis=1), ratios.max(axis=1), color=colour, alpha=0.15
            )
        axes.axhline(1, color="#A04000", linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain(axes)
        axes.set_title(label, fontsize=10)
        axes.legend(fontsize=8)
    left.set_xlabel(r"scope $\gamma$, in units of max |f''|")
    right.set_xlabel(r"scope $\gamma$ (max |f''| is 5.75, the barrier's is -1)")
    left.set_ylabel("max |G''| / max |f''|")
    return _save(figure, path)


def _ratio(row: dict[str, Any]) -> float:
    c = row["constants"]
    entropy = max(abs(c["entropy_lowest"]), abs(c["entropy_highest"]))
    return entropy / max(abs(c["lowest"]), abs(c["highest"]))


def _net(path: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
    figure, left, right = _panels(10)
    gradients = sorted({row["gradients"] for row in rows})
    gammas = sorted({row["gamma"] for row in rows}, reverse=True)

    def band(axes: Any, name: str, gamma: float, style: Any, label: str | None) -> None:
        values = np.array(
            [
                [
                    row["constants"][name]
                    for row in rows
                    if (row["gradients"], row["gamma"]) == (point, gamma)
                ]
                for point in gradients
            ]
        )
        colour, marker = style
        positions = range(len(gradients))
        axes.plot(
            positions,
            values.mean(axis=1),
            color=colour,
            marker=marker,
            markersize=4,
            label=label,
        )
        axes.fill_between(
            positions, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15
        )

    grey = ("#444444", "x")
    for axes, ends in (
        (left, (("highest", "entropy_highest"), ("lowest", "entropy_lowest"))),
        (right, (("slope", "entropy_slope"),)),
    ):
        for i, (plain, smoothed) in enumerate(ends):
            band(axes, plain, gammas[0], grey, None if i else "f")
            for gamma, style in zip(gammas, _STYLES, strict=False):
                label = None if i else rf"G, $\gamma$ = {gamma:g}"
                band(axes, smoothed, gamma, style, label)
        axes.set_xticks(range(len(gradients)), [f"{point:,}" for point in gradients])
        axes.set_xlabel("gradients of SGD")
    left.set_yscale("symlog", linthresh=0.1)
    left.axhline(0, color="#444444", linewidth=0.8)
    _plain(left, "y")
    left.set_ylabel("extreme eigenvalues of the Hessian")
    left.set_title("positive curvature shrinks, negative can grow", fontsize=10)
    right.set_yscale("log")
    _plain(right, "y")
    right.set_ylabel("norm of the gradient")
    right.set_title("slopes along the path shrink", fontsize=10)
    right.legend(fontsize=8)
    return _save(figure, path)
