"""The forms of the method that were searched, and how flat the ends are: tables."""

from typing import Any

import numpy as np

from entropy_optax.experiments import filter_study
from entropy_optax.experiments.report import LABELS
from entropy_optax.experiments.results_format import floats, markdown, mean_and_error

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


def _number(values: list[float]) -> str:
    return f"{np.mean(values):.3g} ± {np.std(values, ddof=1) / len(values) ** 0.5:.1g}"
