"""Where flat minima should pay: small data, wrong labels, large batches.

Each scenario is a training set; each method gets as many configurations as any other
there, chosen on the validation images, and then ten fresh seeds.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

from rich.console import Console

from entropy_optax.experiments import report, tune_report
from entropy_optax.experiments.checks import check
from entropy_optax.experiments.grid import Grid, with_fields
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Member, Run
from entropy_optax.experiments.settings import (
    Settings,
    SettingsError,
    from_dict,
    metric,
)
from entropy_optax.experiments.tasks import make_task
from entropy_optax.experiments.tune import search

METHODS = (
    "sgd",
    "adam",
    "sam",
    "lookahead",
    "ema",
    "schedule_free",
    "entropy_sgd",
    "averaging_alone",
    "reset_alone",
)
SCENARIOS: dict[str, dict[str, Any]] = {
    "500": {"num_train": 500},
    "1000": {"num_train": 1000},
    "wrong20": {"num_train": 1000, "label_noise": 0.2},
    "wrong40": {"num_train": 1000, "label_noise": 0.4},
    "wrong20_nodecay": {"num_train": 1000, "label_noise": 0.2},
    "wrong40_nodecay": {"num_train": 1000, "label_noise": 0.4},
    "batch1024": {"batch_size": 1024, "num_gradients": 600, "evaluate_every": 600},
}
# All methods get the first, and four more at a time until the best of each has had all
# its neighbours tried, or the last is reached.
FIRST_BUDGET, LAST_BUDGET = 32, 64
TUNING_SEEDS = (100, 101)
SEEDS = tuple(range(10))

_RATES = [0.0025 * 2**k for k in range(-4, 11)]
_DECAYS = [0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3]
_LENGTHS = [1, 5, 20, 50, 100]
# Ours is searched along the rate and the pull that are felt, whatever L and the mean
# are: with step_size and gamma a move of L or of the mean would change these as well.
_OURS: dict[str, list[Any]] = {
    "effective_rate": _RATES,
    "weight_decay": _DECAYS,
    "num_steps": _LENGTHS,
    "mean_decay": [0.0, 0.75, 0.95, 0.98],
    "anneal": ["inner", "outer"],
}
_AXES: dict[str, dict[str, list[Any]]] = {
    "sgd": {"learning_rate": _RATES, "weight_decay": _DECAYS},
    "adam": {
        "learning_rate": [1.25e-4 * 2**k for k in range(-4, 11)],
        "weight_decay": [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    },
    "sam": {
        "learning_rate": _RATES,
        "radius": [0.025 * 2**k for k in range(8)],
        "weight_decay": _DECAYS,
    },
    "lookahead": {
        "learning_rate": _RATES,
        "weight_decay": _DECAYS,
        "constant_rate": [False, True],
    },
    "ema": {
        "learning_rate": _RATES,
        "weight_decay": _DECAYS,
        "average_decay": [0.9, 0.97, 0.99, 0.997, 0.999],
        "constant_rate": [False, True],
    },
    "schedule_free": {
        "learning_rate": [0.02 * 2**k for k in range(-4, 11)],
        "weight_decay": _DECAYS,
    },
    "entropy_sgd": _OURS | {"pull": [0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
    "averaging_alone": _OURS,
    "reset_alone": {
        "effective_rate": _RATES,
        "weight_decay": _DECAYS,
        "num_steps": _LENGTHS,
    },
}
_MOMENTA = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98]
_WITHOUT_DECAY: dict[str, dict[str, list[Any]]] = {
    "sgd": {"momentum": _MOMENTA},
    "lookahead": {"momentum": _MOMENTA},
    "adam": {"b1": _MOMENTA},
    "schedule_free": {"b1": [0.3, 0.5, 0.8, 0.9, 0.95, 0.98]},
    "reset_alone": {"momentum": _MOMENTA},
}
_START: dict[str, Any] = {
    "learning_rate": 0.08,
    "effective_rate": 0.08,
    "pull": 0.1,
    "mean_decay": 0.75,
    "anneal": "inner",
    "constant_rate": False,
    "weight_decay": 1e-3,
    "radius": 0.1,
    "average_decay": 0.99,
    "num_steps": 20,
    "momentum": 0.9,
    "b1": 0.9,
}
_OWN_START: dict[str, dict[str, Any]] = {
    "adam": {"learning_rate": 2e-3, "weight_decay": 0.1},
    "schedule_free": {"learning_rate": 1.28},
}


def base_settings(scenario: str) -> Settings:
    """What all methods share in a scenario.

    Args:
      scenario: its name.

    Returns:
      Settings of a perceptron 196-100-10 on images of 14 x 14 pixels.

    Raises:
      SettingsError: if there is no such scenario.
    """
    if scenario not in SCENARIOS:
        raise SettingsError(
            f"--scenario: got {scenario!r}, wanted one of {', '.join(SCENARIOS)}"
        )
    settings = Settings(
        model="mlp",
        pool=2,
        batch_size=100,
        num_gradients=3000,
        report_every=100,
        evaluate_every=3000,
        seeds=TUNING_SEEDS,
        optimizer=METHODS,
    )
    settings = dataclasses.replace(settings, **SCENARIOS[scenario])
    # Noise and growth are studies of their own.
    off = {"temperature": 0.0, "gamma_growth": 0.0}
    settings = with_fields(settings, "entropy_sgd", off)
    check(settings)
    return settings


def make_grid(scenario: str, budget: int) -> Grid:
    """The search of a scenario.

    Args:
      scenario: its name.
      budget: configurations for each method.

    Returns:
      The grid. Without decay the methods of one other axis get one more.
    """
    settings = base_settings(scenario)
    axes = {name: dict(_AXES[name]) for name in METHODS}
    for own in axes.values():
        if "num_steps" in own:
            # Of fewer outer steps a cosine is a few stairs that do not end near 0.
            most = settings.num_gradients // 30
            own["num_steps"] = [n for n in own["num_steps"] if n <= most]
    if scenario.endswith("_nodecay"):
        for name, own in axes.items():
            # A method is left with enough to choose from by another axis.
            own |= {"weight_decay": [0.0]} | _WITHOUT_DECAY.get(name, {})
    start = {}
    for name, own in axes.items():
        values = _START | _OWN_START.get(name, {})
        start[name] = {
            axis: values[axis] if values[axis] in own[axis] else own[axis][0]
            for axis in own
        }
    return Grid(settings, SEEDS, {}, axes, {}, budget, start)


def tuned(scenario: str, out: pathlib.Path) -> Settings:
    """The chosen settings of all methods.

    Args:
      scenario: its name.
      out: folder of the study.

    Returns:
      Settings with each method's best configuration and the fresh seeds.

    Raises:
      SettingsError: if the scenario has not been compared to its end.
    """
    path = out / scenario / "compare.json"
    if not path.exists():
        raise SettingsError(f"{path}: not found; run `--part compare` first")
    return from_dict(Settings, json.loads(path.read_text())["settings"])


def compare(scenario: str, out: pathlib.Path, command: str, console: Console) -> None:
    """Tunes every method and runs the fresh seeds; resumable.

    Args:
      scenario: its name.
      out: folder of the study.
      command: to be quoted in the page of the search.
      console: where progress goes.
    """
    grid = functools.partial(make_grid, scenario)
    compare_methods(scenario, grid, out / scenario, command, console)


def compare_methods(
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
