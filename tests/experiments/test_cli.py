"""The command line end to end on a tiny budget, and what it says to bad input."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from entropy_optax.experiments import (
    checks,
    image_task,
    models,
    names,
    rates,
    report,
    runner,
    settings,
    table1,
    train,
)
from entropy_optax.experiments.cli import main
from entropy_optax.experiments.data import Split
from entropy_optax.experiments.tasks import make_task

OPTIMIZERS = ("sgd", "adam", "entropy_sgd")
TINY = (
    *("train", "--data", "tiny", "--model", "mnistfc", "--batch-size", "8"),
    *("--num-gradients", "12", "--evaluate-every", "4", "--report-every", "4"),
    *("--entropy-sgd.num-steps", "4", "--seeds", "0", "1"),
)


@pytest.fixture(autouse=True)
def small_net(monkeypatch):
    """The net's width costs time and tests nothing here."""
    small = functools.partial(models.MnistFC, features=(16,))
    monkeypatch.setattr(image_task, "MODELS", {**models.MODELS, "mnistfc": small})


def test_train_end_to_end(data_folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*TINY, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    files = {path.name for path in out.iterdir()}
    assert files == {
        "metrics.jsonl",
        "results.json",
        "error_vs_gradients.png",
        "networks",
    }
    assert str(out) in printed.replace("\n", "")
    assert (out / "error_vs_gradients.png").read_bytes()[:4] == b"\x89PNG"

    results = json.loads((out / "results.json").read_text())
    assert results["complete"] is True
    assert results["settings"]["seeds"] == [0, 1]
    assert set(results["machine"]) == {"cpu_count", "platform", "device"}
    assert {"jax", "optax", "flax", "entropy-optax"} <= set(results["versions"])
    assert len(results["runs"]) == 6
    # Counted by each optimizer itself, see methods.num_gradients.
    assert {run["gradients"] for run in results["runs"]} == {12}

    # The table, the summary and the runs hold the same numbers.
    for optimizer, label in zip(
        OPTIMIZERS, ("SGD-Nesterov", "Adam", "Entropy-SGD"), strict=True
    ):
        row = next(line for line in printed.splitlines() if f"│ {label} " in line)
        runs = [run for run in results["runs"] if run["optimizer"] == optimizer]
        for point in ("test_last", "test_chosen"):
            errors = [run[point]["error"] for run in runs]
            entry = results["summary"][optimizer][point]
            assert entry["n"] == 2
            assert entry["mean"] == pytest.approx(np.mean(errors))
            error = np.std(errors, ddof=1) / np.sqrt(2)
            assert entry["standard_error"] == pytest.approx(error)
            assert f"{entry['mean']:.2f} ± {entry['standard_error']:.2f}" in row
        for run in runs:
            lowest = min(error for _, error in run["curve"])
            assert run["validation_chosen"]["error"] == lowest
            at = [gradients for gradients, error in run["curve"] if error == lowest]
            assert run["chosen_gradients"] == at[0]
            assert [gradients for gradients, _ in run["curve"]] == [4, 8, 12]

    lines = [json.loads(s) for s in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * 3
    for optimizer in OPTIMIZERS:
        own = [x for x in lines if (x["optimizer"], x["seed"]) == (optimizer, 1)]
        assert [x["gradients"] for x in own] == [4, 8, 12]
        assert all(x["validation"]["error"] >= 0 for x in own)


TINY_SETTINGS = {
    "model": "mnistfc",
    "data": "tiny",
    "batch_size": 8,
    "num_gradients": 80,
    "evaluate_every": 40,
    "report_every": 4,
    "entropy_sgd": settings.EntropySGDSettings(num_steps=4),
}


def test_runs_are_reproducible_learn_and_share_a_compilation(data_folder):
    chosen = dataclasses.replace(settings.Settings(), **TINY_SETTINGS)
    experiment = runner.Experiment(chosen, make_task(chosen))
    for optimizer in OPTIMIZERS:
        first = experiment.run(optimizer, 3)
        again = experiment.run(optimizer, 3)
        other = experiment.run(optimizer, 4)
        assert first.curve == again.curve
        assert first.test_last == again.test_last
        assert first.validation_last != other.validation_last
        assert first.compile_seconds > 100 * again.compile_seconds
        assert first.test_last is not None
        assert first.test_last.error <= 20, optimizer  # 75 by chance
    # Another rate is an argument of the same program, and does something.
    slower = dataclasses.replace(chosen, sgd=settings.SGDSettings(learning_rate=0.01))
    run = experiment.run("sgd", 3, slower)
    assert run.compile_seconds < 0.1
    assert run.validation_last != experiment.run("sgd", 3).validation_last


def test_test_split_is_left_alone_while_tuning(data_folder):
    chosen = dataclasses.replace(settings.Settings(), **TINY_SETTINGS)
    task = make_task(chosen)
    assert isinstance(task, image_task.ImageTask)
    nothing: Any = None
    task.dataset = task.dataset._replace(test=Split(nothing, nothing))
    run = runner.Experiment(chosen, task).run("sgd", 0, test=False)
    assert run.test_last is None
    assert run.test_chosen is None


def test_minibatches_are_drawn_without_replacement():
    batches = image_task.minibatches(20, 6, seed=5)
    epochs = [np.concatenate([next(batches) for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 18
    assert epochs[0].tolist() != epochs[1].tolist()
    again = image_task.minibatches(20, 6, seed=5)
    np.testing.assert_array_equal(next(again), epochs[0][:6])


@pytest.mark.parametrize("shape", ["cosine", "step", "constant"])
def test_rates_have_one_shape(shape):
    chosen = dataclasses.replace(
        settings.Settings(), rate_schedule=shape, num_gradients=400
    )
    for gradients in (0, 100, 300, 380):
        shares = [
            rates.current_rate(name, chosen, gradients) / start
            for name, start in (
                ("sgd", chosen.sgd.learning_rate),
                ("adam", chosen.adam.learning_rate),
                ("entropy_sgd", chosen.entropy_sgd.step_size),
            )
        ]
        assert shares == pytest.approx([shares[0]] * 3, rel=1e-5)
    assert rates.current_rate("sgd", chosen, 0) == pytest.approx(
        chosen.sgd.learning_rate
    )


def test_ctrl_c_keeps_what_was_done(data_folder, tmp_path, capsys, monkeypatch):
    run = runner.Experiment.run_together

    def interrupted(self, optimizer, members, **options):
        if optimizer == "adam":
            raise KeyboardInterrupt
        return run(self, optimizer, members, **options)

    monkeypatch.setattr(runner.Experiment, "run_together", interrupted)
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 130
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "Stopped. Kept in" in printed
    assert "the 1 of 6 runs that had ended" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["complete"] is False
    assert [run["optimizer"] for run in results["runs"]] == ["sgd"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds"], "--seeds: got none"),
        (["--seeds", "1", "1"], "each may stand there once"),
        (["--seeds", "-1"], "got -1, wanted 0 or more"),
        (["--num-gradients", "13"], "wanted a multiple of --report-every 4"),
        (["--report-every", "6", "--num-gradients", "12"], "--evaluate-every: got 4"),
        (
            ["--entropy-sgd.num-steps", "3"],
            "the 3 gradients of an update of",
        ),
        (["--report-every", "0"], "--report-every: got 0, wanted 1 or more"),
        (["--num-gradients", "0"], "--num-gradients: got 0, wanted 1 or more"),
        (["--evaluate-every", "3"], "--evaluate-every: got 3, wanted a multiple"),
        (["--entropy-sgd.num-steps", "0"], "--entropy-sgd.num-steps: got 0"),
        (["--entropy-sgd.gamma", "-1"], "--entropy-sgd.gamma: got -1.0, wanted"),
        (["--sgd.momentum", "1"], "--sgd.momentum: got 1.0, wanted a number in [0, 1)"),
        (["--adam.learning-rate", "nan"], "--adam.learning-rate: got nan"),
        (["--batch-size", "49"], "--batch-size: got 49, tiny has 48"),
        (["--data", "nothing"], "no data set 'nothing' in $ENTROPY_OPTAX_DATA"),
        (["--preset", "fast"], "--preset: got 'fast', wanted one of"),
        (["--features", "8"], "--features: is for LSTMs"),
        (["--schedule-free.b1", "0"], "--schedule-free.b1: got 0"),
        (["--optimizer", "lookahead"], "the 5 gradients of an update of lookahead"),
        (["--clip-norm", "0"], "--clip-norm: got 0.0, wanted more than 0"),
        (["--model", "lenet"], "wants images of 18 x 18 pixels or more"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    data_folder, tmp_path, capsys, arguments, message
):
    assert main([*TINY, *arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("entropy-optax: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--model", "vgg"], ["--optimizer", "lion"]])
def test_unknown_names_are_listed(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main([*TINY, *arguments])
    assert caught.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_folder_must_be_writable_and_empty(data_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*TINY, "--out", str(tmp_path / "file" / "run")]) == 2
    assert "--out: cannot write to" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "results.json").write_text("{}")
    assert main([*TINY, "--out", str(tmp_path / "full")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_default_folder_is_fresh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [train.make_folder(None, settings.Settings()) for _ in range(2)]
    assert made[0] != made[1]
    assert re.fullmatch(r"\d{8}-\d{6}-lenet-mnist-10k(-2)?", made[0].name)


@pytest.mark.parametrize("command", ["train", "tune", "table1"])
def test_help_explains_each_flag(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    # Without the frame, at which lines break anywhere.
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    flags = {
        "train": ("--model", "--entropy-sgd.step-size", "--preset", "default: 640"),
        "tune": ("--grid", "--out", "--write-preset"),
        "table1": ("--row", "--optimizer", "--seed", "--budget", "--tensorboard"),
    }
    for flag in flags[command]:
        assert flag in text


def test_help_does_not_wait_for_jax():
    program = (
        "import sys\n"
        "from entropy_optax.experiments import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'flax' not in sys.modules\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_preset_is_valid_and_gives_its_sources():
    default = report.to_json(settings.Settings())
    for name in settings.preset_names():
        preset = settings.load_preset(name)
        chosen = settings.from_dict(settings.Settings, preset["settings"])
        checks.check(chosen)
        names, defaults = set(), set()
        for field, value in preset["settings"].items():
            group = field in settings.GROUPS
            for key, entry in value.items() if group else [(field, value)]:
                full = f"{field}.{key}" if group else field
                usual = default[field][key] if group else default[field]
                (defaults if entry == usual else names).add(full)
        # `tune` writes all settings; those left as they were need no source.
        written = "--write-preset" in preset["description"]
        needed = names if written else names | defaults
        assert needed <= set(preset["sources"]) <= names | defaults, name


def test_every_preset_of_a_row_suits_its_optimizers():
    others = {"quickstart", "three_times", "wide_batch", "parle"}
    rows = set(settings.preset_names()) - others
    assert {n.rpartition("_")[0] for n in rows} == set(names.ROWS)
    for name in rows:
        row, _, which = name.rpartition("_")
        own = settings.load_preset(name)["settings"]["optimizer"]
        # The windows of the texts are odd in number: not all optimizers can go on
        # whole epochs there.
        others = {"sgd", "adam", "lookahead", "ema", "schedule_free"}
        if not row.endswith("lstm"):
            others = set(settings.GROUPS)
        for optimizer in {*own, *others}:
            chosen = table1.settings_of(row, which, optimizer, 3, None)
            assert (chosen.optimizer, chosen.seeds) == ((optimizer,), (3,))


def test_preset_can_be_overridden(monkeypatch):
    seen = []
    monkeypatch.setattr(
        train, "train", lambda chosen, out, console: seen.append(chosen) or 0
    )
    preset = {"settings": {"num_gradients": 40, "sgd": {"learning_rate": 0.7}}}
    monkeypatch.setattr(
        "entropy_optax.experiments.cli.load_preset", lambda name: preset
    )
    assert main(["train", "--preset=any", "--sgd.momentum", "0.5"]) == 0
    assert seen[0].num_gradients == 40
    assert seen[0].sgd == settings.SGDSettings(learning_rate=0.7, momentum=0.5)
