"""Figures of the page of results, from its records alone."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from entropy_optax.experiments import (
    results_filter,
    results_filter_forms,
    results_measure_figures,
    results_replicas,
    results_stability,
)
from entropy_optax.experiments.figure import STYLES
from entropy_optax.experiments.report import LABELS, estimate
from entropy_optax.experiments.results_format import (
    lost_above,
)
from entropy_optax.measure._figures import new_figure


def draw_all(results: pathlib.Path, found: dict[str, Any]) -> list[pathlib.Path]:
    """Draws every figure that has a record.

    Args:
      results: folder of the records.
      found: from `results_page.records`.

    Returns:
      Paths of the PNG files.
    """
    drawn = []
    if "table1" in found:
        drawn += _curves(results / "table1", found["table1"])
    if "flat_minima" in found:
        drawn.append(
            _errors(results / "flat_minima" / "errors.png", found["flat_minima"])
        )
    if "headroom" in found:
        drawn.append(
            _headroom(results / "flat_minima" / "headroom.png", found["headroom"])
        )
    if "stability" in found:
        path = results / "flat_minima" / "stability.png"
        drawn.append(results_stability.draw(path, found["stability"]))
    if "spectra" in found:
        path = results / "measure" / "spectra" / "spectra.png"
        drawn.append(results_measure_figures.spectra(path, found["spectra"]))
    if "valleys" in found:
        path = results / "measure" / "valleys" / "valleys.png"
        drawn.append(results_measure_figures.valleys(path, found["valleys"]))
    if "replicas" in found:
        path = results / "replicas" / "replicas.png"
        drawn.append(results_replicas.draw(path, found["replicas"]))
    if "filter_compare" in found:
        path = results / "filter_entropy" / "errors.png"
        drawn.append(results_filter.draw(path, found["filter_compare"]))
    if "filter_flatness" in found:
        path = results / "filter_entropy" / "flatness.png"
        drawn.append(results_filter_forms.draw(path, found["filter_flatness"]))
    return drawn


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=130)
    return path


def _curves(folder: pathlib.Path, runs: list[Any]) -> list[pathlib.Path]:
    drawn = []
    keys = dict.fromkeys((r["row"], r["which"], r["gradients"]) for r in runs)
    for row, which, gradients in keys:
        own = [
            r
            for r in runs
            if (r["row"], r["which"], r["gradients"]) == (row, which, gradients)
        ]
        figure = new_figure(7, 4.2)
        axes = figure.add_subplot()
        for optimizer in (
            name for name in LABELS if any(r["optimizer"] == name for r in own)
        ):
            group = [r["run"] for r in own if r["optimizer"] == optimizer]
            points = np.array([run["curve"] for run in group], float)
            colour, marker = STYLES[optimizer]
            axes.plot(
                points[0, :, 0],
                points[:, :, 1].mean(axis=0),
                color=colour,
                marker=marker,
                markersize=4,
                label=f"{LABELS[optimizer]} (n = {len(group)})",
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        text = row.endswith("lstm")
        axes.set_xlabel("gradient evaluations")
        axes.set_ylabel(
            "validation loss (nats per token)" if text else "validation error (%)"
        )
        axes.set_title(f"{row}, {which} settings, {gradients:,} gradients", fontsize=10)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)
        drawn.append(_save(figure, folder / f"{row}_{which}_{gradients}.png"))
    return drawn


def _errors(path: pathlib.Path, records: dict[str, Any]) -> pathlib.Path:
    figure = new_figure(2.1 * len(records) + 1.2, 3.6)
    panels = figure.subplots(1, len(records), sharey=True, squeeze=False)[0]
    for axes, (name, record) in zip(panels, records.items(), strict=True):
        methods = list(record["runs"])
        errors = {m: [run["test_error"] for run in record["runs"][m]] for m in methods}
        # A run that was lost would press all others together.
        right = lost_above(record)
        if lost := [value for own in errors.values() for value in own if value > right]:
            kept = [value for own in errors.values() for value in own if value <= right]
            axes.set_xlim(min(kept) - 0.2, max(kept) + 0.4)
            count = f"{len(lost)} of {len(lost) + len(kept)}"
            note = f"lost: {count} runs, up to {max(lost):.0f} %"
            place = axes.transAxes
            axes.text(0.98, 0.01, note, ha="right", fontsize=6, transform=place)
        for position, method in enumerate(methods):
            values = errors[method]
            mean, error, _ = estimate(values)
            colour, marker = STYLES[method]
            axes.plot(
                values,
                [position] * len(values),
                ".",
                color=colour,
                alpha=0.3,
                markersize=4,
            )
            axes.errorbar(
                mean, position, xerr=error, color=colour, marker=marker, capsize=3
            )
        axes.set_title(name, fontsize=9)
        axes.set_yticks(range(len(methods)), [LABELS[m] for m in methods], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(visible=True, axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.supxlabel("test error (%), ten seeds, mean ± standard error", fontsize=9)
    return _save(figure, path)


def _headroom(path: pathlib.Path, records: dict[str, Any]) -> pathlib.Path:
    shapes = ("cosine", "constant")
    figure = new_figure(9, 3.4 * len(records))
    panels = figure.subplots(len(records), 2, squeeze=False, sharey="row")
    for line, (name, record) in zip(panels, records.items(), strict=True):
        for axes, shape in zip(line, shapes, strict=True):
            own = [r for r in record["rows"] if r["rate_schedule"] == shape]
            for row in own:
                colour, marker = STYLES[row["method"]]
                axes.plot(
                    row["rates"],
                    np.mean(row["validation_error"], axis=1),
                    color=colour,
                    marker=marker,
                    markersize=4,
                    label=LABELS[row["method"]],
                )
            best = min(row["best"] for row in own)
            axes.set_ylim(best - 1, best + 15)
            axes.set_xscale("log")
            axes.set_title(f"{name}, {shape}", fontsize=9)
            axes.set_xlabel("rate")
            axes.grid(visible=True, alpha=0.3)
        line[0].set_ylabel("validation error (%)")
    panels[0][0].legend(fontsize=7)
    return _save(figure, path)
