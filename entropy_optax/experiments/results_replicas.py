"""Replicas on their page of results: the table and the figure, from the record."""

import pathlib
from typing import Any

import numpy as np

from entropy_optax.experiments.figure import STYLES
from entropy_optax.experiments.report import LABELS
from entropy_optax.experiments.results_format import (
    against,
    markdown,
    mean_and_error,
)
from entropy_optax.measure._figures import new_figure

Record = dict[str, Any]

_LINES = {"quickstart": "-", "three_times": "--", "wide_batch": ":", "parle": "-"}


def table(record: Record) -> str:
    """Test errors, and Parle's differences from the others.

    Args:
      record: `replicas.json`.

    Returns:
      One line for each contender.
    """
    *rivals, parle = record["rows"]
    differences = against(_errors(parle), dict(enumerate(map(_errors, rivals))))
    rows = []
    for i, row in enumerate(record["rows"]):
        values = lambda name, row=row: [run[name] for run in row["runs"]]
        chosen = [score["error"] for score in values("test_chosen")]
        validation = [score["error"] for score in values("validation_last")]
        rows.append(
            [
                _label(row),
                str(row["devices"]),
                str(row["settings"]["batch_size"]),
                f"{row['settings']['num_gradients']:,}",
                f"{_examples(row):,}",
                mean_and_error(_errors(row), 2),
                mean_and_error(chosen, 2),
                mean_and_error(validation, 2),
                mean_and_error(values("training_loss"), 4),
                differences.get(i, "-"),
            ]
        )
    header = ["method", "devices", "batch", "gradients on each device"]
    header += ["examples in all", "test error %", "chosen on validation"]
    header += ["validation error %", "training loss", "Parle minus it"]
    n = len(parle["runs"])
    return (
        markdown(header, rows)
        + f"\n\nMean ± standard error over {n} seeds, after the last gradient. The last"
        + " column: mean paired difference of the test error, its 95 % interval, and"
        + " p-values by Holm's method over the column. The batch is that of a"
        + " gradient, of all its devices together; each replica has its own. Devices:"
        + " those that it is meant for, one here, where the numbers are the same."
    )


def draw(path: pathlib.Path, record: Record) -> pathlib.Path:
    """Draws the validation error against the work of each device and of all.

    Args:
      path: of the PNG file.
      record: `replicas.json`.

    Returns:
      The path.
    """
    figure = new_figure(11, 4.4)
    each, whole = figure.subplots(1, 2, sharey=True)
    runs = [run for row in record["rows"] for run in row["runs"]]
    positive = all(error > 0 for run in runs for _, error in run["curve"])
    for row in record["rows"]:
        colour, marker = STYLES[row["optimizer"]]
        curves = np.array([run["curve"] for run in row["runs"]], float)
        share = curves[0, :, 0] / curves[0, -1, 0]
        steps = share * row["settings"]["num_gradients"]
        for axes, x in ((each, steps), (whole, share * _examples(row))):
            axes.plot(
                x,
                curves[:, :, 1].mean(axis=0),
                color=colour,
                marker=marker,
                markersize=5,
                linestyle=_LINES[row["preset"]],
                label=_label(row) if axes is each else None,
            )
    for axes in (each, whole):
        axes.set_yscale("log" if positive else "linear")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(
            lambda y, _: f"{y:g}" if f"{y:e}"[0] in "2357" else ""
        )
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    each.set_xlabel("gradients on each device")
    whole.set_xlabel("examples in all")
    each.set_ylabel("validation error (%)")
    n = len(record["rows"][0]["runs"])
    figure.suptitle(f"LeNet on the shipped digits, mean of {n} seeds", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=130)
    return path


def _label(row: Record) -> str:
    label, settings = LABELS[row["optimizer"]], row["settings"]
    if replicas := settings.get("replicas"):
        return f"{label}, {replicas} replicas"
    if row["devices"] > 1:
        return f"{label}, data parallel"
    return f"{label}, {settings['num_gradients']:,} gradients"


def _examples(row: Record) -> int:
    settings = row["settings"]
    own = settings["num_gradients"] * settings["batch_size"]
    return own * settings.get("replicas", 1)


def _errors(row: Record) -> list[float]:
    return [run["test_last"]["error"] for run in row["runs"]]
