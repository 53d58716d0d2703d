"""The summary of all comparisons at equal gradients, from the records alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_optax.experiments.report import LABELS
from entropy_optax.experiments.results_format import floats, markdown, mean_and_error

Record = dict[str, Any]


def summary(table1: Sequence[Record], flat_minima: dict[str, Record]) -> str:
    """One column for each system or scenario, one line for each optimizer.

    Args:
      table1: of `runs.json`; the runs at tuned settings count.
      flat_minima: scenario to `compare.json`.

    Returns:
      The table; the lowest mean of each column is bold, single runs apart.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for run in table1:
        if run["which"] != "tuned":
            continue
        text = run["row"].endswith("lstm")
        column = columns.setdefault(_header(run, text), {})
        value = run["run"]["test_last"]["loss" if text else "error"]
        column.setdefault(run["optimizer"], []).extend(floats([value]))
    for name, record in flat_minima.items():
        columns[f"{name}, %"] = {
            method: [run["test_error"] for run in runs]
            for method, runs in record["runs"].items()
        }
    lowest = {
        header: min(
            (float(np.mean(values)) for values in column.values() if len(values) > 1),
            default=None,
        )
        for header, column in columns.items()
    }
    rows = []
    for method in LABELS:
        if not any(method in column for column in columns.values()):
            continue
        cells = []
        for header, column in columns.items():
            values = column.get(method)
            if values is None:
                cells.append("-")
                continue
            cell = mean_and_error(values, 3 if "nats" in header else 2)
            best = len(values) > 1 and float(np.mean(values)) == lowest[header]
            cells.append(f"**{cell}**" if best else cell)
        rows.append([LABELS[method], *cells])
    return (
        markdown(["test", *columns], rows)
        + "\n\nMean ± standard error, over three seeds to the left (without ± one seed)"
        + " and ten in the scenarios; all in a column spent the same number of"
        + " gradients; the lowest mean is bold."
    )


def _header(run: Record, text: bool) -> str:
    unit = "nats" if text else "%"
    return f"{run['row']}, {run['epochs']:.0f} epochs, {unit}"
