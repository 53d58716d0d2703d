"""The study in the geometry of the filters: its searches, records and tables."""

import dataclasses
import json
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.console import Console
from toy_task import made_up_run

from entropy_optax.experiments import (
    comparison,
    filter_flatness,
    filter_study,
    image_task,
    models,
    results_filter,
    results_filter_forms,
    study,
)
from entropy_optax.experiments.checks import check
from entropy_optax.experiments.evaluate import Score
from entropy_optax.experiments.grid import configurations, with_fields
from entropy_optax.experiments.runner import Experiment
from entropy_optax.experiments.settings import Settings, SettingsError, from_dict
from entropy_optax.experiments.tasks import make_task

AFTER = ("filter_flatness", "filter_repetition")


def read(path):
    return json.loads(path.read_text())


def quiet():
    return Console(quiet=True)


@pytest.mark.parametrize("scenario", filter_study.SCENARIOS)
def test_each_method_has_enough_to_choose_from(scenario):
    grid = filter_study.make_grid(scenario, comparison.LAST_BUDGET)
    assert tuple(grid.axes) == filter_study.METHODS
    assert not set(grid.settings.seeds) & set(grid.preset_seeds)
    assert len(grid.preset_seeds) == 10
    for name, axes in grid.axes.items():
        assert set(grid.start[name]) == set(axes)
        assert all(grid.start[name][axis] in axes[axis] for axis in axes)
        made = configurations(grid, name)
        assert len(made) >= comparison.LAST_BUDGET
        for settings in (made[0], made[-1]):
            check(settings)


def test_forms_differ_and_are_searched_alike():
    seen = []
    for form in filter_study.FORMS:
        grid = filter_study.form_grid("500", form)
        assert grid.budget == filter_study.SEARCH_BUDGET
        ((name, axes),), (start,) = grid.axes.items(), grid.start.values()
        assert all(start[axis] in axes[axis] for axis in axes)
        made = configurations(grid, name)
        assert len(made) >= grid.budget
        for settings in (made[0], made[-1]):
            check(settings)
        point = name, dataclasses.asdict(getattr(grid.settings, name)), axes, start
        assert point not in seen
        seen.append(point)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"splits": 0}, "--filter-entropy.splits: got 0, wanted 1 or more"),
        ({"perturbations": 0}, "--filter-entropy.perturbations: got 0"),
        ({"splits": 5, "antithetic": True}, "got 5, wanted an even number"),
        ({"num_steps": 5, "splits": 2}, "num-steps: got 5, wanted 1 with"),
        ({"num_steps": 5, "perturbations": 2}, "num-steps: got 5, wanted 1 with"),
        ({"num_steps": 5, "antithetic": True}, "num-steps: got 5, wanted 1 with"),
        ({"num_steps": 5, "radius": 0.0}, "--filter-entropy.radius: got 0, wanted"),
        ({"num_steps": 5, "temperature": 0.0}, "temperature: got 0, wanted more"),
    ],
)
def test_forms_that_do_not_exist_are_refused(fields, message):
    settings = with_fields(filter_study.base_settings("500"), "filter_entropy", fields)
    with pytest.raises(SettingsError, match=message):
        check(settings)
    settings = with_fields(filter_study.base_settings("500"), "filter_muon", fields)
    message = message.replace("filter-entropy", "filter-muon")
    with pytest.raises(SettingsError, match=message):
        check(settings)


def test_controls_and_rivals_that_do_not_exist_are_refused():
    base = filter_study.base_settings("500")
    for name, fields in (
        ("muon", {"radius": 0.1}),
        ("muon", {"outer": "sgd"}),
        ("ivon", {"ess": 0.0}),
        ("ivon", {"curvature": 0.0}),
    ):
        with pytest.raises(SettingsError, match=f"--{name}: wanted"):
            check(with_fields(base, name, fields))


def test_unknown_scenarios_are_refused(tmp_path):
    for part in ("filter_forms", "filter_compare", *AFTER):
        with pytest.raises(SettingsError, match="got 'none', wanted one of 500"):
            study.run(part, ["none"], tmp_path, "it", quiet())
    for part in AFTER:
        with pytest.raises(SettingsError, match="run `--part filter_compare` first"):
            study.run(part, ["500"], tmp_path, "it", quiet())


class Fake:
    """An Experiment whose errors are least at a radius of 0.29 and a rate of 0.04."""

    calls = 0
    seen: ClassVar[list[str]] = []

    def __init__(self, settings, task):
        pass

    def run_together(self, optimizer, members, *, test=True):
        Fake.calls += 1
        Fake.seen.append(optimizer)
        runs = []
        for seed, settings in members:
            group = getattr(settings, optimizer)
            rate = getattr(group, "learning_rate", None) or 0.04
            error = 10 + abs(np.log(rate / 0.04))
            error += abs(getattr(group, "radius", 0.29) - 0.29)
            loss = 0.5 + 0.1 * abs(np.log(rate / 0.02))
            score = Score(error + seed / 1000, loss)
            tested = score if test else None
            runs.append(made_up_run(optimizer, seed, settings, score, tested))
        return runs


def test_the_search_of_the_forms(monkeypatch, tmp_path):
    monkeypatch.setattr(filter_study, "Experiment", Fake)
    monkeypatch.setattr(filter_study, "make_task", lambda settings: None)
    few = {n: filter_study.FORMS[n] for n in ("plain", "per leaf")}
    monkeypatch.setattr(filter_study, "FORMS", few)
    assert study.run("filter_forms", ["500"], tmp_path, "it", quiet()) == 0
    record = read(tmp_path / "500" / "forms.json")
    assert [row["form"] for row in record["rows"]] == list(few)
    for row in record["rows"]:
        assert row["configurations"] == filter_study.SEARCH_BUDGET
        assert row["best"]["hyperparameters"]["radius"] == 0.3
        assert row["best"]["hyperparameters"]["learning_rate"] == 0.04
    assert record["rows"][1]["best"]["hyperparameters"]["geometry"] == "leaf"
    # Every configuration is kept, and nothing runs again.
    kept = [read(p)["results"] for p in sorted((tmp_path / "500/forms").iterdir())]
    assert [len(results) for results in kept] == [filter_study.SEARCH_BUDGET] * 2
    (tmp_path / "500" / "forms.json").unlink()
    before = Fake.calls
    assert study.run("filter_forms", ["500"], tmp_path, "it", quiet()) == 0
    assert Fake.calls == before
    table = results_filter_forms.forms({"500": record})
    assert "| per leaf | 10.11 ± 0.00 | 0.04, 0.3, 0" in table


@pytest.fixture
def two_methods(monkeypatch):
    """A comparison of two methods, without training."""
    monkeypatch.setattr(filter_study, "METHODS", ("sgd", "filter_entropy"))
    monkeypatch.setattr(comparison, "Experiment", Fake)
    monkeypatch.setattr(comparison, "make_task", lambda settings: None)
    monkeypatch.setattr(comparison, "FIRST_BUDGET", 8)


@pytest.mark.usefixtures("two_methods")
def test_the_comparison(monkeypatch, tmp_path):
    assert study.run("filter_compare", ["500"], tmp_path, "it", quiet()) == 0
    record = read(tmp_path / "500" / "compare.json")
    assert [run["seed"] for run in record["runs"]["sgd"]] == list(range(10))
    tried = read(tmp_path / "500" / "grid.json")["results"]
    for name in ("sgd", "filter_entropy"):
        own = [entry for entry in tried if entry["optimizer"] == name]
        assert len(own) == record["budget"]
    assert record["settings"]["filter_entropy"]["radius"] == 0.283
    # The loss is 0.5 + 0.1 |log(rate / 0.02)|, and its choice is another.
    assert record["settings"]["filter_entropy"]["learning_rate"] == 0.04
    by_loss = record["by_loss"]
    assert by_loss["settings"]["filter_entropy"]["learning_rate"] == 0.02
    for name in ("sgd", "filter_entropy"):
        (losses, others) = (
            [run["test_loss"] for run in runs[name]]
            for runs in (by_loss["runs"], record["runs"])
        )
        assert losses == [pytest.approx(0.5)] * 10
        assert others == [pytest.approx(0.5 + 0.1 * np.log(2))] * 10
    # With a method more only that one is run.
    monkeypatch.setattr(filter_study, "METHODS", ("sgd", "filter_entropy", "muon"))
    names = []
    monkeypatch.setattr(Fake, "seen", names)
    assert study.run("filter_compare", ["500"], tmp_path, "it", quiet()) == 0
    again = read(tmp_path / "500" / "compare.json")
    assert set(names) == {"muon"}
    assert set(again["runs"]) == {"sgd", "filter_entropy", "muon"}
    assert again["runs"]["sgd"] == record["runs"]["sgd"]
    assert again["by_loss"]["runs"]["sgd"] == by_loss["runs"]["sgd"]


@pytest.mark.usefixtures("two_methods")
@pytest.mark.parametrize("change", ["versions", "settings", "group"])
def test_runs_of_another_setting_or_version_are_not_kept(monkeypatch, tmp_path, change):
    assert study.run("filter_compare", ["500"], tmp_path, "it", quiet()) == 0
    path = tmp_path / "500" / "compare.json"
    record = read(path)
    for part in (record, record["by_loss"]):
        if change == "settings":
            part["settings"]["batch_size"] = 50
        elif change == "group":
            part["settings"]["sgd"]["weight_decay"] = 0.5
    if change == "versions":
        record["versions"]["jax"] = "0.1"
    path.write_text(json.dumps(record))
    monkeypatch.setattr(filter_study, "METHODS", ("sgd", "filter_entropy", "muon"))
    names = []
    monkeypatch.setattr(Fake, "seen", names)
    assert study.run("filter_compare", ["500"], tmp_path, "it", quiet()) == 0
    again = {"sgd"} if change == "group" else {"sgd", "filter_entropy"}
    assert set(names) == {"muon"} | again


def compared(
    offsets: dict[str, float], model: str = "mlp", loss: float = 0.0
) -> dict[str, Any]:
    """A record whose methods are so much above 10 % and 1 nat, give or take seeds."""
    noise = np.random.default_rng(0).normal(size=(len(filter_study.METHODS), 10)) / 50
    runs = {
        method: [
            {
                "seed": seed,
                "test_error": 10 + offsets.get(method, 0.0) + noise[i, seed],
                "test_loss": 1 + loss * offsets.get(method, 0.0) + noise[i, seed] / 9,
            }
            for seed in range(10)
        ]
        for i, method in enumerate(filter_study.METHODS)
    }
    return {
        "settings": {"model": model},
        "runs": runs,
        "budget": 32,
        "unsettled": [],
        "on_edge": {},
    }


def test_tables_and_the_goal():
    wins = compared({"filter_entropy": -1.0})
    ties = compared({})
    loses = compared({"filter_entropy": 1.0})
    # Text is judged by its likelihood alone.
    text = compared({"filter_entropy": -1.0}, "char_lstm_small", loss=1.0)
    records = {"500": wins, "1000": ties, "5000": loses, "char_lstm": text}
    table = results_filter.compare(records)
    errors, losses, _ = table.split("\n\n")
    assert "char_lstm" not in errors
    assert "char_lstm" in losses
    ours = next(line for line in errors.splitlines() if "Filter-Entropy" in line)
    assert ours.startswith("| Filter-Entropy-SGD | **9.")
    assert "± 0.01** |" in ours
    said = results_filter.comparisons(records)
    ours, with_muon = said.splitlines()[-3::2]
    assert ours.startswith("Filter-Entropy-SGD has a better")
    assert "in 2 of 4: 500, char_lstm." in ours
    assert ours.endswith("likelihood of text: 5000.")
    assert with_muon.startswith("Filter-Entropy-Muon has a better")
    assert "of the 6 rivals, in 0 of 4: none." in with_muon
    assert with_muon.endswith("likelihood of text: none.")
    assert "**-1.00 [" in said
    assert "p < .001**" in said


def test_a_win_in_likelihood_counts_and_one_rival_is_enough_to_lose_it():
    found = compared({"filter_entropy": -1.0}, loss=1.0)
    for run, rival in zip(
        found["runs"]["filter_entropy"], found["runs"]["sam"], strict=True
    ):
        run["test_error"] = rival["test_error"] + 1
    assert "in 1 of 1: 500." in results_filter.comparisons({"500": found})
    for run, rival in zip(
        found["runs"]["filter_entropy"], found["runs"]["sam"], strict=True
    ):
        run["test_loss"] = rival["test_loss"]
    assert "in 0 of 1: none." in results_filter.comparisons({"500": found})


def test_a_lost_run_of_a_rival_neither_wins_nor_spoils_the_comparison():
    """Its spread alone would be that of all the others, and the p-value near .4."""
    found = compared({"filter_entropy": -1.0}, loss=1.0)
    found["runs"]["sam"][3] |= {"test_error": 90.0, "test_loss": None}
    found["runs"]["sgd"][0] |= {"test_error": 90.0, "test_loss": None}
    for i in range(3):
        found["runs"]["ema"][i] |= {"test_error": 90.0, "test_loss": None}
    found["runs"]["adam"] = [
        run | {"test_error": 90.0, "test_loss": None} for run in found["runs"]["adam"]
    ]
    records = {"500": found}
    assert "| SAM | 18.00 ± 8.00 (1 lost) |" in results_filter.compare(records)
    assert "| SAM | not finite (1 lost) |" in results_filter.compare(records)
    said = results_filter.comparisons(records)
    assert "| SAM | **-1.00 [-1.0" in said
    assert "| Adam | too many lost |" in said
    assert "| EMA of SGD | too many lost |" in said
    assert "in 1 of 1: 500." in said
    assert "images at p < .005: 1: 500.)" in said
    assert "likelihood of text: none." in said.splitlines()[-3]


def test_our_own_lost_runs_stay():
    found = compared({"filter_entropy": -1.0}, loss=1.0)
    found["runs"]["filter_entropy"][0] |= {"test_error": None, "test_loss": None}
    said = results_filter.comparisons({"500": found})
    assert "| SAM | ours not finite |" in said
    assert "in 0 of 1: none." in said
    assert "likelihood of text: 500.\n" in said


def test_scenarios_that_were_compared_with_fewer_methods():
    found = compared({"filter_entropy": -1.0}, loss=1.0)
    for name in ("muon", "filter_muon"):
        del found["runs"][name]
    assert "Muon" not in results_filter.compare({"500": found})
    said = results_filter.comparisons({"500": found})
    assert "Muon" not in said
    both = {"500": found, "1000": compared({"filter_muon": -1.0})}
    assert "| Muon |  | 10." in results_filter.compare(both)
    said = results_filter.comparisons(both)
    assert "| Filter-Entropy-Muon minus, test error, % | 1000 |" in said
    assert "in 1 of 1: 1000." in said
    assert "Over Muon as well: 1: 1000." in said
    # Its control may be as good: that is said apart from the rivals of all.
    said = results_filter.comparisons(
        {"500": compared({"filter_muon": -1.0, "muon": -1.0})}
    )
    assert "in 1 of 1: 500. (With" in said
    assert "Over Muon as well: 0: none." in said


def test_records_are_read_by_scenario(tmp_path):
    assert results_filter.records(tmp_path) == {}
    (tmp_path / "500").mkdir()
    (tmp_path / "500" / "compare.json").write_text(json.dumps(compared({})))
    found = results_filter.records(tmp_path)
    assert set(found) == {"filter_compare", "filter_against"}
    path = results_filter.draw(tmp_path / "errors.png", found["filter_compare"])
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def tiny_net(monkeypatch, tmp_path, make_tiny):
    """Makes the scenario 500 of a net of eight units on tiny images, as compared."""
    make_tiny(tmp_path / "tiny")
    monkeypatch.setenv("ENTROPY_OPTAX_DATA", str(tmp_path))
    small = lambda **options: models.MnistFC(features=(8,), dropout_rate=0.0)
    monkeypatch.setattr(image_task, "MODELS", {"mlp": small})

    def chosen(num_train, optimizer, label_noise=0.0):
        settings = {
            "model": "mlp",
            "data": "tiny",
            "pool": 1,
            "num_train": num_train,
            "label_noise": label_noise,
            "batch_size": 8,
            "num_gradients": 40,
            "report_every": 20,
            "evaluate_every": 40,
            "optimizer": optimizer,
        }
        (tmp_path / "500").mkdir()
        path = tmp_path / "500" / "compare.json"
        path.write_text(json.dumps({"settings": settings}))

    return chosen


def test_flatness_of_the_ends(monkeypatch, tmp_path, tiny_net):
    """Every number is there."""
    monkeypatch.setattr(filter_flatness, "SEEDS", (0, 1))
    tiny_net(40, ["filter_entropy"])
    assert study.run("filter_flatness", ["500"], tmp_path, "it", quiet()) == 0
    record = read(tmp_path / "500" / "flatness.json")
    assert [(r["method"], r["seed"]) for r in record["rows"]] == [
        ("filter_entropy", 0),
        ("filter_entropy", 1),
    ]
    for row in record["rows"]:
        # In units of the filters biases have no curvature, and noise only hurts.
        assert 0 < row["filter_largest"] < row["filter_trace"] * 2
        assert row["largest"] > 0
        assert row["noise_0.5"] > row["noise_0.1"]
    assert "| Filter-Entropy-SGD |" in results_filter_forms.flatness({"500": record})
    found = {"500": record, "1000": record, **dict.fromkeys("abc", record)}
    path = results_filter_forms.draw(tmp_path / "flatness.png", found)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 5000  # more than an empty canvas


def test_flatness_is_correlated_with_the_error_by_ranks():
    methods = filter_study.METHODS[:4]
    rows = [
        dict.fromkeys(results_filter_forms._FLATNESS, 10.0**i)
        | {"method": name, "seed": seed, "test_error": i + 0.1 * seed}
        | {"trace": 5.0 - i, "largest": [2.0, 1.0, 3.0, 4.0][i]}
        for i, name in enumerate(methods)
        for seed in range(3)
    ]
    rows[0]["filter_trace"] = 1e9  # a lost run does not decide
    said = results_filter_forms.flatness({"500": {"num_examples": 9, "rows": rows}})
    (last,) = (x for x in said.splitlines() if x.startswith("| 500 | +"))
    # Spearman's of one exchange in four is 1 - 6 * 2 / (4 * 15).
    assert last.startswith("| 500 | +1.00 | -1.00 | +0.80 | +1.00 |")
    few = {"num_examples": 9, "rows": rows[:6]}
    assert "| 500 | +nan |" in results_filter_forms.flatness({"500": few})


def test_repetition_on_other_training_sets(monkeypatch, tmp_path, tiny_net):
    methods = ("sgd", "filter_entropy")
    seen, run = [], Experiment.run_together

    def spy(self, name, members, **options):
        seen.append((name, [m.seed for m in members], self.task.data))
        return run(self, name, members, **options)

    monkeypatch.setattr(Experiment, "run_together", spy)
    monkeypatch.setattr(filter_study, "METHODS", (*methods, "muon"))
    tiny_net(8, list(methods), label_noise=0.5)  # Muon was not compared
    assert study.run("filter_repetition", ["500"], tmp_path, "it", quiet()) == 0
    path, compared = (tmp_path / "500" / f"{n}.json" for n in ("repetition", "compare"))
    record = read(path)
    assert [row["method"] for row in record["rows"]] == list(methods)
    whole = dataclasses.replace(
        from_dict(Settings, read(compared)["settings"]), num_train=None, label_noise=0.0
    )
    images, labels = make_task(whole).data
    sets = len(labels) // 8 - 1
    assert record["num_sets"] == sets
    for row in record["rows"]:
        for score in ("test_error", "test_loss"):
            assert np.shape(row[score]) == (sets, 4)
        assert len(np.unique(row["test_loss"])) == 4 * sets
    # The same sets and seeds for all, the first set left out, half of the labels wrong.
    for k, (name, seeds, own) in enumerate(seen):
        i = k % sets
        assert name == methods[k // sets]
        assert seeds == list(range(500 + 4 * i, 504 + 4 * i))
        own_set = slice(8 * i + 8, 8 * i + 16)
        np.testing.assert_array_equal(own[0], images[own_set])
        assert np.sum(own[1] != labels[own_set]) == 4
    # It is done before, until another method has been compared.
    count = len(seen)
    assert study.run("filter_repetition", ["500"], tmp_path, "it", quiet()) == 0
    assert len(seen) == count
    settings = read(compared)["settings"] | {"optimizer": [*methods, "muon"]}
    compared.write_text(json.dumps({"settings": settings}))
    assert study.run("filter_repetition", ["500"], tmp_path, "it", quiet()) == 0
    assert [row["method"] for row in read(path)["rows"]] == [*methods, "muon"]


def test_the_table_of_the_repetition():
    """A set counts as the mean of its seeds, and a set that is lost is not hidden."""
    noise = np.random.default_rng(0).normal(size=(len(filter_study.METHODS), 7, 1)) / 50
    ups = {"filter_muon": -1.0, "muon": -1.0, "adam": 1.0}
    seeds = np.array([-0.3, -0.1, 0.1, 0.3])
    rows = []
    for name, own in zip(filter_study.METHODS, noise, strict=True):
        error = 10 + ups.get(name, 0.0) + own + seeds
        error[3] += 20.0 * (name == "sam")
        loss = 1 + own + seeds
        scores = {"test_error": error.tolist(), "test_loss": loss.tolist()}
        rows.append({"method": name} | scores)
    record = {"settings": {"model": "mlp"}, "num_sets": 7, "seeds": [0, 1, 2, 3]}
    said = results_filter.repetition({"500": record | {"rows": rows}})
    own = np.mean(rows[-1]["test_error"], axis=1)
    error = own.std(ddof=1) / np.sqrt(7)
    assert f"| Filter-Entropy-Muon | **{own.mean():.2f} ± {error:.2f}** |" in said
    assert "(1 lost) |" in next(x for x in said.splitlines() if x.startswith("| SAM |"))
    assert "over the training sets: 500 7; 4 seeds each" in said
    assert "Filter-Entropy-Muon has a better" in said
    assert "of the 6 rivals, in 1 of 1: 500. (With" in said
    assert "Over Muon as well: 0: none." in said
