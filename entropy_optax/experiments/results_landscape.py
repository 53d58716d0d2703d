"""Tables of the landscapes and of the smoothness lemma."""

from typing import Any

import numpy as np

from entropy_optax.experiments.results_format import markdown


def landscape(record: dict[str, Any]) -> str:
    """Where runs end on the two-dimensional landscape.

    Args:
      record: `landscape.json`.

    Returns:
      Markdown.
    """
    plane = record["two_dimensions"]
    criteria = {"mean_loss": "lowest mean loss", "wide": "most in the wide valley"}
    head = ["gradient noise", "chosen by", "method", "rate", "wide valley, % [95 %]"]
    rows = []
    for noise in sorted({row["gradient_noise"] for row in plane["chosen"]}):
        for criterion, text in criteria.items():
            for row in plane["chosen"]:
                if (row["gradient_noise"], row["criterion"]) != (noise, criterion):
                    continue
                wide = row["wide"]
                share = (
                    f"{100 * wide['share']:.1f}"
                    f" [{100 * wide['low']:.1f}, {100 * wide['high']:.1f}]"
                )
                rows.append(
                    [f"{noise:g}", text, row["method"], f"{row['rate']:g}", share]
                )
    line = record["one_dimension"]["lowest"]
    lowest = "; ".join(f"{name}: {at}" for name, at in line.items())
    return (
        f"Lowest points in one dimension: {lowest}.\n\n{markdown(head, rows)}\n\n"
        f"{plane['num_runs']:,} starts, {plane['num_gradients']:,} gradients each;"
        " every method had 20 configurations, chosen on other noise."
    )


def smoothness(record: dict[str, Any]) -> str:
    """The lemma as printed, and the bounds that are true.

    Args:
      record: `smoothness.json`.

    Returns:
      Markdown.
    """
    head = ["T", *(f"gamma {g:g}" for g in (1, 5, 20))]
    rows = []
    points = record["counterexample"]
    for temperature in sorted({p["temperature"] for p in points}, reverse=True):
        ratios = {
            p["gamma"]: p["ratio"] for p in points if p["temperature"] == temperature
        }
        nearest = [min(ratios, key=lambda x, g=g: abs(x - g)) for g in (1, 5, 20)]
        rows.append([f"{temperature:g}", *(f"{ratios[g]:.3f}" for g in nearest)])
    table = markdown(head, rows)
    cases = [(c["temperature"], c["constants"]) for c in record["one_dimension"]]
    rougher: dict[float, list[bool]] = {}
    for temperature, c in cases:
        entropy = max(-c["entropy_lowest"], c["entropy_highest"])
        rougher.setdefault(temperature, []).append(
            entropy > max(-c["lowest"], c["highest"])
        )
    rough = {t: np.mean(found) for t, found in sorted(rougher.items())}
    shares = ", ".join(f"{100 * v:.0f} % at T = {t:g}" for t, v in rough.items())
    return (
        "Largest |G''| over largest |f''| for f = cos 3x, which is 9-smooth (at the"
        f" nearest gamma of the record):\n\n{table}\n\nAbove 1 local entropy is less"
        f" smooth than the loss. Of {len(cases)} random functions of one variable,"
        f" scopes and temperatures it is so in {shares}."
    )
