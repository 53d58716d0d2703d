"""Figures of the measured geometry."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from entropy_optax import measure
from entropy_optax.experiments.results_measure import (
    REFERENCE,
    SYSTEM_LABELS,
    of_contender,
)

_SHOWN = ("trace", "largest", "noise_0.2")
_RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
_COLOURS = {
    "SGD": "#555555",
    "Adam": "#E69F00",
    "SAM": "#009E73",
    "Entropy-SGD": "#0072B2",
}


def spectra(path: pathlib.Path, record: dict[str, Any]) -> pathlib.Path:
    """Draws the spectra of all networks, one above the other on one axis.

    Args:
      path: of the PNG file.
      record: `spectra.json`.

    Returns:
      The path.
    """
    found: dict[str, Any] = {}
    for system, row in record["rows"].items():
        label = f"{SYSTEM_LABELS[system]}, {row['num_params']:,} params"
        found[label] = measure.SpectralDensity(
            row["nodes"], row["weights"], row["num_params"]
        )
        if "exact_eigenvalues" in row:
            exact = np.array(row["exact_eigenvalues"])
            found[f"{SYSTEM_LABELS[system]}, exact"] = exact
    figure = measure.spectrum_figure(found)
    figure.savefig(path, dpi=130)
    return path


def valleys(path: pathlib.Path, records: dict[str, Any]) -> pathlib.Path:
    """Draws flatness against SGD's, each point a seed, at the lowest training loss.

    Args:
      path: of the PNG file.
      records: by system.

    Returns:
      The path.
    """
    figure = Figure(figsize=(11, 2.9 * len(records)), layout="constrained")
    panels = figure.subplots(len(records), len(_SHOWN), squeeze=False)
    for row, (system, record) in enumerate(records.items()):
        target = min(r["target"] for r in record["rows"])
        names = [name for name in record["choices"] if name != REFERENCE]
        sgd = {r["seed"]: r for r in of_contender(record, REFERENCE, target)}
        for column, metric in enumerate(_SHOWN):
            axes = panels[row, column]
            for y, name in enumerate(names):
                ratios = [
                    r[metric] / sgd[r["seed"]][metric]
                    for r in of_contender(record, name, target)
                    if metric in r and metric in sgd[r["seed"]]
                ]
                family = name.partition(",")[0]
                axes.plot(
                    ratios,
                    np.full(len(ratios), -y),
                    "o",
                    color=_COLOURS[family],
                    alpha=0.5,
                    markersize=4,
                    markeredgewidth=0,
                )
                if ratios:
                    centre = float(np.exp(np.mean(np.log(ratios))))
                    axes.plot(centre, -y, "|", color=_COLOURS[family], ms=14, mew=2.5)
            axes.axvline(1.0, color="#555555", linewidth=1, linestyle="--")
            axes.set_xscale("log")
            axes.set_yticks(-np.arange(len(names)), names if column == 0 else [])
            axes.spines[["top", "right"]].set_visible(False)
            axes.minorticks_off()
            axes.set_xticks(_RATIOS, [f"{ratio:g}" for ratio in _RATIOS])
            axes.grid(visible=True, axis="x", alpha=0.2)
            heading = {"trace": "trace", "largest": "largest eigenvalue"}.get(
                metric, "loss under filter noise .2"
            )
            axes.set_title(
                f"{SYSTEM_LABELS[system]}: {heading}" if column == 0 else heading,
                fontsize=10,
            )
            if row == len(records) - 1:
                axes.set_xlabel("ratio to SGD's (left: flatter)")
    figure.savefig(path, dpi=130)
    return path
