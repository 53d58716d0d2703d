"""The command `measure`: a report of the network that a run has trained."""

import pathlib

import jax
from rich.console import Console
from rich.table import Table

from entropy_optax import measure
from entropy_optax.experiments import networks, objectives
from entropy_optax.experiments.settings import SettingsError


def run(
    folder: pathlib.Path,
    out: pathlib.Path | None,
    optimizer: str | None,
    seed: int | None,
    num_examples: int,
    temperature: float,
    console: Console,
) -> int:
    """Measures and writes `report.json` and three figures.

    Args:
      folder: of a finished run.
      out: where to write, by default into the run.
      optimizer: which of the run's networks.
      seed: which of the run's networks.
      num_examples: training examples to measure on.
      temperature: of local entropy.
      console: where the table and the progress go.

    Returns:
      The exit code, 0.

    Raises:
      SettingsError: if there is no such network, or it cannot be measured.
    """
    network = networks.load(folder, optimizer, seed)
    out = out or folder / "measure"
    try:
        found = objectives.objectives(
            network.task, network.params, network.model_state, num_examples
        )
        console.print(
            f"{network.settings.model} on {found.description}. Writing to {out}",
            soft_wrap=True,
            highlight=False,
        )
        report = measure.report(
            found.loss,
            network.params,
            error=found.error,
            temperature=temperature,
            description=f"{network.settings.model} on {found.description}",
            key=jax.random.key(0),
            console=console,
        )
    except measure.MeasureError as error:
        raise SettingsError(str(error)) from error
    report.save(out)
    console.print(_table(report))
    console.print(
        f"report.json, spectrum.png, noise.png, local_entropy.png: {out}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _table(report: measure.Report) -> Table:
    table = Table(title=report.description)
    table.add_column("what")
    table.add_column("value ± standard error", justify="right")
    table.add_row("parameters", str(report.num_params))
    table.add_row("loss, nats", f"{report.loss:.5f}")
    if report.error is not None:
        table.add_row("error, %", f"{100 * report.error:.2f}")
    ends = report.extremes
    if isinstance(ends, str):
        table.add_row("extreme eigenvalues", ends)
    else:
        table.add_row(
            "largest eigenvalue, residual",
            f"{ends.largest[0]:.4g}, {ends.largest_residuals[0]:.1g}",
        )
        table.add_row(
            "smallest eigenvalue, residual",
            f"{ends.smallest[0]:.4g}, {ends.smallest_residuals[0]:.1g}",
        )
    table.add_row("trace of the Hessian", str(report.spectrum.trace()))
    shares = report.shares
    for values in zip(
        shares.thresholds,
        shares.values,
        shares.standard_errors,
        shares.lower,
        shares.upper,
        strict=True,
    ):
        name = f"share of |eigenvalue| < {values[0]:g} [certain]"
        cell = "{1:.4f} ± {2:.4f} [{3:.3f}, {4:.3f}]".format(*values)
        table.add_row(name, cell)
    table.add_row("loss increase, noise of 10 % of each weight", str(report.sharpness))
    for gamma, estimate in report.local_entropies.items():
        table.add_row(f"local entropy Phi, gamma {gamma:g}", str(estimate))
    return table
