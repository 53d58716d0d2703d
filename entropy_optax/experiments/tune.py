"""The command `tune`: equally large grids, judged on the validation split."""

import dataclasses
import itertools
import json
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console

from entropy_optax.experiments import report, tune_report
from entropy_optax.experiments.data import load
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.settings import (
    PRESETS,
    Settings,
    SettingsError,
    check,
    from_dict,
)


class Grid(NamedTuple):
    """A grid file.

    Attributes:
      settings: what all configurations share; its seeds are for tuning only.
      preset_seeds: seeds of the preset that is written, none of them a tuning seed.
      axes: for each optimizer, field to values; a configuration is one of each.
      sources: where each constant that is not on an axis comes from.
    """

    settings: Settings
    preset_seeds: tuple[int, ...]
    axes: dict[str, dict[str, list[Any]]]
    sources: dict[str, str]


def load_grid(name: str) -> Grid:
    """Reads and checks a grid file.

    Args:
      name: name in `presets/` or path.

    Returns:
      The grid.

    Raises:
      SettingsError: if it does not exist, is no grid, gives the optimizers different
        numbers of configurations, or reports on a seed it tunes on.
    """
    path = pathlib.Path(name)
    if not path.suffix:
        path = PRESETS / f"{name}.json"
    try:
        content = json.loads(path.read_text())
        settings = from_dict(
            Settings, content["settings"] | {"optimizer": list(content["grid"])}
        )
        grid = Grid(
            settings,
            tuple(content["preset_seeds"]),
            content["grid"],
            content.get("sources", {}),
        )
    except OSError as error:
        raise SettingsError(f"--grid: cannot read {path} ({error.strerror})") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SettingsError(f"--grid: {path} is not a grid ({error!r})") from error
    counts = {name: len(configurations(grid, name)) for name in grid.axes}
    if len(set(counts.values())) != 1:
        raise SettingsError(f"--grid: wanted equal numbers of settings, got {counts}")
    if set(grid.preset_seeds) & set(settings.seeds):
        raise SettingsError("--grid: a seed is both for tuning and for reporting")
    for optimizer in grid.axes:
        for settings in configurations(grid, optimizer):
            check(settings)
    return grid


def configurations(grid: Grid, optimizer: str) -> list[Settings]:
    """All settings of one optimizer's grid.

    Args:
      grid: the grid.
      optimizer: its name.

    Returns:
      The product of the axes.

    Raises:
      SettingsError: if an axis is no field of the optimizer's settings.
    """
    axes = grid.axes[optimizer]
    base = getattr(grid.settings, optimizer)
    made = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        unknown = set(point) - {field.name for field in dataclasses.fields(base)}
        if unknown:
            raise SettingsError(f"--grid: {optimizer} has no field {unknown.pop()!r}")
        group = dataclasses.replace(base, **point)
        made.append(dataclasses.replace(grid.settings, **{optimizer: group}))
    return made


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

    Raises:
      SettingsError: if the grid is wrong or `out` cannot be written to.
    """
    grid = load_grid(grid_name)
    results_path = out / "grid.json"
    common = report.to_json(_common(grid.settings))
    results = _load_results(results_path, common)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(results_path, common, results)
    except OSError as error:
        raise SettingsError(
            f"--out: cannot write to {out} ({error.strerror})"
        ) from error
    experiment = Experiment(grid.settings, load(grid.settings.data))
    todo = [(name, s) for name in grid.axes for s in configurations(grid, name)]
    try:
        for number, (name, settings) in enumerate(todo, start=1):
            point = dataclasses.asdict(getattr(settings, name))
            if find(results, name, point) is None:
                # Only the last point is judged: measure nothing on the way to it.
                once = dataclasses.replace(
                    settings, evaluate_every=settings.num_gradients
                )
                runs = [
                    experiment.run(name, seed, once, test=False)
                    for seed in settings.seeds
                ]
                results.append(
                    {
                        "optimizer": name,
                        "hyperparameters": point,
                        "validation_error": [r.validation_last.error for r in runs],
                        "validation_loss": [r.validation_last.loss for r in runs],
                        "gradients": [r.gradients for r in runs],
                        "seconds": [round(r.seconds, 2) for r in runs],
                    }
                )
                _write(results_path, common, results)
            axes = {axis: point[axis] for axis in grid.axes[name]}
            errors = find(results, name, point)["validation_error"]
            console.print(
                f"{number}/{len(todo)} {name} {axes}: validation error"
                f" {report.estimate(errors)} %",
                soft_wrap=True,
            )
    except KeyboardInterrupt:
        console.print(f"Stopped. {results_path} keeps {len(results)} configurations.")
        return 130
    command = shlex.join(["entropy-optax", *argv])
    tune_report.write_readme(out / "README.md", grid, results, command)
    if preset is not None:
        tune_report.write_preset(preset, grid, results, out / "grid.json", command)
    console.print(f"Done: {out / 'README.md'}", soft_wrap=True)
    return 0


def find(results: list[dict[str, Any]], optimizer: str, point: dict[str, Any]) -> Any:
    """Looks a configuration up.

    Args:
      results: entries of `grid.json`.
      optimizer: its name.
      point: all its hyperparameters.

    Returns:
      The entry, or None if it has not been run.
    """
    for entry in results:
        if entry["optimizer"] == optimizer and entry["hyperparameters"] == point:
            return entry
    return None


def _common(settings: Settings) -> dict[str, Any]:
    """Whatever a result rests on besides the optimizer's own hyperparameters.

    Returns:
      Those fields of the settings.
    """
    names = (
        "model",
        "data",
        "seeds",
        "num_gradients",
        "batch_size",
        "rate_schedule",
    )
    return {name: getattr(settings, name) for name in names}


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
    # In two moves, so that an interruption leaves the old file or the new one.
    temporary = path.with_suffix(".tmp")
    text = json.dumps(report.to_json(content), indent=1, allow_nan=False)
    temporary.write_text(text + "\n")
    temporary.replace(path)
