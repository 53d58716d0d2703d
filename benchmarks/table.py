"""Print a record of make bench or bench-measure: python table.py RECORD [PAGE].

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


def measured_on(machine: dict) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return (
        f"{machine['device']}, {machine['cores']} cores of {machine['processor']}; "
        f"Python {machine['python']}, {versions}."
    )


def digits(value: float) -> str:
    """Round to two digits, and leave larger numbers whole."""
    return f"{value:,.0f}" if value >= 100 else f"{float(f'{value:.2g}'):g}"


def in_gradients(row: dict) -> str:
    low, high = row["quartiles"]
    if not row["rounds"]:
        return f"{digits(row['gradients'])} *"
    return f"{digits(row['gradients'])} [{digits(low)}, {digits(high)}]"


def in_seconds(row: dict) -> str:
    seconds = row["seconds"]
    text = f"{digits(seconds)} s" if seconds >= 1 else f"{digits(1e3 * seconds)} ms"
    return text if row["rounds"] else f"{text} *"


def in_memory(row: dict) -> str:
    megabytes, params = row["first_bytes"] / 2**20, 4 * row["params"]
    again = row.get("again_bytes")
    if again is None:
        return f"{digits(megabytes)} *"
    copies = f"{digits(max(again, 0) / params)} copies"
    return f"{digits(megabytes)}; {digits(max(again, 0) / 2**20)}, {copies}"


def instrument_lines(record: dict) -> list[str]:
    rows = record["rows"]
    sizes = sorted({row["params"] for row in rows})
    cells = {(row["instrument"], row["params"]): row for row in rows}
    out = [measured_on(record["machine_info"])]
    for title, show in (
        ("time in full-batch gradients, [quartiles]", in_gradients),
        ("time", in_seconds),
        ("peak memory in MiB: first call; a later one", in_memory),
    ):
        heads = " | ".join(f"{size:,} params" for size in sizes)
        out += ["", f"**{title}**", "", f"| | {heads} |"]
        out.append("|---" * (len(sizes) + 1) + "|")
        for name in dict.fromkeys(row["instrument"] for row in rows):
            found = [cells.get((name, size)) for size in sizes]
            shown = [
                "" if not row else "refused" if "refused" in row else show(row)
                for row in found
            ]
            out.append(f"| {name} | " + " | ".join(shown) + " |")
    refusals = [row for row in rows if "refused" in row]
    if refusals:
        out += ["", "Refused:", ""]
    out += [
        f"- {row['instrument']}, {row['params']:,} params: {row['refused']}"
        for row in refusals
    ]
    return out


def scale_lines(record: dict) -> list[str]:
    out = [
        f"{measured_on(record['machine_info'])} Outer steps per second, of "
        f"{record['num_steps']} gradients of {record['batch']} examples on each "
        "device, over the method's own on one device, whose time of an outer step "
        "stands under 1: median of the rounds' ratios [quartiles]. "
        f"The params are {record['param_bytes']:,} bytes."
    ]
    # Both parts begin with one device of one process, timed in their own rounds.
    for first, title, chosen in (
        (0, "one process, so many devices", lambda row: row["processes"] == 1),
        (
            -1,
            "so many processes of one device, over gloo",
            lambda row: row["processes"] > 1,
        ),
    ):
        # One device's ratio to itself says nothing.
        rows = [row for row in record["rows"] if chosen(row) and row["devices"] > 1]
        counts = sorted({row["devices"] for row in rows})
        cells = {(row["contender"], row["devices"]): row for row in rows}
        out += ["", f"**{title}**", ""]
        header = ["", "1", *map(str, counts), "bytes reduced per gradient"]
        out.append("| " + " | ".join(header) + " |")
        out.append("|---" * len(header) + "|")
        for name in dict.fromkeys(row["contender"] for row in rows):
            found = [cells[name, count] for count in counts]
            shown = [
                f"{row['ratio']:.2f} [{row['quartiles'][0]:.2f}, "
                f"{row['quartiles'][1]:.2f}], {row['rounds']} rounds"
                for row in found
            ]
            ones = [row for row in record["rows"] if row["devices"] == 1]
            one = [row for row in ones if row["contender"] == name][first]
            alone = f"{1000 * one['seconds_per_outer_step']:.0f} ms"
            sent = f"{found[-1]['bytes_per_gradient']:,.0f}"
            out.append(f"| {name} | " + " | ".join([alone, *shown, sent]) + " |")
    return out


def lines(record: dict) -> list[str]:
    machine, rows = record["machine_info"], record["rows"]
    if "instrument" in rows[0]:
        return instrument_lines(record)
    if "devices" in rows[0]:
        return scale_lines(record)
    out = [
        f"{measured_on(machine)} Ratio of medians, [quartiles of the "
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
