"""The pattern search: within its budget, never twice, downhill, resumable."""

import dataclasses
import json

import pytest

from entropy_optax.experiments import grid as grids
from entropy_optax.experiments import tune_report
from entropy_optax.experiments.settings import Settings, SettingsError

RATES, DECAYS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32], [0.0, 0.1, 0.2, 0.3, 0.4]
BEST = (0.08, 0.3)
START = {"learning_rate": RATES[0], "weight_decay": DECAYS[0]}
AXES = {"learning_rate": RATES, "weight_decay": DECAYS}


def make_grid(budget):
    return grids.Grid(
        Settings(),
        (0,),
        {},
        {"sgd": AXES, "adam": AXES},
        {},
        budget,
        {"sgd": START, "adam": START},
    )


def point_of(entry):
    point = entry["hyperparameters"]
    return point["learning_rate"], point["weight_decay"]


def measure(chosen, optimizer):
    """A convex table, as an entry of `grid.json`."""
    group = getattr(chosen, optimizer)
    a = RATES.index(group.learning_rate) - RATES.index(BEST[0])
    b = DECAYS.index(group.weight_decay) - DECAYS.index(BEST[1])
    value = float(a * a + b * b + a * b)
    entry = {
        "optimizer": optimizer,
        "hyperparameters": dataclasses.asdict(group),
        "validation_error": [value],
        "validation_loss": [value],
    }
    return json.loads(json.dumps(entry))  # as from the file


def search(grid, optimizer, results):
    while (chosen := grids.next_configuration(grid, optimizer, results)) is not None:
        assert len(results) < 100, "no end"
        results.append(measure(chosen, optimizer))
    return results


def test_search_finds_the_least_of_a_convex_table():
    results = search(make_grid(20), "sgd", [])
    points = [point_of(entry) for entry in results]
    assert points[0] == (RATES[0], DECAYS[0])
    assert len(points) == len(set(points)) == 20
    assert BEST in points
    # Each new point is a neighbour of one tried before.
    for i, (rate, decay) in enumerate(points[1:], 1):
        away = [
            abs(RATES.index(rate) - RATES.index(r))
            + abs(DECAYS.index(decay) - DECAYS.index(d))
            for r, d in points[:i]
        ]
        assert min(away) == 1


@pytest.mark.parametrize("budget", [1, 2, 7, 30])
def test_budget_is_that_of_each_optimizer(budget):
    grid, results = make_grid(budget), []
    for optimizer in grid.axes:
        search(grid, optimizer, results)
    for optimizer in grid.axes:
        own = [point_of(e) for e in results if e["optimizer"] == optimizer]
        assert len(own) == len(set(own)) == budget


def test_search_leaves_for_a_better_neighbour_and_falls_back_to_the_next_best():
    grid, results = make_grid(30), []
    tried = []
    for _ in range(30):
        ranked = sorted(results, key=lambda e: e["validation_error"])
        chosen = grids.next_configuration(grid, "sgd", results)
        assert chosen is not None
        new = chosen.sgd.learning_rate, chosen.sgd.weight_decay
        if ranked:  # a neighbour of the best point that has an untried one
            for entry in ranked:
                around = tune_report.neighbours(grid, "sgd", entry["hyperparameters"])
                around = [(p["learning_rate"], p["weight_decay"]) for p in around]
                if free := [p for p in around if p not in tried]:
                    assert new == free[0]
                    break
        tried.append(new)
        results.append(measure(chosen, "sgd"))
    assert grids.next_configuration(grid, "sgd", results) is None


def test_neighbours_on_an_edge():
    corner = {"learning_rate": RATES[-1], "momentum": 0.9, "weight_decay": DECAYS[0]}
    found = tune_report.neighbours(make_grid(5), "sgd", corner)
    assert found == [
        corner | {"learning_rate": RATES[-2]},
        corner | {"weight_decay": DECAYS[1]},
    ]


def test_search_goes_on_from_what_is_there():
    grid = make_grid(20)
    whole = search(grid, "sgd", [])
    for kept in range(20):
        assert search(grid, "sgd", whole[:kept]) == whole
    # Results of another optimizer, or off the present axes, count for nothing.
    other = measure(dataclasses.replace(Settings(), adam=_on_axes("adam")), "adam")
    off = json.loads(json.dumps(whole[0]))
    off["hyperparameters"]["learning_rate"] = 5.0
    assert search(grid, "sgd", [other, off])[2:] == whole


def _on_axes(optimizer):
    group = getattr(Settings(), optimizer)
    return dataclasses.replace(group, learning_rate=RATES[1], weight_decay=DECAYS[1])


@pytest.mark.parametrize("budget", [None, 20])
def test_records_without_later_fields_are_not_run_again(budget):
    """A field that came after them had its default."""
    grid = make_grid(budget)
    whole = search(grid, "sgd", [])
    for entry in whole:
        del entry["hyperparameters"]["momentum"]
    assert grids.next_configuration(grid, "sgd", whole) is None


def test_infinite_losses_rank_last():
    grid = make_grid(3)
    results = search(grid, "sgd", [])[:1]
    results[0] |= {"validation_error": [None], "validation_loss": [None]}
    first = grids.next_configuration(grid, "sgd", results)
    assert first is not None
    results.append(measure(first, "sgd"))
    second = grids.next_configuration(grid, "sgd", results)
    assert second is not None
    at = first.sgd.learning_rate, first.sgd.weight_decay
    assert at == (RATES[1], DECAYS[0])
    assert second.sgd.learning_rate == RATES[2]  # from there, not from the start


CONTENT = {
    "settings": {"seeds": [100], "entropy_sgd": {"num_steps": 5}},
    "preset_seeds": [0],
    "budget": 4,
    "grid": {
        "sgd": {"learning_rate": [0.1, 0.2], "weight_decay": [0.0, 0.1]},
        "entropy_sgd": {"step_size": [0.1, 0.2, 0.4], "num_steps": [5, 20]},
    },
    "start": {
        "sgd": {"learning_rate": 0.1, "weight_decay": 0.0},
        "entropy_sgd": {"step_size": 0.1, "num_steps": 20},
    },
}


def load(tmp_path, content):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(content))
    return grids.load_grid(str(path))


def test_one_budget_may_have_products_of_different_sizes(tmp_path):
    grid = load(tmp_path, CONTENT)
    assert grid.budget == 4
    assert [len(grids.configurations(grid, name)) for name in grid.axes] == [4, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(budget=5), "wanted 5 settings or more of sgd, got 4"),
        (lambda c: c["start"].pop("sgd"), "start of sgd is not on its axes"),
        (
            lambda c: c["start"]["sgd"].update(learning_rate=0.3),
            "start of sgd is not on its axes",
        ),
        (
            lambda c: c["start"]["entropy_sgd"].update(gamma=1.0),
            "start of entropy_sgd is not on its axes",
        ),
        (
            lambda c: c["grid"]["entropy_sgd"].update(num_steps=[3, 5, 20]),
            "the 3 gradients of an update of entropy_sgd",
        ),
    ],
)
def test_wrong_searches(tmp_path, change, message):
    content = json.loads(json.dumps(CONTENT))
    change(content)
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, content)


@pytest.mark.parametrize("name", ["mnistfc_grid", "lenet_grid"])
def test_shipped_searches_have_one_budget(name):
    grid = grids.load_grid(name)
    assert grid.budget == 12
    assert {"sgd", "adam", "sam", "entropy_sgd"} <= set(grid.axes)
