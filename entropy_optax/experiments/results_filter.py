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
    lost_above,
    markdown,
    mean_and_error,
    searched,
)
from entropy_optax.experiments.statistics import holm, paired_bootstrap
from entropy_optax.measure._figures import new_figure

Record = dict[str, Any]
CONTROLS = {"filter_entropy": (), "filter_muon": ("muon",)}
"""Ours, and whom each is compared with beside the rivals of all."""
MOST_LOST = 0.2
_SCORES = {"test_error": "test error, %", "test_loss": "negative log-likelihood, nats"}


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
            ("filter_repetition", "repetition"),
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


def compare(records: dict[str, Record]) -> str:
    """Test errors and likelihoods of all methods in all scenarios.

    Args:
      records: scenario to `compare.json`.

    Returns:
      Two tables; the lowest mean of each scenario is bold.
    """
    n = len(next(iter(next(iter(records.values()))["runs"].values())))
    return (
        _means(records)
        + f"\n\nMean ± standard error over {n} seeds, after the last gradient. "
        + searched(records)
    )


def repetition(records: dict[str, Record]) -> str:
    """The same with a training set in place of a seed, and its goal.

    Args:
      records: scenario to `repetition.json`.

    Returns:
      The tables of `compare` and of `comparisons`.
    """
    sets = {name: _by_set(record) for name, record in records.items()}
    counts = ", ".join(f"{name} {r['num_sets']}" for name, r in records.items())
    (seeds,) = {len(record["seeds"]) for record in records.values()}
    return (
        _means(sets)
        + f"\n\nMean ± standard error over the training sets: {counts}; {seeds} seeds"
        + " each; lost above 1.5 times the median of the column.\n\n"
        + comparisons(sets)
    )


def _by_set(record: Record) -> Record:
    runs: Record = {}
    for row in record["rows"]:
        means = [[np.mean(floats(own)) for own in row[score]] for score in _SCORES]
        columns = zip(*means, strict=True)
        runs[row["method"]] = [dict(zip(_SCORES, c, strict=True)) for c in columns]
    return {"settings": record["settings"], "runs": runs}


def _means(records: dict[str, Record]) -> str:
    tables = []
    for score, title in _SCORES.items():
        names = [n for n, r in records.items() if score == "test_loss" or not _text(r)]
        rows = []
        for method in filter_study.METHODS:
            if not any(method in record["runs"] for record in records.values()):
                continue
            cells = []
            for name in names:
                record = records[name]
                if method not in record["runs"]:
                    cells.append("")
                    continue
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
    return "\n\n".join(tables)


def comparisons(records: dict[str, Record]) -> str:
    """Ours against each of its rivals, paired; and the goal.

    Args:
      records: scenario to `compare.json`.

    Returns:
      Differences with 95 % intervals and p-values, adjusted over each column.
    """
    tables = []
    for ours, controls in CONTROLS.items():
        rivals = (*filter_study.RIVALS, *controls)
        for score, title in _SCORES.items():
            names = [
                name
                for name, record in records.items()
                if ours in record["runs"]
                and (score == "test_loss" or not _text(record))
            ]
            columns = [against(*_pairs(records[n], ours, score, rivals)) for n in names]
            rows = [
                [LABELS[m], *(column.get(m, "too many lost") for column in columns)]
                for m in rivals
            ]
            if names:
                header = [f"{LABELS[ours]} minus, {title}", *names]
                tables.append(markdown(header, rows))
    return (
        "\n\n".join(tables)
        + "\n\nMean paired difference, its 95 % interval, and the p-value by Holm's"
        + " method over the rivals of the column; bold below .05. What a rival lost"
        + " counts as its worst that was not lost; a rival that lost more than"
        + f" {MOST_LOST:.0%} is not compared.\n\n"
        + "\n\n".join(filter(None, (_goal(records, ours) for ours in CONTROLS)))
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
            if method not in record["runs"]:
                continue
            score = "test_loss" if _text(record) else "test_error"
            ended = np.asarray(_values(record, method, score))[~_lost(record, method)]
            if not len(ended):
                continue
            sgd = np.asarray(_values(record, "sgd", score))[~_lost(record, "sgd")]
            ratio = ended / sgd.mean()
            axes.errorbar(
                x + (i - (count - 1) / 2) * 0.8 / count,
                ratio.mean(),
                ratio.std() / np.sqrt(max(len(ratio) - 1, 1)),
                color=colour,
                marker=marker,
                capsize=2,
                linestyle="none",
                label=LABELS[method],
            )
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    axes.set_xticks(range(len(records)), list(records))
    axes.set_ylabel("test error (text: nats) relative to SGD's mean")
    axes.grid(visible=True, axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    each = dict(zip(labels, handles, strict=True))
    figure.legend(each.values(), each, loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=130)
    return path


def _goal(records: dict[str, Record], ours: str) -> str:
    own = {name: r for name, r in records.items() if ours in r["runs"]}
    if not own:
        return ""
    rivals, controls = filter_study.RIVALS, CONTROLS[ours]
    levels = ((0.01, rivals), (0.005, rivals), (0.01, (*rivals, *controls)))
    won, surer, over_all = (
        [name for name, record in own.items() if _wins(record, ours, level, all_of)]
        for level, all_of in levels
    )
    worse = [name for name, record in own.items() if _worse_than_sgd(record, ours)]
    also = "".join(
        f" Over {LABELS[control]} as well: {len(over_all)}: {_listed(over_all)}."
        for control in controls
    )
    return (
        f"{LABELS[ours]} has a better test error or likelihood, p < .01 against each of"
        f" the {len(rivals)} rivals, in {len(won)} of {len(own)}: {_listed(won)}. (With"
        f" two chances, images at p < .005: {len(surer)}: {_listed(surer)}.){also}"
        " More than one standard error worse than SGD, in the error of images or the"
        f" likelihood of text: {_listed(worse)}."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _wins(record: Record, ours: str, level: float, all_of: tuple[str, ...]) -> bool:
    # Best, and p below the level against every rival, in error or in likelihood.
    scores = ("test_loss",) if _text(record) else tuple(_SCORES)
    level = 0.01 if _text(record) else level
    for score in scores:
        values, rivals = _pairs(record, ours, score, all_of)
        if not np.all(np.isfinite(values)):
            continue
        found = [paired_bootstrap(values, theirs) for theirs in rivals.values()]
        adjusted = holm([c.p_value for c in found])
        if all(c.difference < 0 for c in found) and max(adjusted) < level:
            return True
    return False


def _worse_than_sgd(record: Record, ours: str) -> bool:
    score = "test_loss" if _text(record) else "test_error"
    values, rivals = _pairs(record, ours, score, ("sgd",))
    if not rivals:
        return False
    gap = np.subtract(values, rivals["sgd"])
    # One that is not finite is worse.
    return not gap.mean() <= gap.std(ddof=1) / np.sqrt(len(gap))


def _pairs(
    record: Record, ours: str, score: str, all_of: tuple[str, ...]
) -> tuple[list[float], dict[str, list[float]]]:
    # One lost run has the spread of all the others together, and would make a rival's
    # failure its best defence: it counts as that rival's worst that was not lost. More
    # than a fifth would make the rest too much alike, and are not compared.
    rivals = {}
    for method in all_of:
        values = np.asarray(_values(record, method, score))
        lost = _lost(record, method) | ~np.isfinite(values)
        if np.mean(lost) <= MOST_LOST:
            rivals[method] = np.where(lost, values[~lost].max(), values).tolist()
    return _values(record, ours, score), rivals


def _lost(record: Record, method: str) -> np.ndarray:
    score = "test_loss" if _text(record) else "test_error"
    # Written so that what is not finite is lost.
    return ~(np.asarray(_values(record, method, score)) <= lost_above(record, score))


def _text(record: Record) -> bool:
    return "lstm" in record["settings"]["model"]


def _values(record: Record, method: str, score: str) -> list[float]:
    return floats([run[score] for run in record["runs"][method]])


def _mean(record: Record, method: str, score: str) -> float:
    return float(np.mean(_values(record, method, score)))
