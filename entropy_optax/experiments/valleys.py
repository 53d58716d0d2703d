"""Are the valleys of Entropy-SGD wider, at the same training loss?

The paper's core claim as an experiment: small networks trained by several optimizers,
stopped at the same training losses, and their Hessians, local entropies and losses
under noise on the same images.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.console import Console

from entropy_optax import measure
from entropy_optax.experiments import matched_loss
from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.image_task import ImageTask
from entropy_optax.experiments.matched_loss import Contender
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.objectives import Objectives, objectives
from entropy_optax.experiments.stops import joined, restore, save
from entropy_optax.experiments.tasks import make_task

TUNING_SEEDS = (100, 101)
SEEDS = tuple(range(10))
NUM_PROBES = 30
CHAINS = measure.ChainSettings(num_chains=8, num_steps=8, num_burn=6, num_samples=400)
SLOW_CHAINS = CHAINS._replace(num_steps=6, num_burn=3)
GAMMA, TEMPERATURE = 30.0, 0.01
"""Of local entropy: Gaussian steps of standard deviation 0.018 for each weight."""
NEAR_ZERO, LONG, SLOW_LONG = (1e-4, 1e-3, 1e-2), 300, 150
"""Thresholds of the share near zero, and the Lanczos steps for it."""
NOISES = (0.1, 0.2, 0.4)
"""Relative to each filter's own norm."""


def run(
    system: str, out: pathlib.Path, console: Console, runs: pathlib.Path | None = None
) -> None:
    """Chooses rates, trains, measures, and writes the record of one network; resumable.

    Args:
      system: the network's name.
      out: folder of the records.
      console: where progress goes.
      runs: folder of the stopped networks, which are too large for a record.
    """
    folder = (runs or pathlib.Path("runs/valleys")) / system
    task = make_task(matched_loss.base_settings(system))
    assert isinstance(task, ImageTask)
    count = matched_loss.NUM_IMAGES[system]
    params, _ = task.init(jax.random.key(0))
    found = objectives(task, params, {}, count)
    choices: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for contender in matched_loss.contenders(system):
        path = folder / f"{slug(contender.label)}.npz"
        memo = Memo(path.with_suffix(".json"), _basis(contender, count, system))
        choice = memo("choice", functools.partial(_choice, task, contender, found.loss))
        choices[contender.label] = choice
        train = functools.partial(
            _train, task, contender, choice["rate"], found.loss, path
        )
        memo("trained", train)
        stops = restore(path)
        for target, loss in enumerate(matched_loss.TARGETS):
            for run, seed in enumerate(SEEDS):
                row = {
                    "contender": contender.label,
                    "target": loss,
                    "seed": seed,
                    "gradients": int(stops.gradients[run, target]),
                }
                if row["gradients"] > 0:
                    vector = stops.params[run, target]
                    measured = functools.partial(
                        flatness, task, found, vector, seed, system
                    )
                    row |= memo(f"{loss:g} nats, seed {seed}", measured)
                rows.append(row)
            console.print(f"{system}: {contender.label}, {_summary(rows)}")
    content = {
        "system": system,
        "settings": matched_loss.base_settings(system),
        "num_images": count,
        "constants": _constants(system),
        "choices": choices,
        "rows": rows,
    }
    write_json(out / f"{system}.json", content)


def flatness(
    task: ImageTask, found: Objectives, vector: np.ndarray, seed: int, system: str
) -> dict[str, Any]:
    """All numbers of one network.

    Args:
      task: network and data.
      found: its loss and error rate.
      vector: its params.
      seed: the same probes and noise for all contenders: differences are paired.
      system: the network's name.

    Returns:
      Numbers by name.
    """
    tree, _ = task.init(jax.random.key(0))
    params = ravel_pytree(tree)[1](jnp.asarray(vector))
    keys = jax.random.split(jax.random.key(seed), 4)
    f = found.loss
    loss = float(jax.jit(lambda f, p: f(p))(f, params))
    traces = measure.traces(f, params, key=keys[0], num_probes=NUM_PROBES)
    constants = _constants(system)
    shares = measure.share_near_zero(
        f, params, NEAR_ZERO, key=keys[1], num_steps=constants["long"]
    )
    phi = measure.local_entropy(
        f,
        params,
        gamma=GAMMA,
        temperature=TEMPERATURE,
        key=keys[2],
        settings=measure.ChainSettings(**constants["chains"]),
    )
    curve = measure.noise_curve(f, params, NOISES, kind="filter", key=keys[3])
    wrong = measure.noise_curve(found.error, params, NOISES, kind="filter", key=keys[3])
    test = task.score(task.variables(params, {}), "test")
    row: dict[str, Any] = {
        "training_loss": loss,
        "test_error": test.error,
        "test_loss": test.loss,
        "trace": traces.trace.value,
        "trace_error": traces.trace.standard_error,
        "trace_of_square": traces.trace_of_square.value,
        "largest": float(shares.nodes.max()),
        # Without the loss itself: log E exp(-(f(x + xi) - f(x)) / T).
        "width": phi.phi + loss / TEMPERATURE,
        "width_error": phi.standard_error,
        "phi_method": phi.method,
        "norm": float(np.linalg.norm(vector)),
    }
    for t, value, low, high in zip(
        shares.thresholds, shares.values, shares.lower, shares.upper, strict=True
    ):
        row |= {f"near_zero_{t:g}": float(value), f"bracket_{t:g}": float(high - low)}
    for i, sigma in enumerate(NOISES):
        row[f"noise_{sigma:g}"] = curve.increase(i).value
        row[f"wrong_{sigma:g}"] = float(wrong.values[i])
    return row


def slug(label: str) -> str:
    """A file's name from a label.

    Args:
      label: for people.

    Returns:
      Letters, digits, dots and underscores.
    """
    kept = "".join(c if c.isalnum() or c == "." else " " for c in label.lower())
    return "_".join(kept.split())


def _constants(system: str) -> dict[str, Any]:
    slow = system in matched_loss.SLOW
    return {
        "num_probes": NUM_PROBES,
        "long": SLOW_LONG if slow else LONG,
        "near_zero": NEAR_ZERO,
        "gamma": GAMMA,
        "temperature": TEMPERATURE,
        "noises": NOISES,
        "chains": (SLOW_CHAINS if slow else CHAINS)._asdict(),
    }


def _basis(contender: Contender, count: int, system: str) -> Any:
    limits = [matched_loss.TARGETS, matched_loss.PATIENCE, matched_loss.MAX_RATES]
    return [contender, count, limits, TUNING_SEEDS, SEEDS, _constants(system)]


def _choice(
    task: ImageTask, contender: Contender, loss: measure.Objective
) -> dict[str, Any]:
    rates, parts, used = list(contender.rates), [], []
    while True:
        new = [rate for rate in rates if rate not in used]
        per_run = [rate for rate in new for _ in TUNING_SEEDS]
        seeds = list(TUNING_SEEDS) * len(new)
        parts.append(matched_loss.train(task, contender, per_run, seeds, loss))
        used += per_run
        rate, table = matched_loss.best_rate(task, contender, joined(parts), used)
        # The best is to be inside of what was tried.
        inside = min(rates) < rate < max(rates)
        if inside or len(rates) >= matched_loss.MAX_RATES:
            return {"rate": rate, "inside": inside, "tried": table}
        rates.append(min(rates) / 2 if rate == min(rates) else 2 * max(rates))


def _train(
    task: ImageTask,
    contender: Contender,
    rate: float,
    loss: measure.Objective,
    path: pathlib.Path,
) -> list[Any]:
    rates = [rate] * len(SEEDS)
    stops = matched_loss.train(task, contender, rates, SEEDS, loss)
    save(path, stops)
    return stops.gradients.tolist()


def _summary(rows: list[dict[str, Any]]) -> str:
    last = [row for row in rows[-len(SEEDS) :] if "trace" in row]
    if not last:
        return f"{rows[-1]['target']:g} nats: not reached"
    names = ("training_loss", "test_error", "trace", "largest", "width", "noise_0.2")
    mean = lambda name: np.mean([row[name] for row in last])
    return f"{last[-1]['target']:g} nats, {len(last)} runs: " + ", ".join(
        f"{name} {mean(name):.4g}" for name in names
    )
