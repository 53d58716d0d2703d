"""Is the minimum that wins the widest, too? Flatness of the tuned methods' ends."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
from rich.console import Console

import entropy_optax as eo
from entropy_optax import measure
from entropy_optax.experiments import flat_minima
from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.objectives import objectives
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.tasks import Task, make_task

SEEDS = tuple(range(5))
NUM_EXAMPLES, NUM_PROBES = 500, 30
NOISES = (0.1, 0.3, 0.5)
"""Relative to each filter's own norm."""


def run(scenario: str, out: pathlib.Path, console: Console) -> None:
    """Trains each method as it was tuned, and measures where it ends; resumable.

    Args:
      scenario: its name; it has been compared.
      out: folder of the study.
      console: where progress goes.

    Raises:
      SettingsError: if the scenario has not been compared to its end.
    """
    settings = flat_minima.tuned(scenario, out, "filter_compare")
    settings = dataclasses.replace(settings, seeds=SEEDS)
    task = make_task(settings)
    experiment = Experiment(settings, task)
    basis = (settings, NUM_EXAMPLES, NUM_PROBES, NOISES)
    memo = Memo(out / scenario / "flatness.part", basis)
    rows = []
    for method in settings.optimizer:
        for seed in SEEDS:
            find = functools.partial(_measured, experiment, task, method, seed)
            rows.append({"method": method, "seed": seed})
            rows[-1] |= memo(f"{method}, seed {seed}", find)
        console.print(f"{scenario}: flatness of {method}", highlight=False)
        # Each end compiles its own products; forty of a LeNet are more than LLVM holds.
        jax.clear_caches()
    content = {
        "scenario": scenario,
        "num_examples": NUM_EXAMPLES,
        "num_probes": NUM_PROBES,
        "noises": NOISES,
        "rows": rows,
    }
    write_json(out / scenario / "flatness.json", content)
    memo.remove()


def _measured(
    experiment: Experiment, task: Task, method: str, seed: int
) -> dict[str, Any]:
    ends: list[tuple[Any, Any]] = []
    keep = lambda name, seed, params, state: ends.append((params, state))
    end = experiment.run(method, seed, keep=keep)
    ((params, state),) = ends
    assert end.test_last is not None
    row = {
        "test_error": end.test_last.error,
        "test_loss": end.test_last.loss,
    }
    f = objectives(task, params, state, NUM_EXAMPLES).loss
    # The same probes and noise for all methods: differences are paired.
    keys = jax.random.split(jax.random.key(seed), 3)
    row["training_loss"] = float(jax.jit(lambda f, p: f(p))(f, params))
    g, y = measure.in_geometry(f, params, eo.filter_geometry())
    for name, function, at in (("", f, params), ("filter_", g, y)):
        traces = measure.traces(function, at, key=keys[0], num_probes=NUM_PROBES)
        row[f"{name}trace"] = traces.trace.value
        ends_of = measure.extreme_eigenvalues(
            function, at, key=keys[1], num_smallest=0, tolerance=1e-3
        )
        row[f"{name}largest"] = float(ends_of.largest[0])
    curve = measure.noise_curve(f, params, NOISES, kind="filter", key=keys[2])
    for i, noise in enumerate(NOISES):
        row[f"noise_{noise:g}"] = curve.increase(i).value
    return row
