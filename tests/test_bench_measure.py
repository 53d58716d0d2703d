"""The benchmark of the instruments, at a size at which it takes seconds."""

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(BENCHMARKS / "bench_measure.py"))


@pytest.fixture(scope="module")
def table():
    return runpy.run_path(str(BENCHMARKS / "table.py"))


def test_the_network_has_about_as_many_params_as_asked_for(bench):
    import jax

    for size in (1_000, 10_000):
        params = bench["make_problem"](size).params
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count == pytest.approx(size, rel=0.02)


@pytest.mark.slow
def test_all_instruments_run(bench):
    problem = bench["make_problem"](160)
    for name, instrument in bench["INSTRUMENTS"].items():
        assert instrument(problem) is not None, name


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's high-water mark")
@pytest.mark.slow
def test_a_row_has_a_process_of_its_own_with_time_and_peak(tmp_path, table):
    record = tmp_path / "measure.json"
    script = str(BENCHMARKS / "bench_measure.py")
    what = ["--sizes", "160", "1e5", "--only", "dense spectrum"]
    subprocess.run(
        [sys.executable, script, str(record), *what],
        check=True,
        timeout=500,
    )
    content = json.loads(record.read_text())
    small, large = content["rows"]
    assert small["params"] == 160
    assert small["rounds"] >= 1
    assert small["gradients"] > 1
    # The matrix and LAPACK's work on it; and no more than a process may hold.
    assert 4 * 160**2 < small["first_bytes"] < 2**30
    assert "takes 40" in large["refused"]
    text = "\n".join(table["lines"](content))
    assert "| | 160 params | 99,985 params |" in text
    assert "- dense spectrum, 99,985 params: max_gigabytes: got 2" in text
    assert text.count("| refused |") == 3
