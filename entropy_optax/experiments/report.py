"""From runs to numbers: the summary, the table and `results.json`."""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from entropy_optax.experiments.runner import Run
from entropy_optax.experiments.settings import Settings

LABELS = {
    "sgd": "SGD-Nesterov",
    "adam": "Adam",
    "sam": "SAM",
    "asam": "ASAM",
    "ivon": "IVON",
    "muon": "Muon",
    "filter_muon": "Filter-Entropy-Muon",
    "lookahead": "Lookahead",
    "ema": "EMA of SGD",
    "schedule_free": "Schedule-Free",
    "entropy_sgd": "Entropy-SGD",
    "entropy_adam": "Entropy-Adam",
    "parle": "Parle",
    "filter_entropy": "Filter-Entropy-SGD",
    "averaging_alone": "averaging alone",
    "reset_alone": "reset alone",
}
_PACKAGES = ("entropy-optax", "jax", "jaxlib", "optax", "flax", "numpy")


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
      mean: the mean.
      standard_error: sample standard deviation (ddof 1) over sqrt(n), None if n = 1.
      n: number of seeds.
    """

    mean: float
    standard_error: float | None
    n: int

    def __str__(self) -> str:
        """Formats with two decimals.

        Returns:
          For example `1.37 ± 0.03`.
        """
        if self.standard_error is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.standard_error:.2f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of independent values.

    Args:
      values: one for each seed.

    Returns:
      The estimate.
    """
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Estimate(float(np.mean(values)), error, n)


def summarize(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Aggregates runs over seeds.

    Args:
      runs: with test scores.

    Returns:
      For each optimizer, in the order of the runs: estimates of the test and validation
      error in per cent at both points, gradients and seconds per run.
    """
    summary: dict[str, dict[str, Any]] = {}
    for optimizer in dict.fromkeys(run.optimizer for run in runs):
        group = [run for run in runs if run.optimizer == optimizer]
        summary[optimizer] = {
            name: estimate([getattr(run, name).error for run in group])
            for name in (
                "test_last",
                "test_chosen",
                "validation_last",
                "validation_chosen",
            )
        }
        summary[optimizer] |= {
            "gradients": group[0].gradients,
            "seconds": estimate([run.seconds for run in group]),
            "compile_seconds": sum(run.compile_seconds for run in group),
        }
    return summary


def make_table(summary: dict[str, dict[str, Any]], title: str) -> Table:
    """Lays the summary out.

    Args:
      summary: from `summarize`.
      title: of the table.

    Returns:
      A table to print.
    """
    n = max((entry["test_last"].n for entry in summary.values()), default=0)
    spread = f"mean ± standard error, n = {n} seeds" if n > 1 else "one seed"
    table = Table(title=title, caption=f"{spread}; seconds without compilation")
    table.add_column("optimizer")
    for column in (
        "test error %, last point",
        "test error %, validation-chosen point",
        "gradients per run",
        "seconds per run",
        "compile s",
    ):
        table.add_column(column, justify="right")
    for optimizer, entry in summary.items():
        table.add_row(
            LABELS[optimizer],
            str(entry["test_last"]),
            str(entry["test_chosen"]),
            str(entry["gradients"]),
            f"{entry['seconds'].mean:.1f}",
            f"{entry['compile_seconds']:.1f}",
        )
    return table


def machine() -> dict[str, Any]:
    """What the numbers were measured on.

    Returns:
      Processor count, platform and device; no names of hosts or users.
    """
    import jax

    return {
        "cpu_count": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": jax.devices()[0].device_kind,
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on.

    Returns:
      Package name to version.
    """
    return {"python": platform.python_version()} | {
        package: importlib.metadata.version(package) for package in _PACKAGES
    }


def to_json(value: Any) -> Any:
    """Makes a value fit for strict JSON.

    Args:
      value: of dataclasses, named tuples, containers and scalars.

    Returns:
      The same of dicts, lists and scalars; numbers that are not finite become None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(dataclasses.asdict(value))
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_json(value._asdict())  # pyright: ignore[reportAttributeAccessIssue]  # named tuple
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in two moves, so that a kill leaves the old one or the new one.

    Args:
      path: of the file.
      text: all of it.
    """
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def replace_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an npz file likewise, without pickle.

    Args:
      path: of the file; its folder is made if missing.
      arrays: by name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    temporary.replace(path)


def replace_json(path: pathlib.Path, value: Any) -> None:
    """Writes a record likewise, as strict JSON.

    Args:
      path: of the file.
      value: see `to_json`.
    """
    text = json.dumps(to_json(value), indent=1, allow_nan=False)
    replace_text(path, text + "\n")


def write_results(
    path: pathlib.Path, settings: Settings, runs: Sequence[Run], *, complete: bool
) -> None:
    """Writes `results.json`: every number of the table and what it rests on.

    Args:
      path: the file.
      settings: of the experiment.
      runs: those that ended.
      complete: whether these are all.
    """
    results = {
        "complete": complete,
        "settings": settings,
        "versions": versions(),
        "machine": machine(),
        "summary": summarize(runs),
        "runs": list(runs),
    }
    path.write_text(json.dumps(to_json(results), indent=2, allow_nan=False) + "\n")
