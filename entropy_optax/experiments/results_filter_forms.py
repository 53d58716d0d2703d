"""The forms of the method that were searched, and how flat the ends are: tables."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.stats import spearmanr

from entropy_optax.experiments.figure import STYLES
from entropy_optax.experiments.report import LABELS
from entropy_optax.experiments.results_format import floats, markdown, mean_and_error
from entropy_optax.measure._figures import new_figure

Record = dict[str, Any]
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
        + " place of a radius, and the decay of its curvature was searched as well."
    )


def flatness(records: dict[str, Record]) -> str:
    """How flat the ends of the tuned methods are, beside their error.

    Args:
      records: scenario to `flatness.json`.

    Returns:
      A table for each scenario, and one of the rank correlations with the error.
    """
    tables, correlations = [], []
    for name, record in records.items():
        rows = []
        for method, own in _by_method(record).items():
            cells = [mean_and_error([row["test_error"] for row in own], 2)]
            cells += [_number(floats([row[key] for row in own])) for key in _FLATNESS]
            rows.append([LABELS[method], *cells])
        tables.append(markdown([f"{name}", "test error %", *_FLATNESS.values()], rows))
        ranks = (f"{_rank_correlation(record, key):+.2f}" for key in _FLATNESS)
        correlations.append([name, *ranks])
    title = "rank correlation with the test error"
    tables.append(markdown([title, *_FLATNESS.values()], correlations))
    record = next(iter(records.values()))
    n = len({row["seed"] for row in record["rows"]})
    return (
        "\n\n".join(tables)
        + f"\n\nMean ± standard error over {n} seeds. Of the cross-entropy of the first"
        + f" {record['num_examples']} training images, without decay: trace and largest"
        + " eigenvalue of its Hessian, also in units of the filters, and its rise under"
        + " Gaussian noise of so many times each filter's size. Spearman's correlation"
        + " is that of the methods' medians over the seeds: at 1 the flattest has the"
        + " lowest error."
    )


def draw(path: pathlib.Path, records: dict[str, Record]) -> pathlib.Path:
    """Draws test error over flatness, the trace in units of the filters.

    Args:
      path: of the PNG file.
      records: scenario to `flatness.json`.

    Returns:
      The path.
    """
    columns = min(4, len(records))
    lines = -(-len(records) // columns)
    figure = new_figure(2.7 * columns, 2.5 * lines + 0.7)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    labels = {}
    for axis, (name, record) in zip(axes, records.items(), strict=False):
        for method, own in _by_method(record).items():
            colour, marker = STYLES[method]
            point = (_median(own, key) for key in ("filter_trace", "test_error"))
            labels[LABELS[method]] = axis.plot(
                *point, color=colour, marker=marker, linestyle="none"
            )[0]
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        subs = (1, 2, 5) if high < 20 * low else (1,)
        axis.xaxis.set_major_locator(LogLocator(subs=subs))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("trace in the filters' units, median", fontsize=8)
        axis.set_title(name, fontsize=9)
        axis.grid(visible=True, alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[len(records) :]:
        axis.set_axis_off()
    figure.supylabel("test error, %", fontsize=9)
    figure.legend(
        labels.values(), labels, loc="outside lower center", ncols=5, fontsize=8
    )
    figure.savefig(path, dpi=130)
    return path


def _by_method(record: Record) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for row in record["rows"]:
        found.setdefault(row["method"], []).append(row)
    return found


def _rank_correlation(record: Record, key: str) -> float:
    ends = _by_method(record).values()
    points = [(_median(own, key), _median(own, "test_error")) for own in ends]
    if len(points) < 3:
        return float("nan")  # two are always in order, or against it
    found: Any = spearmanr(points)
    return float(found.statistic)


def _median(rows: list[Record], key: str) -> float:
    # Not the mean: one lost run would be the whole of it.
    return float(np.median(floats([row[key] for row in rows])))


def _number(values: list[float]) -> str:
    return f"{np.mean(values):.3g} ± {np.std(values, ddof=1) / len(values) ** 0.5:.1g}"
