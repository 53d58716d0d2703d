"""The command `train`: all runs of an experiment, and what is kept of them."""

import datetime
import json
import pathlib
import time

from rich.console import Console

from entropy_optax.experiments import figure, meshes, networks, report
from entropy_optax.experiments.checks import mesh_shape
from entropy_optax.experiments.progress import ProgressDisplay
from entropy_optax.experiments.runner import Experiment, Member, Progress, Run
from entropy_optax.experiments.settings import Settings, SettingsError, metric
from entropy_optax.experiments.tasks import make_task


def train(settings: Settings, out: pathlib.Path | None, console: Console) -> int:
    """Runs every optimizer with every seed.

    Args:
      settings: checked settings.
      out: folder to write to, or None for a fresh one in `runs/`.
      console: where progress and the table go.

    Returns:
      The exit code, 0 or 130 after Ctrl-C.
    """
    start = time.monotonic()
    meshes.use_devices(settings)
    task = make_task(settings)
    experiment = Experiment(settings, task)
    folder = make_folder(out, settings)
    console.print(
        f"{settings.model} on {task.description}. Writing to {folder}",
        soft_wrap=True,
        highlight=False,
    )
    if settings.devices > 1:
        for name in settings.optimizer:
            replicas, batch = mesh_shape(settings, name)
            console.print(
                f"{name}: {settings.devices} devices, {replicas} along the replicas"
                f" and {batch} along each batch",
                highlight=False,
            )
    # Seeds outside, so that an interrupted experiment has every optimizer.
    seeds = [settings.seeds] if settings.together else [(s,) for s in settings.seeds]
    groups = [(name, group) for group in seeds for name in settings.optimizer]
    num_runs = len(settings.seeds) * len(settings.optimizer)
    display = ProgressDisplay(console, num_runs, settings.num_gradients)
    runs: list[Run] = []
    stopped = False
    with (folder / "metrics.jsonl").open("w") as metrics, display:

        def record(progress: Progress) -> None:
            metrics.write(json.dumps(report.to_json(progress)) + "\n")
            metrics.flush()  # what is known survives a kill
            display(progress)

        try:
            for optimizer, group in groups:
                members = [Member(seed, settings) for seed in group]
                runs += experiment.run_together(
                    optimizer, members, report=record, keep=networks.keeper(folder)
                )
        except KeyboardInterrupt:
            stopped = True
    # One order for table, figure and JSON: by optimizer, then by seed.
    runs.sort(key=lambda run: settings.optimizer.index(run.optimizer))
    title = f"{settings.model} on {settings.data}, {settings.num_gradients} gradients"
    if runs:
        report.write_results(
            folder / "results.json", settings, runs, complete=not stopped
        )
        by = metric(settings)
        figure.draw(folder / "error_vs_gradients.png", runs, title, by)
        console.print(report.make_table(report.summarize(runs), title))
    if stopped:
        finished = (
            f"; results.json and error_vs_gradients.png hold the {len(runs)} of"
            f" {num_runs} runs that had ended"
            if runs
            else ""
        )
        console.print(
            f"Stopped. Kept in {folder}: metrics.jsonl{finished}.",
            soft_wrap=True,
            highlight=False,
        )
        return 130
    console.print(
        f"Done in {time.monotonic() - start:.0f} s. Figure, results.json and"
        f" metrics.jsonl: {folder}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def make_folder(out: pathlib.Path | None, settings: Settings) -> pathlib.Path:
    """Makes the folder of a run, and tries that it can be written to.

    Args:
      out: the folder, or None for a fresh one in `runs/`.
      settings: name the fresh one.

    Returns:
      The folder.

    Raises:
      SettingsError: if it cannot be made or written to, or is not empty.
    """
    if out is None:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        base = pathlib.Path("runs") / f"{now}-{settings.model}-{settings.data}"
        out, count = base, 1
        while out.exists():
            count += 1
            out = base.with_name(f"{base.name}-{count}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise SettingsError(f"--out: {out} is not empty, wanted a new folder")
        (out / "metrics.jsonl").touch()
    except OSError as error:
        raise SettingsError(
            f"--out: cannot write to {out} ({error.strerror or error})"
        ) from error
    return out
