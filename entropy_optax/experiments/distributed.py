"""Parle on several processes of JAX's own distributed runtime, started together."""

import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console

from entropy_optax.experiments import data
from entropy_optax.experiments.checks import check_hyperparameter, share_out
from entropy_optax.experiments.settings import SettingsError
from entropy_optax.experiments.share import (
    IMAGES,
    LABELS,
    SETTINGS,
    DistributedSettings,
    Share,
)


def check(settings: DistributedSettings, processes: int, num_images: int) -> None:
    """Checks that replicas, processes and batch divide.

    Args:
      settings: of the run.
      processes: their number.
      num_images: in the training set.

    Raises:
      SettingsError: naming the flag, what was given and what is wanted.
    """
    numbers = dataclasses.asdict(settings) | {"processes": processes}
    counts = ("processes", "replicas", "batch_size", "num_outer", "num_steps")
    least = dict.fromkeys((*counts, "save_every"), 1) | {"seed": 0}
    for name, lowest in least.items():
        if numbers[name] < lowest:
            flag = name.replace("_", "-")
            raise SettingsError(
                f"--{flag}: got {numbers[name]}, wanted {lowest} or more"
            )
    for name in ("step_size", "gamma", "coupling", "temperature"):
        check_hyperparameter(f"--{name.replace('_', '-')}", name, numbers[name])
    if "lstm" in settings.model:
        raise SettingsError(f"--model: got {settings.model}, wanted one for images")
    _, along_batch = share_out(processes, settings.replicas)
    if settings.batch_size % along_batch:
        raise SettingsError(
            f"--processes: {processes} processes and {settings.replicas} replicas"
            f" divide each batch into {along_batch}; --batch-size"
            f" {settings.batch_size} is no multiple of it"
        )
    if Share(num_images, settings).per_position < 1:
        raise SettingsError(
            f"--replicas, --batch-size: {settings.replicas} x {settings.batch_size}"
            f" examples at once, the data has {num_images}"
        )


def launch(
    settings: DistributedSettings,
    processes: int,
    out: pathlib.Path,
    console: Console,
) -> int:
    """Starts all processes on this machine and waits; goes on where it was stopped.

    `OUT/data` holds the training images as arrays of which each process reads its own
    rows, `OUT/checkpoints` what all of them write, `OUT/process-<i>.log` what each
    says, and at the end `OUT/params.npz` the params and `OUT/result.json` the error.

    Args:
      settings: of the run.
      processes: their number; a run may go on with another one.
      out: folder of the run.
      console: where progress goes.

    Returns:
      The exit code, 0, 1 if a process failed, or 130 after Ctrl-C.

    Raises:
      SettingsError: if the settings do not fit, or not those that `out` was begun with.
    """
    import fcntl  # not on Windows, where the rest of the command line works

    dataset = data.load(settings.data)
    check(settings, processes, len(dataset.train.labels))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(f"--out: another run writes to {out}") from None
        _prepare(settings, dataset, out)
        result = out / "result.json"
        if result.exists():
            console.print(f"Done before: {result}", soft_wrap=True, highlight=False)
            return 0
        start = time.perf_counter()
        try:
            failed = _work(processes, out)
        except KeyboardInterrupt:
            console.print("Stopped. The same command goes on from the last checkpoint.")
            return 130
        if failed is not None:
            log = out / f"process-{failed}.log"
            console.print(log.read_text()[-2000:], markup=False, highlight=False)
            console.print(f"Process {failed} failed: {log}", markup=False)
            return 1
        _evaluate(settings, dataset, out, processes, time.perf_counter() - start)
    content = json.loads(result.read_text())
    console.print(
        f"{content['gradients']} gradients of {settings.replicas} replicas on"
        f" {processes} processes: test error {content['test_error']:.2f} % at the"
        f" centre. {result}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def load_params(path: pathlib.Path, like: Any) -> Any:
    """Reads the params that a run ended with.

    Args:
      path: of `params.npz`.
      like: a tree of the same structure.

    Returns:
      The tree, of NumPy arrays with a leading axis of replicas.
    """
    import jax

    with np.load(path, allow_pickle=False) as arrays:
        leaves = [arrays[name] for name in sorted(arrays.files)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _prepare(
    settings: DistributedSettings, dataset: data.Dataset, out: pathlib.Path
) -> None:
    from entropy_optax.experiments import report

    folder = out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = dataclasses.asdict(settings)
    path = out / SETTINGS
    if path.exists():
        begun = json.loads(path.read_text())["settings"]
        other = sorted(name for name in wanted if wanted[name] != begun.get(name))
        if other:
            raise SettingsError(
                f"--out: {out} was begun with other settings ({', '.join(other)})"
            )
        return
    np.save(folder / IMAGES, dataset.train.images)
    np.save(folder / LABELS, dataset.train.labels)
    # Last, and whole: what it stands beside is complete.
    content = {"settings": wanted, "num_classes": dataset.num_classes}
    report.replace_json(path, content)


def free_address() -> str:
    """Finds where a coordinator can listen.

    Returns:
      `host:port` on this machine.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def one_device_environment() -> dict[str, str]:
    """Gives a process one CPU device, whatever this process was told.

    Returns:
      The environment variables of the process.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags).strip()
    one = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return os.environ | one


def _work(processes: int, out: pathlib.Path) -> int | None:
    # To the end of all, or of one that failed: then its number.
    address = free_address()
    workers: list[Any] = []
    try:
        for index in range(processes):
            with (out / f"process-{index}.log").open("w") as log:
                worker = subprocess.Popen(
                    _command(out, address, processes, index),
                    stdin=subprocess.PIPE,  # its end tells a worker that we are gone
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=one_device_environment(),
                )
            workers.append(worker)
        # One that dies leaves the others waiting for it, so look at all in turn.
        while True:
            codes = [worker.poll() for worker in workers]
            failed = [index for index, code in enumerate(codes) if code]
            if failed:
                return failed[0]
            if None not in codes:
                return None
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdin.close()


def _command(out: pathlib.Path, address: str, count: int, index: int) -> list[str]:
    module = "entropy_optax.experiments.worker"
    return [sys.executable, "-m", module, str(out), address, str(count), str(index)]


def _evaluate(
    settings: DistributedSettings,
    dataset: data.Dataset,
    out: pathlib.Path,
    processes: int,
    seconds: float,
) -> None:
    import jax

    from entropy_optax.experiments import report
    from entropy_optax.experiments.image_task import ImageTask
    from entropy_optax.experiments.settings import Settings

    task = ImageTask(
        Settings(model=settings.model, batch_size=settings.batch_size), dataset
    )
    params, model_state = task.init(jax.random.key(0))
    replicas = load_params(out / "params.npz", params)
    center = jax.tree.map(lambda leaf: leaf.mean(axis=0), replicas)
    score = task.score(task.variables(center, model_state), "test")
    content = {
        "settings": dataclasses.asdict(settings),
        "processes": processes,
        "gradients": settings.replicas * settings.num_outer * settings.num_steps,
        "test_error": float(score.error),
        "seconds_of_this_start": round(seconds, 1),
    }
    report.replace_json(out / "result.json", content)
