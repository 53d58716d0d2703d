"""Tables of the page of results, from its records alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_optax.experiments.names import ROWS
from entropy_optax.experiments.report import LABELS
from entropy_optax.experiments.results_format import (
    against,
    difference,
    floats,
    lost_above,
    markdown,
    mean_and_error,
    race,
    searched,
)
from entropy_optax.experiments.statistics import paired_bootstrap

Record = dict[str, Any]

# Chaudhari et al. 2017, Table 1: theirs, its effective epochs, the rival, its epochs.
PAPER = {
    "mnistfc": ("1.37 ± 0.03 %", 120, "1.39 ± 0.03 % (Adam)", 66),
    "lenet": ("0.50 ± 0.01 %", 80, "0.51 ± 0.01 % (Adam)", 100),
    "allcnn": ("7.81 ± 0.09 %", 160, "7.71 ± 0.19 % (SGD)", 180),
    "word_lstm": ("perplexity 77.656 ± 0.171", 25, "78.6 ± 0.26 (SGD)", 55),
    "char_lstm": ("1.217 ± 0.005 nats", 25, "1.226 ± 0.01 (Adam)", 40),
}


def table1(runs: Sequence[Record]) -> str:
    """One line for each system, settings, budget and optimizer.

    Args:
      runs: of `runs.json`.

    Returns:
      The table, with the paper's values beside ours.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for run in sorted(runs, key=_order):
        key = tuple(run[name] for name in ("row", "which", "gradients", "optimizer"))
        groups.setdefault(key, []).append(run)
    rows = []
    for (row, which, gradients, optimizer), group in groups.items():
        text = row.endswith("lstm")
        score = lambda name, text=text, group=group: mean_and_error(
            [run["run"][name]["loss" if text else "error"] for run in group],
            3 if text else 2,
        )
        rows.append(
            [
                row,
                which,
                f"{gradients:,} ({group[0]['epochs']:.0f})",
                LABELS[optimizer],
                score("test_last"),
                score("test_chosen"),
                f"{np.mean(floats([r['run']['training_loss'] for r in group])):.4f}",
                str(len(group)),
            ]
        )
    paper = [[row, *map(str, values)] for row, values in PAPER.items()]
    return (
        markdown(
            [
                *("system", "settings", "gradients (epochs)", "optimizer"),
                *("test, last point", "test, chosen on validation"),
                *("training loss", "n"),
            ],
            rows,
        )
        + "\n\nImages: error in per cent; text: nats per token. Mean ± standard error"
        + f" over n seeds.\n\n{race(runs)}The paper's Table 1:\n\n"
        + markdown(
            ["system", "Entropy-SGD", "effective epochs", "its rival", "epochs"], paper
        )
    )


def flat_minima(records: dict[str, Record]) -> str:
    """Test errors of all methods in all scenarios.

    Args:
      records: scenario to `compare.json`.

    Returns:
      The table; the lowest mean of each scenario is bold.
    """
    methods = list(next(iter(records.values()))["runs"])
    means = {
        name: {m: np.mean(_errors(record, m)) for m in methods}
        for name, record in records.items()
    }
    rows = []
    for method in methods:
        cells = []
        for name, record in records.items():
            errors = _errors(record, method)
            cell = mean_and_error(errors, 2)
            if lost := sum(error > lost_above(record) for error in errors):
                cell += f" ({lost} lost, median {np.median(errors):.2f})"
            best = means[name][method] == min(means[name].values())
            cells.append(f"**{cell}**" if best else cell)
        rows.append([LABELS[method], *cells])
    return (
        markdown(["test error %", *records], rows)
        + "\n\nMean ± standard error over 10 seeds. "
        + searched(records)
    )


def comparisons(records: dict[str, Record]) -> str:
    """Entropy-SGD against each of the others, paired.

    Args:
      records: scenario to `compare.json`.

    Returns:
      Differences with 95 % intervals and adjusted p-values; bold where it is below .05.
    """
    columns = []
    for record in records.values():
        errors = {method: _errors(record, method) for method in record["runs"]}
        ours = errors.pop("entropy_sgd")
        columns.append(against(ours, errors))
    rows = [[LABELS[m], *(column[m] for column in columns)] for m in columns[0]]
    return markdown(["Entropy-SGD minus", *records], rows)


def headroom(records: dict[str, Record]) -> str:
    """Doublings of the rate within one point of the best.

    Args:
      records: scenario to `headroom.json`.

    Returns:
      The table.
    """
    columns: list[dict[str, Record]] = []
    header = ["method"]
    for name, record in records.items():
        for shape in ("cosine", "constant"):
            own = [r for r in record["rows"] if r["rate_schedule"] == shape]
            columns.append({r["method"]: r for r in own})
            header.append(f"{name}, {shape}")
    rows = []
    for method in columns[0]:
        cells = []
        for column in columns:
            r = column.get(method)
            if r is None:
                cells.append("-")
                continue
            low, high = r["interval"]
            more = "or more " if r["cut_off"] else ""
            cells.append(
                f"{r['doublings']} {more}({low:.3g} to {high:.3g}; {r['best']:.2f} %)"
            )
        rows.append([LABELS[method], *cells])
    return markdown(header, rows)


def ablation(records: dict[str, Record]) -> str:
    """Each setting of Entropy-SGD away from the tuned ones.

    Args:
      records: scenario to `ablation.json`.

    Returns:
      Two tables: the settings; and x against mu.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, record in records.items():
        for row in record["rows"]:
            c = row["against_tuned"]
            # Infinite, None in a record, where nearly all pairs are equal.
            low, high = floats([c["low"], c["high"]])
            clear = low > 0 or high < 0
            cell = f"{np.mean(row['test_error']):.2f} ({c['difference']:+.2f})"
            rows.setdefault((row["question"], row["value"]), {})[name] = (
                f"**{cell}**" if clear else cell
            )
    cells = [
        [question, value, *(found.get(name, "-") for name in records)]
        for (question, value), found in rows.items()
    ]
    header = [f"{n}, test error %" for n in records]
    tuned = [
        "tuned",
        "",
        *(mean_and_error(record["reference"], 2) for record in records.values()),
    ]
    places = []
    for name, record in records.items():
        for row in record["x_or_mean"]:
            c = paired_bootstrap(row["x"], row["mean"])
            places.append(
                [
                    name,
                    f"{row['learning_rate']:g}",
                    mean_and_error(row["x"], 2),
                    mean_and_error(row["mean"], 2),
                    difference(c),
                ]
            )
    return (
        markdown(["setting", "value", *header], [tuned, *cells])
        + "\n\nIn brackets the mean paired difference from the tuned settings; bold if"
        + " its 95 % interval, not adjusted, leaves 0 out.\n\n"
        + markdown(
            ["scenario", "constant outer rate", "at x", "at mu", "x minus mu"], places
        )
    )


def _order(run: Record) -> tuple[Any, ...]:
    return (
        ROWS.index(run["row"]),
        run["which"],
        run["gradients"],
        list(LABELS).index(run["optimizer"]),
        run["seed"],
    )


def _errors(record: Record, method: str) -> list[float]:
    return [run["test_error"] for run in record["runs"][method]]
