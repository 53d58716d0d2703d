"""The study of landscapes, small: its record holds what the instruments say."""

import json

import pytest
from rich.console import Console

from entropy_optax.experiments import (
    landscape,
    landscape_nets,
    results_landscape,
    study,
)

LOAD = landscape_nets.data.load


def few_digits(*args, **kwargs):
    """The study's digits, but 500 of them to test on."""
    whole = LOAD(*args, **kwargs)
    test = type(whole.test)(*(array[:500] for array in whole.test))
    return whole._replace(test=test)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("measure") / "landscape"
    few = {name: sigmas[::4] for name, sigmas in landscape_nets.SIGMAS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landscape_nets, "SIGMAS", few)
        patch.setattr(landscape_nets, "NUM_SAMPLES", 30)
        patch.setattr(landscape_nets, "NUM_DIRECTIONS", 3)
        patch.setattr(landscape_nets.data, "load", few_digits)
        landscape.measure(out, Console(quiet=True), num_runs=16, num_gradients=40)
    return out, json.loads((out / "landscape.json").read_text())


@pytest.mark.slow
def test_the_lowest_point_moves_to_the_wide_valley(measured):
    _, record = measured
    lowest = record["one_dimension"]["lowest"]
    assert lowest["f"] == 300
    assert 600 < lowest["-F, gamma 0.001"] < 700
    assert 600 < lowest["-F, gamma 5e-05"] < 700


@pytest.mark.slow
def test_every_run_ends_somewhere(measured):
    _, record = measured
    plane = record["two_dimensions"]
    methods = {row["method"] for row in plane["sweep"]}
    counts = {m: sum(r["method"] == m for r in plane["sweep"]) for m in methods}
    assert len(set(counts.values())) == 1  # as many configurations for each
    for row in plane["sweep"]:
        ends = [row[where]["count"] for where in ("sharp", "wide", "elsewhere")]
        assert sum(ends) == plane["num_runs"] == 16
        assert row["wide"]["low"] <= row["wide"]["share"] <= row["wide"]["high"]


@pytest.mark.slow
def test_figures_and_table(measured):
    out, record = measured
    names = {path.stem for path in out.glob("*.png")}
    assert names == {
        "one_dimension",
        "valleys",
        "shares",
        "slices",
        "planes",
        "noise_isotropic",
        "noise_multiplicative",
        "noise_filter",
    }
    table = results_landscape.landscape(record)
    wide = record["two_dimensions"]["chosen"][0]["wide"]
    assert f"{100 * wide['share']:.1f} [" in table


@pytest.mark.slow
def test_the_command_finds_its_record(measured, capsys):
    assert study.run("landscape", [], measured[0].parent, "it", Console()) == 0
    assert capsys.readouterr().out.startswith("Done before: ")


@pytest.mark.slow
def test_nets_are_told_apart_by_their_sharpness(measured):
    _, record = measured
    numbers = record["nets"]["numbers"]
    assert set(numbers) == {"SGD", "SAM", "Entropy-SGD"}
    assert record["nets"]["num_params"] == 196 * 64 + 64 + 64 * 10 + 10
    assert len({row["adaptive_sharpness"] for row in numbers.values()}) == 3
