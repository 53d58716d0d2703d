"""The command line `entropy-optax`: one subcommand for each kind of work."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console

from entropy_optax.experiments.checks import check
from entropy_optax.experiments.commands import (
    Distribute,
    Measure,
    Report,
    Study,
    Table1,
    Train,
    Tune,
)
from entropy_optax.experiments.data import DataError
from entropy_optax.experiments.settings import (
    Settings,
    SettingsError,
    from_dict,
    load_preset,
)
from entropy_optax.experiments.share import DistributedSettings

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
