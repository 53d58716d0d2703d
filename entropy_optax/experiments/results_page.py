"""The command `report`: records, tables and figures of `results/`."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from rich.console import Console

from entropy_optax.experiments import (
    flat_minima,
    matched_loss,
    report,
    results_figures,
    results_filter,
    results_filter_forms,
    results_landscape,
    results_measure,
    results_replicas,
    results_stability,
    results_summary,
    results_tables,
)
from entropy_optax.experiments.settings import GROUPS, SettingsError

TABLES: dict[str, Callable[[Any], str]] = {
    "summary": lambda record: results_summary.summary(**record),
    "table1": results_tables.table1,
    "flat_minima": results_tables.flat_minima,
    "comparisons": results_tables.comparisons,
    "headroom": results_tables.headroom,
    "stability": results_stability.table,
    "ablation": results_tables.ablation,
    "transfer": results_summary.transfer,
    "repetition": results_summary.repetition,
}

GEOMETRY: dict[str, Callable[[Any], str]] = {
    "spectra": results_measure.spectra,
    "valleys": results_measure.valleys,
    "landscape": results_landscape.landscape,
    "smoothness": results_landscape.smoothness,
}

REPLICAS: dict[str, Callable[[Any], str]] = {"replicas": results_replicas.table}

FILTERS: dict[str, Callable[[Any], str]] = {
    "filter_forms": results_filter_forms.forms,
    "filter_compare": results_filter.compare,
    "filter_against": results_filter.comparisons,
    "filter_loss_compare": results_filter.compare,
    "filter_loss_against": results_filter.comparisons,
    "filter_repetition": results_filter.repetition,
    "filter_flatness": results_filter_forms.flatness,
}

PAGES = {
    "README.md": TABLES,
    "measure/README.md": GEOMETRY,
    "replicas/README.md": REPLICAS,
    "filter_entropy/README.md": FILTERS,
}
"""Which tables stand on which page."""


def write(runs: pathlib.Path, results: pathlib.Path, console: Console) -> int:
    """Takes finished runs in, and writes the tables and figures anew.

    Args:
      runs: folder of `table1`'s runs; it need not exist.
      results: folder of the records and of the pages, whose tables stand between marks.
      console: where it says what it did.

    Returns:
      The exit code 0.

    Raises:
      SettingsError: if there is no page to write to.
    """
    if not (results / "README.md").exists():
        raise SettingsError(f"--results: {results / 'README.md'} not found")
    taken = take_in(runs, results / "table1" / "runs.json")
    found = records(results)
    for name in PAGES:
        page = results / name
        if page.exists():
            page.write_text(with_tables(page.read_text(), found))
    drawn = results_figures.draw_all(results, found)
    console.print(
        f"{taken} new runs of table1; {len(found)} tables and {len(drawn)} figures in"
        f" {results}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def take_in(runs: pathlib.Path, path: pathlib.Path) -> int:
    """Adds finished runs to a record.

    Args:
      runs: folder with `ROW/SETTINGS-GRADIENTS/OPTIMIZER-SEED/result.json`.
      path: of the record; runs that are in it stay.

    Returns:
      How many were new.

    Raises:
      SettingsError: if runs of one mean differ in more than the seed.
    """
    kept = json.loads(path.read_text()) if path.exists() else []
    names = ("row", "which", "gradients", "optimizer", "seed")
    known = {tuple(entry[name] for name in names) for entry in kept}
    new = 0
    for file in sorted(runs.glob("*/*/*/result.json")):
        content = json.loads(file.read_text())
        optimizer, seed = content["run"]["optimizer"], content["run"]["seed"]
        which = file.parent.parent.name.rpartition("-")[0]
        row = file.parent.parent.parent.name
        key = (row, which, content["run"]["gradients"], optimizer, seed)
        if key in known:
            continue
        settings = content["settings"]
        for group in GROUPS:
            if group != optimizer:
                del settings[group]
        for entry in kept:
            group = tuple(entry[name] for name in names[:4]) == key[:4]
            if group and not _alike(entry["settings"], settings):
                raise SettingsError(
                    f"--runs: {file} was made with other settings than the runs of"
                    f" {path}"
                )
        kept.append(dict(zip(names, key, strict=True)) | content)
        new += 1
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        report.replace_json(path, kept)
    return new


def _alike(one: Any, other: Any) -> bool:
    # But for the seed, and for fields that an older version did not have.
    if isinstance(one, dict) and isinstance(other, dict):
        common = (set(one) & set(other)) - {"seeds"}
        return all(_alike(one[name], other[name]) for name in common)
    return one == other


def records(results: pathlib.Path) -> dict[str, Any]:
    """Reads what the tables are made of.

    Args:
      results: folder of the records.

    Returns:
      Name of a table to its record or records, without those that do not exist.
    """
    found: dict[str, Any] = {}
    path = results / "table1" / "runs.json"
    if path.exists():
        found["table1"] = json.loads(path.read_text())
    study = results / "flat_minima"
    for name, file in (
        ("flat_minima", "compare"),
        ("headroom", "headroom"),
        ("ablation", "ablation"),
        ("transfer", "transfer"),
        ("repetition", "repetition"),
    ):
        own = {
            scenario: json.loads((study / scenario / f"{file}.json").read_text())
            for scenario in flat_minima.SCENARIOS
            if (study / scenario / f"{file}.json").exists()
        }
        if own:
            found[name] = own
    if "flat_minima" in found:
        found["comparisons"] = found["flat_minima"]
    if "table1" in found and "flat_minima" in found:
        found["summary"] = {name: found[name] for name in ("table1", "flat_minima")}
    if (study / "stability.json").exists():
        found["stability"] = json.loads((study / "stability.json").read_text())
    path = results / "replicas" / "replicas.json"
    if path.exists():
        found["replicas"] = json.loads(path.read_text())
    found |= results_filter.records(results / "filter_entropy")
    return found | _geometry(results)


def _geometry(results: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    folder = results / "measure"
    for name in GEOMETRY:
        path = folder / name / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())
    systems = {
        system: folder / "valleys" / f"{system}.json" for system in matched_loss.SYSTEMS
    }
    valleys = {
        system: json.loads(path.read_text())
        for system, path in systems.items()
        if path.exists()
    }
    return found | ({"valleys": valleys} if valleys else {})


def with_tables(page: str, found: dict[str, Any]) -> str:
    """Puts the tables between their marks, `<!-- NAME:begin -->` and `...:end -->`.

    Args:
      page: Markdown.
      found: from `records`.

    Returns:
      The page with every table that has a record and marks.
    """
    tables = TABLES | GEOMETRY | REPLICAS | FILTERS
    for name, record in found.items():
        page = re.sub(
            rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)",
            lambda marks, name=name, record=record: (
                f"{marks[1]}{tables[name](record)}\n{marks[2]}"
            ),
            page,
            flags=re.DOTALL,
        )
    return page
