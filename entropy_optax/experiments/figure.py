"""The picture of an experiment: error against gradient evaluations."""

import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from entropy_optax.experiments.report import LABELS, estimate
from entropy_optax.experiments.runner import Run

# Okabe and Ito's colours, told apart by colour-blind readers; markers tell them too.
STYLES = {
    "sgd": ("#0072B2", "o"),
    "adam": ("#E69F00", "s"),
    "entropy_sgd": ("#009E73", "D"),
    "entropy_adam": ("#009E73", "d"),
    "parle": ("#7F3C8D", "*"),
    "filter_entropy": ("#D4006A", "p"),
    "sam": ("#D55E00", "^"),
    "asam": ("#8B3A00", "h"),
    "ivon": ("#4D4D9A", "H"),
    "muon": ("#5F7F00", "8"),
    "filter_muon": ("#D4006A", "*"),
    "lookahead": ("#CC79A7", "v"),
    "ema": ("#56B4E9", "P"),
    "schedule_free": ("#B8A800", "X"),
    "averaging_alone": ("#666666", "<"),
    "reset_alone": ("#000000", ">"),
}


def draw(
    path: pathlib.Path,
    runs: Sequence[Run],
    title: str,
    metric: Literal["error", "loss"] = "error",
) -> None:
    """Draws validation error or loss against gradients, and that on the test split.

    Lines are means over seeds and bands one standard error to each side; markers at
    the right are the test errors of the last point with their standard errors.

    Args:
      path: the PNG file to write.
      runs: of any number of optimizers and seeds.
      title: of the figure.
      metric: what the curves of the runs hold.
    """
    # Not pyplot: it holds global state and looks for a screen.
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    unit = "%" if metric == "error" else "nats"
    optimizers = list(dict.fromkeys(run.optimizer for run in runs))
    for position, optimizer in enumerate(optimizers):
        colour, marker = STYLES[optimizer]
        group = [run for run in runs if run.optimizer == optimizer]
        gradients = np.array([point[0] for point in group[0].curve])
        errors = np.array([[point[1] for point in run.curve] for run in group])
        mean = errors.mean(axis=0)
        axes.plot(gradients, mean, color=colour, label=LABELS[optimizer], linewidth=1.8)
        if len(group) > 1:
            spread = errors.std(axis=0, ddof=1) / np.sqrt(len(group))
            low = np.maximum(mean - spread, 0.5 * mean)  # stays on a log axis
            axes.fill_between(
                gradients, low, mean + spread, color=colour, alpha=0.2, linewidth=0
            )
        tests = [
            getattr(run.test_last, metric) for run in group if run.test_last is not None
        ]
        if tests:
            final = estimate(tests)
            shift = 1.03 + 0.03 * position  # side by side, right of the lines
            axes.errorbar(
                gradients[-1] * shift,
                final.mean,
                yerr=final.standard_error,
                color=colour,
                marker=marker,
                markersize=6,
                capsize=3,
                linestyle="none",
                label=f"{LABELS[optimizer]}, test: {final} {unit}",
            )
    if all(error > 0 for run in runs for _, error in run.curve):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(10, subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("gradient evaluations")
    axes.set_ylabel(f"validation {metric} ({unit}); markers: test {metric} ({unit})")
    n = len({run.seed for run in runs})
    axes.set_title(f"{title}\nmean ± standard error, n = {n}", fontsize=10)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=150)
