"""The study of smoothness end to end, with few functions and points."""

import json

import numpy as np
import pytest
from rich.console import Console

from entropy_optax.experiments import smoothness
from entropy_optax.experiments import study as command


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("measure")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoothness, "GAMMAS", (0.5, 5.0))
        patch.setattr(smoothness, "TEMPERATURES", (0.1,))
        patch.setattr(smoothness, "NUM_FUNCTIONS", 2)
        patch.setattr(smoothness, "COUNTEREXAMPLE_TEMPERATURES", (1.0,))
        patch.setattr(smoothness, "SEEDS", (1,))
        patch.setattr(smoothness, "NUM_HIDDEN", 4)
        patch.setattr(smoothness, "NET_GAMMAS", (10.0,))
        patch.setattr(smoothness, "POINTS", (0, 30))
        assert command.run("smoothness", [], out, "it", Console(quiet=True)) == 0
    return out / "smoothness"


def test_the_command_finds_its_record(study, capsys):
    assert command.run("smoothness", [], study.parent, "it", Console()) == 0
    assert capsys.readouterr().out.startswith("Done before: ")


def test_study_writes_its_record_and_figures(study):
    record = json.loads((study / "smoothness.json").read_text())
    assert len(record["quadratics"]) == 6
    assert len(record["one_dimension"]) == 2 * 3
    assert [row["gradients"] for row in record["net"]] == [0, 30]
    names = {path.name for path in study.glob("*.png")}
    assert names == {"counterexample.png", "one_dimension.png", "net.png"}
    for name in names:
        assert (study / name).stat().st_size > 10_000


def test_bounds_hold_in_the_record_and_the_lemma_where_it_applies(study):
    record = json.loads((study / "smoothness.json").read_text())
    entropy = lambda c: max(abs(c["entropy_lowest"]), abs(c["entropy_highest"]))
    for row in record["one_dimension"]:
        # None is infinity: nothing is known.
        assert row["bound"] is None or entropy(row["constants"]) <= 1.001 * row["bound"]
    for row in record["quadratics"]:
        c, bounds = row["constants"], row["bounds"]
        assert c["entropy_highest"] <= 1.001 * bounds["highest"]
        assert (row["lemma"] is not None) == row["convex"]
        if row["convex"]:
            assert entropy(c) <= 1.001 * row["lemma"][1]
    ratios = {row["gamma"]: row["ratio"] for row in record["counterexample"]}
    for gamma, ratio in ((20, 1.09), (5, 0.53), (1, 0.01)):
        assert ratios[gamma] == pytest.approx(ratio, abs=0.005)
    for row in record["net"]:
        c = row["constants"]
        assert c["entropy_highest"] < c["highest"]
        assert c["entropy_slope"] < c["slope"]
        assert row["shift_curvature"] < 1e-5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_functions_are_1_smooth(seed):
    found = smoothness.smoothness_1d(
        smoothness.fourier_series(seed), (0.0, 2 * np.pi), 10.0, num_points=2001
    )
    assert found.smoothness == pytest.approx(1, rel=1e-4)
