"""The command `tune`: equally large grids, judged on the validation split."""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from entropy_optax.experiments import meshes, report, tune_report
from entropy_optax.experiments.grid import (
    Grid,
    configurations,
    load_grid,
    next_configuration,
)
from entropy_optax.experiments.runner import Experiment, Member
from entropy_optax.experiments.settings import (
    GROUPS,
    Settings,
    SettingsError,
    metric,
)
from entropy_optax.experiments.tasks import make_task


def tune(
    grid_name: str,
    out: pathlib.Path,
    preset: pathlib.Path | None,
    argv: Sequence[str],
    console: Console,
) -> int:
    """Runs what is missing of a grid and writes its report.

    Args:
      grid_name: name or path of the grid.
      out: folder of `grid.json` and `README.md`.
      preset: file for the chosen settings, or None.
      argv: the command's arguments, to be quoted in the report.
      console: where progress goes.

    Returns:
      The exit code, 0 or 130 after Ctrl-C.
    """
    grid = load_grid(grid_name)
    meshes.use_devices(grid.settings)
    try:
        results = search(grid, out / "grid.json", console)
    except KeyboardInterrupt:
        console.print(f"Stopped. The same command goes on from {out / 'grid.json'}.")
        return 130
    command = shlex.join(["entropy-optax", *argv])
    tune_report.write_readme(out / "README.md", grid, results, command)
    if preset is not None:
        tune_report.write_preset(preset, grid, results, out / "grid.json", command)
    console.print(f"Done: {out / 'README.md'}", soft_wrap=True)
    return 0


def search(
    grid: Grid,
    path: pathlib.Path,
    console: Console,
    experiment: Experiment | None = None,
) -> list[dict[str, Any]]:
    """Runs what is missing of a grid.

    Args:
      grid: the grid.
      path: of `grid.json`, written after each configuration.
      console: where progress goes.
      experiment: with the grid's task, made if None.

    Returns:
      The entries of `grid.json`.

    Raises:
      SettingsError: if `path` cannot be written to or holds results of other settings.
    """
    common = report.to_json(_common(grid.settings))
    results = _load_results(path, common)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, common, results)
    except OSError as error:
        raise SettingsError(
            f"--out: cannot write to {path.parent} ({error.strerror})"
        ) from error
    if experiment is None:
        experiment = Experiment(grid.settings, make_task(grid.settings))
    total = sum(grid.budget or len(configurations(grid, name)) for name in grid.axes)
    by = metric(grid.settings)
    for name in grid.axes:
        while settings := next_configuration(grid, name, results):
            entry = _try(experiment, name, settings)
            results.append(entry)
            _write(path, common, results)
            axes = {axis: entry["hyperparameters"][axis] for axis in grid.axes[name]}
            # Not those of a narrower grid, which stay in the record.
            done = sum(len(tune_report.ranked(grid, results, n)) for n in grid.axes)
            values = report.estimate(entry[f"validation_{by}"])
            console.print(
                f"{done}/{total} {name} {axes}: validation {by} {values}",
                soft_wrap=True,
            )
    return results


def _try(experiment: Experiment, name: str, settings: Settings) -> dict[str, Any]:
    # Only the last point is judged: measure nothing on the way to it.
    once = dataclasses.replace(settings, evaluate_every=settings.num_gradients)
    members = [Member(seed, once) for seed in settings.seeds]
    groups = [members] if settings.together else [[member] for member in members]
    runs = [
        run
        for group in groups
        for run in experiment.run_together(name, group, test=False)
    ]
    return {
        "optimizer": name,
        "hyperparameters": dataclasses.asdict(getattr(settings, name)),
        "validation_error": [run.validation_last.error for run in runs],
        "validation_loss": [run.validation_last.loss for run in runs],
        "training_loss": [run.training_loss for run in runs],
        "gradients": [run.gradients for run in runs],
        "seconds": [round(run.seconds, 2) for run in runs],
    }


def _common(settings: Settings) -> dict[str, Any]:
    """Whatever a result rests on besides the optimizer's own hyperparameters.

    Returns:
      Those fields of the settings.
    """
    names = ("model", "data", "seeds", "num_gradients", "batch_size", "rate_schedule")
    common = {name: getattr(settings, name) for name in names}
    # The rest only where it differs, so that older records stay valid.
    ignored = {
        *names,
        *GROUPS,
        "optimizer",
        "evaluate_every",
        "report_every",
        "together",
    }
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if field.name not in ignored and value != field.default:
            common[field.name] = value
    return common


def _load_results(path: pathlib.Path, common: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != common:
        raise SettingsError(
            f"--out: {path} holds results of other settings; choose another folder"
        )
    return content["results"]


def _write(
    path: pathlib.Path, common: dict[str, Any], results: list[dict[str, Any]]
) -> None:
    content = {
        "settings": common,
        "versions": report.versions(),
        "machine": report.machine(),
        "results": results,
    }
    report.replace_json(path, content)
