"""Methods compared: each tuned on validation data, then run with fresh seeds."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

from rich.console import Console

from entropy_optax.experiments import report, tune_report
from entropy_optax.experiments.grid import Grid, with_fields
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Member, Run
from entropy_optax.experiments.settings import GROUPS, Settings, metric
from entropy_optax.experiments.tasks import make_task
from entropy_optax.experiments.tune import search

# All methods get the first, and four more at a time until the best of each has had all
# its neighbours tried, or the last is reached.
FIRST_BUDGET, LAST_BUDGET = 32, 64


def compare(
    scenario: str,
    grid_of: Callable[[int], Grid],
    folder: pathlib.Path,
    command: str,
    console: Console,
    *,
    also_by_loss: bool = False,
) -> None:
    """Tunes every method of a scenario and runs the fresh seeds; resumable.

    Args:
      scenario: its name.
      grid_of: from configurations for each method to the search; its settings, methods
        and fresh seeds are the comparison's.
      folder: of `grid.json`, its page, and `compare.json`.
      command: to be quoted in the page of the search.
      console: where progress goes.
      also_by_loss: run the fresh seeds of the configurations with the lowest
        validation loss as well, of those that were tried.
    """
    budget = FIRST_BUDGET
    grid = grid_of(budget)
    settings, methods, seeds = grid.settings, tuple(grid.axes), grid.preset_seeds
    experiment = Experiment(settings, make_task(settings))
    while True:
        grid = grid_of(budget)
        results = search(grid, folder / "grid.json", console, experiment)
        left = [n for n in methods if tune_report.untried(grid, results, n)]
        # A search that was stopped may have got on further with some methods.
        most = max(len(tune_report.ranked(grid, results, n)) for n in methods)
        if most <= budget and (not left or budget >= LAST_BUDGET):
            break
        budget += 4
    console.print(f"{scenario}: {budget} configurations each; not inside: {left}")
    tune_report.write_readme(folder / "README.md", grid, results, command)
    by = metric(settings)
    choices = {
        score: _choose(grid, results, score)
        for score in ((by, "loss") if also_by_loss and by == "error" else (by,))
    }
    memo = Memo(folder / "compare.part", list(choices.values()))
    path = folder / "compare.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    chosen = choices[by]
    runs: dict[str, dict[str, Any]] = {score: {} for score in choices}
    for score, own in choices.items():
        members = [Member(seed, own) for seed in seeds]
        groups = [members] if settings.model == "mlp" else [[m] for m in members]
        for name in methods:
            if score != by and getattr(own, name) == getattr(chosen, name):
                runs[score][name] = runs[by][name]
                continue
            if kept := _kept(before, own, name):
                runs[score][name] = kept
                console.print(f"{scenario}: {name} by {score} as before")
                continue
            find = functools.partial(_finish, experiment, name, groups)
            runs[score][name] = memo(f"{name} by {score}", find)
            values = report.estimate([r[f"test_{score}"] for r in runs[score][name]])
            unit = "nats" if score == "loss" else "%"
            console.print(f"{scenario}: {name} test {score} {values} {unit}")
    content = {"scenario": scenario, "budget": budget}
    outcomes = {
        score: _outcome(grid, results, score, own, runs[score])
        for score, own in choices.items()
    }
    content |= outcomes.pop(by)
    if outcomes:
        content["by_loss"] = outcomes["loss"]
    write_json(path, content)
    memo.remove()


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a record with versions and machine.

    Args:
      path: of the file.
      content: of the record.
    """
    content = {"versions": report.versions(), "machine": report.machine()} | content
    path.parent.mkdir(parents=True, exist_ok=True)
    report.replace_json(path, content)


def _outcome(
    grid: Grid, results: list[dict[str, Any]], by: str, chosen: Settings, runs: Any
) -> dict[str, Any]:
    on_edge = {
        name: tune_report.edges(
            grid, name, tune_report.ranked(grid, results, name, by)[0]
        )
        for name in grid.axes
    }
    return {
        "settings": chosen,
        "unsettled": [
            name for name in grid.axes if tune_report.untried(grid, results, name, by)
        ],
        "on_edge": {name: axes for name, axes in on_edge.items() if axes},
        "runs": runs,
    }


def _choose(grid: Grid, results: list[dict[str, Any]], by: str) -> Settings:
    settings = dataclasses.replace(grid.settings, seeds=grid.preset_seeds)
    for name in grid.axes:
        best = tune_report.ranked(grid, results, name, by)[0]
        settings = with_fields(settings, name, best["hyperparameters"])
    return settings


def _kept(record: dict[str, Any], own: Settings, name: str) -> Any:
    # Of an earlier comparison, with fewer methods say; None if it had other settings.
    here = {"versions": report.versions(), "machine": report.to_json(report.machine())}
    if any(record.get(name) != value for name, value in here.items()):
        return None
    new = report.to_json(own)
    shared = lambda settings: {
        k: v for k, v in settings.items() if k not in (*GROUPS, "optimizer")
    }
    for old in (record, record.get("by_loss", record)):
        alike = shared(old["settings"]) == shared(new)
        if alike and old["settings"].get(name) == new[name]:
            return old["runs"].get(name)
    return None


def _finish(
    experiment: Experiment, name: str, groups: list[list[Member]]
) -> list[dict[str, Any]]:
    runs = [experiment.run_together(name, group) for group in groups]
    return [_short(run) for group in runs for run in group]


def _short(run: Run) -> dict[str, Any]:
    assert run.test_last is not None
    return {
        "seed": run.seed,
        "gradients": run.gradients,
        "test_error": run.test_last.error,
        "test_loss": run.test_last.loss,
        "validation_error": run.validation_last.error,
        "training_loss": run.training_loss,
    }
