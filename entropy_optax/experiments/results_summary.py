"""Tables over several comparisons, from the records alone."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_optax.experiments.report import LABELS
from entropy_optax.experiments.results_format import (
    difference,
    floats,
    lost_above,
    markdown,
    mean_and_error,
    p_value,
)
from entropy_optax.experiments.statistics import holm, paired_bootstrap
from entropy_optax.experiments.transfer import SOURCE

Record = dict[str, Any]


def summary(table1: Sequence[Record], flat_minima: dict[str, Record]) -> str:
    """One column for each system or scenario, one line for each optimizer.

    Args:
      table1: of `runs.json`; of each system the runs at tuned settings count, and
        those of the number of gradients that most of them have.
      flat_minima: scenario to `compare.json`.

    Returns:
      The table; the lowest mean of each column is bold, single runs apart.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for run in _most(table1):
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
        found = [paired_bootstrap(ours, errors[m, True, name]) for m in methods]
        adjusted = holm([c.p_value for c in found])
        rows = []
        for method, c, p in zip(methods, found, adjusted, strict=True):
            cell = f"{difference(c)} {p_value(p)}"
            places = (errors[method, True, place] for place in (name, SOURCE))
            rows.append(
                [
                    LABELS[method],
                    *(mean_and_error(values, 2) for values in places),
                    f"**{cell}**" if p < 0.05 else cell,
                ]
            )
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
            )
            for row in record["rows"]
        }
        ours = [key for key in means if key[0] == "entropy_sgd" and key[2]]
        columns = []
        for key in ours:
            found = {k: paired_bootstrap(means[key], means[k]) for k in means}
            family = [k for k in means if k[1:] == (name, True) and k != key]
            adjusted = dict(
                zip(family, holm([found[k].p_value for k in family]), strict=True)
            )
            column = {k: f"{difference(c)}, not adjusted" for k, c in found.items()}
            for k, p in adjusted.items():
                cell = f"{difference(found[k])} {p_value(p)}"
                column[k] = f"**{cell}**" if p < 0.05 else cell
            columns.append(column | {key: "-"})
        rows = []
        for method, place, pull in means:
            label = LABELS[method] + (f" as tuned on {place}" if place != name else "")
            values = means[method, place, pull].tolist()
            cells = [column[method, place, pull] for column in columns]
            label += "" if pull else ", without its pull"
            rows.append([label, mean_and_error(values, 2), *cells])
        header = [
            "Entropy-SGD minus it" if place == name else f"as tuned on {place} minus it"
            for _, place, _ in ours
        ]
        parts.append(markdown([name, "test error %", *header], rows))
    count = {record["num_sets"] for record in records.values()}
    return "\n\n".join(parts) + (
        f"\n\nMean ± standard error over {min(count)} training sets, four seeds each."
    )


def _most(table1: Sequence[Record]) -> list[Record]:
    kept = []
    tuned = [run for run in table1 if run["which"] == "tuned"]
    for row in dict.fromkeys(run["row"] for run in tuned):
        own = [run for run in tuned if run["row"] == row]
        most = statistics.mode(sorted(run["gradients"] for run in own))
        kept += [run for run in own if run["gradients"] == most]
    return kept


def _header(run: Record, text: bool) -> str:
    unit = "nats" if text else "%"
    return f"{run['row']}, {run['epochs']:.0f} epochs, {unit}"
