"""Networks at equal training loss, their flatness, and spectra next to the paper's."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from rich.console import Console

from entropy_optax import measure
from entropy_optax.experiments import (
    matched_loss,
    results_page,
    spectra,
    statistics,
    stops,
    study,
    valleys,
)
from entropy_optax.experiments.evaluate import Score
from entropy_optax.experiments.matched_loss import Contender
from entropy_optax.experiments.objectives import objectives
from entropy_optax.experiments.settings import SettingsError
from entropy_optax.experiments.stops import Stops
from entropy_optax.experiments.tasks import make_task

TINY = {"model": "mlp_small", "data": "tiny", "batch_size": 16, "num_gradients": 200}
QUIET = Console(quiet=True)
CHAINS = measure.ChainSettings(num_chains=8, num_steps=4, num_burn=2, num_samples=200)


@pytest.fixture
def tiny(data_folder, monkeypatch):
    """One small system, two losses that are reached, two rates, two seeds."""
    monkeypatch.setattr(matched_loss, "SYSTEMS", {"mlp_small": TINY})
    monkeypatch.setattr(matched_loss, "NUM_TRAIN", 40)
    monkeypatch.setattr(matched_loss, "TARGETS", (0.5, 0.2))
    monkeypatch.setattr(matched_loss, "RATES", (0.01, 0.02))
    monkeypatch.setattr(valleys, "SEEDS", (0, 1))
    monkeypatch.setattr(matched_loss, "NUM_IMAGES", {"mlp_small": 20})
    monkeypatch.setattr(matched_loss, "MAX_RATES", 3)
    monkeypatch.setattr(valleys, "LONG", 40)
    monkeypatch.setattr(valleys, "CHAINS", CHAINS)
    every = matched_loss.contenders
    chosen = ("SGD-Nesterov", "Entropy-SGD, step_size * gamma 0.3, scoping")
    few = lambda system: [c for c in every(system) if c.label in chosen]
    monkeypatch.setattr(matched_loss, "contenders", few)


def test_runs_stop_where_they_first_reach_a_loss(tiny):
    contender = matched_loss.contenders("mlp_small")[0]
    task: Any = make_task(contender.settings)
    rates = [0.01, 0.02, 1e-6]  # the last reaches nothing
    tree, _ = task.init(jax.random.key(0))
    loss = objectives(task, tree, {}, 20).loss
    found = matched_loss.train(task, contender, rates, [0, 1, 2], loss)
    assert np.all(found.gradients[:2] > 0)
    assert np.all(found.gradients[2] == -1)
    assert np.all(np.isnan(found.params[2]))
    # The last update is shortened: the losses are the targets, from below.
    assert np.all(found.training_loss[:2] <= matched_loss.TARGETS)
    np.testing.assert_allclose(found.training_loss[:2], [(0.5, 0.2)] * 2, rtol=2e-3)
    unravel = ravel_pytree(tree)[1]
    for run in range(2):
        for target in range(2):
            value = loss(unravel(jnp.asarray(found.params[run, target])))
            expected = found.training_loss[run, target]
            assert float(value) == pytest.approx(expected, rel=1e-4)
    # With one gradient fewer the first run does not get there.
    fewer = int(found.gradients[0, 1]) - 1
    settings = dataclasses.replace(contender.settings, num_gradients=fewer)
    short = contender._replace(settings=settings)
    alone = matched_loss.train(task, short, rates[:1], [0], loss)
    assert alone.gradients[0, 1] == -1
    assert alone.gradients[0, 0] == found.gradients[0, 0]


@pytest.mark.parametrize("target", [0.9, 0.3, 0.05])
def test_a_shortened_update_has_the_loss(target):
    loss = lambda v: float(np.sum(v**2))
    before, after = np.array([1.0, 0.0], np.float32), np.array([0.0, 0.1], np.float32)
    point = stops.shortened(before, after, loss, target)
    assert (1 - 2e-3) * target <= loss(point) <= target
    np.testing.assert_allclose(point[1], 0.1 * (1 - point[0]), rtol=1e-5)
    # An update that ends at the loss is taken whole.
    assert np.array_equal(stops.shortened(before, after, loss, 0.01), after)


def test_stops_survive_the_disk(tmp_path):
    done = Stops(np.ones((2, 2, 3), np.float32), np.full((2, 2), -1), np.zeros((2, 2)))
    stops.save(tmp_path / "new" / "stops.npz", done)
    again = stops.restore(tmp_path / "new" / "stops.npz")
    for one, other in zip(done, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


class Scored:
    """A task whose validation error is the first param."""

    def init(self, key):
        return {"w": jnp.zeros(1)}, {}

    def variables(self, params, state):
        return params

    def score(self, variables, split):
        assert split == "validation"
        return Score(error=float(variables["w"][0]), loss=0.0)


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        # Rates 1, 1, 2, 2, 3, 3; columns are the losses .05 and .01.
        ([(9, 3), (9, 3), (1, 2), (1, 4.5), (9, 2), (9, 3)], 3.0),
        ([(9, 3), (9, None), (1, 7), (1, 8), (9, 2), (9, None)], 2.0),
        ([(9, None), (9, 1), (7, None), (8, None), (9, 1), (9, None)], 2.0),
    ],
)
def test_the_best_rate_reaches_the_lowest_loss_with_all_seeds(errors, best):
    contender = Contender(
        "x", "sgd", matched_loss.base_settings("mlp_small"), (1, 2, 3)
    )
    values = np.array(errors, float)[..., None]
    gradients = np.where(np.isnan(values[..., 0]), -1, 100)
    given = Stops(values, gradients, values[..., 0])
    task: Any = Scored()
    rate, table = matched_loss.best_rate(task, contender, given, [1, 1, 2, 2, 3, 3])
    assert rate == best
    assert len(table) == 12
    none = given._replace(gradients=np.full((6, 2), -1))
    with pytest.raises(RuntimeError, match="no rate reaches"):
        matched_loss.best_rate(task, contender, none, [1, 1, 2, 2, 3, 3])


def test_contenders_are_all_that_is_compared():
    labels = [c.label for c in matched_loss.contenders("mnistfc_small")]
    assert len(labels) == len(set(labels)) == 10
    assert all(len(c.rates) == 4 for c in matched_loss.contenders("mnistfc_small"))
    slow = [c.label for c in matched_loss.contenders("lenet_small")]
    assert len(slow) == 5
    assert set(slow) < set(labels)


def test_sign_test():
    assert statistics.sign_test(range(1, 11), [0] * 10) == (
        10,
        10,
        pytest.approx(2 / 1024),
    )
    assert statistics.sign_test([1, 2, 0, 5], [2, 2, 1, np.nan]) == (0, 2, 0.5)
    assert statistics.sign_test([1], [1]) == (0, 0, 1.0)


@pytest.mark.slow
def test_valleys_end_to_end(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    out = results / "measure"
    assert study.run("valleys", [], out, "the command", QUIET) == 0
    record = json.loads((out / "valleys" / "mlp_small.json").read_text())
    assert len(record["rows"]) == 2 * 2 * 2  # contenders, losses, seeds
    row = next(r for r in record["rows"] if r["seed"] == 1 and r["target"] == 0.2)
    # A row holds what the instruments say of the network that was kept.
    contender = matched_loss.contenders("mlp_small")[0]
    kept = stops.restore(
        tmp_path / "runs" / "valleys" / "mlp_small" / "sgd_nesterov.npz"
    )
    task: Any = make_task(contender.settings)
    tree, _ = task.init(jax.random.key(0))
    params = ravel_pytree(tree)[1](jnp.asarray(kept.params[1, 1]))
    exact = measure.dense_spectrum(objectives(task, tree, {}, 20).loss, params)
    assert row["contender"] == "SGD-Nesterov"
    assert row["largest"] == pytest.approx(exact[-1], rel=1e-3)
    assert abs(row["trace"] - exact.sum()) < 4 * row["trace_error"]
    # The second time it has nothing to do; the tables and figures come from the record.
    assert study.run("valleys", [], out, "the command", QUIET) == 0
    page = out / "README.md"
    page.write_text("<!-- valleys:begin -->\n<!-- valleys:end -->\n")
    (results / "README.md").write_text("")
    results_page.write(tmp_path / "none", results, QUIET)
    assert f"| {contender.label} |" in page.read_text()
    assert "1/2" in page.read_text() or "2/2" in page.read_text()
    assert (out / "valleys" / "valleys.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_system_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="--scenario: got 'mnist'"):
        study.run("valleys", ["mnist"], tmp_path, "", QUIET)


def test_spectra_end_to_end(data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(spectra, "SYSTEMS", {"mlp_small": TINY | {"num_gradients": 20}})
    monkeypatch.setattr(spectra, "NUM_STEPS", 30)
    monkeypatch.setattr(spectra, "LONG", 100)
    results = tmp_path / "results"
    assert study.run("spectra", [], results / "measure", "", QUIET) == 0
    path = results / "measure" / "spectra" / "spectra.json"
    row = json.loads(path.read_text())["rows"]["mlp_small"]
    assert row["largest"] == pytest.approx(row["exact_largest"], rel=1e-4)
    assert row["smallest"] == pytest.approx(row["exact_smallest"], rel=1e-2)
    value, error = row["trace"]
    assert abs(value - row["exact_trace"]) < 4 * error
    value, error, lower, upper = row["share_0.001"]
    exact = row["exact_share_0.001"]
    assert abs(value - exact) < 4 * error + (upper - lower)
    assert lower - 4 * error <= exact <= upper + 4 * error
    assert len(row["exact_eigenvalues"]) == row["num_params"]
    page = results / "measure" / "README.md"
    page.write_text("<!-- spectra:begin -->\n<!-- spectra:end -->\n")
    (results / "README.md").write_text("")
    results_page.write(tmp_path / "none", results, QUIET)
    assert f"{row['exact_largest']:.5g}" in page.read_text()
    assert (path.parent / "spectra.png").read_bytes()[:4] == b"\x89PNG"
