"""Print a record of make bench as Markdown: python benchmarks/table.py RECORD [PAGE].

With a page, its text between the marks <!-- bench:begin --> and <!-- bench:end --> is
replaced as well.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys


def ratio(row: dict) -> str:
    low, high = row["quartiles"]
    mark = ""
    if row.get("goal") is not None:
        mark = " ✓" if row["ratio"] <= row["goal"] else f" (goal {row['goal']})"
    return f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]{mark}"


def lines(record: dict) -> list[str]:
    machine, rows = record["machine_info"], record["rows"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    out = [
        f"{machine['device']}, {machine['cores']} cores of {machine['processor']}; "
        f"Python {machine['python']}, {versions}. Ratio of medians, [quartiles of the "
        f"rounds' own ratios], over {rows[0]['rounds']} rounds in turn."
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        chosen = [row for row in rows if row["group"] == group]
        models = list(dict.fromkeys(row["model"] for row in chosen))
        cells = {(row["contender"], row["model"]): row for row in chosen}
        out += ["", f"**{group}**", "", "| | " + " | ".join(models) + " |"]
        out.append("|---" * (len(models) + 1) + "|")
        contenders = list(dict.fromkeys(row["contender"] for row in chosen))
        views = [("", contenders, ratio)]
        if "temporary_copies" in chosen[0]:
            views += [
                (
                    "copies of the params in memory: ",
                    [c for c in contenders if c.startswith("Entropy")],
                    lambda row: f"{row['temporary_copies']:.2f}",
                ),
                (
                    "bytes of state: ",
                    [c for c in contenders if c.startswith("Entropy")],
                    lambda row: f"{row['state_bytes']:,}",
                ),
            ]
        for prefix, names, show in views:
            for name in names:
                found = [cells.get((name, model)) for model in models]
                shown = [show(row) if row else "" for row in found]
                out.append(f"| {prefix}{name} | " + " | ".join(shown) + " |")
        if "baseline_gradients" in chosen[0]:
            yardsticks = [
                next(row for row in chosen if row["model"] == model) for model in models
            ]
            shown = [
                f"{row['baseline_ms'] / row['baseline_gradients']:.1f} ms, "
                f"batch {row['batch']}"
                for row in yardsticks
            ]
            out.append("| a step of SGD | " + " | ".join(shown) + " |")
    return out


def with_table(page: str, record: dict) -> str:
    """Return a page with the record's tables between its two marks."""
    table = "\n".join(lines(record))
    return re.sub(
        r"(<!-- bench:begin -->\n).*?(<!-- bench:end -->)",
        lambda marks: f"{marks[1]}{table}\n{marks[2]}",
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    record, *pages = map(pathlib.Path, sys.argv[1:])
    rows = json.loads(record.read_text(encoding="utf-8"))
    print("\n".join(lines(rows)))
    for page in pages:
        page.write_text(with_table(page.read_text(encoding="utf-8"), rows))
