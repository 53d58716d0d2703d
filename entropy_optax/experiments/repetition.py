"""The tuned settings again, on other training sets and with other seeds.

The other parts differ in starts and orders of batches alone, on the training set that
the settings were tuned on.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from entropy_optax.experiments import report
from entropy_optax.experiments._variants import mislabel
from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.flat_minima import METHODS, tuned
from entropy_optax.experiments.grid import with_fields
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Member, last_test_scores
from entropy_optax.experiments.settings import Settings, SettingsError
from entropy_optax.experiments.tasks import make_task

# Of the first set; every set has its own, so that the sets are independent.
SEEDS = tuple(range(500, 504))
SCORES = ("test_error", "test_loss")
# Where Entropy-SGD runs as tuned on fewer wrong labels, too.
ELSEWHERE = {"wrong40": "wrong20", "wrong40_nodecay": "wrong20_nodecay"}


class Contender(NamedTuple):
    """What runs on every training set.

    Attributes:
      method: its name.
      tuned_on: the scenario that its settings come from.
      pull: whether it has the pull that it was tuned with.
      settings: of the experiment, with its own.
    """

    method: str
    tuned_on: str
    pull: bool
    settings: Settings


def contenders(scenario: str, out: pathlib.Path) -> list[Contender]:
    """What is compared.

    Args:
      scenario: its name, tuned before, as is the other one in `ELSEWHERE`.
      out: folder of the study.

    Returns:
      Every method, and Entropy-SGD without its pull and as tuned elsewhere.
    """
    own, name = tuned(scenario, out), "entropy_sgd"
    without = lambda settings: with_fields(settings, name, {"pull": 0.0})
    found = [Contender(method, scenario, True, own) for method in METHODS]
    found.append(Contender(name, scenario, False, without(own)))
    if other := ELSEWHERE.get(scenario):
        moved = dataclasses.replace(own, entropy_sgd=tuned(other, out).entropy_sgd)
        found.append(Contender(name, other, True, moved))
        found.append(Contender(name, other, False, without(moved)))
    return found


def measure(scenario: str, out: pathlib.Path, console: Console) -> None:
    """Runs all contenders on every training set but the first; resumable.

    Args:
      scenario: its name, tuned before.
      out: folder of the study.
      console: where progress goes.

    Raises:
      SettingsError: if there are fewer than five other training sets of that size.
    """
    tried = contenders(scenario, out)
    repeat(scenario, tuned(scenario, out), tried, out, console)


def measure_filters(scenario: str, out: pathlib.Path, console: Console) -> None:
    """Runs what `filter_compare` tuned on the other training sets; resumable.

    Args:
      scenario: its name; it has been compared.
      out: folder of the study.
      console: where progress goes.

    Raises:
      SettingsError: if it was not compared, or there are too few other training sets.
    """
    own = tuned(scenario, out, "filter_compare")
    tried = [Contender(name, scenario, True, own) for name in own.optimizer]
    repeat(scenario, own, tried, out, console)


def repeat(
    scenario: str,
    settings: Settings,
    tried: Sequence[Contender],
    out: pathlib.Path,
    console: Console,
) -> None:
    """Runs contenders on every training set but the first; resumable.

    Args:
      scenario: its name.
      settings: of the experiment on the first training set.
      tried: the contenders.
      out: folder of the study.
      console: where progress goes.

    Raises:
      SettingsError: if there are fewer than five other training sets of that size.
    """
    whole = dataclasses.replace(settings, num_train=None, label_noise=0.0)
    task = make_task(whole)
    images, labels = task.data
    size = settings.num_train or len(labels)
    # The first images are those of `compare`.
    starts = range(size, len(labels) - size + 1, size)
    if len(starts) < 5:
        raise SettingsError(
            f"--scenario: got {scenario}, of whose training sets {settings.data} has"
            f" {len(starts)} more, wanted 5 or more"
        )
    noise, classes = settings.label_noise, int(labels.max()) + 1
    noisy = lambda own: jnp.asarray(mislabel(np.asarray(own), noise, classes))
    sets = [(images[i : i + size], noisy(labels[i : i + size])) for i in starts]
    experiment = Experiment(settings, task)
    memo = Memo(out / scenario / "repetition.part", (tried, SEEDS, size, SCORES))

    def scores(method: str, own: Settings) -> dict[str, list[list[float]]]:
        found: dict[str, list[list[float]]] = {score: [] for score in SCORES}
        for i, data in enumerate(sets):
            members = [Member(seed + len(SEEDS) * i, own) for seed in SEEDS]
            # One compiled step serves all sets. The study's network has no BatchNorm,
            # whose statistics would still come from the task's first data.
            task.data = data
            own_scores = last_test_scores(experiment.run_together(method, members))
            found["test_error"].append([score.error for score in own_scores])
            found["test_loss"].append([score.loss for score in own_scores])
        return found

    rows = []
    for one in tried:
        name = f"{one.method} of {one.tuned_on}, pull {one.pull}"
        found = memo(name, functools.partial(scores, one.method, one.settings))
        row = one._asdict() | found
        del row["settings"]
        rows.append(row)
        means = report.estimate(np.mean(found["test_error"], axis=1).tolist())
        console.print(f"{scenario}: {name}: {means} %")
    content = {"scenario": scenario, "settings": settings, "seeds": SEEDS}
    content |= {"num_sets": len(sets), "rows": rows}
    write_json(out / scenario / "repetition.json", content)
    memo.remove()
