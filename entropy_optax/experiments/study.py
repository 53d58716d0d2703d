"""The command `study`: the parts of the comparison, and of the measured geometry."""

import json
import pathlib
from collections.abc import Callable, Sequence

from rich.console import Console

from entropy_optax.experiments import (
    ablation,
    filter_flatness,
    filter_study,
    flat_minima,
    headroom,
    landscape,
    matched_loss,
    repetition,
    replica_study,
    smoothness,
    spectra,
    stability,
    transfer,
    valleys,
)
from entropy_optax.experiments.settings import SettingsError

Part = Callable[[str, pathlib.Path, Console], None]

_SCENARIOS = {
    "compare": tuple(flat_minima.SCENARIOS),
    "headroom": ("1000", "wrong40"),
    "ablation": ("1000", "wrong20", "wrong40", "wrong20_nodecay"),
    "transfer": ("wrong40",),
    "repetition": ("1000", "wrong20", "wrong40", "wrong20_nodecay", "wrong40_nodecay"),
    "filter_forms": filter_study.SEARCHED,
    "filter_compare": tuple(filter_study.SCENARIOS),
    # Of the images: a Hessian of the text takes a minute.
    "filter_flatness": tuple(n for n in filter_study.SCENARIOS if n != "char_lstm"),
    "filter_repetition": ("500", "1000", "wrong20", "wrong40"),
}
_MEASURES: dict[str, Part] = {
    "headroom": headroom.measure,
    "ablation": ablation.measure,
    "transfer": transfer.measure,
    "repetition": repetition.measure,
    "stability": lambda scenario, out, console: stability.measure(out, console),
    "spectra": lambda scenario, out, console: spectra.run(out, console),
    "valleys": lambda system, out, console: valleys.run(system, out, console),
    "landscape": lambda scenario, out, console: landscape.measure(out, console),
    "smoothness": lambda scenario, out, console: smoothness.measure(out, console),
    "replicas": lambda scenario, out, console: replica_study.measure(out, console),
    "filter_forms": filter_study.search_forms,
    "filter_flatness": filter_flatness.run,
    "filter_repetition": repetition.measure_filters,
}
_FLAT_MINIMA = pathlib.Path("results/flat_minima")
_MEASURE = pathlib.Path("results/measure")
_REPLICAS = pathlib.Path("results/replicas")
_FILTERS = pathlib.Path("results/filter_entropy")
_GEOMETRY = ("spectra", "valleys", "landscape", "smoothness")
_ALONE = ("stability", "spectra", "landscape", "smoothness", "replicas")
"""Parts with a training set of their own."""
_COMPARISONS = {"compare": flat_minima.compare, "filter_compare": filter_study.compare}


def run(
    part: str,
    scenarios: Sequence[str],
    out: pathlib.Path | None,
    command: str,
    console: Console,
) -> int:
    """Runs one part.

    Args:
      part: its name, as the command line has it.
      scenarios: names, the part's own if empty.
      out: folder of the records, by default the part's in `results/`.
      command: to be quoted in the records' pages.
      console: where progress goes.

    Returns:
      The exit code, 0 or 130 after Ctrl-C.

    Raises:
      SettingsError: if a part has no such scenario, or none at all.
    """
    if part in _GEOMETRY:
        out = (out or _MEASURE) / part
    filters = part.startswith("filter_")
    if out is None:
        out = {"replicas": _REPLICAS}.get(part, _FILTERS if filters else _FLAT_MINIMA)
    if scenarios and part in _ALONE:
        raise SettingsError(f"--scenario: {part} has none, got {scenarios[0]!r}")
    for scenario in scenarios:
        if filters:
            filter_study.base_settings(scenario)
        elif part != "valleys":
            flat_minima.base_settings(scenario)  # refuses unknown names before any work
        elif scenario not in matched_loss.SYSTEMS:
            raise SettingsError(
                f"--scenario: got {scenario!r}, wanted one of"
                f" {', '.join(matched_loss.SYSTEMS)}"
            )
    try:
        if part in _ALONE:
            scenarios = [""]
        own = matched_loss.SYSTEMS if part == "valleys" else _SCENARIOS.get(part, ())
        for scenario in scenarios or own:
            record = _record(part, scenario, out)
            if record.exists() and not _lacks_methods(part, record):
                console.print(f"Done before: {record}", soft_wrap=True, highlight=False)
            elif part in _COMPARISONS:
                _COMPARISONS[part](scenario, out, command, console)
            else:
                _MEASURES[part](scenario, out, console)
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on; what is found is kept.")
        return 130
    return 0


def _lacks_methods(part: str, record: pathlib.Path) -> bool:
    # A comparison goes on when methods have been added to it; what starts from it is
    # measured again when more have been compared.
    if part not in ("filter_compare", "filter_flatness", "filter_repetition"):
        return False
    content = json.loads(record.read_text())
    if part == "filter_compare":
        return not set(filter_study.METHODS) <= set(content["runs"])
    settings = flat_minima.tuned(
        record.parent.name, record.parents[1], "filter_compare"
    )
    return not set(settings.optimizer) <= {row["method"] for row in content["rows"]}


def _record(part: str, scenario: str, out: pathlib.Path) -> pathlib.Path:
    if part == "valleys":
        return out / f"{scenario}.json"
    return out / scenario / f"{part.removeprefix('filter_')}.json"
