"""The subcommands of `entropy-optax`, as the command line shows them."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from entropy_optax.experiments.hyperparameters import OptimizerName
from entropy_optax.experiments.names import RowName
from entropy_optax.experiments.settings import Settings, preset_names
from entropy_optax.experiments.share import DistributedSettings


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
        "replicas",
        "filter_forms",
        "filter_compare",
        "filter_flatness",
        "filter_repetition",
    ]
    """What to run; spectra to smoothness are about geometry."""
    scenario: tuple[str, ...] = ()
    """Training sets, by default all of `compare` and the main ones of the others."""
    out: pathlib.Path | None = None
    """Folder of the records; by default results/flat_minima, results/measure for
    what is about geometry, results/replicas, or results/filter_entropy."""


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
