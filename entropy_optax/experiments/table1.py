"""The command `table1`: one run of one row of the paper's table, resumable."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from entropy_optax.experiments import networks, report
from entropy_optax.experiments.checkpoints import Checkpoints
from entropy_optax.experiments.checks import check
from entropy_optax.experiments.compiled import state_bytes
from entropy_optax.experiments.progress import ProgressDisplay
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Progress, Stopped
from entropy_optax.experiments.settings import (
    Settings,
    SettingsError,
    from_dict,
    load_preset,
    preset_names,
)
from entropy_optax.experiments.tasks import make_task


def settings_of(
    row: str, which: str, optimizer: str, seed: int, budget: int | None
) -> Settings:
    """Settings of a run.

    Args:
      row: of the table.
      which: preset of the row, `"tuned"`, `"paper"` or `"short"`.
      optimizer: its name.
      seed: of the run.
      budget: gradients, None for the preset's.

    Returns:
      Checked settings.

    Raises:
      SettingsError: if the row has no such preset or the budget does not fit.
    """
    name = f"{row}_{which}"
    if name not in preset_names():
        all_of_them = ("paper", "short", "tuned")
        there = [w for w in all_of_them if f"{row}_{w}" in preset_names()]
        raise SettingsError(
            f"--settings: got {which!r}, for {row} wanted one of {', '.join(there)}"
        )
    settings = from_dict(Settings, load_preset(name)["settings"])
    if budget is not None and (budget < 1 or budget % settings.report_every):
        raise SettingsError(
            f"--budget: got {budget}, for {row} wanted a multiple of"
            f" {settings.report_every}"
        )
    settings = dataclasses.replace(
        settings,
        optimizer=(optimizer,),
        seeds=(seed,),
        num_gradients=budget or settings.num_gradients,
        evaluate_every=min(settings.evaluate_every, budget or settings.evaluate_every),
    )
    check(settings)
    return settings


def run(
    settings: Settings, out: pathlib.Path, console: Console, *, tensorboard: bool
) -> int:
    """Trains once, or goes on where a run of the same settings was stopped.

    Args:
      settings: of one optimizer and one seed.
      out: folder of this run.
      console: where progress goes.
      tensorboard: whether to write its event files too.

    Returns:
      The exit code, 0 or 130 after Ctrl-C.

    Raises:
      SettingsError: if the folder cannot be written to, holds another run, or the disk
        has no room for the checkpoints.
    """
    finished = out / "result.json"
    if _claim(out, report.to_json(settings)):
        console.print(f"Done before: {finished}", soft_wrap=True, highlight=False)
        return 0
    task = make_task(settings)
    optimizer, seed = settings.optimizer[0], settings.seeds[0]
    _check_room(out, state_bytes(task, optimizer, settings))
    console.print(
        f"{settings.model} on {task.description}; {task.batches_per_epoch} minibatches"
        f" in an epoch. Writing to {out}",
        soft_wrap=True,
        highlight=False,
    )
    experiment = Experiment(settings, task)
    try:
        with (
            Checkpoints(out / "checkpoints") as checkpoints,
            _metrics(out, checkpoints.gradients, tensorboard) as write,
            ProgressDisplay(
                console, 1, settings.num_gradients, checkpoints.gradients
            ) as display,
        ):
            if checkpoints.gradients:
                console.print(f"Going on after {checkpoints.gradients} gradients.")

            def record(progress: Progress) -> None:
                write(progress)
                display(progress)

            result = experiment.run(
                optimizer,
                seed,
                report=record,
                checkpoints=checkpoints,
                keep=networks.keeper(out),
            )
    except (Stopped, KeyboardInterrupt):
        console.print(
            f"Stopped. The same command goes on from {out}",
            soft_wrap=True,
            highlight=False,
        )
        return 130
    content = {
        "settings": settings,
        "epochs": settings.num_gradients / task.batches_per_epoch,
        "versions": report.versions(),
        "machine": report.machine(),
        "run": result,
    }
    report.replace_json(finished, content)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    test = result.test_last
    assert test is not None
    console.print(
        f"Done: test error {test.error:.2f} %, loss {test.loss:.4f} nats after"
        f" {result.gradients} gradients. {finished}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _same_settings(path: pathlib.Path, found: Any, wanted: Any) -> None:
    if found != wanted:
        differ = [k for k in wanted | found if found.get(k) != wanted.get(k)]
        raise SettingsError(
            f"--out: {path} was made with other settings ({', '.join(differ)}); choose"
            " another folder"
        )


def _claim(out: pathlib.Path, wanted: Any) -> bool:
    """Makes the folder a run's own.

    Returns:
      Whether that run has ended.

    Raises:
      SettingsError: if the folder is another run's or cannot be written to.
    """
    path, finished = out / "settings.json", out / "result.json"
    try:
        if finished.exists():
            found = json.loads(finished.read_text())["settings"]
            _same_settings(finished, found, wanted)
            return True
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _same_settings(path, json.loads(path.read_text()), wanted)
        # Anew in any case: it tries that the folder can be written to.
        report.replace_json(path, wanted)
        (out / "metrics.jsonl").touch()
        return False
    except OSError as error:
        raise SettingsError(
            f"--out: cannot write to {out} ({error.strerror or error})"
        ) from error


def _check_room(out: pathlib.Path, one: int) -> None:
    # The old checkpoint goes after the new one is whole; metrics are small.
    needed = 2 * one + 2**24
    free = shutil.disk_usage(out).free
    if free < needed:
        raise SettingsError(
            f"--out: {out} has {free / 2**20:.0f} MiB free, the checkpoints need"
            f" {needed / 2**20:.0f} MiB"
        )


@contextlib.contextmanager
def _metrics(out: pathlib.Path, gradients: int, tensorboard: bool) -> Iterator[Any]:
    """Opens metrics.jsonl, without what is to be done again after a kill."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    # A kill may cut the last line.
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["gradients"] <= gradients]
    report.replace_text(path, "".join(kept))
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(path.open("a"))
        writer = None
        if tensorboard:
            writer = stack.enter_context(_summary_writer(out / "tensorboard"))
            # Its files lag behind, so that a kill leaves gaps: they are made anew.
            for line in kept:
                _add_scalars(writer, json.loads(line))

        def write(progress: Progress) -> None:
            line = report.to_json(progress)
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()  # what is known survives a kill
            if writer is not None:
                _add_scalars(writer, line)

        yield write


def _summary_writer(folder: pathlib.Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "--tensorboard: needs `pip install 'entropy-optax[tensorboard]'`"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))


def _add_scalars(writer: Any, line: dict[str, Any]) -> None:
    values = {"loss/training": line["loss"], "rate": line["rate"]}
    validation = line["validation"] or {}
    values |= {f"{name}/validation": value for name, value in validation.items()}
    for name, value in values.items():
        # JSON has no NaN.
        value = float("nan") if value is None else value
        writer.add_scalar(name, value, line["gradients"])
