"""The command `study`: the parts of the comparison on small training sets."""

import pathlib
from collections.abc import Sequence

from rich.console import Console

from entropy_optax.experiments import (
    ablation,
    flat_minima,
    headroom,
    repetition,
    stability,
    transfer,
)

_SCENARIOS = {
    "compare": tuple(flat_minima.SCENARIOS),
    "headroom": ("1000", "wrong40"),
    "ablation": ("1000", "wrong20", "wrong40", "wrong20_nodecay"),
    "transfer": ("wrong40",),
    "repetition": ("1000", "wrong20", "wrong40", "wrong20_nodecay", "wrong40_nodecay"),
}
_MEASURES = {
    "headroom": headroom.measure,
    "ablation": ablation.measure,
    "transfer": transfer.measure,
    "repetition": repetition.measure,
    "stability": lambda scenario, out, console: stability.measure(out, console),
}


def run(
    part: str,
    scenarios: Sequence[str],
    out: pathlib.Path,
    command: str,
    console: Console,
) -> int:
    """Runs one part.

    Args:
      part: `"compare"`, `"headroom"`, `"ablation"`, `"transfer"`, `"repetition"` or
        `"stability"`.
      scenarios: names, the part's own if empty.
      out: folder of the study.
      command: to be quoted in the records' pages.
      console: where progress goes.

    Returns:
      The exit code, 0 or 130 after Ctrl-C.
    """
    for scenario in scenarios:
        flat_minima.base_settings(scenario)  # refuses unknown names before any work
    try:
        if part == "stability":
            scenarios = [""]  # it has a training set of its own
        for scenario in scenarios or _SCENARIOS[part]:
            record = out / scenario / f"{part}.json"
            if record.exists():
                console.print(f"Done before: {record}", soft_wrap=True, highlight=False)
            elif part == "compare":
                flat_minima.compare(scenario, out, command, console)
            else:
                _MEASURES[part](scenario, out, console)
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on; what is found is kept.")
        return 130
    return 0
