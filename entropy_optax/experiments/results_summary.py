"""Tables over several comparisons, from the records alone."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_optax.experiments.report import LABELS
from entropy_optax.experiments.results_format import (
    against,
    difference,
    floats,
    lost_above,
    markdown,
    mean_and_error,
)
from entropy_optax.experiments.statistics import paired_bootstrap
from entropy_optax.experiments.transfer import SOURCE

Record = dict[str, Any]


def summary(table1: Sequence[Record], flat_minima: dict[str, Record]) -> str:
    """One column for each system or scenario, one line for each optimizer.

    Args:
      table1: of `runs.json`; those at tuned settings count, with the least number of
        gradients that ours has been given on the system.
      flat_minima: scenario to `compare.json`.

    Returns:
      The table; the lowest mean of each column is bold, single runs apart.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for run in _compared(table1):
        text = run["row"].endswith("lstm")
        column = columns.setdefault(_header(run, text), {})
        value = run["run"]["test_last"]["loss" if text else "error"]
        column.setdefault(run["optimizer"], []).extend(floats([value]))
    lost = {f"{name}, %": lost_above(record) for name, record in flat_minima.items()}
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
            above = lost.get(header, math.inf)
            if count := sum(value > above for value in values):
                cell += f" ({count} lost)"
            best = len(values) > 1 and float(np.mean(values)) == lowest[header]
            cells.append(f"**{cell}**" if best else cell)
        rows.append([LABELS[method], *cells])
    return (
        markdown(["test", *columns], rows)
        + "\n\nMean ± standard error, over three seeds of the systems and ten of the"
        + " scenarios (500 and 1,000 training images; 20, 40 % of 1,000 labels wrong,"
        + " nodecay without weight decay; 8,000 images in batches of 1,024); without ±"
        + " it is one seed. All in a column spent the same number of"
        + " gradients. The lowest mean of several seeds is bold. A run is lost if its"
        + " error is above 1.5 times the median of its column."
    )


def transfer(records: dict[str, Record]) -> str:
    """Methods as tuned on a scenario and on another, at fresh seeds.

    Args:
      records: scenario to `transfer.json`.

    Returns:
      One table for each scenario; the differences are from Entropy-SGD as tuned on the
      other, adjusted over all that is on its own settings.
    """
    parts = []
    for name, record in records.items():
        errors = {
            (row["method"], row["pull"], row["tuned_on"]): row["test_error"]
            for row in record["rows"]
        }
        methods = dict.fromkeys(method for method, _, _ in errors)
        ours = errors["entropy_sgd", True, SOURCE]
        cells = against(ours, {m: errors[m, True, name] for m in methods})
        rows = []
        for method in methods:
            places = (errors[method, True, place] for place in (name, SOURCE))
            values = (mean_and_error(own, 2) for own in places)
            rows.append([LABELS[method], *values, cells[method]])
        c = paired_bootstrap(ours, errors["entropy_sgd", False, SOURCE])
        rows.append(
            [
                "Entropy-SGD without its pull",
                "-",
                mean_and_error(errors["entropy_sgd", False, SOURCE], 2),
                f"{difference(c)}, not adjusted",
            ]
        )
        own, other = f"as tuned on {name}", f"as tuned on {SOURCE}"
        minus = f"Entropy-SGD {other} minus the method {own}"
        table = markdown([f"test error % on {name}", own, other, minus], rows)
        last = "In the last line the difference is from the same settings without pull."
        parts.append(f"{table}\n\n{last}")
    return "\n\n".join(parts)


def repetition(records: dict[str, Record]) -> str:
    """Methods as tuned, on other training sets.

    Args:
      records: scenario to `repetition.json`.

    Returns:
      One table for each scenario, with the paired differences over training sets;
      those from methods as tuned on the scenario are adjusted, column by column.
    """
    parts = []
    for name, record in records.items():
        means = {
            (row["method"], row["tuned_on"], row["pull"]): np.mean(
                row["test_error"], axis=1
            ).tolist()
            for row in record["rows"]
        }
        header, columns = [name, "test error %"], []
        for key in means:
            method, place, pull = key
            if method != "entropy_sgd" or not pull:
                continue
            column = {key: "-"}
            rivals = {k: v for k, v in means.items() if k != key}
            family = {k: v for k, v in rivals.items() if k[1:] == (name, True)}
            column |= against(means[key], family)
            for k in rivals.keys() - family:
                c = paired_bootstrap(means[key], means[k])
                column[k] = f"{difference(c)}, not adjusted"
            columns.append(column)
            header.append(f"Entropy-SGD{_as_tuned(place, name)} minus it")
        rows = [
            [
                LABELS[key[0]]
                + _as_tuned(key[1], name)
                + ("" if key[2] else ", without its pull"),
                mean_and_error(values, 2),
                *(column[key] for column in columns),
            ]
            for key, values in means.items()
        ]
        parts.append(
            f"{markdown(header, rows)}\n\nMean ± standard error over"
            f" {record['num_sets']} training sets, {len(record['seeds'])} seeds each;"
            " p-values by Holm's method over a column."
        )
    return "\n\n".join(parts)


def _as_tuned(place: str, name: str) -> str:
    return "" if place == name else f" as tuned on {place}"


def _compared(table1: Sequence[Record]) -> list[Record]:
    tuned = [run for run in table1 if run["which"] == "tuned"]
    budgets: dict[str, int] = {}
    for run in tuned:
        if run["optimizer"].startswith("entropy"):
            least = budgets.get(run["row"], run["gradients"])
            budgets[run["row"]] = min(least, run["gradients"])
    return [run for run in tuned if run["gradients"] == budgets.get(run["row"])]


def _header(run: Record, text: bool) -> str:
    unit = "nats" if text else "%"
    return f"{run['row']}, {run['epochs']:.0f} epochs, {unit}"
