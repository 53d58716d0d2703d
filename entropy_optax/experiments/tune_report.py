"""What a grid search found: a readable page and a preset."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any

from entropy_optax.experiments import report
from entropy_optax.experiments.settings import metric

if TYPE_CHECKING:
    from entropy_optax.experiments.grid import Grid

Entry = dict[str, Any]


def ranked(
    grid: Grid, results: list[Entry], optimizer: str, by: str | None = None
) -> list[Entry]:
    """Results of one optimizer's present grid, best first.

    Args:
      grid: the grid.
      results: entries of `grid.json`, of this grid and perhaps of a narrower one.
      optimizer: its name.
      by: `error` or `loss`, of the task if None.

    Returns:
      Entries by mean validation error of the last point; equal errors, which 2,000
      images make likely, by mean validation loss.
    """
    axes = grid.axes[optimizer]
    base = dataclasses.asdict(getattr(grid.settings, optimizer))

    def belongs(entry: Entry) -> bool:
        point = entry["hyperparameters"]
        return all(
            point.get(name, base[name]) in axes[name]
            if name in axes
            else point.get(name, base[name]) == base[name]
            for name in base
        )

    def order(entry: Entry) -> tuple[float, float]:
        # A loss that is not finite is None in JSON.
        means = []
        for name in (by or metric(grid.settings), "loss"):
            values = [
                math.inf if x is None or x != x else x
                for x in entry[f"validation_{name}"]
            ]
            means.append(sum(values) / len(values))
        return means[0], means[1]

    own = [e for e in results if e["optimizer"] == optimizer and belongs(e)]
    return sorted(own, key=order)


def untried(
    grid: Grid, results: list[Entry], optimizer: str, by: str | None = None
) -> list[Entry]:
    """Neighbours of the best that a search with a budget has not come to.

    Args:
      grid: the grid.
      results: entries of `grid.json`.
      optimizer: its name.
      by: what the best is chosen by, as in `ranked`.

    Returns:
      Configurations one value up or down on one axis.
    """
    tried = [e["hyperparameters"] for e in ranked(grid, results, optimizer, by)]
    return [n for n in neighbours(grid, optimizer, tried[0]) if n not in tried]


def neighbours(
    grid: Grid, optimizer: str, point: dict[str, Any]
) -> list[dict[str, Any]]:
    """Configurations one value up or down on one axis.

    Args:
      grid: the grid.
      optimizer: its name.
      point: all its hyperparameters.

    Returns:
      Those that exist, in the order of the axes, up first.
    """
    found = []
    for axis, values in grid.axes[optimizer].items():
        at = values.index(point[axis])
        for other in (at + 1, at - 1):
            if 0 <= other < len(values):
                found.append(point | {axis: values[other]})
    return found


def edges(grid: Grid, optimizer: str, best: Entry) -> list[str]:
    """Axes on whose edge the best lies, so that a wider grid may hold a better one.

    Args:
      grid: the grid.
      optimizer: its name.
      best: its best entry.

    Returns:
      Such axes. An axis of one value has no edge, and 0 cannot be passed.
    """
    found = []
    for name, values in grid.axes[optimizer].items():
        value = best["hyperparameters"][name]
        # Choices have no edge, and neither 0 nor a count of 1 can be passed.
        choice = isinstance(value, bool | str)
        if choice or value == 0 or (name == "num_steps" and value == 1):
            continue
        if len(values) > 1 and value in (min(values), max(values)):
            found.append(name)
    return found


def _text(value: Any) -> str:
    plain = value is None or isinstance(value, str | bool)
    return str(value) if plain else f"{value:g}"


def write_readme(
    path: pathlib.Path, grid: Grid, results: list[Entry], command: str
) -> None:
    """Writes the page.

    Args:
      path: the Markdown file.
      grid: the grid.
      results: entries of `grid.json`.
      command: what made them.
    """
    settings = grid.settings
    by = metric(settings)
    machine = report.machine()
    count = {name: len(ranked(grid, results, name)) for name in grid.axes}
    lines = [
        f"# Grid for {settings.model} on {settings.data}",
        "",
        f"Written by `{command}` ({machine['cpu_count']} processors,"
        f" {machine['platform']}); every number comes from `grid.json` beside it.",
        "",
        f"Each optimizer had {max(count.values())} configurations with"
        f" {len(settings.seeds)} seeds ({', '.join(map(str, settings.seeds))}) of"
        f" {settings.num_gradients} gradients, batches of {settings.batch_size},"
        f" {settings.rate_schedule} schedule. They are chosen by the mean"
        f" validation {by} after the last gradient"
        + (", equal errors by the validation loss" if by == "error" else "")
        + "; the test set was not read. The standard error is over seeds.",
        "",
    ]
    for optimizer in grid.axes:
        entries = ranked(grid, results, optimizer)
        axes = list(grid.axes[optimizer])
        lines += [f"## {report.LABELS[optimizer]}", ""]
        on_edge = edges(grid, optimizer, entries[0])
        left = untried(grid, results, optimizer) if grid.budget else []
        if on_edge:
            verdict = (
                f"**The best lies on the edge of the grid in {', '.join(on_edge)}.**"
            )
        elif left:
            verdict = f"**{len(left)} neighbours of the best have not been tried.**"
        else:
            verdict = "The best lies inside the grid."
        lines += [
            verdict,
            "",
            "| " + " | ".join([*axes, "validation error %", "validation loss"]) + " |",
            "|" + " --: |" * (len(axes) + 2),
        ]
        for entry in entries:
            losses = entry["validation_loss"]
            loss = (
                "not finite" if None in losses else f"{sum(losses) / len(losses):.4f}"
            )
            cells = [_text(entry["hyperparameters"][axis]) for axis in axes]
            error = str(report.estimate(entry["validation_error"]))
            lines.append("| " + " | ".join([*cells, error, loss]) + " |")
        fixed = {
            name: value
            for name, value in entries[0]["hyperparameters"].items()
            if name not in axes and value is not None
        }
        held = ", ".join(f"{name} {_text(value)}" for name, value in fixed.items())
        lines += ["", f"Held fixed: {held}.", ""]
    path.write_text("\n".join(lines))


def write_preset(
    path: pathlib.Path,
    grid: Grid,
    results: list[Entry],
    results_path: pathlib.Path,
    command: str,
) -> None:
    """Writes the chosen settings, each with its source.

    Args:
      path: the preset file.
      grid: the grid.
      results: entries of `grid.json`.
      results_path: where they are, to cite.
      command: what made them, to cite.
    """
    settings = report.to_json(
        dataclasses.replace(grid.settings, seeds=grid.preset_seeds)
    )
    settings |= grid.preset_settings
    sources = dict(grid.sources)
    for optimizer, axes in grid.axes.items():
        best = ranked(grid, results, optimizer)[0]
        settings[optimizer] = best["hyperparameters"]
        by = metric(grid.settings)
        values = report.estimate(best[f"validation_{by}"])
        unit = " %" if by == "error" else " nats"
        for axis in axes:
            sources[f"{optimizer}.{axis}"] = (
                f"grid of {len(ranked(grid, results, optimizer))} in {results_path},"
                f" validation {by} {values}{unit} (n = {values.n})"
            )
    content = {
        "description": f"{grid.settings.model} on {grid.settings.data}, settings chosen"
        f" on the validation split by `{command}`",
        "settings": settings,
        "sources": sources,
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
