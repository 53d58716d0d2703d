"""How the page of results writes numbers and tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_optax.experiments.report import LABELS, estimate
from entropy_optax.experiments.statistics import Comparison, holm, paired_bootstrap


def floats(values: Sequence[float | None]) -> list[float]:
    """Numbers of a record, where None stands for what is not finite.

    Args:
      values: from JSON.

    Returns:
      The values, with NaN in place of None.
    """
    return np.array(values, float).tolist()


def mean_and_error(values: Sequence[float | None], digits: int) -> str:
    """Formats a mean with its standard error.

    Args:
      values: from JSON, one for each seed.
      digits: decimals.

    Returns:
      For example `1.37 ± 0.03`; a single value stands alone.
    """
    mean, error, _ = estimate(floats(values))
    if not math.isfinite(mean):
        return "not finite"
    spread = "" if error is None else f" ± {error:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def contender_label(name: str) -> str:
    """Names a contender of the stability study.

    Args:
      name: of the record, an optimizer and perhaps a setting after a comma.

    Returns:
      For example `Entropy-SGD, gamma 1`.
    """
    optimizer, comma, setting = name.partition(",")
    return LABELS[optimizer] + comma + setting


def lost_above(record: dict[str, Any], score: str = "test_error") -> float:
    """Where a run of a comparison counts as lost: it diverged, or never got going.

    Args:
      record: `compare.json`.
      score: `test_error`, or `test_loss` of text.

    Returns:
      1.5 times the median of all runs of all methods, of those that are finite.
    """
    values = [run[score] for runs in record["runs"].values() for run in runs]
    return 1.5 * float(np.nanmedian(floats(values)))


def difference(c: Comparison) -> str:
    """Formats a mean paired difference with its interval.

    Args:
      c: the comparison.

    Returns:
      For example `-0.14 [-0.26, -0.02]`.
    """
    return f"{c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"


def p_value(value: float) -> str:
    """Formats a p-value.

    Args:
      value: in [0, 1].

    Returns:
      For example `p .012` or `p < .001`.
    """
    return "p < .001" if value < 1e-3 else f"p {value:.3f}".replace("0.", ".")


def against(
    ours: Sequence[float], rivals: Mapping[Any, Sequence[float]]
) -> dict[Any, str]:
    """Compares with several rivals, paired.

    Args:
      ours: one value for each pair.
      rivals: theirs, in the same order of pairs.

    Returns:
      For each rival the difference with its interval and its p-value, adjusted over
      them by Holm's method; bold where that is below .05.
    """
    if not np.all(np.isfinite(ours)):
        return dict.fromkeys(rivals, "ours not finite")
    found = {name: paired_bootstrap(ours, values) for name, values in rivals.items()}
    adjusted = holm([c.p_value for c in found.values()])
    cells = {}
    for (name, c), p in zip(found.items(), adjusted, strict=True):
        cell = f"{difference(c)} {p_value(p)}"
        cells[name] = f"**{cell}**" if p < 0.05 else cell
    return cells


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays a table out in Markdown.

    Args:
      header: of the columns.
      rows: cells.

    Returns:
      The table, numbers to the right but for the first column.
    """
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def searched(records: Mapping[str, dict[str, Any]]) -> str:
    """Says how the methods of a comparison were tuned, below its table.

    Args:
      records: scenario to `compare.json`.

    Returns:
      When a run is lost, the configurations that each method tried, and the bests that
      are not settled.
    """
    budgets = ", ".join(f"{n} {r['budget']}" for n, r in records.items())
    left = "; ".join(
        f"{n}: {', '.join(LABELS[m] for m in r['unsettled'])}"
        for n, r in records.items()
        if r["unsettled"]
    )
    ends = "; ".join(
        f"{n}: {LABELS[m]} ({', '.join(axes)})"
        for n, r in records.items()
        for m, axes in r.get("on_edge", {}).items()
    )
    return (
        "A run is lost if its error is above 1.5 times the median of its column."
        f" Configurations that each method tried: {budgets}. "
        + (
            f"Best with neighbours that were not tried: {left}."
            if left
            else "Each best has had all its neighbours tried."
        )
        + (f" Best on the end of a ladder: {ends}." if ends else "")
    )


def race(runs: Sequence[dict[str, Any]]) -> str:
    """How many gradients each optimizer needs for Adam's last validation loss.

    Args:
      runs: of `table1` on the character LSTM.

    Returns:
      A paragraph for each budget that Adam was run with, empty without any.
    """
    lines = []
    for adam in runs:
        if adam["row"] != "char_lstm" or adam["optimizer"] != "adam":
            continue
        target = adam["run"]["curve"][-1][1]
        found = []
        for rival in runs:
            same = ("row", "seed")
            if rival is adam or any(rival[name] != adam[name] for name in same):
                continue
            reached = [g for g, loss in rival["run"]["curve"] if loss <= target]
            needed = f"{reached[0]:,}" if reached else "more than it had"
            budget = f"{rival['which']} settings, {rival['gradients']:,} gradients"
            found.append(f"{LABELS[rival['optimizer']]} ({budget}) {needed}")
        if found:
            lines.append(
                f"Gradients for Adam's last validation loss of {target:.4f} nats on the"
                f" character LSTM, which took it {adam['gradients']:,}:"
                f" {', '.join(found)}."
            )
    return "".join(line + "\n\n" for line in lines)
