"""Settings that were tuned on one scenario, unchanged on another, with fresh seeds."""

import dataclasses
import pathlib
from typing import Any

from rich.console import Console

from entropy_optax.experiments import report
from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.flat_minima import METHODS, tuned
from entropy_optax.experiments.grid import with_fields
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Member, last_test_errors
from entropy_optax.experiments.settings import Settings, SettingsError
from entropy_optax.experiments.tasks import make_task

SOURCE = "wrong20"
# Neither those of `compare` nor those of the ablations, whose results are known by now.
SEEDS = tuple(range(400, 410))


def measure(scenario: str, out: pathlib.Path, console: Console) -> None:
    """Runs every method as tuned on the scenario and on `SOURCE`; resumable.

    Args:
      scenario: its name, tuned before, as `SOURCE` is.
      out: folder of the study.
      console: where progress goes.

    Raises:
      SettingsError: if the scenario is `SOURCE`, or one of them was not compared.
    """
    if scenario == SOURCE:
        raise SettingsError(f"--scenario: got {SOURCE}, from which the settings come")
    own, source = tuned(scenario, out), tuned(SOURCE, out)
    experiment = Experiment(own, make_task(own))
    memo = Memo(out / scenario / "transfer.part", (own, source, SEEDS))
    rows: list[dict[str, Any]] = []

    def run(method: str, place: str, settings: Settings, *, pull: bool = True) -> None:
        members = [Member(seed, settings) for seed in SEEDS]
        errors = memo(
            f"{method} of {place}, pull {pull}",
            lambda: last_test_errors(experiment.run_together(method, members)),
        )
        row = {"method": method, "pull": pull, "tuned_on": place, "test_error": errors}
        rows.append(row)
        console.print(f"{scenario}: {method} of {place} {report.estimate(errors)} %")

    for name in METHODS:
        run(name, scenario, own)
        moved = dataclasses.replace(own, **{name: getattr(source, name)})
        run(name, SOURCE, moved)
        if name == "entropy_sgd":
            without = with_fields(moved, name, {"pull": 0.0})
            run(name, SOURCE, without, pull=False)
    content = {"scenario": scenario, "settings": own, "seeds": SEEDS, "rows": rows}
    write_json(out / scenario / "transfer.json", content)
    memo.remove()
