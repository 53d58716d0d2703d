"""Print a record of make bench as Markdown: python benchmarks/table.py RECORD [PAGE].

With a page, its text between the marks <!-- NAME:begin --> and <!-- NAME:end -->, NAME
being the record's without its suffix, is replaced as well.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys

ROUNDS = 20
# Copies of the params, and bytes, for the whole inner loop in one update.
MEMORY_GOAL, STATE_GOAL = 4.0, 1024
WHOLE_LOOP = ("Entropy-SGD", "Entropy-SGD, Gaussian noise")


def marked(text: str, value: float, goal: float | None) -> str:
    if goal is None:
        return text
    return f"{text} ✓" if value <= goal else f"{text} (goal {goal})"


def ratio(row: dict) -> str:
    low, high = row["quartiles"]
    text = f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    if row["rounds"] != ROUNDS:
        text += f", {row['rounds']} rounds"
    return marked(text, row["ratio"], row.get("goal"))


def copies(row: dict) -> str:
    goal = MEMORY_GOAL if row["contender"] in WHOLE_LOOP else None
    return marked(f"{row['temporary_copies']:.2f}", row["temporary_copies"], goal)


def state(row: dict) -> str:
    goal = STATE_GOAL if row["contender"] in WHOLE_LOOP else None
    return marked(f"{row['state_bytes']:,}", row["state_bytes"], goal)


def lines(record: dict) -> list[str]:
    machine, rows = record["machine_info"], record["rows"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    out = [
        f"{machine['device']}, {machine['cores']} cores of {machine['processor']}; "
        f"Python {machine['python']}, {versions}. Ratio of medians, [quartiles of the "
        f"rounds' own ratios], over {ROUNDS} rounds in turn if none are named."
    ]
    if machine["malloc"]:
        settings = " ".join(f"{k}={v}" for k, v in machine["malloc"].items())
        out[0] += f" Run with `{settings}`."
    for group in dict.fromkeys(row["group"] for row in rows):
        chosen = [row for row in rows if row["group"] == group]
        models = list(dict.fromkeys(row["model"] for row in chosen))
        cells = {(row["contender"], row["model"]): row for row in chosen}
        out += ["", f"**{group}**", "", "| | " + " | ".join(models) + " |"]
        out.append("|---" * (len(models) + 1) + "|")
        contenders = list(dict.fromkeys(row["contender"] for row in chosen))
        views = [("", contenders, ratio)]
        if "temporary_copies" in chosen[0]:
            ours = [c for c in contenders if c.startswith("Entropy")]
            views += [
                ("copies of the params in memory: ", ours, copies),
                ("bytes of state: ", ours, state),
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


def with_table(page: str, name: str, record: dict) -> str:
    """Return a page with the record's tables between the marks of that name."""
    table = "\n".join(lines(record))
    return re.sub(
        rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)",
        lambda marks: f"{marks[1]}{table}\n{marks[2]}",
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    record, *pages = map(pathlib.Path, sys.argv[1:])
    rows = json.loads(record.read_text(encoding="utf-8"))
    print("\n".join(lines(rows)))
    for page in pages:
        text = with_table(page.read_text(encoding="utf-8"), record.stem, rows)
        page.write_text(text, encoding="utf-8")
