"""Methods compared: each tuned on validation data, then run with fresh seeds."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

from rich.console import Console

from entropy_optax.experiments import report, tune_report
from entropy_optax.experiments.grid import Grid, with_fields
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Member, Run
from entropy_optax.experiments.settings import metric
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
) -> None:
    """Tunes every method of a scenario and runs the fresh seeds; resumable.

    Args:
      scenario: its name.
      grid_of: from configurations for each method to the search; its settings, methods
        and fresh seeds are the comparison's.
      folder: of `grid.json`, its page, and `compare.json`.
      command: to be quoted in the page of the search.
      console: where progress goes.
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
    chosen = dataclasses.replace(settings, seeds=seeds)
    edges = {}
    for name in methods:
        best = tune_report.ranked(grid, results, name)[0]
        chosen = with_fields(chosen, name, best["hyperparameters"])
        if found := tune_report.edges(grid, name, best):
            edges[name] = found
    memo = Memo(folder / "compare.part", chosen)
    members = [Member(seed, chosen) for seed in seeds]
    groups = [members] if settings.model == "mlp" else [[m] for m in members]

    def finish(name: str) -> list[dict[str, Any]]:
        runs = [experiment.run_together(name, group) for group in groups]
        return [_short(run) for group in runs for run in group]

    by = metric(settings)
    runs = {}
    for name in methods:
        runs[name] = memo(name, functools.partial(finish, name))
        values = report.estimate([run[f"test_{by}"] for run in runs[name]])
        unit = "nats" if by == "loss" else "%"
        console.print(f"{scenario}: {name} test {by} {values} {unit}")
    content = {
        "scenario": scenario,
        "settings": chosen,
        "budget": budget,
        "unsettled": left,
        "on_edge": edges,
        "runs": runs,
    }
    write_json(folder / "compare.json", content)
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
