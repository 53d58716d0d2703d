"""Stability on the page of results: its tables and figure, from the record alone."""

import pathlib
from typing import Any

import numpy as np

from entropy_optax.experiments.results_format import (
    contender_label,
    floats,
    markdown,
    mean_and_error,
)
from entropy_optax.experiments.stability import (
    FIXED_RATE,
    at_matched_loss,
    at_stopped_loss,
)
from entropy_optax.measure._figures import new_figure

Record = dict[str, Any]

STOPPED_LOSSES = (0.1, 0.02)
MATCHED_LOSSES = (0.003, 0.002, 0.001)
_STYLES = (
    *(("#0072B2", "o"), ("#D55E00", "^"), ("#56B4E9", "P"), ("#444444", "<")),
    *(("#E69F00", "s"), ("#009E73", "D"), ("#CC79A7", "v")),
)


def table(record: Record) -> str:
    """How far apart pairs are, at one rate after all gradients and at one loss.

    Args:
      record: `stability.json`.

    Returns:
      Two tables.
    """
    fixed = _at_fixed_rate(record)
    rows, matched = [], []
    for name, row in fixed.items():
        growth = row["growth"]
        rows.append(
            [
                contender_label(name),
                mean_and_error(row["distance"], 3),
                mean_and_error(row["path_length"], 1),
                mean_and_error(row["training_loss"], 4),
                mean_and_error(row["held_out_mean"], 4),
                mean_and_error(row["held_out_max"], 2),
                mean_and_error(row["differing"], 3),
                "-" if growth is None else f"{growth[0]:.2f} ± {growth[1]:.2f}",
            ]
        )
        cells = [contender_label(name)]
        for loss in STOPPED_LOSSES:
            cells.append(_nearest(_rows(record, name), loss))
        for loss in MATCHED_LOSSES:
            found = at_matched_loss(_rows(record, name), loss)
            cells.append("-" if found is None else f"{found:.3f}")
        matched.append(cells)
    held_out = "loss change, held out"
    header = ["contender", "distance", "path", "training loss", f"{held_out}, mean"]
    header += [f"{held_out}, largest", "at the differing example", "growth exponent"]
    header_matched = ["contender"]
    header_matched += [f"stopped at loss {loss:g}" for loss in STOPPED_LOSSES]
    header_matched += [f"distance at loss {loss:g}" for loss in MATCHED_LOSSES]
    return (
        markdown(header, rows)
        + f"\n\n{record['num_pairs']} pairs at rate {FIXED_RATE:g} after"
        + f" {_last(fixed):,} gradients. Loss change: absolute difference of the pair's"
        + " losses, in nats; mean and largest over held-out examples. The exponent is"
        + " that of the distance's growth with the number of gradients.\n\n"
        + markdown(header_matched, matched)
        + "\n\nAt matched training loss. Stopped where it falls to that, at the rate"
        + " whose twins are then nearest: distance (held-out loss change, mean; rate;"
        + " gradients taken). The last three columns: all gradients, between rates."
        + " - where the loss is not met."
    )


def draw(path: pathlib.Path, record: Record) -> pathlib.Path:
    """Draws distances over a run, relative to SGD's, and against the training loss.

    Args:
      path: of the PNG file.
      record: `stability.json`.

    Returns:
      The path.
    """
    figure = new_figure(12, 4.3)
    over_time, relative, against_loss = figure.subplots(1, 3)
    fixed = _at_fixed_rate(record)
    for (name, row), (colour, marker) in zip(fixed.items(), _STYLES, strict=False):
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.3}
        gradients = row["path"]["gradients"]
        distance = np.array(row["path"]["distance"], float)
        label = contender_label(name)
        over_time.plot(gradients, distance, label=label, **style)
        sgd = np.array(fixed["sgd"]["path"]["distance"], float)
        relative.plot(gradients, distance / sgd, **style)
        losses, distances = (
            np.array([np.mean(floats(row[field])) for row in _rows(record, name)])
            for field in ("training_loss", "distance")
        )
        kept = losses < 0.1  # not those that diverge
        against_loss.plot(losses[kept], distances[kept], **style)
    for axes in (over_time, relative, against_loss):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.yaxis.set_minor_formatter(
            lambda y, _: f"{y:g}" if f"{y:e}"[0] in "235" else ""
        )
        axes.tick_params(axis="y", which="minor", labelsize=7)
    relative.axhline(1, color="#444444", linewidth=0.6)
    over_time.set_title(f"rate {FIXED_RATE:g}", fontsize=10)
    over_time.set_ylabel("distance of the twins")
    relative.set_title(
        "relative to SGD. The paper's bound: below 1,\n"
        "falling with T, lower for smaller gamma",
        fontsize=10,
    )
    relative.set_ylabel("distance / SGD's")
    for axes in (over_time, relative):
        axes.set_xlabel("gradients")
    count = _last(fixed)
    against_loss.set_title(
        f"after {count:,} gradients, rates rise to the left;\nnot those that diverge",
        fontsize=10,
    )
    against_loss.set_xlabel("training loss (nats)")
    against_loss.set_ylabel("distance of the twins")
    figure.legend(loc="outside lower center", ncols=len(fixed), fontsize=8)
    figure.savefig(path, dpi=130)
    return path


def _nearest(rows: list[Record], loss: float) -> str:
    found = [(at_stopped_loss(row, loss), row["rate"]) for row in rows]
    stopped = [(at["distance"], at, rate) for at, rate in found if at is not None]
    if not stopped:
        return "-"
    distance, at, rate = min(stopped, key=lambda entry: entry[0])
    return (
        f"{distance:.3f} ({at['held_out_mean']:.4f}; {rate:g}; {at['gradients']:.0f})"
    )


def _rows(record: Record, name: str) -> list[Record]:
    return [row for row in record["rows"] if row["contender"] == name]


def _at_fixed_rate(record: Record) -> dict[str, Record]:
    names = dict.fromkeys(row["contender"] for row in record["rows"])
    at = lambda row: row["rate"] == FIXED_RATE
    return {name: next(filter(at, _rows(record, name))) for name in names}


def _last(fixed: dict[str, Record]) -> int:
    return max(row["path"]["gradients"][-1] for row in fixed.values())
