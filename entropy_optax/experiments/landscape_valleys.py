"""Two valleys in two dimensions: which one does each optimizer end in?"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console

import entropy_optax as eo
from entropy_optax import measure
from entropy_optax.measure._figures import new_figure
from entropy_optax.measure._valleys import SHARP, WIDE

CENTRES = {"sharp": SHARP, "wide": WIDE}
NUM_STEPS = 20  # L
GRADIENT_NOISES = (0.0, 1.0)
RATES = (0.01, 0.03, 0.1, 0.3, 0.9)
TUNING_SEED, SEED = 100, 0
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = {
    "SGD": "o",
    "SAM": "^",
    "Entropy-SGD": "D",
    "its noise alone": "v",
    "its averaging alone": "s",
}


class Contender(NamedTuple):
    """An optimizer of two hyperparameters.

    Attributes:
      knob: name of the second; the first is the rate.
      values: of the second.
      make: `(rate, value) -> optimizer`, one gradient per update.
    """

    knob: str
    values: tuple[Any, ...]
    make: Callable[[Any, Any], optax.GradientTransformation]


def contenders() -> dict[str, Contender]:
    """What is compared.

    Returns:
      SGD, SAM and Entropy-SGD with two controls: its noise alone (Langevin dynamics)
      and its averaging alone (no noise, no scope); four values of one hyperparameter
      besides the rate for each. SAM's two gradients are two updates.
    """
    return {
        "SGD": Contender(
            "momentum", (0.0, 0.5, 0.8, 0.9), lambda rate, m: optax.sgd(rate, m)
        ),
        "SAM": Contender("radius", (0.05, 0.1, 0.2, 0.4), _sam),
        "Entropy-SGD": Contender(
            "gamma, temperature",
            ((1.0, 0.1), (1.0, 0.2), (3.0, 0.1), (3.0, 0.2)),
            lambda rate, knobs: _entropy_sgd(rate, knobs[0], knobs[1]),
        ),
        "its noise alone": Contender(
            "temperature",
            (0.025, 0.05, 0.1, 0.2),
            lambda rate, temperature: optax.chain(
                optax.sgd(rate), eo.add_langevin_noise(rate, temperature)
            ),
        ),
        "its averaging alone": Contender(
            "mean_decay",
            (0.0, 0.5, 0.75, 0.9),
            lambda rate, decay: _entropy_sgd(rate, 0.0, 0.0, decay),
        ),
    }


def compare(
    num_runs: int, num_gradients: int, console: Console
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Counts which valley each optimizer ends in, over the whole grid of settings.

    Twice a configuration is chosen for each optimizer on the same tuning runs, and
    rerun from other starts with other noise: the lowest mean loss, which is what an
    optimizer is asked for, and the largest share in the wide valley.

    Args:
      num_runs: starts, uniform in [-4, 4] squared.
      num_gradients: of each run.
      console: where progress goes.

    Returns:
      Rows of all configurations, and of the chosen ones.
    """
    sweep, chosen = [], []
    for noise, (name, contender) in itertools.product(
        GRADIENT_NOISES, contenders().items()
    ):
        run = functools.partial(
            _ends, contender.make, num_runs=num_runs, num_gradients=num_gradients
        )
        rows = []
        for rate, value in itertools.product(RATES, contender.values):
            row = {"gradient_noise": noise, "method": name, "rate": rate}
            row |= {"knob": contender.knob, "value": value}
            rows.append(row | run(rate, value, noise, TUNING_SEED))
        sweep += rows
        for criterion, best in (
            ("mean_loss", min(rows, key=lambda row: row["mean_loss"])),
            ("wide", max(rows, key=lambda row: row["wide"]["count"])),
        ):
            fresh = run(best["rate"], best["value"], noise, SEED)
            chosen.append(best | {"criterion": criterion} | fresh)
            console.print(
                f"gradient noise {noise:g}, {name}, chosen by {criterion}: rate"
                f" {best['rate']:g}, {contender.knob} {best['value']}:"
                f" {100 * fresh['wide']['share']:.1f} % wide,"
                f" {100 * fresh['sharp']['share']:.1f} % sharp,"
                f" mean loss {fresh['mean_loss']:.3f}"
            )
    return sweep, chosen


def paths_figure() -> Figure:
    """Draws three optimizers' paths over the landscape and over its local entropy.

    Returns:
      The figure: one rate, that of gradient noise 0, two starts for each optimizer.
    """
    grid = np.linspace(-3.2, 3.2, 161), np.linspace(-2.8, 3.2, 151)
    points = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1)
    loss = np.asarray(measure.two_valleys(jnp.asarray(points)))
    spacing = tuple(line[1] - line[0] for line in grid)
    smooth = measure.smoothed_landscape(loss, spacing, gamma=1.0, temperature=0.2)
    makers = {
        "SGD": optax.sgd(0.1),
        "SAM, radius 0.1": _sam(0.1, 0.1),
        "Entropy-SGD": _entropy_sgd(0.1, 1.0, 0.2),
    }
    starts = jnp.array([[-2.3, 1.0], [-1.1, -1.3]])
    paths = {
        name: measure.descent_paths(
            measure.two_valleys,
            tx,
            starts,
            num_gradients=2000,
            key=jax.random.key(SEED),
        )
        for name, tx in makers.items()
    }
    surfaces = {
        "loss $f$": loss,
        "minus local entropy $-F$, $\\gamma$ = 1, $T$ = 0.2": smooth,
    }
    return measure.valleys_figure(grid, surfaces, paths, CENTRES)


def _sam(rate: Any, radius: Any) -> optax.GradientTransformation:
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(radius))
    return optax.contrib.sam(optax.sgd(rate), ascent, sync_period=2)


def _entropy_sgd(
    rate: Any, gamma: Any, temperature: Any, mean_decay: Any = 0.75
) -> optax.GradientTransformation:
    return eo.entropy_sgd(
        1.0,
        gamma=gamma,
        num_steps=NUM_STEPS,
        step_size=rate,
        temperature=temperature,
        momentum=None,
        mean_decay=mean_decay,
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="num_gradients")
def _last(
    make: Any,
    rate: Any,
    value: Any,
    noise: Any,
    starts: Any,
    key: Any,
    num_gradients: int,
) -> jax.Array:
    paths = measure.descent_paths(
        measure.two_valleys,
        make(rate, value),
        starts,
        num_gradients=num_gradients,
        record_every=num_gradients,
        gradient_noise=noise,
        key=key,
    )
    return paths[:, -1]


def _ends(
    make: Any,
    rate: float,
    value: Any,
    noise: float,
    seed: int,
    *,
    num_runs: int,
    num_gradients: int,
) -> dict[str, Any]:
    start_key, key = jax.random.split(jax.random.key(seed))
    starts = jax.random.uniform(start_key, (num_runs, 2), minval=-4, maxval=4)
    ends = _last(make, rate, value, noise, starts, key, num_gradients=num_gradients)
    # Outside the box f is a bowl, in which a run at too large a rate is lost.
    finite = jnp.where(jnp.isfinite(ends), ends, 1e3)
    bottoms = measure.settle(measure.two_valleys, finite)
    shares = measure.valley_shares(bottoms, CENTRES)
    losses = np.asarray(measure.two_valleys(finite), np.float64)
    row: dict[str, Any] = {
        name: {**share._asdict(), "share": share.value}
        for name, share in shares.items()
    }
    return row | {"mean_loss": float(losses.mean())}


def shares_figure(sweep: list[dict[str, Any]]) -> Figure:
    """Draws the share of runs that end in the wide valley against the rate.

    Args:
      sweep: rows of all configurations.

    Returns:
      The figure: for each optimizer the best of its other hyperparameter at each rate,
      as a line with Wilson's 95 % interval, and all others as dots.
    """
    figure = new_figure(9.0, 4.0)
    panels = figure.subplots(1, len(GRADIENT_NOISES), sharey=True, squeeze=False)[0]
    for axes, noise in zip(panels, GRADIENT_NOISES, strict=True):
        for colour, (name, marker) in zip(_COLOURS, _MARKERS.items(), strict=True):
            rows = [r for r in sweep if r["method"] == name]
            rows = [r for r in rows if r["gradient_noise"] == noise]
            best = []
            for rate in RATES:
                here = [r["wide"] for r in rows if r["rate"] == rate]
                axes.plot(
                    [rate] * len(here),
                    [100 * one["share"] for one in here],
                    marker,
                    color=colour,
                    alpha=0.25,
                    markersize=4,
                )
                best.append(max(here, key=lambda one: one["share"]))
            share = [100 * one["share"] for one in best]
            low = [100 * one["low"] for one in best]
            high = [100 * one["high"] for one in best]
            axes.plot(RATES, share, marker=marker, color=colour, label=name)
            axes.fill_between(RATES, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(
            xscale="log", xlabel="rate of a gradient", title=f"gradient noise {noise:g}"
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.25)
    panels[0].set_ylabel("runs that end in the wide valley, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    return figure
