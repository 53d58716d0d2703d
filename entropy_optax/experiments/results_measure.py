"""Tables of the measured geometry: spectra, and valleys at equal training loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_optax.experiments.results_format import markdown, mean_and_error, p_value
from entropy_optax.experiments.statistics import holm, sign_test

SYSTEM_LABELS = {
    "mlp_small": "perceptron 196-32-10",
    "lenet_small": "small LeNet",
    "mnistfc_small": "small mnistfc 784-64-10",
    "char_lstm_small": "char LSTM, 48 hidden",
}
# Name in the record, heading, digits, and whether wide is low or high.
FLATNESS = (
    ("trace", "trace", 1, -1),
    ("largest", "largest eigenvalue", 2, -1),
    ("near_zero_0.0001", "share < 1e-4", 3, +1),
    ("near_zero_0.001", "share < 1e-3", 4, +1),
    ("width", "local entropy, Phi + f / T", 2, +1),
    ("noise_0.1", "loss increase, filter noise .1", 4, -1),
    ("noise_0.2", "loss increase, filter noise .2", 4, -1),
    ("noise_0.4", "loss increase, filter noise .4", 3, -1),
)
REFERENCE = "SGD-Nesterov"


def spectra(record: dict[str, Any]) -> str:
    """The paper's networks, their spectra next to the paper's numbers.

    Args:
      record: `spectra.json`.

    Returns:
      Markdown.
    """
    rows = []
    for system, row in record["rows"].items():
        paper = record["paper"].get(system, {})
        rows.append(
            [
                SYSTEM_LABELS[system],
                _with_paper(f"{row['num_params']:,}", paper, "num_params", "{:,}"),
                _with_paper(f"{row['test_error']:.2f}", paper, "test_error", "{:g}"),
                f"{row['training_loss']:.4f}",
                _with_paper(_residual(row, "largest"), paper, "largest", "about {:g}"),
                _with_paper(_residual(row, "smallest"), paper, "smallest", "{:g}"),
                _with_paper(_share(row, 1e-4), paper, "near_zero_0.0001", "{:g}"),
                _with_paper(_share(row, 1e-5), paper, "near_zero_1e-05", "{:g}"),
                _estimate(row["trace"]),
            ]
        )
        if "exact_trace" in row:
            rows.append(
                [
                    "the same, exact",
                    "",
                    "",
                    "",
                    f"{row['exact_largest']:.5g}",
                    f"{row['exact_smallest']:.5g}",
                    f"{row['exact_share_0.0001']:.3f}",
                    f"{row['exact_share_1e-05']:.3f}",
                    f"{row['exact_trace']:.4g}",
                ]
            )
    head = [
        "network",
        "params (paper)",
        "test error, % (paper)",
        "training loss",
        "largest (paper)",
        "smallest (paper)",
        "share < 1e-4 (paper)",
        "share < 1e-5 (paper)",
        "trace",
    ]
    examples = "; ".join(
        f"{SYSTEM_LABELS[s]}: {row['examples']}" for s, row in record["rows"].items()
    )
    return (
        f"{markdown(head, rows)}\n\nEigenvalues by restarted Lanczos, ± the residual;"
        f" shares by one Lanczos run of {record['long']} steps, ± standard error, and"
        " the bracket that these steps allow; in float32 what is below 1e-6 of the"
        " largest eigenvalue is rounding. Traces and figure by stochastic Lanczos"
        f" quadrature, {record['num_probes']} probes of {record['num_steps']} steps."
        f" Hessians of the mean loss over {examples}."
    )


def valleys(records: dict[str, Any]) -> str:
    """Flatness at equal training loss, and sign tests against SGD.

    Args:
      records: by system.

    Returns:
      Markdown.
    """
    parts = []
    for system, record in records.items():
        for target in sorted({row["target"] for row in record["rows"]}, reverse=True):
            parts.append(
                f"#### {SYSTEM_LABELS[system]}, training loss {target:g} nats\n"
            )
            parts.append(_values(record, target) + "\n")
            parts.append(_signs(record, target) + "\n")
    return "\n".join(parts) + (
        "\nMean ± standard error over the seeds that reached the loss. The last update"
        " is shortened so that the loss is the same, on the images that flatness is"
        " measured on. Signs: in how many of the pairs of one seed a contender is wider"
        " than SGD, and the p-value of the sign test, adjusted by Holm's method over"
        " the contenders of a column."
    )


def of_contender(
    record: dict[str, Any], contender: str, target: float
) -> list[dict[str, Any]]:
    """One contender's networks at one loss.

    Args:
      record: of a system.
      contender: its label.
      target: training loss.

    Returns:
      Its rows, by seed.
    """
    return [
        row
        for row in record["rows"]
        if row["contender"] == contender and row["target"] == target
    ]


def _values(record: dict[str, Any], target: float) -> str:
    names = [f"{name}{_BRACKETED.get(name, '')}" for _, name, _, _ in FLATNESS]
    head = ["", "rate", "gradients", "loss", "test error, %", *names]
    rows = []
    for contender, choice in record["choices"].items():
        own = of_contender(record, contender, target)
        good = [row for row in own if "trace" in row]
        edge = "" if choice["inside"] else " (edge)"
        lost = f" ({len(good)} of {len(own)})" if len(good) < len(own) else ""
        row = [contender + lost, f"{choice['rate']:g}{edge}"]
        if len(good) < 2:
            rows.append([*row, *["not reached"] * (3 + len(FLATNESS))])
            continue
        row.append(f"{np.median([r['gradients'] for r in good]):g}")
        row.append(f"{np.mean([r['training_loss'] for r in good]):.4f}")
        row.append(_mean(good, "test_error", 2))
        for name, _, digits, _ in FLATNESS:
            certain = ""
            if name.startswith("near_zero"):
                bracket = name.replace("near_zero", "bracket")
                width = np.mean([r[bracket] for r in good])
                certain = f" [{width:.{digits}f}]"
            row.append(_mean(good, name, digits) + certain)
        rows.append(row)
    return markdown(head, rows)


def _signs(record: dict[str, Any], target: float) -> str:
    head = ["wider than SGD in", *(f[1] for f in FLATNESS)]
    sgd = {r["seed"]: r for r in of_contender(record, REFERENCE, target)}
    rivals = [name for name in record["choices"] if name != REFERENCE]
    columns = []
    for name, _, _, sign in FLATNESS:
        tests = {}
        for contender in rivals:
            pairs = [
                (sign * row[name], sign * sgd[row["seed"]][name])
                for row in of_contender(record, contender, target)
                if row.get(name) is not None and sgd[row["seed"]].get(name) is not None
            ]
            tests[contender] = sign_test(*zip(*pairs, strict=True)) if pairs else None
        adjusted = iter(holm([t[2] for t in tests.values() if t]))
        columns.append(
            [
                f"{t[0]}/{t[1]}, {p_value(next(adjusted))}" if t else "-"
                for t in tests.values()
            ]
        )
    rows = [
        [contender, *cells] for contender, *cells in zip(rivals, *columns, strict=True)
    ]
    return markdown(head, rows)


_BRACKETED = {
    name: " [width of bracket]"
    for _, name, _, _ in FLATNESS
    if name.startswith("share")
}


def _mean(rows: list[dict[str, Any]], name: str, digits: int) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    if len(values) < 2:
        return "not converged"
    fewer = f" (n {len(values)})" if len(values) < len(rows) else ""
    return mean_and_error(values, digits) + fewer


def _estimate(pair: Sequence[float]) -> str:
    return f"{pair[0]:.3g} ± {pair[1]:.1g}"


def _share(row: dict[str, Any], threshold: float) -> str:
    value, error, lower, upper = row[f"share_{threshold:g}"]
    return f"{value:.3f} ± {error:.3f} [{lower:.3f}, {upper:.3f}]"


def _residual(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.4g} ± {row[f'{name}_residual']:.1g}"


def _with_paper(own: str, paper: dict[str, Any], name: str, form: str) -> str:
    return f"{own} ({form.format(paper[name])})" if name in paper else own
