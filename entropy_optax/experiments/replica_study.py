"""Three replicas of Parle against SGD and Entropy-SGD, on one device and on three.

Parle is compared where a rival spends as many gradients on each device (one alone, and
three that share a batch three times as large) and where it spends as many in all.
"""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

from rich.console import Console

from entropy_optax.experiments import report
from entropy_optax.experiments.checks import check
from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.settings import Settings, from_dict, load_preset
from entropy_optax.experiments.tasks import make_task

SEEDS = tuple(range(5))


class Contender(NamedTuple):
    """What is compared.

    Attributes:
      preset: its tuned settings.
      optimizer: its name.
      devices: that it is meant for; all train on one here, which changes no result.
    """

    preset: str
    optimizer: str
    devices: int


CONTENDERS = (
    Contender("quickstart", "sgd", 1),
    Contender("quickstart", "entropy_sgd", 1),
    Contender("three_times", "sgd", 1),
    Contender("three_times", "entropy_sgd", 1),
    Contender("wide_batch", "sgd", 3),
    Contender("parle", "parle", 3),
)


def measure(out: pathlib.Path, console: Console) -> None:
    """Trains every contender with every seed; resumable.

    Args:
      out: folder of the record `replicas.json`.
      console: where progress goes.
    """
    tried = [(contender, _settings(contender)) for contender in CONTENDERS]
    memo = Memo(out / "replicas.part", (tried, SEEDS))
    rows = []
    for contender, settings in tried:
        experiment = Experiment(settings, make_task(settings))
        find = functools.partial(_run, experiment, contender.optimizer)
        name = f"{contender.optimizer} of {contender.preset}"
        runs = [memo(f"{name}, {s}", functools.partial(find, s)) for s in SEEDS]
        errors = report.estimate([run["test_last"]["error"] for run in runs])
        console.print(f"{name}: test error {errors} %", highlight=False)
        rows.append(contender._asdict() | {"settings": _own(settings), "runs": runs})
    write_json(out / "replicas.json", {"rows": rows})
    memo.remove()


def _settings(contender: Contender) -> Settings:
    settings = from_dict(Settings, load_preset(contender.preset)["settings"])
    settings = dataclasses.replace(
        settings, optimizer=(contender.optimizer,), seeds=SEEDS
    )
    check(settings)
    return settings


def _own(settings: Settings) -> dict[str, Any]:
    names = ("model", "data", "num_gradients", "batch_size", "rate_schedule")
    optimizer = settings.optimizer[0]
    own = {name: getattr(settings, name) for name in names}
    if optimizer == "parle":
        own["replicas"] = settings.replicas
    return own | {"hyperparameters": getattr(settings, optimizer)}


def _run(experiment: Experiment, optimizer: str, seed: int) -> dict[str, Any]:
    return report.to_json(experiment.run(optimizer, seed))
