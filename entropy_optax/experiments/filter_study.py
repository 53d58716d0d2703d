"""Local entropy in the geometry of the filters: where it was searched, and its test.

The test has the protocol of `flat_minima`: as many configurations of each method,
chosen on the validation images, and ten fresh seeds at an equal number of gradients.
"""

import dataclasses
import functools
import pathlib
from typing import Any

from rich.console import Console

from entropy_optax.experiments import comparison, flat_minima, tune_report
from entropy_optax.experiments.grid import Grid, with_fields
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.tasks import make_task
from entropy_optax.experiments.tune import search

RIVALS = ("sgd", "adam", "sam", "asam", "ema", "entropy_sgd")
# Muon was the best to have outside, by far, and is the control of what is made of it.
METHODS = (*RIVALS, "filter_entropy", "muon", "filter_muon")
SCENARIOS: dict[str, dict[str, Any]] = {
    "500": {"num_train": 500},
    "1000": {"num_train": 1000},
    "5000": {"num_train": 5000},
    "wrong20": {"num_train": 1000, "label_noise": 0.2},
    "wrong40": {"num_train": 1000, "label_noise": 0.4},
    "cifar5000": {
        "model": "lenet_small",
        "data": "cifar10",
        "num_train": 5000,
        "num_gradients": 2000,
        "evaluate_every": 2000,
    },
    "char_lstm": {
        "model": "char_lstm_small",
        "data": "warpeace",
        "pool": 1,
        "features": 64,
        "batch_size": 32,
        "clip_norm": 0.25,
        "num_gradients": 1000,
        "evaluate_every": 1000,
    },
    "batch1024": {"batch_size": 1024, "num_gradients": 600, "evaluate_every": 600},
}
SEARCHED = ("500", "wrong40")
"""Scenarios on whose validation images forms are searched."""
TUNING_SEEDS = (100, 101, 102)
SEARCH_BUDGET = 24

_RATES = flat_minima.RATES
_DECAYS = flat_minima.DECAYS


def _ladder(low: float, count: int) -> list[float]:
    # Two steps double a radius, and no method has finer steps than another.
    return [float(f"{low * 2 ** (k / 2):.3g}") for k in range(count)]


_AXES = {name: flat_minima.AXES[name] for name in METHODS if name in flat_minima.AXES}
_AXES |= {
    name: {
        "learning_rate": _RATES,
        "radius": radii,
        "weight_decay": _DECAYS,
    }
    for name, radii in (
        ("sam", _ladder(0.003125, 22)),
        ("asam", _ladder(0.015625, 22)),
        ("filter_entropy", _ladder(0.0125, 14)),
    )
}
# Widened, since the best of some scenarios lay on the ends that they had.
_AXES["ema"] |= {"average_decay": [0.7, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9997]}
_AXES["entropy_sgd"] |= {"mean_decay": [0.0, 0.75, 0.95, 0.98, 0.99]}
_ADAMW = flat_minima.AXES["adam"]
_MUON = {"weight_decay": _ADAMW["weight_decay"]}
_AXES["muon"] = {"learning_rate": _RATES} | _MUON
_AXES["filter_muon"] = _AXES["filter_entropy"] | _MUON
_START = flat_minima.START | {"radius": 0.1}
_OWN_START = {
    "adam": flat_minima.OWN_START["adam"],
    "asam": {"radius": 0.5},
    "filter_entropy": {"radius": 0.4},
    "muon": {"learning_rate": 0.16, "weight_decay": 0.1},
    "filter_muon": {"learning_rate": 0.04, "radius": 0.4, "weight_decay": 0.1},
}
# Where noise or a large step would drown what little can be learnt.
_LSTM_RATES = [0.0025 * 2**k for k in range(4, 15)]
_LSTM_ADAM_RATES = [*_ADAMW["learning_rate"], 0.256, 0.512]
_LSTM_START: dict[str, dict[str, Any]] = {
    name: {"learning_rate": 2.56, "effective_rate": 2.56, "weight_decay": 0.0}
    for name in METHODS
}
_LSTM_START["adam"] = {"learning_rate": 8e-3, "weight_decay": 0.0}
_LSTM_START["muon"] = {"learning_rate": 0.04, "weight_decay": 0.0}
_LSTM_START["filter_muon"] = _LSTM_START["muon"] | {"radius": 0.05}
_LSTM_START["sam"] |= {"radius": 0.05}
_LSTM_START["asam"] |= {"radius": 0.25}
_LSTM_START["filter_entropy"] |= {"radius": 0.1}
_STARTS = {
    "char_lstm": _LSTM_START,
    # At twice the rate and radius SAM diverges there, and so do all its neighbours.
    "cifar5000": _OWN_START | {"sam": {"learning_rate": 0.04, "radius": 0.05}},
}

_LPF = "LPF-SGD: 10 parts, radius grows 16-fold"
_IVON = "IVON: the spread is learnt"
# What the form of the method could be; each is searched alone, over rate, radius and
# decay. The first is the plain one: a constant radius, one gradient a step, SGD.
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "radius falls to 0.2": {"radius_end": 0.2},
    "radius doubles": {"radius_end": 2.0},
    "2 perturbations a step": {"perturbations": 2},
    "antithetic pair a step": {"perturbations": 2, "antithetic": True},
    "4 perturbations a step": {"perturbations": 4},
    "antithetic successive steps": {"antithetic": True},
    "2 parts of each batch": {"splits": 2},
    "2 antithetic parts of each batch": {"splits": 2, "antithetic": True},
    "10 parts of each batch": {"splits": 10},
    "Langevin, L = 5, T = 0.1": {"num_steps": 5, "temperature": 0.1},
    "Langevin, L = 5, T = 1": {"num_steps": 5, "temperature": 1.0},
    "Langevin, L = 5, T = 100": {"num_steps": 5, "temperature": 100.0},
    "mean of iterates, 0.99": {"average_decay": 0.99},
    "mean of iterates, 0.997": {"average_decay": 0.997},
    "AdamW outside": {"outer": "adamw"},
    "Muon outside": {"outer": "muon"},
    "per leaf": {"geometry": "leaf"},
    "one size for all weights": {"geometry": "none"},
    "control: SGD alone": {},
    "control: AdamW alone": {"outer": "adamw"},
    "control: Muon alone": {"outer": "muon"},
    _LPF: {"splits": 10, "radius_end": 16.0},
    _IVON: {},
}
_ADAMW_START = {"learning_rate": 2e-3, "weight_decay": 0.1}
_MUON_START = {"learning_rate": 0.02, "weight_decay": 0.1}
# Forms are compared with one another alone, on finer steps.
_FORM_AXES = _AXES["filter_entropy"] | {
    "radius": [
        0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2,
    ]
}  # fmt: skip
_ALONE = {"radius": [0.0]}
_OWN_AXES: dict[str, dict[str, list[Any]]] = {
    "AdamW outside": _ADAMW,
    "Muon outside": _MUON,
    "one size for all weights": {"radius": [0.0025 * 2**k for k in range(9)]},
    "control: SGD alone": _ALONE,
    "control: AdamW alone": _ALONE | _ADAMW,
    "control: Muon alone": _ALONE | _MUON,
    _LPF: {"radius": [0.0125, 0.025, 0.05, 0.1, 0.2]},
}
_OWN_FORM_START: dict[str, dict[str, Any]] = {
    "one size for all weights": {"radius": 0.02},
    "AdamW outside": _ADAMW_START,
    "Muon outside": _MUON_START,
    "control: AdamW alone": _ADAMW_START,
    "control: Muon alone": _MUON_START,
    _LPF: {"radius": 0.05},
    _IVON: {"learning_rate": 0.32, "ess": 1600.0, "b2": 0.999},
}
_IVON_AXES: dict[str, list[Any]] = {
    "learning_rate": _RATES,
    "ess": [100.0 * 2**k for k in range(12)],
    "weight_decay": _DECAYS,
    "b2": [0.99, 0.999, 0.9999],
}


def base_settings(scenario: str) -> Settings:
    """What all methods share in a scenario.

    Args:
      scenario: its name.

    Returns:
      Settings of a perceptron 196-100-10 on digits of 14 x 14 pixels, of a LeNet on
      CIFAR-10 of 16 x 16, or of an LSTM.

    Raises:
      SettingsError: if there is no such scenario.
    """
    settings = flat_minima.scenario_settings(scenario, SCENARIOS, METHODS, TUNING_SEEDS)
    # Of a small network several seeds together take little longer than one.
    together = settings.model == "mlp"
    seeds = TUNING_SEEDS if together else TUNING_SEEDS[:2]
    return dataclasses.replace(settings, together=together, seeds=seeds)


def make_grid(scenario: str, budget: int) -> Grid:
    """The search of a scenario.

    Args:
      scenario: its name.
      budget: configurations for each method.

    Returns:
      The grid.
    """
    settings = base_settings(scenario)
    axes = {name: dict(_AXES[name]) for name in METHODS}
    own_start = _STARTS.get(scenario, _OWN_START)
    start = {}
    for name, own in axes.items():
        if "num_steps" in own:
            # Of fewer outer steps a cosine is a few stairs that do not end near 0.
            most = settings.num_gradients // 30
            own["num_steps"] = [n for n in own["num_steps"] if n <= most]
        if scenario == "char_lstm" and name not in ("muon", "filter_muon"):
            rate = "effective_rate" if name == "entropy_sgd" else "learning_rate"
            own[rate] = _LSTM_ADAM_RATES if name == "adam" else _LSTM_RATES
        values = _START | own_start.get(name, {})
        start[name] = {axis: values[axis] for axis in own}
    return Grid(settings, flat_minima.SEEDS, {}, axes, {}, budget, start)


def form_grid(scenario: str, form: str) -> Grid:
    """The search of one form of the method.

    Args:
      scenario: its name.
      form: its name.

    Returns:
      The grid over rate, radius and decay.
    """
    name = "ivon" if form == _IVON else "filter_entropy"
    settings = with_fields(base_settings(scenario), name, FORMS[form])
    settings = dataclasses.replace(settings, optimizer=(name,))
    axes = _IVON_AXES if form == _IVON else _FORM_AXES | _OWN_AXES.get(form, {})
    values = _START | _OWN_START["filter_entropy"] | _OWN_FORM_START.get(form, {})
    start = {a: values[a] if values[a] in axes[a] else axes[a][0] for a in axes}
    return Grid(
        settings, flat_minima.SEEDS, {}, {name: axes}, {}, SEARCH_BUDGET, {name: start}
    )  # fmt: skip


def search_forms(scenario: str, out: pathlib.Path, console: Console) -> None:
    """Tries every form, on validation images alone; resumable.

    Args:
      scenario: its name.
      out: folder of `SCENARIO/forms.json` and of the searches.
      console: where progress goes.
    """
    settings = base_settings(scenario)
    experiment = Experiment(settings, make_task(settings))
    rows = []
    for number, form in enumerate(FORMS):
        grid = form_grid(scenario, form)
        path = out / scenario / "forms" / f"{number:02d}.json"
        results = search(grid, path, console, experiment)
        (name,) = grid.axes
        best, *_ = tune_report.ranked(grid, results, name)
        rows.append(
            {
                "form": form,
                "configurations": len(results),
                "untried": tune_report.untried(grid, results, name),
                "edges": tune_report.edges(grid, name, best),
                "best": best,
            }
        )
    content = {"scenario": scenario, "settings": settings, "rows": rows}
    comparison.write_json(out / scenario / "forms.json", content)


def compare(scenario: str, out: pathlib.Path, command: str, console: Console) -> None:
    """Tunes every method of a scenario and runs the fresh seeds; resumable.

    Args:
      scenario: its name.
      out: folder of the study.
      command: to be quoted in the page of the search.
      console: where progress goes.
    """
    grid = functools.partial(make_grid, scenario)
    comparison.compare(
        scenario, grid, out / scenario, command, console, also_by_loss=True
    )
