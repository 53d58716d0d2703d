"""Write the README's tables of results from their records.

``python docs/readme_table.py`` reads ``results/quickstart/run/results.json``, which
``entropy-optax train --preset quickstart --out results/quickstart/run`` made, and the
records of ``results/``, whose page ``entropy-optax report`` writes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from entropy_optax.experiments import results_page

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "results" / "quickstart" / "run" / "results.json"
README = ROOT / "README.md"
LABELS = {"sgd": "SGD-Nesterov", "adam": "Adam", "entropy_sgd": "Entropy-SGD"}


def table(record: dict) -> str:
    """Return the table and its caption in Markdown."""
    settings, machine = record["settings"], record["machine"]
    versions = record["versions"]
    lines = [
        "| optimizer | test error %, last point "
        "| test error %, validation-chosen point | gradients | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, entry in record["summary"].items():
        cells = [
            "{mean:.2f} ± {standard_error:.2f}".format(**entry[point])
            for point in ("test_last", "test_chosen")
        ]
        cells += [str(entry["gradients"]), f"{entry['seconds']['mean']:.0f}"]
        lines.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Mean ± standard error over n = {len(settings['seeds'])} seeds; "
        f"{settings['model']} on {settings['data']}, batch {settings['batch_size']}; "
        f"seconds per run without compilation on {machine['cpu_count']} cores "
        f"({machine['platform']}), jax {versions['jax']}. Command: `make quickstart`.",
    ]
    return "\n".join(lines)


def with_table(readme: str, record: dict) -> str:
    """Return the README with the tables between their marks."""
    readme = re.sub(
        r"(<!-- quickstart:begin -->\n).*?(<!-- quickstart:end -->)",
        lambda marks: f"{marks[1]}{table(record)}\n{marks[2]}",
        readme,
        flags=re.DOTALL,
    )
    return results_page.with_tables(readme, results_page.records(ROOT / "results"))


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(), json.loads(RECORD.read_text())))
