"""The grid search: equal, resumable, judged by validation, honest about edges."""

import functools
import json

import pytest

from entropy_optax.experiments import (
    grid as grids,
)
from entropy_optax.experiments import (
    image_task,
    models,
    runner,
    settings,
    tune_report,
)
from entropy_optax.experiments.cli import main

GRID = {
    "settings": {
        "model": "mnistfc",
        "data": "tiny",
        "seeds": [100, 101],
        "num_gradients": 8,
        "batch_size": 8,
        "evaluate_every": 4,
        "report_every": 4,
        "entropy_sgd": {"num_steps": 4},
    },
    "preset_seeds": [0, 1],
    "grid": {
        "sgd": {"learning_rate": [0.01, 0.1], "weight_decay": [0.0]},
        "adam": {"learning_rate": [0.001], "weight_decay": [0.1, 1.0]},
    },
    "sources": {"model": "a test"},
}


@pytest.fixture(autouse=True)
def small_net(monkeypatch):
    """The net's width costs time and tests nothing here."""
    small = functools.partial(models.MnistFC, features=(16,))
    monkeypatch.setattr(image_task, "MODELS", {"mnistfc": small})


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_tune_end_to_end_and_again(data_folder, tmp_path, capsys, monkeypatch):
    grid = write(tmp_path / "grid.json", GRID)
    out, preset = tmp_path / "out", tmp_path / "preset.json"
    arguments = ["tune", "--grid", grid, "--out", str(out)]
    assert main([*arguments, "--write-preset", str(preset)]) == 0
    results = json.loads((out / "grid.json").read_text())
    assert len(results["results"]) == 4
    for entry in results["results"]:
        assert len(entry["validation_error"]) == 2
        assert entry["gradients"] == [8, 8]

    written = json.loads(preset.read_text())
    chosen = settings.from_dict(settings.Settings, written["settings"])
    assert chosen.seeds == (0, 1)
    best = min(
        (e for e in results["results"] if e["optimizer"] == "sgd"),
        key=lambda e: (sum(e["validation_error"]), sum(e["validation_loss"])),
    )
    assert chosen.sgd.learning_rate == best["hyperparameters"]["learning_rate"]
    assert "validation error" in written["sources"]["sgd.learning_rate"]

    page = (out / "README.md").read_text()
    assert f"entropy-optax tune --grid {grid}" in page
    assert "2 configurations" in page
    # Two values: the best always lies on the edge, but not for one value or for 0.
    assert "**The best lies on the edge of the grid in learning_rate.**" in page
    assert "**The best lies on the edge of the grid in weight_decay.**" in page

    # Nothing is run again; a wider grid runs what is new.
    def forbidden(*args, **options):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(runner.Experiment, "run_together", forbidden)
        assert main(arguments) == 0
    wider = json.loads(json.dumps(GRID))
    wider["grid"]["sgd"]["learning_rate"] = [0.1, 0.3]
    assert (
        main(["tune", "--grid", write(tmp_path / "wider.json", wider), *arguments[3:]])
        == 0
    )
    assert len(json.loads((out / "grid.json").read_text())["results"]) == 5
    assert "| 0.01 |" not in (out / "README.md").read_text()

    # Results of other settings are not mixed in.
    other = json.loads(json.dumps(GRID))
    other["settings"]["num_gradients"] = 12
    path = write(tmp_path / "other.json", other)
    assert main(["tune", "--grid", path, *arguments[3:]]) == 2
    assert "holds results of other settings" in capsys.readouterr().err


def test_ctrl_c_and_resume(data_folder, tmp_path, monkeypatch, capsys):
    run, calls = runner.Experiment.run_together, []

    def interrupted(self, optimizer, members, **options):
        calls.append(members)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(self, optimizer, members, **options)

    grid = write(tmp_path / "grid.json", GRID)
    arguments = ["tune", "--grid", grid, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(runner.Experiment, "run_together", interrupted)
        assert main(arguments) == 130
    assert "The same command goes on" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "grid.json").read_text())["results"]
    assert len(kept) == 1
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out" / "grid.json").read_text())["results"]
    assert len(results) == 4
    assert results[0] == kept[0]


def test_edges_and_order():
    content = json.loads(json.dumps(GRID))
    content["grid"] = {
        "sgd": {"learning_rate": [0.1, 0.2, 0.4], "weight_decay": [0.0, 0.1]}
    }
    made = settings.from_dict(settings.Settings, content["settings"])
    grid = grids.Grid(made, (0,), {}, content["grid"], {})

    def entry(rate, decay, error, loss):
        point = {"learning_rate": rate, "momentum": 0.9, "weight_decay": decay}
        return {
            "optimizer": "sgd",
            "hyperparameters": point,
            "validation_error": [error, error],
            "validation_loss": [loss, loss],
        }

    results = [
        entry(0.1, 0.1, 2.0, None),  # None: not finite
        entry(0.2, 0.0, 2.0, 0.3),
        entry(0.4, 0.1, 2.0, 0.4),
        entry(0.8, 0.0, 1.0, 0.1),  # not of this grid
    ]
    order = tune_report.ranked(grid, results, "sgd")
    assert [e["hyperparameters"]["learning_rate"] for e in order] == [0.2, 0.4, 0.1]
    assert tune_report.edges(grid, "sgd", order[0]) == []
    assert tune_report.edges(grid, "sgd", order[1]) == ["learning_rate", "weight_decay"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g["grid"]["sgd"]["learning_rate"].append(1.0), "equal numbers"),
        (lambda g: g.update(preset_seeds=[100]), "both for tuning and for reporting"),
        (lambda g: g["settings"].update(num_gradients=9), "wanted a multiple"),
        (lambda g: g["settings"].update(rate=1), "unknown field rate"),
        (lambda g: g["grid"]["sgd"].update(rate=[1]), "sgd has no field 'rate'"),
        (lambda g: g["grid"].update(lion={}), "'lion' is not an optimizer"),
        (lambda g: g.pop("grid"), "is not a grid"),
    ],
)
def test_wrong_grids(tmp_path, capsys, change, message):
    content = json.loads(json.dumps(GRID))
    change(content)
    grid = write(tmp_path / "grid.json", content)
    assert main(["tune", "--grid", grid, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_missing_grid(capsys):
    assert main(["tune", "--grid", "nothing"]) == 2
    assert "--grid: cannot read" in capsys.readouterr().err


def test_shipped_grid_is_equal_for_all():
    grid = grids.load_grid("quickstart_grid")
    counts = {len(grids.configurations(grid, name)) for name in grid.axes}
    assert counts == {12}
    assert set(grid.axes) == {"sgd", "adam", "entropy_sgd"}
