"""The command `table1`: one run of one row of the paper's table, resumable."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from entropy_optax.experiments import report
from entropy_optax.experiments.checkpoints import Checkpoints
from entropy_optax.experiments.compiled import state_bytes
from entropy_optax.experiments.progress import ProgressDisplay
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Progress, Stopped
from entropy_optax.experiments.settings import (
    Settings,
    SettingsError,
    check,
    from_dict,
    load_preset,
    preset_names,
)
from entropy_optax.experiments.tasks import make_task

ROWS = ("mnistfc", "lenet", "allcnn", "word_lstm", "char_lstm")


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
        there = [n.removeprefix(f"{row}_") for n in preset_names() if n.startswith(row)]
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
    wanted = report.to_json(settings)
    finished = out / "result.json"
    if finished.exists():
        _same_settings(finished, json.loads(finished.read_text())["settings"], wanted)
        console.print(f"Done before: {finished}", soft_wrap=True, highlight=False)
        return 0
    _claim(out, wanted)
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
    display = ProgressDisplay(console, 1, settings.num_gradients)
    try:
        with (
            Checkpoints(out / "checkpoints") as checkpoints,
            _metrics(out, checkpoints.gradients, tensorboard) as write,
            display,
        ):
            if checkpoints.gradients:
                console.print(f"Going on after {checkpoints.gradients} gradients.")

            def record(progress: Progress) -> None:
                write(progress)
                display(progress)

            result = experiment.run(
                optimizer, seed, report=record, checkpoints=checkpoints
            )
    except Stopped:
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
    temporary = finished.with_suffix(".tmp")
    text = json.dumps(report.to_json(content), indent=1, allow_nan=False)
    temporary.write_text(text + "\n")
    temporary.replace(finished)
    shutil.rmtree(out / "checkpoints")
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
        differ = [key for key in wanted if found.get(key) != wanted[key]]
        raise SettingsError(
            f"--out: {path} was made with other settings ({', '.join(differ)}); choose"
            " another folder"
        )


def _claim(out: pathlib.Path, wanted: Any) -> None:
    path = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _same_settings(path, json.loads(path.read_text()), wanted)
        else:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(wanted, indent=1) + "\n")
            temporary.replace(path)
        (out / "metrics.jsonl").touch()
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
    lines = path.read_text().splitlines()
    # A kill may cut the last line.
    whole = [line for line in lines if line.endswith("}")]
    kept = [line for line in whole if json.loads(line)["gradients"] <= gradients]
    path.write_text("".join(line + "\n" for line in kept))
    writer = _summary_writer(out, gradients) if tensorboard else None
    with path.open("a") as metrics:

        def write(progress: Progress) -> None:
            metrics.write(json.dumps(report.to_json(progress)) + "\n")
            metrics.flush()  # what is known survives a kill
            if writer is not None:
                values = {"loss/training": progress.loss, "rate": progress.rate}
                if progress.validation is not None:
                    values["loss/validation"] = progress.validation.loss
                    values["error/validation"] = progress.validation.error
                for name, value in values.items():
                    writer.add_scalar(name, value, progress.gradients)

        yield write
    if writer is not None:
        writer.close()


def _summary_writer(out: pathlib.Path, gradients: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "--tensorboard: needs `pip install 'entropy-optax[tensorboard]'`"
        ) from error
    # TensorBoard hides what an earlier, killed part wrote beyond this point.
    return SummaryWriter(str(out / "tensorboard"), purge_step=gradients)
