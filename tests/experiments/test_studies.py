"""The studies of flat minima end to end, on few images and tiny budgets."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from entropy_optax.experiments import (
    ablation,
    comparison,
    flat_minima,
    headroom,
    image_task,
    models,
    repetition,
    report,
    runner,
    stability,
    study,
    transfer,
)
from entropy_optax.experiments.cli import main
from entropy_optax.experiments.image_task import minibatches
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.runs import Member, last_test_errors
from entropy_optax.experiments.settings import SettingsError
from entropy_optax.experiments.statistics import paired_bootstrap
from entropy_optax.experiments.tasks import make_task

FEW = ("sgd", "entropy_sgd")
TINY = {
    "data": "tiny",
    "num_train": 40,
    "label_noise": 0.4,
    "batch_size": 8,
    "num_gradients": 40,
    "report_every": 20,
    "evaluate_every": 40,
}
VARIANTS = {
    "rate": {"effective_rate": 1e-3},
    "decay": {"weight_decay": 0.3},
    "clip": {"clip_norm": 0.01},
}


def quiet():
    return Console(quiet=True)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def world(make_tiny, tmp_path_factory):
    """Few images, a net of eight units, few methods, and a budget of two."""
    folder = tmp_path_factory.mktemp("data")
    make_tiny(folder / "tiny")
    compile_step, compiled = runner.compile_step, {}

    def once(task, optimizer, settings, count):
        """The tasks differ in data alone, which is an argument of the program."""
        key = runner._program(optimizer, settings), count
        if key not in compiled:
            compiled[key] = compile_step(task, optimizer, settings, count)
        return compiled[key]

    small = functools.partial(models.MnistFC, features=(8,), dropout_rate=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTROPY_OPTAX_DATA", str(folder))
        patch.setattr(image_task, "MODELS", {"mlp": small})
        patch.setattr(flat_minima, "SCENARIOS", {"tiny": TINY, "500": TINY})
        for module in (runner, ablation, stability):
            patch.setattr(module, "compile_step", once)
        for module in (flat_minima, headroom, repetition, transfer):
            patch.setattr(module, "METHODS", FEW)
        patch.setattr(comparison, "FIRST_BUDGET", 2)
        patch.setattr(comparison, "LAST_BUDGET", 2)
        yield patch


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    assert study.run("compare", ["tiny"], out, "the command", quiet()) == 0
    return out


def test_compare_writes_its_records(compared):
    folder = compared / "tiny"
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "compare.json",
        "grid.json",
    }
    record = read(folder / "compare.json")
    assert set(record["runs"]) == set(FEW)
    assert record["budget"] == 2
    for name, runs in record["runs"].items():
        assert [run["seed"] for run in runs] == list(range(10))
        assert {run["gradients"] for run in runs} == {40}
        assert len({run["test_loss"] for run in runs}) == 10, name  # ten runs
    page = (folder / "README.md").read_text()
    assert "`the command`" in page
    assert "2 configurations" in page
    entries = read(folder / "grid.json")["results"]
    assert len(entries) == 2 * len(FEW)
    # The settings of the record are the best of the grid.
    for name in FEW:
        best = min(
            (e for e in entries if e["optimizer"] == name),
            key=lambda e: tuple(
                np.mean(e[f"validation_{by}"]) for by in ("error", "loss")
            ),
        )
        assert record["settings"][name] == best["hyperparameters"]


def test_tuned_is_what_compare_chose(compared, world):
    chosen = flat_minima.tuned("tiny", compared)
    record = read(compared / "tiny" / "compare.json")
    assert report.to_json(chosen) == record["settings"]
    assert chosen.seeds == tuple(range(10))
    assert chosen.num_gradients == 40


def test_parts_before_compare_are_an_error(world, tmp_path, capsys):
    for part in ("headroom", "ablation"):
        command = ["study", "--part", part, "--scenario", "tiny"]
        assert main([*command, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "compare.json: not found; run `--part compare` first" in error
        assert error.count("\n") == 1


def test_parts_amid_compare_are_an_error(compared, world, tmp_path):
    """A search that is going on has no best yet."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "grid.json").write_text((compared / "tiny" / "grid.json").read_text())
    with pytest.raises(SettingsError, match="run `--part compare` first"):
        flat_minima.tuned("tiny", tmp_path)


def test_headroom_end_to_end(compared, world, monkeypatch):
    monkeypatch.setattr(headroom, "RATES", (0.003, 0.3))
    monkeypatch.setattr(headroom, "METHODS", ("entropy_sgd",))
    assert study.run("headroom", ["tiny"], compared, "it", quiet()) == 0
    rows = read(compared / "tiny" / "headroom.json")["rows"]
    assert [(r["method"], r["rate_schedule"]) for r in rows] == [
        ("entropy_sgd", shape) for shape in ("cosine", "constant")
    ]
    assert all(r["rates"] == [0.003, 0.3] for r in rows)
    for row in rows:
        errors = np.array(row["validation_error"])
        assert errors.shape == (2, 3)
        assert not np.array_equal(errors[0], errors[1])  # the rate does something
    assert rows[0]["validation_error"] != rows[1]["validation_error"]


def test_ablation_end_to_end(compared, world, monkeypatch):
    few = lambda base: [(name, "a", fields) for name, fields in VARIANTS.items()]
    monkeypatch.setattr(ablation, "variants", few)
    monkeypatch.setattr(ablation, "x_or_mean", lambda settings, rate: {"rate": rate})
    assert study.run("ablation", ["tiny"], compared, "it", quiet()) == 0
    record = read(compared / "tiny" / "ablation.json")
    runs = read(compared / "tiny" / "compare.json")["runs"]["entropy_sgd"]
    # Seeds of its own; at those of `compare` the reference would be its runs.
    assert record["seeds"] == list(range(300, 310))
    assert record["reference"] != [run["test_error"] for run in runs]
    assert [row["fields"] for row in record["rows"]] == list(VARIANTS.values())
    for row in record["rows"]:
        assert len(row["test_error"]) == 10
        assert row["test_error"] != record["reference"]
        found = paired_bootstrap(row["test_error"], record["reference"])
        assert row["against_tuned"] == found._asdict()
    assert [entry["rate"] for entry in record["x_or_mean"]] == [0.25, 0.5, 1.0]


def test_ablation_tries_the_settings_of_other_scenarios(compared, tmp_path):
    record = read(compared / "tiny" / "compare.json")
    base = flat_minima.tuned("tiny", compared).entropy_sgd
    assert ablation.transfers("tiny", base, compared) == []
    changes = {"num_steps": 1 + base.num_steps, "weight_decay": 0.7}
    record["settings"]["entropy_sgd"] |= changes
    (tmp_path / "500").mkdir()
    (tmp_path / "500" / "compare.json").write_text(json.dumps(record))
    found = [("as tuned on", "500", changes)]
    assert ablation.transfers("tiny", base, tmp_path) == found


def test_transfer_end_to_end(compared, world, tmp_path, monkeypatch):
    record = read(compared / "tiny" / "compare.json")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "compare.json").write_text(json.dumps(record))
    with pytest.raises(SettingsError, match=r"wrong20.compare.json: not found"):
        transfer.measure("tiny", tmp_path, quiet())
    with pytest.raises(SettingsError, match="from which the settings come"):
        transfer.measure("wrong20", tmp_path, quiet())
    own = flat_minima.tuned("tiny", tmp_path).entropy_sgd
    changes = {"weight_decay": 0.03, "pull": 1.0}
    record["settings"]["entropy_sgd"] |= changes
    (tmp_path / "wrong20").mkdir()
    (tmp_path / "wrong20" / "compare.json").write_text(json.dumps(record))
    ran = []
    run_together = Experiment.run_together

    def spy(self, name, members, **options):
        runs = run_together(self, name, members, **options)
        assert [member.seed for member in members] == list(range(400, 410))
        assert all(member.settings is members[0].settings for member in members)
        ran.append(getattr(members[0].settings, name))
        return runs

    monkeypatch.setattr(Experiment, "run_together", spy)
    assert study.run("transfer", ["tiny"], tmp_path, "it", quiet()) == 0
    rows = read(tmp_path / "tiny" / "transfer.json")["rows"]
    assert [(r["method"], r["pull"], r["tuned_on"]) for r in rows] == [
        ("sgd", True, "tiny"),
        ("sgd", True, "wrong20"),
        ("entropy_sgd", True, "tiny"),
        ("entropy_sgd", True, "wrong20"),
        ("entropy_sgd", False, "wrong20"),
    ]
    assert all(len(row["test_error"]) == 10 for row in rows)
    assert rows[0]["test_error"] == rows[1]["test_error"]
    other = dataclasses.replace(own, **changes)
    assert ran[2:] == [own, other, dataclasses.replace(other, pull=0.0)]


def test_repetition_end_to_end(compared, world, tmp_path, monkeypatch):
    record = read(compared / "tiny" / "compare.json")
    record["settings"]["num_train"] = 8
    record["settings"]["entropy_sgd"]["pull"] = 0.1
    changes = {"weight_decay": 0.03, "pull": 1.0}
    for scenario, own in (("tiny", {}), ("500", changes)):
        record["settings"]["entropy_sgd"] |= own
        (tmp_path / scenario).mkdir()
        (tmp_path / scenario / "compare.json").write_text(json.dumps(record))
    monkeypatch.setattr(repetition, "ELSEWHERE", {"tiny": "500"})
    here, other = (flat_minima.tuned(n, tmp_path).entropy_sgd for n in ("tiny", "500"))
    ran, run_together = [], Experiment.run_together

    def spy(self, name, members, **options):
        runs = run_together(self, name, members, **options)
        assert all(member.settings is members[0].settings for member in members)
        group, seeds = getattr(members[0].settings, name), [m.seed for m in members]
        ran.append((group, seeds, self.task.data, last_test_errors(runs)))
        return runs

    monkeypatch.setattr(Experiment, "run_together", spy)
    assert study.run("repetition", ["tiny"], tmp_path, "it", quiet()) == 0
    found = read(tmp_path / "tiny" / "repetition.json")
    assert [(r["method"], r["tuned_on"], r["pull"]) for r in found["rows"]] == [
        ("sgd", "tiny", True),
        ("entropy_sgd", "tiny", True),
        ("entropy_sgd", "tiny", False),
        ("entropy_sgd", "500", True),
        ("entropy_sgd", "500", False),
    ]
    # Every row on the same five sets of eight images, which are all but the first.
    assert found["num_sets"] == 5
    assert all(np.shape(row["test_error"]) == (5, 4) for row in found["rows"])
    replace = dataclasses.replace
    clean = replace(flat_minima.base_settings("tiny"), num_train=None, label_noise=0.0)
    images, labels = make_task(clean).data
    for i in range(5):
        own = slice(8 * i + 8, 8 * i + 16)
        for row, (_, seeds, data, errors) in zip(found["rows"], ran[i::5], strict=True):
            assert seeds == list(range(500 + 4 * i, 504 + 4 * i))
            np.testing.assert_array_equal(data[0], images[own])
            assert np.sum(data[1] != labels[own]) == 3  # .4 of 8
            assert row["test_error"][i] == errors
    assert [group for group, *_ in ran[5::5]] == [
        here,
        replace(here, pull=0.0),
        other,
        replace(other, pull=0.0),
    ]
    assert len({str(row["test_error"]) for row in found["rows"]}) > 2


def test_repetition_wants_other_training_sets(compared, world, tmp_path):
    record = read(compared / "tiny" / "compare.json")
    (tmp_path / "tiny").mkdir()
    for size, left in ((None, 0), (12, 3)):
        record["settings"]["num_train"] = size
        (tmp_path / "tiny" / "compare.json").write_text(json.dumps(record))
        with pytest.raises(SettingsError, match=f"tiny has {left} more, wanted 5"):
            repetition.measure("tiny", tmp_path, quiet())


PARTS = ("compare", "headroom", "ablation", "transfer", "repetition", "stability")


@pytest.mark.parametrize("part", PARTS)
def test_a_stopped_part_goes_on(part, compared, world, tmp_path, monkeypatch):
    """It finds nothing twice, and ends where one that was not stopped ends."""
    few = lambda base: [(name, "a", fields) for name, fields in VARIANTS.items()]
    monkeypatch.setattr(ablation, "variants", few)
    monkeypatch.setattr(ablation, "x_or_mean", lambda settings, rate: {"rate": rate})
    monkeypatch.setattr(transfer, "SOURCE", "other")
    monkeypatch.setattr(headroom, "RATES", (0.003, 0.3))
    shrink(monkeypatch)
    record = read(compared / "tiny" / "compare.json")
    if part == "repetition":
        record["settings"]["num_train"] = 8
    for folder in ("whole", "stopped"):
        for scenario in ("tiny", "500", "other"):
            (tmp_path / folder / scenario).mkdir(parents=True)
            shutil.copy(compared / "tiny" / "grid.json", tmp_path / folder / scenario)
            if part != "compare":
                path = tmp_path / folder / scenario / "compare.json"
                path.write_text(json.dumps(record))
    found, memo, stop_at = [], Memo.__call__, 1000

    def spy(self, name, find):
        return memo(self, name, lambda: found.append(name) or find())

    class Stopping(Console):
        def print(self, *args, **kwargs):
            if len(found) >= stop_at and not str(args[0]).startswith("Stopped"):
                raise KeyboardInterrupt

    monkeypatch.setattr(Memo, "__call__", spy)
    chosen = [] if part == "stability" else ["tiny", "500"]
    run = lambda folder: study.run(part, chosen, tmp_path / folder, "it", Stopping())
    assert run("whole") == 0
    whole = found.copy()
    assert len(whole) > 2
    found.clear()
    stop_at = len(whole) // 2 + 1  # after the first scenario
    assert run("stopped") == 130
    assert stop_at <= len(found) < len(whole)
    stop_at = 1000
    assert run("stopped") == 0
    assert found == whole
    assert run("stopped") == 0
    assert found == whole
    assert not list(tmp_path.rglob("*.part"))
    names = sorted(
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole").rglob(f"{part}.json")
    )
    assert len(names) == (1 if part == "stability" else 2)
    for name in names:
        assert read(tmp_path / "stopped" / name) == read(tmp_path / "whole" / name)


def test_x_or_mean_of_one_outer_step(world, monkeypatch):
    """From one start the mean is the same at any rate, and x is on the way to it."""
    monkeypatch.setattr(ablation, "SEEDS", (0, 1, 2, 3))
    settings = dataclasses.replace(flat_minima.base_settings("tiny"), num_gradients=20)
    full, part = (ablation.x_or_mean(settings, rate) for rate in (1.0, 0.25))
    assert full["x"] == full["mean"]
    assert part["mean"] == full["mean"]
    assert part["x"] != part["mean"]
    assert (full["learning_rate"], part["learning_rate"]) == (1.0, 0.25)


def test_x_or_mean_at_rate_1_is_the_run_itself(compared, world, monkeypatch):
    """But for its rate, which stays."""
    monkeypatch.setattr(ablation, "SEEDS", (0, 1, 2))
    settings = flat_minima.tuned("tiny", compared)
    found = ablation.x_or_mean(settings, 1.0)
    assert found["x"] == found["mean"]
    constant = dataclasses.replace(settings, rate_schedule="constant")
    runs = Experiment(constant, make_task(constant)).run_together(
        "entropy_sgd", [Member(seed, constant) for seed in (0, 1, 2)]
    )
    assert found["x"] == [run.test_last.error for run in runs if run.test_last]


@pytest.fixture(scope="module")
def twins(world, tmp_path_factory):
    """The record of two pairs, and what their compiled steps were given."""
    out = tmp_path_factory.mktemp("stability")
    starts, batches = [], []
    compile_step = stability.compile_step

    def spy(*args):
        step = compile_step(*args)

        def init(traced, keys):
            arrays = step.init(traced, keys)
            starts.append(jax.tree.map(np.array, arrays["params"]))
            batches.append([])
            return arrays

        def advance(arrays, traced, data, indices):
            batches[-1].append(indices.copy())
            return step.advance(arrays, traced, data, indices)

        return step._replace(init=init, advance=advance)

    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(stability, "compile_step", spy)
        stability.measure(out, quiet(), num_gradients=40)
    return read(out / "stability.json"), starts, batches


CHANGES = ("held_out_mean", "held_out_max", "differing")


def shrink(patch):
    patch.setattr(stability, "NUM_PAIRS", 2)
    patch.setattr(stability, "NUM_TRAIN", 24)
    patch.setattr(stability, "RATES", (0.05, 0.1))
    patch.setattr(stability, "GAMMAS", (1.0,))
    patch.setattr(stability, "GROWTH_FROM", 20)


def test_twins_differ_in_one_example_only(twins):
    _, starts, batches = twins
    assert len(starts) == 8  # SGD, SAM, EMA and one gamma at two rates
    for start, own in zip(starts, batches, strict=True):
        for leaf in jax.tree.leaves(start):
            np.testing.assert_array_equal(leaf[0::2], leaf[1::2])
        kernels = [leaf for leaf in jax.tree.leaves(start) if leaf.ndim == 3]
        assert all(not np.array_equal(k[0], k[2]) for k in kernels)  # another pair
        indices = np.concatenate(own, axis=1)
        for pair in range(2):
            one, twin = indices[2 * pair], indices[2 * pair + 1]
            stream = minibatches(24, 8, pair)
            np.testing.assert_array_equal(one, [next(stream) for _ in one])
            assert one.max() < 24
            assert pair in one
            np.testing.assert_array_equal(twin, np.where(one == pair, 24 + pair, one))
    # SAM takes two gradients on each minibatch.
    counts = [sum(b.shape[1] for b in own) for own in batches]
    assert counts == [40, 40, 20, 20, 40, 40, 40, 40]


def test_stability_record(twins):
    record, _, _ = twins
    assert [(row["contender"], row["rate"]) for row in record["rows"]] == [
        (name, rate)
        for name in ("sgd", "sam", "ema", "entropy_sgd, gamma 1")
        for rate in (0.05, 0.1)
    ]
    for row in record["rows"]:
        assert all(len(row[n]) == 2 for n in ("distance", "path_length"))
        # The path ends where the record of its end is, and twins have parted before.
        path = row["path"]
        assert path["gradients"] == [20, 40]
        for name in (*CHANGES, "distance", "training_loss", "test_loss"):
            assert path[name][-1] == pytest.approx(np.mean(row[name]), rel=1e-4), name
            assert len(row[name]) == 2
            assert min(row[name]) > 0
        assert np.all(np.array(row["held_out_max"]) > row["held_out_mean"])
        spread = np.std(row["distance"], ddof=1) / 2**0.5
        assert path["distance_error"][-1] == pytest.approx(spread, rel=1e-3)
        # Both doublings are one: the exponents' mean is near that of the means.
        doubling = np.log2(path["distance"][1] / path["distance"][0])
        assert row["growth"][0] == pytest.approx(doubling, abs=0.3)
        for values in (row["distance"], path["held_out_mean"]):
            assert all(value == float(f"{value:.5g}") for value in values)
        assert min(row["distance"]) > 0
        # Twins that start together are no farther apart than two paths.
        assert np.all(np.array(row["path_length"]) > 0.01)
        assert np.all(np.array(row["training_loss"]) < 3)
    paths = {row["path_length"][0] for row in record["rows"]}
    assert len(paths) == len(record["rows"])


def test_twins_of_one_example_do_not_part(world, tmp_path, monkeypatch):
    """Otherwise the distance would measure something else as well."""
    shrink(monkeypatch)
    monkeypatch.setattr(stability, "RATES", (0.1,))

    def same(settings):
        task = make_task(settings)
        copy = lambda leaf: leaf.at[24:26].set(leaf[:2])
        task.data = tuple(copy(leaf) for leaf in task.data)
        return task

    monkeypatch.setattr(stability, "make_task", same)
    found = stability.contenders
    some = lambda settings: [found(settings)[i] for i in (0, 3)]  # SGD, ours
    monkeypatch.setattr(stability, "contenders", some)
    stability.measure(tmp_path, quiet(), num_gradients=40)
    rows = read(tmp_path / "stability.json")["rows"]
    assert [row["distance"] for row in rows] == [[0.0, 0.0]] * 2
    assert min(min(row["path_length"]) for row in rows) > 0
    # Nor do their losses; and what has not parted has no exponent of growth.
    assert [row[name] for row in rows for name in CHANGES] == [[0.0, 0.0]] * 6
    assert [row["growth"] for row in rows] == [None, None]


def test_path_points_are_whole_chunks_to_the_end():
    points = stability.path_points(3000)
    assert points[0] == 20
    assert points[-1] == 3000
    assert all(n % 20 == 0 for n in points)
    assert 15 < len(points) <= stability.NUM_POINTS
    assert len(set(points)) == len(points)


def test_stopped_at_a_loss_of_a_power_law_is_exact():
    gradients = np.array([20, 100, 1000])
    path = {
        "gradients": gradients,
        "training_loss": 2 / gradients,
        "distance": 3 * gradients**0.5,
        "held_out_mean": 0.1 * gradients**0.7,
    }
    for at in (21, 100, 700, 1000):
        found = stability.at_stopped_loss({"path": path}, 2 / at)
        assert found == pytest.approx(
            {"gradients": at, "distance": 3 * at**0.5, "held_out_mean": 0.1 * at**0.7}
        )
    # Before the first point, and never reached; with runs that were lost.
    assert stability.at_stopped_loss({"path": path}, 2 / 10) is None
    assert stability.at_stopped_loss({"path": path}, 2 / 2000) is None
    lost = path | {"training_loss": [None, None, None]}
    assert stability.at_stopped_loss({"path": lost}, 0.1) is None
