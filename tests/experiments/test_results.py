"""The page of results: what its tables and figures say of hand-made records."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from entropy_optax.experiments import (
    results_format,
    results_page,
    results_stability,
    results_summary,
    results_tables,
)
from entropy_optax.experiments.cli import main
from entropy_optax.experiments.results_format import mean_and_error, p_value
from entropy_optax.experiments.settings import SettingsError
from entropy_optax.experiments.statistics import holm, paired_bootstrap

RESULTS = pathlib.Path(__file__).parents[2] / "results"
MARKED = (
    "# Page\n\n<!-- {0}:begin -->\nSTALE\n<!-- {0}:end -->\n\nwords <!-- note -->\n"
)


def cells(table, *first):
    """The cells of the line that begins with these."""
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    (found,) = [line for line in lines if line[: len(first)] == list(first)]
    return found


def table1_run(row, optimizer, seed, value, *, which="tuned", loss: Any = 0.5):
    score = {"error": value, "loss": value / 10}
    return {
        "row": row,
        "which": which,
        "gradients": 7800,
        "optimizer": optimizer,
        "seed": seed,
        "epochs": 20.0,
        "run": {
            "optimizer": optimizer,
            "seed": seed,
            "gradients": 7800,
            "training_loss": loss,
            "curve": [[3900, 2 * value], [7800, value]],
            "test_last": score,
            "test_chosen": {"error": value + 1, "loss": value / 10 + 1},
        },
    }


TABLE1 = [
    table1_run("char_lstm", "adam", 0, 13.0),
    table1_run("char_lstm", "entropy_adam", 0, 14.0),
    table1_run("mnistfc", "entropy_sgd", 1, 3.0, loss=None),
    table1_run("mnistfc", "entropy_sgd", 0, 2.0),
    table1_run("mnistfc", "sgd", 0, 1.0, loss=0.2),
    table1_run("mnistfc", "sgd", 1, 2.0, loss=0.4),
    table1_run("mnistfc", "sgd", 2, 6.0, loss=0.6),
    table1_run("mnistfc", "sgd", 0, 9.0, which="paper"),
]


def compare_record(unsettled=()):
    """SGD is clearly worse by 1; SAM ties with ours but for noise."""
    noise = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    errors = {
        "sgd": 6 + noise[::-1],
        "sam": 5 + noise[[1, 0, 3, 2, 5, 4, 7, 6, 9, 8]] + 0.01,
        "entropy_sgd": 5 + noise,
    }
    return {
        "budget": 24,
        "unsettled": list(unsettled),
        "runs": {
            name: [{"seed": i, "test_error": float(e)} for i, e in enumerate(values)]
            for name, values in errors.items()
        },
    }


COMPARE = {"500": compare_record(), "wrong40": compare_record(["sam"])}


def headroom_row(method, shape, *, cut_off=False):
    return {
        "method": method,
        "rate_schedule": shape,
        "rates": [0.1, 0.2, 0.4],
        "validation_error": [[5.0, 6.0, 7.0], [5.0, 5.0, 5.0], [90.0, 90.0, 90.0]],
        "best": 5.0,
        "interval": [0.1, 0.2],
        "doublings": 1,
        "cut_off": cut_off,
    }


HEADROOM = {
    "1000": {
        "rows": [
            headroom_row("sgd", "cosine", cut_off=True),
            headroom_row("schedule_free", "cosine"),
            headroom_row("sgd", "constant"),
        ]
    }
}


def stability_row(contender, rate, distance, loss):
    return {
        "contender": contender,
        "rate": rate,
        "distance": distance,
        "path_length": [10.0, 30.0],
        "training_loss": loss,
        "held_out_mean": [0.01, 0.03],
        "held_out_max": [1.0, 3.0],
        "differing": [0.1, 0.3],
        "growth": None if None in distance else [0.5, 0.125],
        # Loss and distance are powers of the gradients.
        "path": {
            "gradients": [20, 200, 2000],
            "distance": [0.1, 0.2, 0.4],
            "training_loss": [1.0, 0.1, 0.01],
            "held_out_mean": [0.001, 0.01, 0.1],
        },
    }


STABILITY = {
    "num_pairs": 2,
    "rows": [
        stability_row("sgd", 0.05, [1.0, 3.0], [0.009, 0.009]),
        stability_row("sgd", 0.1, [2.0, 6.0], [0.0009, 0.0009]),
        stability_row("entropy_sgd, gamma 1", 0.05, [None, 1.0], [None, 0.01]),
        stability_row("entropy_sgd, gamma 1", 0.1, [1.0, 1.0], [0.0001, 0.0001]),
    ],
}


def ablation_row(question, value, difference, low, high):
    return {
        "question": question,
        "value": value,
        "test_error": [5.0 + difference, 6.0 + difference],
        "against_tuned": {"difference": difference, "low": low, "high": high},
    }


ABLATION = {
    "1000": {
        "reference": [5.0, 6.0],
        "rows": [
            ablation_row("L", "1", 0.5, 0.1, 0.9),
            ablation_row("L", "5", 0.2, -0.1, 0.5),
            ablation_row("L", "10", 0.0, None, None),
        ],
        "x_or_mean": [
            {"learning_rate": 0.5, "x": [2.0, 3.0] * 3, "mean": [1.0, 2.0] * 3}
        ],
    },
    "wrong40": {
        "reference": [7.0, 9.0],
        "rows": [ablation_row("L", "1", -0.5, -0.9, -0.1)],
        "x_or_mean": [],
    },
}


def transfer_record():
    """Ours as tuned elsewhere is better than SGD by 1, and by its own settings by 0."""
    noise = np.arange(10) / 10
    rows = [
        ("sgd", True, "wrong40", 6 + noise[::-1]),
        ("sgd", True, "wrong20", 7 + noise),
        ("entropy_sgd", True, "wrong40", 5 + noise[[1, 0, 3, 2, 5, 4, 7, 6, 9, 8]]),
        ("entropy_sgd", True, "wrong20", 5 + noise),
        ("entropy_sgd", False, "wrong20", 5.5 + noise[[1, 0, *range(2, 10)]]),
    ]
    names = ("method", "pull", "tuned_on", "test_error")
    own = [dict(zip(names, (*row[:3], row[3].tolist()), strict=True)) for row in rows]
    return {"rows": own}


TRANSFER = {"wrong40": transfer_record()}


def repetition_record():
    """Ours loses to SGD by 1; as tuned elsewhere it wins by 2, without the pull too."""
    noise = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    other = noise[[1, 0, 3, 2, 5, 4, 6]]
    rows = [
        ("sgd", "wrong40", True, 5 + other),
        ("entropy_sgd", "wrong40", True, 6 + noise),
        ("entropy_sgd", "wrong40", False, 6.1 + other),
        ("entropy_sgd", "wrong20", True, 3 + noise),
        ("entropy_sgd", "wrong20", False, 3 + other),
    ]
    seeds = np.array([-0.3, -0.1, 0.1, 0.3])
    return {
        "num_sets": 7,
        "seeds": [0, 1, 2, 3],
        "rows": [
            {
                "method": method,
                "tuned_on": place,
                "pull": pull,
                "test_error": (means[:, None] + seeds).tolist(),
            }
            for method, place, pull, means in rows
        ],
    }


REPETITION = {"wrong40": repetition_record()}
FOUND = {
    "summary": {"table1": TABLE1, "flat_minima": COMPARE},
    "table1": TABLE1,
    "flat_minima": COMPARE,
    "comparisons": COMPARE,
    "headroom": HEADROOM,
    "stability": STABILITY,
    "ablation": ABLATION,
    "transfer": TRANSFER,
    "repetition": REPETITION,
}


def test_numbers():
    assert mean_and_error([1.0, 2.0, 6.0], 2) == "3.00 ± 1.53"  # sqrt(7 / 3)
    assert mean_and_error([1.25], 1) == "1.2"
    assert mean_and_error([1.0, None], 2) == "not finite"
    assert [p_value(p) for p in (1.0, 0.0499, 0.012, 0.001, 0.0009)] == [
        *("p 1.000", "p .050", "p .012", "p .001", "p < .001")
    ]


def test_race_counts_the_gradients_until_adams_last_loss():
    runs = [table1_run("char_lstm", name, 0, 50.0) for name in ("adam", "sgd", "ema")]
    curves = [(5, 2.0), (10, 1.5)], [(5, 1.6), (10, 1.4)], [(5, 1.9), (10, 1.6)]
    for run, curve in zip(runs, curves, strict=True):
        run["run"]["curve"] = curve
    said = results_format.race(runs)
    assert "1.5000 nats" in said
    assert "SGD-Nesterov (tuned settings, 7,800 gradients) 10" in said
    assert "EMA of SGD (tuned settings, 7,800 gradients) more than it had" in said
    assert results_format.race(runs[1:]) == ""


def test_table1():
    table = results_tables.table1(TABLE1)
    # By row of the paper, settings and optimizer, whatever the order of the runs.
    ours = [line for line in table.splitlines() if "(20)" in line]
    assert [line.split(" | ")[1:4:2] for line in ours] == [
        ["paper", "SGD-Nesterov"],
        ["tuned", "SGD-Nesterov"],
        ["tuned", "Entropy-SGD"],
        ["tuned", "Adam"],
        ["tuned", "Entropy-Adam"],
    ]
    # Mean 3 and 4, sample deviation sqrt(7), three seeds.
    sgd = cells(table, "mnistfc", "tuned", "7,800 (20)", "SGD-Nesterov")
    assert sgd[4:] == ["3.00 ± 1.53", "4.00 ± 1.53", "0.4000", "3"]
    assert cells(table, "mnistfc", "paper")[4:] == ["9.00", "10.00", "0.5000", "1"]
    # A loss that is not finite is None in a record.
    entropy = cells(table, "mnistfc", "tuned", "7,800 (20)", "Entropy-SGD")
    assert entropy[4:] == ["2.50 ± 0.50", "3.50 ± 0.50", "nan", "2"]
    # Text by loss.
    text = cells(table, "char_lstm", "tuned", "7,800 (20)", "Adam")
    assert text[4:6] == ["1.300", "2.300"]
    assert cells(table, "lenet")[1] == "0.50 ± 0.01 %"


def test_flat_minima():
    table = results_tables.flat_minima(COMPARE)
    # Deviation of 0, .1, ..., .9 is sqrt(11 / 120) = .3028, over sqrt(10) .0957.
    assert cells(table, "SGD-Nesterov") == ["SGD-Nesterov", *["6.45 ± 0.10"] * 2]
    assert cells(table, "SAM") == ["SAM", *["5.46 ± 0.10"] * 2]
    assert cells(table, "Entropy-SGD") == ["Entropy-SGD", *["**5.45 ± 0.10**"] * 2]
    assert "500 24, wrong40 24" in table
    # The median of the 30 errors is 5.705.
    record = compare_record()
    assert results_format.lost_above(record) == pytest.approx(1.5 * 5.705)
    record["runs"]["sam"][0]["test_error"] = 88.0
    record["runs"]["sam"][1]["test_error"] = 8.5
    assert cells(results_tables.flat_minima({"500": record}), "SAM")[1].endswith(
        "(1 lost, median 5.66)"
    )
    assert "not tried: wrong40: SAM." in table
    settled = results_tables.flat_minima({"500": compare_record()})
    assert "Each best has had all its neighbours tried." in settled


def test_comparisons():
    table = results_tables.comparisons(COMPARE)
    errors = {
        name: [run["test_error"] for run in runs]
        for name, runs in COMPARE["500"]["runs"].items()
    }
    found = [paired_bootstrap(errors["entropy_sgd"], errors[n]) for n in ("sgd", "sam")]
    adjusted = holm([c.p_value for c in found])
    assert adjusted[0] < 0.05 < adjusted[1]
    sgd, sam = cells(table, "SGD-Nesterov"), cells(table, "SAM")
    assert sgd[1] == sgd[2]
    assert re.fullmatch(r"\*\*-1\.00 \[-1\.\d\d, -0\.\d\d\] p \.\d{3}\*\*", sgd[1])
    low, high = (f"{x:+.2f}" for x in found[1][1:3])
    # Not bold, and the p-value is that of Holm for two.
    assert sam[1] == f"-0.01 [{low}, {high}] {p_value(adjusted[1])}"
    assert "Entropy-SGD |" not in table  # not against itself


def test_comparisons_are_adjusted():
    """Alone it would be below .05; as the smaller of two it is not."""
    record = compare_record()
    ours = np.arange(10) / 10
    rival = ours + np.array(
        [-0.60, -0.30, -0.05, 0.40, 0.50, 0.70, 0.95, 1.15, 1.45, 2.05]
    )
    worse = [{"test_error": float(e)} for e in rival]
    same = [{"test_error": float(e)} for e in ours]
    record["runs"] = {"sgd": worse, "sam": same, "entropy_sgd": same}
    alone = paired_bootstrap(ours, rival).p_value
    assert 0.025 < alone < 0.05
    table = results_tables.comparisons({"500": record})
    assert "**" not in table
    assert p_value(2 * alone) in cells(table, "SGD-Nesterov")[1]


def test_summary():
    table = results_summary.summary(TABLE1, COMPARE)
    # Tuned runs alone, systems before scenarios; text in nats.
    mnistfc, text = "mnistfc, 20 epochs, %", "char_lstm, 20 epochs, nats"
    assert cells(table, "test") == ["test", text, mnistfc, "500, %", "wrong40, %"]
    # The lowest mean is bold, a single run never.
    best = "**5.45 ± 0.10**"
    assert cells(table, "SGD-Nesterov")[1:] == [
        *("-", "3.00 ± 1.53", "6.45 ± 0.10", "6.45 ± 0.10")
    ]
    assert cells(table, "Entropy-SGD")[1:] == ["-", "**2.50 ± 0.50**", best, best]
    assert cells(table, "Adam")[1:] == ["1.300", "-", "-", "-"]
    # More gradients are another column, and that is where ours has not been.
    more = {"gradients": 9000, "epochs": 30.0}
    longer = [table1_run("mnistfc", m, 0, 0.1) | more for m in ("sgd", "entropy_sgd")]
    alone = table1_run("lenet", "sgd", 0, 0.1)
    assert results_summary.summary([*longer, alone, *TABLE1], COMPARE) == table
    # A single run that is lower does not take the mark away; a lost one is counted.
    record = compare_record()
    record["runs"]["sam"][0]["test_error"] = 88.0
    lower = table1_run("mnistfc", "ema", 0, 0.5)
    table = results_summary.summary([*TABLE1, lower], {"500": record})
    assert cells(table, "EMA of SGD")[2] == "0.50"
    assert cells(table, "Entropy-SGD")[2] == "**2.50 ± 0.50**"
    assert cells(table, "SAM")[3].endswith("(1 lost)")


def test_headroom():
    table = results_tables.headroom(HEADROOM)
    assert cells(table, "method")[1:] == ["1000, cosine", "1000, constant"]
    inside = "(0.1 to 0.2; 5.00 %)"
    assert cells(table, "SGD-Nesterov")[1:] == [f"1 or more {inside}", f"1 {inside}"]
    assert cells(table, "Schedule-Free")[1:] == [f"1 {inside}", "-"]


def test_stability():
    first, _, second, _ = results_stability.table(STABILITY).split("\n\n")
    assert cells(first, "SGD-Nesterov")[1:] == [
        *("2.000 ± 1.000", "20.0 ± 10.0", "0.0090 ± 0.0000", "0.0200 ± 0.0100"),
        *("2.00 ± 1.00", "0.200 ± 0.100", "0.50 ± 0.12"),
    ]
    # A pair that diverged.
    lost = "Entropy-SGD, gamma 1"
    assert cells(first, lost)[1:5] == [
        *("not finite", "20.0 ± 10.0", "not finite", "0.0200 ± 0.0100")
    ]
    assert cells(first, lost)[-1] == "-"
    # Stopped at .1 at the second point; .02 is log10(5) of the way to the third. At the
    # end, .003 is log(3) / log(10) of the way from .009 to .0009.
    part = np.log10(5)
    stopped = ["0.200 (0.0100; 0.05; 200)"]
    mean, gradients = 0.01 * 10**part, 200 * 10**part
    stopped += [f"{0.2 * 2**part:.3f} ({mean:.4f}; 0.05; {gradients:.0f})"]
    between = [
        f"{2 * 2 ** (np.log(0.009 / loss) / np.log(10)):.3f}"
        for loss in (0.003, 0.002, 0.001)
    ]
    assert cells(second, "SGD-Nesterov")[1:] == [*stopped, *between]
    assert cells(second, lost)[3:] == ["-", "-", "-"]
    assert "2 pairs at rate 0.05 after 2,000 gradients" in results_stability.table(
        STABILITY
    )


def test_ablation():
    table = results_tables.ablation(ABLATION)
    assert cells(table, "tuned")[2:] == ["5.50 ± 0.50", "8.00 ± 1.00"]
    assert cells(table, "L", "1")[2:] == ["**6.00 (+0.50)**", "**5.00 (-0.50)**"]
    assert cells(table, "L", "5")[2:] == ["5.70 (+0.20)", "-"]
    assert cells(table, "L", "10")[2:] == ["5.50 (+0.00)", "-"]
    assert cells(table, "1000", "0.5")[2:] == [
        *("2.50 ± 0.22", "1.50 ± 0.22", "+1.00 [+1.00, +1.00]")
    ]


def test_transfer():
    table = results_summary.transfer(TRANSFER)
    sgd = cells(table, "SGD-Nesterov")
    assert sgd[1:3] == ["6.45 ± 0.10", "7.45 ± 0.10"]
    assert re.fullmatch(r"\*\*-1\.00 \[-1\.\d\d, -0\.\d\d\] p \.\d{3}\*\*", sgd[3])
    ours = cells(table, "Entropy-SGD")
    assert ours[1:3] == ["5.45 ± 0.10"] * 2
    assert re.fullmatch(r"[+-]0\.00 \[-0\.\d\d, \+0\.\d\d\] p \S+", ours[3])
    without = cells(table, "Entropy-SGD without its pull")
    assert without[1:3] == ["-", "5.95 ± 0.10"]
    assert without[3].startswith("-0.50 [")


def test_repetition():
    table = results_summary.repetition(REPETITION)
    assert cells(table, "wrong40")[2:] == [
        *("Entropy-SGD minus it", "Entropy-SGD as tuned on wrong20 minus it")
    ]
    # The standard error is over training sets: sqrt(.28 / 6 / 7).
    sgd = cells(table, "SGD-Nesterov")
    assert sgd[1] == "5.30 ± 0.08"
    assert re.fullmatch(r"\*\*\+1\.00 \[\+0\.9\d, \+1\.\d\d\] p \S+\*\*", sgd[2])
    # In the second column SGD and ours as tuned here are a family of two.
    rows = REPETITION["wrong40"]["rows"]
    means = [np.mean(row["test_error"], axis=1) for row in rows]
    alone = [paired_bootstrap(means[3], means[i]).p_value for i in (0, 1)]
    assert holm(alone) != alone
    ours = cells(table, "Entropy-SGD")
    assert ours[1:3] == ["6.30 ± 0.08", "-"]
    for row, p in zip((sgd, ours), holm(alone), strict=True):
        assert row[3].endswith(f"{p_value(p)}**")
    assert cells(table, "Entropy-SGD, without its pull")[2].endswith("not adjusted")
    moved = cells(table, "Entropy-SGD as tuned on wrong20")
    assert moved[2].startswith("+3.00 [")
    assert moved[3] == "-"
    last = cells(table, "Entropy-SGD as tuned on wrong20, without its pull")
    assert re.fullmatch(r"[+-]0\.00 \[-\S+, \+\S+\], not adjusted", last[3])
    assert "over 7 training sets, 4 seeds each" in table


@pytest.mark.parametrize("name", list(results_page.TABLES))
def test_with_tables_replaces_between_the_marks_alone(name):
    page = MARKED.format(name) + MARKED.format("elsewhere")
    written = results_page.with_tables(page, FOUND)
    table = results_page.TABLES[name](FOUND[name])
    assert "STALE" not in table
    assert written == page.replace("STALE", table, 1)
    assert results_page.with_tables(written, FOUND) == written
    # Without a record, or without marks, nothing changes.
    assert results_page.with_tables(page, {}) == page
    bare = page.replace(":", "")
    assert results_page.with_tables(bare, FOUND) == bare
    # Every table is one that Markdown can read.
    widths = [line.count(" | ") for line in table.split("\n\n")[0].splitlines()]
    assert len(set(widths)) == 1


@pytest.fixture
def filled(tmp_path):
    """A folder of records and a page with all marks."""
    results = tmp_path / "results"
    study = results / "flat_minima"
    (results / "table1").mkdir(parents=True)
    (results / "table1" / "runs.json").write_text(json.dumps(TABLE1))
    for name, per_scenario in (
        ("compare", COMPARE),
        ("headroom", HEADROOM),
        ("ablation", ABLATION),
        ("transfer", TRANSFER),
        ("repetition", REPETITION),
    ):
        for scenario, record in per_scenario.items():
            (study / scenario).mkdir(parents=True, exist_ok=True)
            (study / scenario / f"{name}.json").write_text(json.dumps(record))
    (study / "stability.json").write_text(json.dumps(STABILITY))
    page = "\n".join(MARKED.format(name) for name in results_page.TABLES)
    (results / "README.md").write_text(page)
    return results


def test_report_end_to_end(filled, tmp_path, capsys):
    assert results_page.records(filled) == FOUND
    command = ["report", "--results", str(filled), "--runs", str(tmp_path / "none")]
    assert main(command) == 0
    assert "0 new runs of table1; 9 tables and 6 figures" in capsys.readouterr().out
    page = (filled / "README.md").read_text()
    assert "\nSTALE\n" not in page
    assert all(results_page.TABLES[n](r) in page for n, r in FOUND.items())
    figures = {path.relative_to(filled).as_posix() for path in filled.rglob("*.png")}
    assert figures == {
        "table1/mnistfc_tuned_7800.png",
        "table1/mnistfc_paper_7800.png",
        "table1/char_lstm_tuned_7800.png",
        "flat_minima/errors.png",
        "flat_minima/headroom.png",
        "flat_minima/stability.png",
    }
    for name in figures:
        data = (filled / name).read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(data) > 5000  # more than an empty canvas


def test_report_wants_a_page(tmp_path, capsys):
    assert main(["report", "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--results: " in error
    assert "README.md not found" in error.replace("\n", "")


def write_run(runs, row, folder, optimizer, seed, value, *, momentum=0.9):
    path = runs / row / folder / f"{optimizer}-{seed}" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    run = table1_run(row, optimizer, seed, value)["run"]
    settings = {"model": row, "sgd": {"momentum": momentum}, "adam": {"b1": 0.8}}
    for name in results_page.GROUPS:
        settings.setdefault(name, {})
    path.write_text(json.dumps({"settings": settings, "epochs": 20.0, "run": run}))
    return path


def test_take_in_refuses_other_settings_under_one_mean(tmp_path):
    runs, path = tmp_path / "runs", tmp_path / "runs.json"
    write_run(runs, "mnistfc", "tuned-7800", "sgd", 0, 1.0)
    assert results_page.take_in(runs, path) == 1
    before = path.read_text()
    write_run(runs, "mnistfc", "tuned-7800", "sgd", 1, 1.0, momentum=0.5)
    with pytest.raises(SettingsError, match="with other settings than the runs of"):
        results_page.take_in(runs, path)
    assert path.read_text() == before


def test_take_in_merges_and_does_not_double(tmp_path):
    runs, path = tmp_path / "runs", tmp_path / "results" / "runs.json"
    assert results_page.take_in(runs, path) == 0
    assert not path.exists()
    write_run(runs, "mnistfc", "tuned-7800", "sgd", 0, 1.0)
    write_run(runs, "mnistfc", "tuned-7800", "sgd", 1, 2.0)
    unfinished = runs / "mnistfc" / "tuned-7800" / "sgd-2"
    unfinished.mkdir()
    (unfinished / "settings.json").write_text("{}")
    assert results_page.take_in(runs, path) == 2
    first = json.loads(path.read_text())
    assert results_page.take_in(runs, path) == 0
    assert json.loads(path.read_text()) == first

    # Other machines hold other runs; what was taken in stays as it was.
    elsewhere = tmp_path / "elsewhere"
    write_run(elsewhere, "mnistfc", "tuned-7800", "sgd", 1, 99.0)
    write_run(elsewhere, "mnistfc", "tuned-7800", "adam", 1, 3.0)
    write_run(elsewhere, "mnistfc", "paper-7800", "sgd", 1, 4.0)
    write_run(elsewhere, "lenet", "tuned-7800", "sgd", 1, 5.0)
    assert results_page.take_in(elsewhere, path) == 3
    kept = json.loads(path.read_text())
    assert kept[:2] == first
    names = ("row", "which", "gradients", "optimizer", "seed")
    found = {tuple(e[n] for n in names): e["run"]["test_last"]["error"] for e in kept}
    assert found == {
        ("mnistfc", "tuned", 7800, "sgd", 0): 1.0,
        ("mnistfc", "tuned", 7800, "sgd", 1): 2.0,
        ("mnistfc", "tuned", 7800, "adam", 1): 3.0,
        ("mnistfc", "paper", 7800, "sgd", 1): 4.0,
        ("lenet", "tuned", 7800, "sgd", 1): 5.0,
    }
    # Of the optimizers' settings only those of the run's own.
    for entry in kept:
        groups = set(results_page.GROUPS) & set(entry["settings"])
        assert groups == {entry["optimizer"]}
    # A record can be made into the table.
    assert "3.00" in results_tables.table1(kept)


@pytest.mark.parametrize("page", list(results_page.PAGES))
def test_the_page_is_that_of_its_records(page):
    """`entropy-optax report` would change nothing."""
    text, found = (RESULTS / page).read_text(), results_page.records(RESULTS)
    for name in results_page.PAGES[page]:
        assert name in found
        assert text.count(f"<!-- {name}:begin -->") == 1, name
        assert text.count(f"<!-- {name}:end -->") == 1, name
    assert text == results_page.with_tables(text, found)


def test_report_takes_new_runs_into_the_table(filled, tmp_path):
    write_run(tmp_path / "runs", "lenet", "tuned-7800", "sgd", 0, 1.0)
    assert results_page.write(tmp_path / "runs", filled, Console(quiet=True)) == 0
    assert len(results_page.records(filled)["table1"]) == len(TABLE1) + 1
    assert "| lenet | tuned |" in (filled / "README.md").read_text()
