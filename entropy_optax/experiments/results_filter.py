"""The filters' geometry on its page of results: tables and figures from its records."""

import json
import pathlib
from typing import Any

import numpy as np

from entropy_optax.experiments import filter_study
from entropy_optax.experiments.figure import STYLES
from entropy_optax.experiments.report import LABELS
from entropy_optax.experiments.results_format import (
    against,
    floats,
    markdown,
    mean_and_error,
    searched,
)
from entropy_optax.experiments.statistics import holm, paired_bootstrap
from entropy_optax.measure._figures import new_figure

Record = dict[str, Any]
OURS = "filter_entropy"
_SCORES = {"test_error": "test error, %", "test_loss": "negative log-likelihood, nats"}
_FLATNESS = {
    "training_loss": "loss",
    "trace": "trace",
    "largest": "largest eigenvalue",
    "filter_trace": "trace, filters' units",
    "filter_largest": "largest, filters' units",
    "noise_0.1": "rise, noise 0.1",
    "noise_0.3": "rise, noise 0.3",
    "noise_0.5": "rise, noise 0.5",
}


def records(folder: pathlib.Path) -> dict[str, dict[str, Record]]:
    """Reads the records of the study.

    Args:
      folder: of the study, with one folder for each scenario.

    Returns:
      Name of a table to its records by scenario, without those that do not exist.
    """
    found: dict[str, dict[str, Record]] = {}
    for scenario in filter_study.SCENARIOS:
        for name, file in (
            ("filter_forms", "forms"),
            ("filter_compare", "compare"),
            ("filter_flatness", "flatness"),
        ):
            path = folder / scenario / f"{file}.json"
            if path.exists():
                found.setdefault(name, {})[scenario] = json.loads(path.read_text())
    if compared := found.get("filter_compare"):
        found["filter_against"] = compared
        # Text is chosen by the loss in the first place.
        by_loss = {n: r | r["by_loss"] for n, r in compared.items() if "by_loss" in r}
        if by_loss:
            found["filter_loss_compare"] = found["filter_loss_against"] = by_loss
    return found


def forms(records: dict[str, Record]) -> str:
    """The best configuration of each form, on validation images.

    Args:
      records: scenario to `forms.json`.

    Returns:
      One line for each form.
    """
    rows = []
    first = next(iter(records.values()))
    for i, form in enumerate(first["rows"]):
        cells = [form["form"]]
        for record in records.values():
            best, left = record["rows"][i]["best"], len(record["rows"][i]["untried"])
            point = best["hyperparameters"]
            cells.append(mean_and_error(best["validation_error"], 2))
            size = point["ess"] if "ess" in point else point["radius"]
            cells.append(
                f"{point['learning_rate']:g}, {size:g}, {point['weight_decay']:g}"
                + (f" ({left} left)" if left else "")
            )
        rows.append(cells)
    header = ["form"]
    for name in records:
        header += [f"{name}, validation error %", "rate, radius, decay"]
    count, n = first["rows"][0]["configurations"], len(first["settings"]["seeds"])
    return (
        markdown(header, rows)
        + f"\n\nThe best of {count} configurations of each form, over rate, radius and"
        + f" decay; mean ± standard error over {n} tuning seeds. In brackets how many"
        + " neighbours of it were left untried. IVON has an effective sample size in"
        + " place of a radius."
    )


def compare(records: dict[str, Record]) -> str:
    """Test errors and likelihoods of all methods in all scenarios.

    Args:
      records: scenario to `compare.json`.

    Returns:
      Two tables; the lowest mean of each scenario is bold.
    """
    tables = []
    for score, title in _SCORES.items():
        names = [n for n, r in records.items() if score == "test_loss" or not _text(r)]
        rows = []
        for method in filter_study.METHODS:
            cells = []
            for name in names:
                record = records[name]
                means = {m: _mean(record, m, score) for m in record["runs"]}
                values = _values(record, method, score)
                cell = mean_and_error(values, 2 if score == "test_error" else 3)
                if lost := int(np.sum(_lost(record, method))):
                    cell += f" ({lost} lost)"
                best = means[method] == np.nanmin(list(means.values()))
                cells.append(f"**{cell}**" if best else cell)
            rows.append([LABELS[method], *cells])
        if names:
            tables.append(markdown([title, *names], rows))
    n = len(next(iter(next(iter(records.values()))["runs"].values())))
    return (
        "\n\n".join(tables)
        + f"\n\nMean ± standard error over {n} seeds, after the last gradient. "
        + searched(records)
    )


def comparisons(records: dict[str, Record]) -> str:
    """Ours against each of the others, paired; and the goal.

    Args:
      records: scenario to `compare.json`.

    Returns:
      Differences with 95 % intervals and p-values, adjusted over each column.
    """
    tables = []
    for score, title in _SCORES.items():
        names = [n for n, r in records.items() if score == "test_loss" or not _text(r)]
        columns = [against(*_pairs(records[name], score)) for name in names]
        if names:
            rivals = [m for m in filter_study.METHODS if m != OURS]
            rows = [
                [LABELS[m], *(c.get(m, "all lost") for c in columns)] for m in rivals
            ]
            header = [f"{LABELS[OURS]} minus, {title}", *names]
            tables.append(markdown(header, rows))
    won, surer = (
        [name for name, record in records.items() if _wins(record, level)]
        for level in (0.01, 0.005)
    )
    worse = [name for name, record in records.items() if _worse_than_sgd(record)]
    return (
        "\n\n".join(tables)
        + "\n\nMean paired difference, its 95 % interval, and the p-value by Holm's"
        + " method over the rivals of the column; bold below .05. A rival's lost run"
        + " counts as its worst that was not.\n\n"
        + "Best test error or likelihood, p < .01 against every rival, in"
        + f" {len(won)} of {len(records)}: {', '.join(won) or 'none'}. (With two"
        + " chances, images at p < .005:"
        + f" {len(surer)}: {', '.join(surer) or 'none'}.) More than one standard error"
        + " worse than SGD, in the error of images or the likelihood of text:"
        + f" {', '.join(worse) or 'none'}."
    )


def flatness(records: dict[str, Record]) -> str:
    """How flat the ends of the tuned methods are, beside their error.

    Args:
      records: scenario to `flatness.json`.

    Returns:
      A table for each scenario.
    """
    tables = []
    for name, record in records.items():
        rows = []
        for method in filter_study.METHODS:
            own = [row for row in record["rows"] if row["method"] == method]
            if not own:
                continue
            cells = [mean_and_error([row["test_error"] for row in own], 2)]
            cells += [_number(floats([row[key] for row in own])) for key in _FLATNESS]
            rows.append([LABELS[method], *cells])
        tables.append(markdown([f"{name}", "test error %", *_FLATNESS.values()], rows))
    record = next(iter(records.values()))
    n = len({row["seed"] for row in record["rows"]})
    return (
        "\n\n".join(tables)
        + f"\n\nMean ± standard error over {n} seeds. Of the cross-entropy of the first"
        + f" {record['num_examples']} training images, without decay: trace and largest"
        + " eigenvalue of its Hessian, also in units of the filters, and its rise under"
        + " Gaussian noise of so many times each filter's size."
    )


def draw(path: pathlib.Path, records: dict[str, Record]) -> pathlib.Path:
    """Draws each method's error relative to SGD's, without runs that were lost.

    Args:
      path: of the PNG file.
      records: scenario to `compare.json`.

    Returns:
      The path.
    """
    figure = new_figure(10, 4.2)
    axes = figure.subplots()
    count = len(filter_study.METHODS)
    for i, method in enumerate(filter_study.METHODS):
        colour, marker = STYLES[method]
        for x, record in enumerate(records.values()):
            score = "test_loss" if _text(record) else "test_error"
            ended = np.asarray(_values(record, method, score))[~_lost(record, method)]
            if not len(ended):
                continue
            ratio = ended / _mean(record, "sgd", score)
            axes.errorbar(
                x + (i - (count - 1) / 2) * 0.8 / count,
                ratio.mean(),
                ratio.std() / np.sqrt(max(len(ratio) - 1, 1)),
                color=colour,
                marker=marker,
                capsize=2,
                linestyle="none",
                label=LABELS[method] if x == 0 else None,
            )
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    axes.set_xticks(range(len(records)), list(records))
    axes.set_ylabel("test error (text: nats) relative to SGD's mean")
    axes.grid(visible=True, axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=130)
    return path


def _wins(record: Record, level: float) -> bool:
    # Best, and p below the level against every rival, in error or in likelihood.
    scores = ("test_loss",) if _text(record) else tuple(_SCORES)
    level = 0.01 if _text(record) else level
    for score in scores:
        ours, rivals = _pairs(record, score)
        if not np.all(np.isfinite(ours)):
            continue
        found = [paired_bootstrap(ours, values) for values in rivals.values()]
        adjusted = holm([c.p_value for c in found])
        if all(c.difference < 0 for c in found) and max(adjusted) < level:
            return True
    return False


def _worse_than_sgd(record: Record) -> bool:
    score = "test_loss" if _text(record) else "test_error"
    gap = np.subtract(_values(record, OURS, score), _values(record, "sgd", score))
    # One that is not finite is worse.
    return not gap.mean() <= gap.std(ddof=1) / np.sqrt(len(gap))


def _pairs(record: Record, score: str) -> tuple[list[float], dict[str, list[float]]]:
    # One lost run has the spread of all the others together, and would make a rival's
    # failure its best defence: it counts as that rival's worst that was not lost.
    rivals = {}
    for method in filter_study.METHODS:
        lost = _lost(record, method)
        if method != OURS and not np.all(lost):
            values = np.asarray(_values(record, method, score))
            rivals[method] = np.where(lost, values[~lost].max(), values).tolist()
    return _values(record, OURS, score), rivals


def _lost(record: Record, method: str) -> np.ndarray:
    score = "test_loss" if _text(record) else "test_error"
    runs = [_values(record, m, score) for m in record["runs"]]
    return ~(np.asarray(_values(record, method, score)) <= 1.5 * np.nanmedian(runs))


def _text(record: Record) -> bool:
    return "lstm" in record["settings"]["model"]


def _values(record: Record, method: str, score: str) -> list[float]:
    return floats([run[score] for run in record["runs"][method]])


def _mean(record: Record, method: str, score: str) -> float:
    return float(np.mean(_values(record, method, score)))


def _number(values: list[float]) -> str:
    return f"{np.mean(values):.3g} ± {np.std(values, ddof=1) / len(values) ** 0.5:.1g}"
