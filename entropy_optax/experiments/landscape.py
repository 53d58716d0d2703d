"""The paper's Figure 2 and its relatives in two and many dimensions."""

import pathlib
from typing import Any

import numpy as np
from rich.console import Console

from entropy_optax import measure as instruments
from entropy_optax.experiments import landscape_nets, landscape_valleys
from entropy_optax.experiments.comparison import write_json

SCOPES = (1e-3, 5e-5)  # the paper's
TEMPERATURE = 1.0
DPI = 150


def measure(
    out: pathlib.Path,
    console: Console,
    num_runs: int = 1000,
    num_gradients: int = 4000,
) -> None:
    """Measures and draws all landscapes.

    Args:
      out: folder of the figures and of `landscape.json`.
      console: where progress goes.
      num_runs: starts in two dimensions.
      num_gradients: of each run there, and of each net.
    """
    out.mkdir(parents=True, exist_ok=True)
    line, figure = one_dimension()
    figure.savefig(out / "one_dimension.png", dpi=DPI)
    console.print(f"one dimension: the lowest points are at {line['lowest']}")
    landscape_valleys.paths_figure().savefig(out / "valleys.png", dpi=DPI)
    sweep, chosen = landscape_valleys.compare(num_runs, num_gradients, console)
    landscape_valleys.shares_figure(sweep).savefig(out / "shares.png", dpi=DPI)
    nets, figures = landscape_nets.compare(num_gradients, console)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=DPI)
    content = {
        "one_dimension": line,
        "two_dimensions": {
            "num_runs": num_runs,
            "num_gradients": num_gradients,
            "tuning_seed": landscape_valleys.TUNING_SEED,
            "seed": landscape_valleys.SEED,
            "chosen": chosen,
            "sweep": sweep,
        },
        "nets": nets,
    }
    write_json(out / "landscape.json", content)


def one_dimension() -> tuple[dict[str, Any], Any]:
    """Smooths the paper's landscape at its two scopes.

    Returns:
      Where the minima are, and the figure.
    """
    x = np.arange(1000)
    loss = instruments.paper_landscape(x)
    smoothed = {
        gamma: instruments.smoothed_landscape(
            loss, gamma=gamma, temperature=TEMPERATURE
        )
        for gamma in SCOPES
    }
    labels = {f"$-F$, $\\gamma$ = {g:g}": values for g, values in smoothed.items()}
    curves = {"f": loss} | {f"-F, gamma {g:g}": v for g, v in smoothed.items()}
    content = {
        "temperature": TEMPERATURE,
        "lowest": {name: int(values.argmin()) for name, values in curves.items()},
        "local_minima": {
            name: instruments.local_minima(values).tolist()
            for name, values in curves.items()
        },
    }
    return content, instruments.landscape_figure(x, loss, labels)
