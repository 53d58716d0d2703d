"""The studies of flat minima, without training: scenarios, searches, formulas."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from toy_task import made_up_run

from entropy_optax.experiments import (
    ablation,
    comparison,
    flat_minima,
    headroom,
    report,
    stability,
    study,
    tune_report,
)
from entropy_optax.experiments.checks import check
from entropy_optax.experiments.cli import main
from entropy_optax.experiments.evaluate import Score
from entropy_optax.experiments.grid import configurations
from entropy_optax.experiments.hyperparameters import resolved
from entropy_optax.experiments.tasks import make_task

SCENARIOS = tuple(flat_minima.SCENARIOS)


def read(path):
    return json.loads(path.read_text())


# The scenarios as they are.


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_grids_are_fair_and_valid(scenario):
    grid = flat_minima.make_grid(scenario, comparison.LAST_BUDGET)
    assert tuple(grid.axes) == flat_minima.METHODS
    assert grid.budget == comparison.LAST_BUDGET
    # Nothing is reported on a seed that something was chosen on.
    others = {*flat_minima.SEEDS, *headroom.SEEDS}
    assert len(others) == 13
    assert not set(grid.settings.seeds) & others
    assert grid.settings.seeds == flat_minima.TUNING_SEEDS
    for name, axes in grid.axes.items():
        for axis, values in axes.items():
            assert values == sorted(set(values)), (name, axis)
            assert grid.start[name][axis] in values
            # The start that is meant is on its axis, no other one in its place.
            meant = flat_minima.START | flat_minima.OWN_START.get(name, {})
            if axis != "weight_decay" or not scenario.endswith("_nodecay"):
                assert grid.start[name][axis] == meant[axis]
        assert set(grid.start[name]) == set(axes)
        made = configurations(grid, name)
        assert len(made) >= comparison.LAST_BUDGET, name  # as many for all
        for settings in made[:: max(1, len(made) // 50)] + made[-1:]:
            check(dataclasses.replace(settings, seeds=flat_minima.SEEDS))
            decay = getattr(settings, name).weight_decay
            assert not (scenario.endswith("_nodecay") and decay)
        assert {s.entropy_sgd.temperature for s in made} == {0.0}


@pytest.mark.parametrize("scenario", ["wrong20", "wrong40", "wrong40_nodecay"])
def test_wrong_labels_are_trained_on_and_nothing_else(scenario):
    share = float(scenario[5:7]) / 100
    clean: Any = make_task(flat_minima.base_settings("1000"))
    noisy: Any = make_task(flat_minima.base_settings(scenario))
    assert noisy.dataset.train.images.shape == (1000, 14, 14, 1)
    np.testing.assert_array_equal(noisy.data[0], clean.data[0])
    labels, right = noisy.data[1], clean.data[1]
    assert np.mean(labels != right) == share
    np.testing.assert_array_equal(noisy.gather(noisy.data, jnp.arange(1000))[1], labels)
    for split in ("validation", "test"):
        for one, other in zip(
            getattr(noisy.dataset, split), getattr(clean.dataset, split), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    # What a gradient is taken of: the loss of the wrong label of a wrong example.
    params, state = noisy.init(jax.random.key(0))
    at = int(np.flatnonzero(labels != right)[0])
    variables = noisy.variables(params, state)
    key, number = jax.random.key(0), jnp.int32(0)
    batch = noisy.gather(noisy.data, jnp.array([at]))
    loss = float(noisy.loss(params, state, batch, number, key)[0])
    logits = noisy._model.apply(variables, batch[0], train=False)[0]
    logs = np.asarray(jax.nn.log_softmax(logits))
    assert loss == pytest.approx(-logs[labels[at]], rel=1e-5)
    assert loss != pytest.approx(-logs[right[at]], rel=1e-3)


def test_other_scenarios_are_what_they_say():
    sizes = {"500": 500, "1000": 1000, "batch1024": 8000}
    for scenario, size in sizes.items():
        settings = flat_minima.base_settings(scenario)
        task = make_task(settings)
        assert len(task.data[1]) == size
        batch = 1024 if scenario == "batch1024" else 100
        assert next(task.indices(0)).shape == (batch,)
        assert settings.num_gradients == (600 if scenario == "batch1024" else 3000)


# The search, over a landscape in place of training.


def landscape(optimizer, settings):
    """Distance from an optimum some steps away from the start, soonest found by SGD."""
    grid = flat_minima.make_grid("wrong40_nodecay", comparison.LAST_BUDGET)
    group = getattr(settings, optimizer)
    error = 1.0
    for axis, values in grid.axes[optimizer].items():
        away = 1 if optimizer == "sgd" else -3
        start = values.index(grid.start[optimizer][axis])
        wanted = min(max(start + away, 0), len(values) - 1)
        error += abs(values.index(getattr(group, axis)) - wanted)
    return error


class Fake:
    """An Experiment whose errors are read off the landscape; it can be stopped."""

    left: float = np.inf

    def __init__(self, settings, task):
        pass

    def run_together(self, optimizer, members, *, test=True):
        if Fake.left <= 0:
            raise KeyboardInterrupt
        Fake.left -= 1
        runs = []
        for seed, settings in members:
            score = Score(landscape(optimizer, settings) + seed / 1000, 0.5)
            tested = score if test else None
            runs.append(made_up_run(optimizer, seed, settings, score, tested))
        return runs


@pytest.fixture
def search(monkeypatch, tmp_path):
    """Compares three methods over the landscape, stopped after so many calls."""
    names = ("sgd", "entropy_sgd", "averaging_alone")
    monkeypatch.setattr(flat_minima, "METHODS", names)
    monkeypatch.setattr(comparison, "FIRST_BUDGET", 8)
    monkeypatch.setattr(comparison, "Experiment", Fake)
    monkeypatch.setattr(comparison, "make_task", lambda settings: None)
    versions, machine = report.versions(), report.machine()  # slow to ask for
    monkeypatch.setattr(report, "versions", lambda: versions)
    monkeypatch.setattr(report, "machine", lambda: machine)

    def compare(name, calls=np.inf):
        monkeypatch.setattr(Fake, "left", calls)
        scenario = "wrong40_nodecay"
        code = study.run(
            "compare", [scenario], tmp_path / name, "it", Console(quiet=True)
        )
        folder = tmp_path / name / scenario
        return code, folder, calls - Fake.left if calls < np.inf else None

    return compare


def by_method(folder):
    found = {}
    for entry in read(folder / "grid.json")["results"]:
        found.setdefault(entry["optimizer"], []).append(entry["hyperparameters"])
    return found


def test_every_method_gets_as_many_until_all_are_settled(search):
    code, folder, _ = search("whole")
    assert code == 0
    tried = by_method(folder)
    record = read(folder / "compare.json")
    assert record["budget"] > 8  # the first was not enough
    assert {len(points) for points in tried.values()} == {record["budget"]}
    assert record["unsettled"] == []
    # The optimum of each is found, and chosen.
    assert {run["test_error"] for run in record["runs"]["sgd"]} == {
        1 + seed / 1000 for seed in range(10)
    }
    assert all(min(r["test_error"] for r in g) == 1 for g in record["runs"].values())


def test_the_last_budget_is_the_last(search, monkeypatch):
    monkeypatch.setattr(comparison, "LAST_BUDGET", 16)
    code, folder, _ = search("cut")
    assert code == 0
    assert {len(points) for points in by_method(folder).values()} == {16}
    record = read(folder / "compare.json")
    assert record["budget"] == 16
    assert record["unsettled"] == ["entropy_sgd", "averaging_alone"]


def test_a_search_that_was_stopped_ends_as_if_it_had_not_been(search):
    """In rounds of any size, and between the tuning and the end."""
    _, folder, _ = search("whole")
    whole, record = by_method(folder), (folder / "compare.json").read_text()
    total = len(flat_minima.TUNING_SEEDS) * sum(map(len, whole.values()))
    for calls in (10, total - 6, total, total + 2):
        name = f"stopped-{calls}"
        code, _, done = search(name, calls)
        assert (code, done) == (130, calls)
        code, folder, done = search(name, 1e6)
        assert code == 0
        # Nothing runs again; the ten seeds of three methods are three calls.
        assert done == total + 3 - calls
        assert by_method(folder) == whole, calls
        assert (folder / "compare.json").read_text() == record


def test_headroom_sets_the_rates_and_nothing_else(search, monkeypatch):
    """Each method has its own rate; the schedule is the one that is named."""
    _, folder, _ = search("whole")
    out = folder.parent
    names = flat_minima.METHODS
    seen = []
    run_together = Fake.run_together

    def spy(self, optimizer, members, *, test=True):
        assert not test  # judged by the validation images
        seen.extend((optimizer, *member) for member in members)
        return run_together(self, optimizer, members, test=test)

    monkeypatch.setattr(Fake, "run_together", spy)
    monkeypatch.setattr(headroom, "METHODS", names)
    monkeypatch.setattr(headroom, "Experiment", Fake)
    monkeypatch.setattr(headroom, "make_task", lambda settings: None)
    monkeypatch.setattr(headroom, "RATES", flat_minima.RATES)  # the landscape's
    headroom.measure("wrong40_nodecay", out, Console(quiet=True))
    chosen = flat_minima.tuned("wrong40_nodecay", out)
    assert len(seen) == 2 * len(names) * 3 * len(headroom.RATES)
    for i, (name, seed, settings) in enumerate(seen):
        assert settings.rate_schedule == ("cosine", "constant")[i >= len(seen) // 2]
        field = "learning_rate" if name == "sgd" else "effective_rate"
        group = getattr(settings, name)
        own = {field: getattr(group, field)}
        assert dataclasses.replace(getattr(chosen, name), **own) == group
        assert own[field] == headroom.RATES[(i // 3) % len(headroom.RATES)]
        assert seed == headroom.SEEDS[i % 3]
    for row in read(folder / "headroom.json")["rows"]:
        # The landscape rises by one per doubling: one point is one to each side.
        errors = np.mean(row["validation_error"], axis=1)
        inside = np.array(row["rates"])[errors <= row["best"] + 1]
        assert row["best"] == min(errors)
        assert row["interval"] == [min(inside), max(inside)]
        assert row["doublings"] == len(inside) - 1
        at_end = {min(inside), max(inside)} & {row["rates"][0], row["rates"][-1]}
        assert row["cut_off"] == bool(at_end)


# The command, and what stands on what was chosen.


@pytest.mark.parametrize("part", ["compare", "headroom", "ablation", "transfer"])
def test_unknown_scenarios_are_refused_before_any_work(part, tmp_path, capsys):
    command = ["study", "--part", part, "--scenario", "1000", "elsewhere"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "--scenario: got 'elsewhere', wanted one of 500, 1000," in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("errors", "wanted"),
    [
        ([5.0], (0, 0)),
        ([9.0, 5.0, 9.0], (1, 1)),
        ([6.0, 5.0, 6.0, 6.01], (0, 2)),  # one point is within
        ([5.5, 7.0, 5.0, 5.5, 9.0], (2, 3)),  # a gap ends it
        ([5.0, 5.5, 5.9, 6.5], (0, 2)),
        ([90.0, 6.5, 5.9, 5.0], (2, 3)),
        ([90.0, 90.0], (0, 1)),
    ],
)
def test_interval_by_hand(errors, wanted):
    assert headroom.interval(errors) == wanted


# Ablation.


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_variants_are_valid_and_are_what_their_labels_say(scenario):
    settings = flat_minima.base_settings(scenario)
    decay = 0.0 if scenario.endswith("_nodecay") else 1e-3
    base = dataclasses.replace(
        settings.entropy_sgd, effective_rate=0.08, pull=0.1, weight_decay=decay
    )
    found = ablation.variants(base)
    # The table has one line for each.
    assert len({(question, label) for question, label, _ in found}) == len(found)
    assert any(q == "decay outside" for q, _, _ in found) == (decay > 0)
    for question, label, fields in found:
        own = ablation.changed(dataclasses.replace(settings, entropy_sgd=base), fields)
        check(own)
        group = own.entropy_sgd
        if question.startswith("clip"):
            assert (own.clip_norm, group) == (float(label), base)
        assert settings.num_gradients % group.num_steps == 0
        if question.startswith("step_size x gamma"):
            group = resolved(group)
            assert group.step_size * group.gamma == pytest.approx(float(label))
            assert group.gamma_growth == 0
        if question == "decay outside":
            assert group.weight_decay == 0
    if decay:
        # To first order x shrinks as much in an outer step as by L steps inside.
        own = {v: f for q, v, f in found if q == "decay outside"}
        full = own["1 times as strong"]
        shrink = 10 * 0.08 * decay * 20
        assert full["outer_weight_decay"] == pytest.approx(shrink)


# Stability.


def test_contenders_have_one_momentum_and_no_decay():
    found = stability.contenders(flat_minima.base_settings("500"))
    gammas = []
    for _, name, settings in found:
        group = getattr(settings, name)
        assert (group.momentum, group.weight_decay) == (0.9, 0.0)
        if name == "entropy_sgd":
            assert (group.num_steps, group.gamma_growth) == (20, 0)
            assert group.temperature == 0
            gammas.append(group.gamma)
    assert [name for _, name, _ in found[:3]] == ["sgd", "sam", "ema"]
    assert tuple(gammas) == stability.GAMMAS


def power_law(rates=(0.1, 0.2, 0.4, 0.8)):
    """Loss .02 / rate, of two pairs; distance 3 loss^-0.7."""
    rows = []
    for rate in rates:
        loss = 0.02 / rate
        distance = 3 * loss**-0.7
        rows.append(
            {
                "rate": rate,
                "training_loss": [0.5 * loss, 1.5 * loss],
                "distance": [0.9 * distance, 1.1 * distance],
            }
        )
    return rows


def test_matched_loss_of_a_power_law_is_exact():
    for rows in (power_law(), power_law()[::-1]):
        for loss in (0.199, 0.1, 0.07, 0.0251):
            found = stability.at_matched_loss(rows, loss)
            assert found == pytest.approx(3 * loss**-0.7, rel=1e-12)
        for loss in (0.201, 0.0249, 0.0):
            assert stability.at_matched_loss(rows, loss) is None


def test_matched_loss_leaves_diverged_runs_out():
    """Between a rate and one that diverged there is no loss to be matched."""
    rows = power_law()
    diverged = {"rate": 1.6, "training_loss": [None, 2.3], "distance": [None, 40.0]}
    assert stability.at_matched_loss([*rows, diverged], 0.5) is None
    assert stability.at_matched_loss([*rows, diverged], 0.1) is not None
    # A loss that rises again: only the rates up to the lowest loss count.
    back = {"rate": 1.6, "training_loss": [2.3], "distance": [40.0]}
    found = stability.at_matched_loss([*rows, back], 0.1)
    assert found == pytest.approx(3 * 0.1**-0.7)
    assert stability.at_matched_loss([*rows, back], 0.3) is None


def test_the_ranking_knows_the_neighbours_of_the_best():
    """As `compare` asks: the search stops when all of them have been tried."""
    grid = flat_minima.make_grid("500", 20)
    base = dataclasses.asdict(grid.settings.sgd)
    start = base | grid.start["sgd"]
    around = [start, *tune_report.neighbours(grid, "sgd", start)]
    assert len(around) == 5
    entries = [
        {
            "optimizer": "sgd",
            "hyperparameters": point,
            "validation_error": [1.0 + (i > 0)] * 2,
            "validation_loss": [0.1, 0.1],
        }
        for i, point in enumerate(around)
    ]
    assert tune_report.untried(grid, entries, "sgd") == []
    assert tune_report.untried(grid, entries[:-1], "sgd") == around[-1:]
