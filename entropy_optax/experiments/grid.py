"""Which settings a tuning tries: a product of values, or a search with a budget."""

import dataclasses
import itertools
import json
import pathlib
from typing import Any, NamedTuple

from entropy_optax.experiments import tune_report
from entropy_optax.experiments.checks import check
from entropy_optax.experiments.settings import (
    GROUPS,
    PRESETS,
    Settings,
    SettingsError,
    from_dict,
)


class Grid(NamedTuple):
    """A grid file.

    Attributes:
      settings: what all configurations share; its seeds are for tuning only.
      preset_seeds: seeds of the preset that is written, none of them a tuning seed.
      preset_settings: what else differs in that preset, a longer run say.
      axes: for each optimizer, field to values; a configuration is one of each.
      budget: configurations that each optimizer may try, None for all of the product.
      start: for each optimizer, the first configuration of a search with a budget.
      sources: where each constant that is not on an axis comes from.
    """

    settings: Settings
    preset_seeds: tuple[int, ...]
    preset_settings: dict[str, Any]
    axes: dict[str, dict[str, list[Any]]]
    sources: dict[str, str]
    budget: int | None = None
    start: dict[str, dict[str, Any]] = {}  # noqa: RUF012  # never changed


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
            content.get("preset_settings", {}),
            content["grid"],
            content.get("sources", {}),
            content.get("budget"),
            content.get("start", {}),
        )
    except OSError as error:
        raise SettingsError(f"--grid: cannot read {path} ({error.strerror})") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SettingsError(f"--grid: {path} is not a grid ({error!r})") from error
    if unknown := set(grid.axes) - set(GROUPS):
        raise SettingsError(f"--grid: {unknown.pop()!r} is not an optimizer")
    counts = {name: len(configurations(grid, name)) for name in grid.axes}
    if grid.budget is None and len(set(counts.values())) != 1:
        raise SettingsError(f"--grid: wanted equal numbers of settings, got {counts}")
    if set(grid.preset_seeds) & set(settings.seeds):
        raise SettingsError("--grid: a seed is both for tuning and for reporting")
    for optimizer in grid.axes:
        for settings in configurations(grid, optimizer):
            check(settings)
        if grid.budget is not None:
            if counts[optimizer] < grid.budget:
                raise SettingsError(
                    f"--grid: wanted {grid.budget} settings or more of {optimizer},"
                    f" got {counts[optimizer]}"
                )
            axes, start = grid.axes[optimizer], grid.start.get(optimizer, {})
            if set(start) != set(axes) or any(start[k] not in axes[k] for k in axes):
                raise SettingsError(f"--grid: start of {optimizer} is not on its axes")
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
        made.append(with_fields(grid.settings, optimizer, point))
    return made


def next_configuration(
    grid: Grid, optimizer: str, results: list[dict[str, Any]]
) -> Settings | None:
    """What an optimizer tries next.

    Without a budget the product in its order. With one, a pattern search: the best so
    far is left when one of its neighbours, one value up or down on one axis, is better;
    when it has no untried neighbour, those of the next best are tried.

    Args:
      grid: the grid.
      optimizer: its name.
      results: entries of `grid.json`.

    Returns:
      Settings, or None when the product or the budget is spent.
    """
    tried = tune_report.ranked(grid, results, optimizer)
    # Older records lack fields that came later, with their defaults.
    base = dataclasses.asdict(getattr(grid.settings, optimizer))
    points = [base | entry["hyperparameters"] for entry in tried]
    if grid.budget is None:
        todo = configurations(grid, optimizer)
        return next(
            (
                s
                for s in todo
                if dataclasses.asdict(getattr(s, optimizer)) not in points
            ),
            None,
        )
    if len(points) >= grid.budget:
        return None
    if not points:
        return with_fields(grid.settings, optimizer, grid.start[optimizer])
    return next(
        (
            with_fields(grid.settings, optimizer, neighbour)
            for point in points
            for neighbour in tune_report.neighbours(grid, optimizer, point)
            if neighbour not in points
        ),
        None,
    )


def with_fields(settings: Settings, optimizer: str, fields: dict[str, Any]) -> Settings:
    """Changes some of an optimizer's hyperparameters.

    Args:
      settings: of the experiment.
      optimizer: its name.
      fields: those that change.

    Returns:
      The settings with them.
    """
    group = dataclasses.replace(getattr(settings, optimizer), **fields)
    return dataclasses.replace(settings, **{optimizer: group})
