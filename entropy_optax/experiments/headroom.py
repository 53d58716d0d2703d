"""Learning-rate headroom: how wide the interval of good rates is."""

import dataclasses
import functools
import pathlib
from typing import Any

from rich.console import Console

from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.flat_minima import METHODS, tuned
from entropy_optax.experiments.grid import with_fields
from entropy_optax.experiments.hyperparameters import rate_field
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Member
from entropy_optax.experiments.tasks import make_task

# Doubling from .003 to beyond 1. Adam's and Schedule-Free's rates have another scale:
# a width counts doublings, so that a shift of the ladder does not matter.
RATES = tuple(0.003 * 2**k for k in range(10))
SCALES = {"adam": 1 / 32, "schedule_free": 8.0}
SEEDS = (200, 201, 202)


def measure(scenario: str, out: pathlib.Path, console: Console) -> None:
    """Runs every method at every rate, all else as it was tuned; resumable.

    Args:
      scenario: its name, tuned before.
      out: folder of the study.
      console: where progress goes.
    """
    base = tuned(scenario, out)
    task = make_task(base)
    memo = Memo(out / scenario / "headroom.part", (base, RATES, SCALES, SEEDS))
    rows: list[dict[str, Any]] = []
    for shape in ("cosine", "constant"):
        shaped = dataclasses.replace(base, rate_schedule=shape)
        experiment = Experiment(shaped, task)
        for name in METHODS:
            if name == "schedule_free" and shape == "constant":
                continue  # it has a schedule of its own
            field = rate_field(getattr(shaped, name))
            rates = [rate * SCALES.get(name, 1.0) for rate in RATES]
            members = [
                Member(seed, with_fields(shaped, name, {field: rate}))
                for rate in rates
                for seed in SEEDS
            ]
            find = functools.partial(_errors, experiment, name, members)
            errors = memo(f"{name}, {shape}", find)
            grouped = [errors[i : i + 3] for i in range(0, len(errors), 3)]
            means = [sum(values) / 3 for values in grouped]
            low, high = interval(means)
            console.print(
                f"{scenario} {shape} {name}: best {min(means):.2f} %, within one point"
                f" from {rates[low]:g} to {rates[high]:g}, {high - low} doublings"
            )
            rows.append(
                {
                    "method": name,
                    "rate_schedule": shape,
                    "rates": rates,
                    "validation_error": grouped,
                    "best": min(means),
                    "interval": [rates[low], rates[high]],
                    "doublings": high - low,
                    "cut_off": low == 0 or high == len(rates) - 1,
                }
            )
    content = {"scenario": scenario, "settings": base, "seeds": SEEDS, "rows": rows}
    write_json(out / scenario / "headroom.json", content)
    memo.remove()


def _errors(experiment: Experiment, name: str, members: list[Member]) -> list[float]:
    runs = experiment.run_together(name, members, test=False)
    return [run.validation_last.error for run in runs]


def interval(errors: list[float]) -> tuple[int, int]:
    """The widest run of neighbours of the best within one point of it.

    Args:
      errors: in per cent, one for each rate.

    Returns:
      Positions of the first and the last rate.
    """
    best = min(errors)
    low = high = errors.index(best)
    while low > 0 and errors[low - 1] <= best + 1:
        low -= 1
    while high < len(errors) - 1 and errors[high + 1] <= best + 1:
        high += 1
    return low, high
