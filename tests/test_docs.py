"""The code blocks of the README and the docs run, page by page, as one program each."""

import json
import pathlib
import re
import runpy

import pytest

ROOT = pathlib.Path(__file__).parents[1]
RECORD = ROOT / "results" / "quickstart" / "run" / "results.json"
BENCHMARKS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PAGES = [
    ROOT / "README.md",
    ROOT / "results" / "README.md",
    ROOT / "results" / "measure" / "README.md",
    ROOT / "results" / "replicas" / "README.md",
    ROOT / "results" / "filter_entropy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def code_blocks(page: pathlib.Path) -> list[str]:
    """Return the Python blocks of a Markdown page."""
    return re.findall(
        r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize(
    "page", [p for p in PAGES if code_blocks(p)], ids=lambda page: page.name
)
def test_code_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program = "\n".join(code_blocks(page))
    exec(compile(program, str(page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    inside = [link for link in links if "://" not in link]
    missing = [link for link in inside if not (page.parent / link).exists()]
    assert not missing


def test_the_results_in_the_readme_are_those_of_the_record():
    script = runpy.run_path(str(ROOT / "docs" / "readme_table.py"))
    readme = (ROOT / "README.md").read_text()
    assert readme == script["with_table"](readme, json.loads(RECORD.read_text()))


def test_the_errors_that_the_advice_rests_on_are_in_the_results():
    advice = (ROOT / "docs" / "how_to_choose.md").read_text()
    pages = (
        ROOT / "results" / p / "README.md" for p in (".", "replicas", "filter_entropy")
    )
    results = "\n".join(page.read_text() for page in pages)
    number = r"\d+\.\d\d(?!\d)"
    quoted = re.findall(rf"{number}(?= %)", advice)
    tables = [line for line in results.splitlines() if line.startswith("|")]
    known = set(re.findall(rf"(?<![\d.+-]){number}", "\n".join(tables)))
    assert len(quoted) > 20
    assert not set(quoted) - known


def test_the_model_of_larger_machines_is_what_its_script_prints():
    script = runpy.run_path(str(ROOT / "benchmarks" / "scale_model.py"))
    page = (ROOT / "docs" / "scaling.md").read_text()
    shown = page.split("<!-- model:begin -->\n")[1].split("\n<!-- model:end -->")[0]
    assert shown == "\n".join(script["lines"](json.loads(script["RECORD"].read_text())))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_table_between_marks_is_empty(page):
    for name in re.findall(r"<!-- (\w+):begin -->", page.read_text()):
        between = page.read_text().split(f"<!-- {name}:begin -->")[1]
        assert "|" in between.split(f"<!-- {name}:end -->")[0], name


def test_the_model_by_hand():
    """Four devices, 8 bytes, 1 GB/s and 1 us: 12 bytes and 6 messages."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "scale_model.py"))
    link = script["Link"](1.0, 1.0)
    seconds = script["all_reduce_seconds"](8, 4, link)
    assert seconds == pytest.approx(12e-9 + 6e-6)
    assert script["slowdown"](1e-3, 8, 4, link, 2) == pytest.approx(1 + seconds / 2e-3)


@pytest.mark.parametrize("record", BENCHMARKS, ids=lambda record: record.stem)
def test_the_tables_of_performance_are_those_of_the_records(record):
    script = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    name = "scaling.md" if record.stem == "scale" else "performance.md"
    page = (ROOT / "docs" / name).read_text()
    rows = json.loads(record.read_text())
    assert f"<!-- {record.stem}:begin -->" in page
    assert page == script["with_table"](page, record.stem, rows)
