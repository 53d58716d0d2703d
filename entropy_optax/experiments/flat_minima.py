"""Where flat minima should pay: small data, wrong labels, large batches.

Each scenario is a training set; each method gets as many configurations as any other
there, chosen on the validation images, and then ten fresh seeds.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

from rich.console import Console

from entropy_optax.experiments import comparison
from entropy_optax.experiments.checks import check
from entropy_optax.experiments.grid import Grid, with_fields
from entropy_optax.experiments.settings import (
    Settings,
    SettingsError,
    from_dict,
)

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
TUNING_SEEDS = (100, 101)
SEEDS = tuple(range(10))

# Ladders and starts of the searches, of the filters' study as well.
RATES = [0.0025 * 2**k for k in range(-4, 11)]
DECAYS = [0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3]
_LENGTHS = [1, 5, 20, 50, 100]
# Ours is searched along the rate and the pull that are felt, whatever L and the mean
# are: with step_size and gamma a move of L or of the mean would change these as well.
_OURS: dict[str, list[Any]] = {
    "effective_rate": RATES,
    "weight_decay": DECAYS,
    "num_steps": _LENGTHS,
    "mean_decay": [0.0, 0.75, 0.95, 0.98],
    "anneal": ["inner", "outer"],
}
AXES: dict[str, dict[str, list[Any]]] = {
    "sgd": {"learning_rate": RATES, "weight_decay": DECAYS},
    "adam": {
        "learning_rate": [1.25e-4 * 2**k for k in range(-4, 11)],
        "weight_decay": [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    },
    "sam": {
        "learning_rate": RATES,
        "radius": [0.025 * 2**k for k in range(8)],
        "weight_decay": DECAYS,
    },
    "lookahead": {
        "learning_rate": RATES,
        "weight_decay": DECAYS,
        "constant_rate": [False, True],
    },
    "ema": {
        "learning_rate": RATES,
        "weight_decay": DECAYS,
        "average_decay": [0.9, 0.97, 0.99, 0.997, 0.999],
        "constant_rate": [False, True],
    },
    "schedule_free": {
        "learning_rate": [0.02 * 2**k for k in range(-4, 11)],
        "weight_decay": DECAYS,
    },
    "entropy_sgd": _OURS | {"pull": [0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
    "averaging_alone": _OURS,
    "reset_alone": {
        "effective_rate": RATES,
        "weight_decay": DECAYS,
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
START: dict[str, Any] = {
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
OWN_START: dict[str, dict[str, Any]] = {
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
    return scenario_settings(scenario, SCENARIOS, METHODS, TUNING_SEEDS)


def scenario_settings(
    scenario: str,
    scenarios: dict[str, dict[str, Any]],
    methods: tuple[Any, ...],
    seeds: tuple[int, ...],
) -> Settings:
    """What all methods share in a scenario of a study.

    Args:
      scenario: its name.
      scenarios: names to what differs from the perceptron on digits.
      methods: the optimizers.
      seeds: for tuning.

    Returns:
      The settings.

    Raises:
      SettingsError: if there is no such scenario.
    """
    if scenario not in scenarios:
        raise SettingsError(
            f"--scenario: got {scenario!r}, wanted one of {', '.join(scenarios)}"
        )
    settings = Settings(
        model="mlp",
        pool=2,
        batch_size=100,
        num_gradients=3000,
        report_every=100,
        evaluate_every=3000,
        seeds=seeds,
        optimizer=methods,
    )
    settings = dataclasses.replace(settings, **scenarios[scenario])
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
    axes = {name: dict(AXES[name]) for name in METHODS}
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
        values = START | OWN_START.get(name, {})
        start[name] = {
            axis: values[axis] if values[axis] in own[axis] else own[axis][0]
            for axis in own
        }
    return Grid(settings, SEEDS, {}, axes, {}, budget, start)


def tuned(scenario: str, out: pathlib.Path, part: str = "compare") -> Settings:
    """The chosen settings of all methods.

    Args:
      scenario: its name.
      out: folder of the study.
      part: of the command, that has tuned them.

    Returns:
      Settings with each method's best configuration and the fresh seeds.

    Raises:
      SettingsError: if the scenario has not been compared to its end.
    """
    path = out / scenario / "compare.json"
    if not path.exists():
        raise SettingsError(f"{path}: not found; run `--part {part}` first")
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
    comparison.compare(scenario, grid, out / scenario, command, console)
