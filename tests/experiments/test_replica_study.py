"""The comparison of replicas end to end, and its table and figure."""

import json

import pytest
from rich.console import Console

from entropy_optax.experiments import (
    replica_study,
    results_page,
    results_replicas,
    study,
)
from entropy_optax.experiments.grid import load_grid
from entropy_optax.experiments.replica_study import Contender
from entropy_optax.experiments.results_format import against
from entropy_optax.experiments.settings import SettingsError
from entropy_optax.experiments.statistics import paired_bootstrap

QUIET = Console(quiet=True)
TINY = {
    "model": "mlp_small", "data": "tiny", "num_gradients": 24, "report_every": 12,
    "evaluate_every": 12, "batch_size": 4, "sgd": {"learning_rate": 0.05},
    "replicas": 3, "parle": {"num_steps": 4, "step_size": 0.05},
}  # fmt: skip


@pytest.fixture
def tried(data_folder, monkeypatch):
    """SGD, SGD on three devices, and Parle, on few images."""
    presets = {
        "quickstart": TINY,
        "wide_batch": TINY | {"batch_size": 12},
        "parle": TINY,
    }
    found = (
        Contender("quickstart", "sgd", 1),
        Contender("wide_batch", "sgd", 3),
        Contender("parle", "parle", 3),
    )
    load = lambda name: {"settings": presets[name]}
    monkeypatch.setattr(replica_study, "load_preset", load)
    monkeypatch.setattr(replica_study, "CONTENDERS", found)
    return found


def test_end_to_end(tried, tmp_path, monkeypatch):
    out = tmp_path / "results" / "replicas"
    # Stopped on the way, the same command goes on: no run is made twice.
    whole, calls = replica_study._run, []

    def stopping(experiment, optimizer, seed):
        if len(calls) == 7:
            calls.append("stopped")
            raise KeyboardInterrupt
        calls.append((optimizer, seed))
        return whole(experiment, optimizer, seed)

    monkeypatch.setattr(replica_study, "_run", stopping)
    assert study.run("replicas", [], out, "", QUIET) == 130
    assert study.run("replicas", [], out, "", QUIET) == 0
    assert len(calls) == 3 * len(replica_study.SEEDS) + 1
    assert study.run("replicas", [], out, "", QUIET) == 0
    assert len(calls) == 3 * len(replica_study.SEEDS) + 1
    assert {path.name for path in out.iterdir()} == {"replicas.json"}

    record = json.loads((out / "replicas.json").read_text())
    for row, contender in zip(record["rows"], tried, strict=True):
        assert row["optimizer"] == contender.optimizer
        assert [run["seed"] for run in row["runs"]] == [0, 1, 2, 3, 4]
        replicas = row["settings"].get("replicas", 1)
        assert {run["gradients"] for run in row["runs"]} == {24 * replicas}
        assert len({run["test_last"]["loss"] for run in row["runs"]}) == 5
    hyperparameters = record["rows"][-1]["settings"]["hyperparameters"]
    assert hyperparameters["num_steps"] == 4

    page = out / "README.md"
    page.write_text("<!-- replicas:begin -->\n<!-- replicas:end -->\n")
    (out.parent / "README.md").write_text("")
    results_page.write(tmp_path / "none", out.parent, QUIET)
    assert "| Parle, 3 replicas | 3 | 4 | 24 | 288 |" in page.read_text()
    assert (out / "replicas.png").read_bytes()[:4] == b"\x89PNG"


def test_another_record_on_the_way_is_refused(tried, tmp_path, monkeypatch):
    monkeypatch.setattr(replica_study, "_run", lambda *args: 1 / 0)
    (tmp_path / "replicas.part").write_text('{"basis": [], "results": {}}')
    with pytest.raises(SettingsError, match="holds results of other settings"):
        study.run("replicas", [], tmp_path, "", QUIET)


def test_a_part_without_scenarios_refuses_one(tmp_path):
    with pytest.raises(SettingsError, match="--scenario: replicas has none, got '500'"):
        study.run("replicas", ["500"], tmp_path, "", QUIET)


def row(preset, optimizer, devices, errors, **settings):
    score = lambda error: {"error": error, "loss": error / 10}
    return {
        "preset": preset,
        "optimizer": optimizer,
        "devices": devices,
        "settings": {"batch_size": 128, "num_gradients": 640} | settings,
        "runs": [
            {
                "seed": seed,
                "test_last": score(error),
                "test_chosen": score(error + 1),
                "validation_last": score(error + 2),
                "training_loss": error / 100,
                "curve": [[320, 2 * error], [640, error]],
            }
            for seed, error in enumerate(errors)
        ],
    }


RECORD = {
    "rows": [
        row("quickstart", "sgd", 1, [2.0, 2.1, 2.2, 2.3, 2.4]),
        row("wide_batch", "sgd", 3, [1.5, 1.4, 1.3, 1.7, 1.6], batch_size=384),
        row("parle", "parle", 3, [1.1, 1.2, 1.3, 1.4, 1.5], replicas=3),
    ]
}


def test_the_table_says_what_the_record_says():
    table = results_replicas.table(RECORD)
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:5]]
    sgd, wide, parle = lines
    assert sgd[:5] == ["SGD-Nesterov, 640 gradients", "1", "128", "640", "81,920"]
    assert wide[:5] == ["SGD-Nesterov, data parallel", "3", "384", "640", "245,760"]
    assert parle[:5] == ["Parle, 3 replicas", "3", "128", "640", "245,760"]
    assert parle[5:] == [
        *("1.30 ± 0.07", "2.30 ± 0.07", "3.30 ± 0.07", "0.0130 ± 0.0007", "-"),
    ]
    ours = [1.1, 1.2, 1.3, 1.4, 1.5]
    rivals = {0: [2.0, 2.1, 2.2, 2.3, 2.4], 1: [1.5, 1.4, 1.3, 1.7, 1.6]}
    cells = against(ours, rivals)
    assert (sgd[-1], wide[-1]) == (cells[0], cells[1])
    assert f"{paired_bootstrap(ours, rivals[1]).difference:+.2f}" in wide[-1]
    assert "over 5 seeds" in table


@pytest.mark.parametrize("contender", replica_study.CONTENDERS)
def test_the_contenders_are_compared_at_equal_work(contender):
    """As many gradients on each device, or as many examples in all, as Parle."""
    settings = replica_study._settings(contender)
    parle = replica_study._settings(replica_study.CONTENDERS[-1])
    assert contender.devices == (parle.replicas if contender.devices > 1 else 1)
    examples = settings.num_gradients * settings.batch_size
    whole = parle.num_gradients * parle.batch_size * parle.replicas
    if contender.optimizer == "parle":
        assert examples * settings.replicas == whole
    elif contender.devices > 1 or contender.preset == "three_times":
        assert examples == whole
    else:
        assert settings.num_gradients == parle.num_gradients
    same = ("model", "data", "rate_schedule", "num_train")
    assert all(getattr(settings, n) == getattr(parle, n) for n in same)
    assert not set(replica_study.SEEDS) & set(load_grid("parle_grid").settings.seeds)
