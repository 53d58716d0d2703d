"""The command line `entropy-optax`: one subcommand for each kind of work."""

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from entropy_optax.experiments.checks import check
from entropy_optax.experiments.data import DataError
from entropy_optax.experiments.distributed import DistributedSettings
from entropy_optax.experiments.hyperparameters import OptimizerName
from entropy_optax.experiments.names import RowName
from entropy_optax.experiments.settings import (
    Settings,
    SettingsError,
    from_dict,
    load_preset,
    preset_names,
)

_DESCRIPTION = """Entropy-SGD next to SGD and Adam, at equal numbers of gradients.

Examples:
  entropy-optax train --preset quickstart
  entropy-optax train --model mnistfc --optimizer sgd entropy_sgd --seeds 0 1 2 3 4
  entropy-optax train --preset quickstart --entropy-sgd.gamma 0
  ENTROPY_OPTAX_DATA=~/data entropy-optax train --data mnist --num-gradients 20000
  entropy-optax train --optimizer parle --replicas 3 --devices 4
  entropy-optax distribute --processes 2
  entropy-optax tune --grid quickstart_grid --out results/quickstart
  entropy-optax table1 --row lenet --optimizer entropy_sgd --seed 0
  entropy-optax study --part compare --scenario 500
  entropy-optax measure runs/table1/lenet/tuned-4880/entropy_sgd-0
  entropy-optax report"""


@dataclasses.dataclass(frozen=True)
class Train(Settings):
    """Train each optimizer with each seed; print a table, write a figure and JSON.

    The folder holds metrics.jsonl: one line per report_every gradients. Beside it are
    results.json with the settings, versions and every number of the table, and
    error_vs_gradients.png. The test set is read at the end of a run and decides
    nothing.
    """

    preset: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"Start from the settings of a preset ({', '.join(preset_names())});"
            " other flags override it, and --help then shows its values."
        ),
    ] = None
    out: pathlib.Path | None = None
    """Folder to write to; new or empty. By default runs/<time>-<model>-<data>."""


@dataclasses.dataclass(frozen=True)
class Distribute(DistributedSettings):
    """Train Parle on several processes of this machine, started together.

    Each process has a share of the replicas, or of each batch, reads its share of the
    data and writes its share of the checkpoints. Killed, it goes on bit for bit with
    the same command, and to rounding with another number of processes.
    """

    processes: int = 2
    """Processes, with one device each."""
    out: pathlib.Path = pathlib.Path("runs/distributed")
    """Folder of the run."""


@dataclasses.dataclass(frozen=True)
class Tune:
    """Choose each optimizer's settings on the validation split from an equal grid.

    Every optimizer gets the same number of configurations. Settings already in
    OUT/grid.json are not run again, so an interrupted search goes on where it was.
    OUT/README.md is the table; it says where the best lies on an edge of the grid.
    """

    grid: str = "quickstart_grid"
    """Name of a grid in presets/, or the path of such a file."""
    out: pathlib.Path = pathlib.Path("results/quickstart")
    """Folder for grid.json and README.md."""
    write_preset: pathlib.Path | None = None
    """Also write the chosen settings to this preset file."""


@dataclasses.dataclass(frozen=True)
class Table1:
    """Train one optimizer with one seed on one row of the paper's Table 1.

    The run's folder is OUT/ROW/SETTINGS-GRADIENTS/OPTIMIZER-SEED. It holds
    metrics.jsonl, checkpoints until the run has ended, and then result.json. A run
    that was stopped, by Ctrl-C or by a kill, goes on bit for bit with the same
    command. The test set is read once, at the end.
    """

    row: RowName
    """Network and data set."""
    optimizer: OptimizerName = "entropy_sgd"
    """Optimizer to train with."""
    seed: int = 0
    """Of initialisation, order of batches, dropout and noise."""
    budget: int | None = None
    """Gradients to take; by default the preset's."""
    settings: Literal["tuned", "paper", "short"] = "tuned"
    """Chosen by `tune` on the validation split; the paper's; or a short real run."""
    out: pathlib.Path = pathlib.Path("runs/table1")
    """Folder of all runs."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, to OUT/.../tensorboard."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Ask where flat minima should pay, on small training sets of shipped digits.

    Every part writes records below OUT. `compare` tunes all methods and runs ten fresh
    seeds; most others start from what it chose.
    """

    part: Literal[
        "compare",
        "headroom",
        "ablation",
        "transfer",
        "repetition",
        "stability",
        "spectra",
        "valleys",
        "landscape",
        "smoothness",
    ]
    """What to run; the last four are about geometry and write to results/measure."""
    scenario: tuple[str, ...] = ()
    """Training sets, by default all of `compare` and the main ones of the others."""
    out: pathlib.Path | None = None
    """Folder of the records; by default results/flat_minima or results/measure."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """Measure how wide the minimum of a trained network is.

    Writes report.json, spectrum.png, noise.png and local_entropy.png: the spectrum of
    the Hessian, the loss and the error under noise on the weights, local entropy over
    gamma, with standard errors, residuals or brackets.
    """

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of a finished run of `train` or `table1`."""
    out: pathlib.Path | None = None
    """Folder to write to; by default RUN/measure."""
    optimizer: OptimizerName | None = None
    """Which of the run's networks; by default the last optimizer's."""
    seed: int | None = None
    """Which of the run's networks; by default the first seed's."""
    num_examples: int = 200
    """Training examples to measure on, the first ones; time grows with them."""
    temperature: float = 0.01
    """Of local entropy."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Collect the runs of `table1`; write the tables and figures of all records."""

    runs: pathlib.Path = pathlib.Path("runs/table1")
    """Folder of finished runs, if there are any new ones."""
    results: pathlib.Path = pathlib.Path("results")
    """Folder of the records and of the page README.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments, by default those of the process.

    Returns:
      The exit code: 0, 2 for bad input, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True)
    try:
        command = _parse(argv)
        if isinstance(command, Tune):
            # Imported late: --help and bad flags need not wait for JAX and Flax.
            from entropy_optax.experiments import tune

            return tune.tune(
                command.grid, command.out, command.write_preset, argv, _console()
            )
        if isinstance(command, Distribute):
            from entropy_optax.experiments import distributed

            settings = _part_of(command, DistributedSettings)
            return distributed.launch(
                settings, command.processes, command.out, _console()
            )
        if isinstance(command, Table1):
            from entropy_optax.experiments import table1

            settings = table1.settings_of(
                command.row,
                command.settings,
                command.optimizer,
                command.seed,
                command.budget,
            )
            folder = (
                command.out
                / command.row
                / f"{command.settings}-{settings.num_gradients}"
                / f"{command.optimizer}-{command.seed}"
            )
            return table1.run(
                settings, folder, _console(), tensorboard=command.tensorboard
            )
        if isinstance(command, Measure):
            from entropy_optax.experiments import measure_run

            return measure_run.run(
                command.run,
                command.out,
                command.optimizer,
                command.seed,
                command.num_examples,
                command.temperature,
                _console(),
            )
        if isinstance(command, Report):
            from entropy_optax.experiments import results_page

            return results_page.write(command.runs, command.results, _console())
        if isinstance(command, Study):
            from entropy_optax.experiments import study

            return study.run(
                command.part,
                command.scenario,
                command.out,
                shlex.join(["entropy-optax", *argv]),
                _console(),
            )
        check(command)
        from entropy_optax.experiments import train

        return train.train(_part_of(command, Settings), command.out, _console())
    except (SettingsError, DataError) as error:
        errors.print(
            f"entropy-optax: error: {error}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 2
    except KeyboardInterrupt:
        errors.print("entropy-optax: stopped; nothing was written.", markup=False)
        return 130


def _parse(argv: Sequence[str]) -> Any:
    preset = _given_preset(argv)
    default = Train()
    if preset is not None:
        default = from_dict(Train, load_preset(preset)["settings"] | {"preset": preset})
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=default)]
        | Annotated[Distribute, tyro.conf.subcommand("distribute")]
        | Annotated[Tune, tyro.conf.subcommand("tune")]
        | Annotated[Table1, tyro.conf.subcommand("table1")]
        | Annotated[Study, tyro.conf.subcommand("study")]
        | Annotated[Measure, tyro.conf.subcommand("measure")]
        | Annotated[Report, tyro.conf.subcommand("report")]
    )
    return tyro.cli(
        commands,
        prog="entropy-optax",
        args=argv,
        description=_DESCRIPTION,
    )


def _given_preset(argv: Sequence[str]) -> str | None:
    # Before the real parsing, because a preset supplies the defaults of the flags.
    for position, argument in enumerate(argv):
        if argument.startswith("--preset="):
            return argument.partition("=")[2]
        if argument == "--preset" and position + 1 < len(argv):
            return argv[position + 1]
    return None


def _part_of(command: Any, cls: Any) -> Any:
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: getattr(command, name) for name in names})


def _console() -> Console:
    # In a log the width is unknown and 80 columns would break the table.
    console = Console()
    return console if console.is_terminal else Console(width=120)
