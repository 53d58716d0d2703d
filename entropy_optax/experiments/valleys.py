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
from entropy_optax.experiments import matched_loss, networks
from entropy_optax.experiments.flat_minima import write_json
from entropy_optax.experiments.image_task import ImageTask
from entropy_optax.experiments.matched_loss import Contender, Stops
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.networks import Objectives
from entropy_optax.experiments.tasks import make_task

TUNING_SEEDS = (100, 101)
SEEDS = tuple(range(10))
NUM_IMAGES = {"mlp_small": 250, "mnistfc_small": 250, "lenet_small": 100}
"""Training images that curvature is measured on, the first ones."""
NUM_PROBES, NUM_STEPS = 30, 12
CHAINS = measure.ChainSettings(num_chains=8, num_steps=8, num_burn=6, num_samples=400)
GAMMA, TEMPERATURE = 30.0, 0.01
"""Of local entropy: Gaussian steps of standard deviation 0.018 for each weight."""
NEAR_ZERO, LONG = (1e-4, 1e-3, 1e-2), 300
"""Thresholds of the share near zero, and the Lanczos steps for it."""
NOISES = (0.1, 0.2, 0.4)
"""Relative to each filter's own norm."""
FLATNESS = {
    "trace": "trace of the Hessian",
    "largest": "largest eigenvalue",
    "near_zero_0.0001": "share of |eigenvalue| < 1e-4",
    "phi": "local entropy Phi",
    **{f"noise_{s:g}": f"loss under filter noise {s:g}" for s in NOISES},
}


def train(system: str, runs: pathlib.Path, console: Console) -> dict[str, Any]:
    """Chooses every contender's rate and trains ten fresh seeds; resumable.

    Args:
      system: the network's name.
      runs: folder of the stopped networks.
      console: where progress goes.

    Returns:
      For each contender's label its rate and what it was chosen from.
    """
    found = {}
    task = _task(system)
    for contender in matched_loss.contenders(system):
        memo = Memo(runs / system / f"{slug(contender.label)}.json", contender)
        content = memo("choice", functools.partial(_choice, task, contender))
        found[contender.label] = content
        path = _stops_path(runs, system, contender)
        if not path.exists():
            rates = [content["rate"]] * len(SEEDS)
            matched_loss.save(path, matched_loss.train(task, contender, rates, SEEDS))
        stops = matched_loss.restore(path)
        console.print(
            f"{system}: {contender.label}, rate {content['rate']:g},"
            f" gradients {np.median(stops.gradients, axis=0)},"
            f" missed {np.sum(stops.gradients < 0, axis=0)}"
        )
    return found


def run(
    system: str, out: pathlib.Path, console: Console, runs: pathlib.Path | None = None
) -> None:
    """Trains, measures and writes the record of one network; resumable.

    Args:
      system: the network's name.
      out: folder of the records.
      console: where progress goes.
      runs: folder of the stopped networks, which are too large for a record.
    """
    runs = runs or pathlib.Path("runs/valleys")
    choices = train(system, runs, console)
    task = _task(system)
    record = []
    params, _ = task.init(jax.random.key(0))
    examples = NUM_IMAGES[system]
    found = networks.objectives(task, params, {}, examples)
    for contender in matched_loss.contenders(system):
        stops = matched_loss.restore(_stops_path(runs, system, contender))
        memo = Memo(
            runs / system / f"{slug(contender.label)}-measured.json",
            [contender, examples, NUM_PROBES, NUM_STEPS, GAMMA, TEMPERATURE, NOISES],
        )
        shares = Memo(
            runs / system / f"{slug(contender.label)}-shares.json",
            [contender, examples, LONG, NEAR_ZERO],
        )
        for target in range(len(matched_loss.TARGETS)):
            for seed in SEEDS:
                row = {
                    "contender": contender.label,
                    "target": matched_loss.TARGETS[target],
                    "seed": seed,
                    "gradients": int(stops.gradients[seed, target]),
                }
                if row["gradients"] > 0:
                    find = functools.partial(flatness, task, found, stops, seed, target)
                    row |= memo(f"{target}, {seed}", find)
                    find = functools.partial(
                        near_zero, task, found, stops, seed, target
                    )
                    row |= shares(f"{target}, {seed}", find)
                record.append(row)
            console.print(f"{system}: {contender.label}, {_summary(record)}")
    content = {
        "system": system,
        "settings": matched_loss.base_settings(system),
        "num_images": examples,
        "num_probes": NUM_PROBES,
        "num_steps": NUM_STEPS,
        "long": LONG,
        "gamma": GAMMA,
        "temperature": TEMPERATURE,
        "choices": choices,
        "rows": record,
    }
    write_json(out / f"{system}.json", content)


def flatness(
    task: ImageTask,
    found: Objectives,
    stops: Stops,
    seed: int,
    target: int,
) -> dict[str, Any]:
    """All numbers of one network.

    Args:
      task: network and data.
      found: its loss and error rate.
      stops: the contender's networks.
      seed: which of them.
      target: which training loss.

    Returns:
      Numbers by name.
    """
    params = _params(task, stops, seed, target)
    # The same probes and the same noise for all contenders: differences are paired.
    keys = jax.random.split(jax.random.key(seed), 4)
    f = found.loss
    density = measure.spectral_density(
        f, params, key=keys[0], num_probes=NUM_PROBES, num_steps=NUM_STEPS
    )
    phi = measure.local_entropy(
        f,
        params,
        gamma=GAMMA,
        temperature=TEMPERATURE,
        key=keys[1],
        settings=CHAINS,
    )
    curve = measure.noise_curve(f, params, NOISES, kind="filter", key=keys[2])
    wrong = measure.noise_curve(found.error, params, NOISES, kind="filter", key=keys[2])
    test = task.score(task.variables(params, {}), "test")
    return {
        "training_loss": float(stops.training_loss[seed, target]),
        "test_error": test.error,
        "test_loss": test.loss,
        "trace": density.trace().value,
        "trace_error": density.trace().standard_error,
        "trace_of_square": density.trace_of_square().value,
        "largest": float(density.nodes.max()),
        "smallest": float(density.nodes.min()),
        "phi": phi.phi,
        "phi_error": phi.standard_error,
        "phi_method": phi.method,
        "norm": float(np.linalg.norm(stops.params[seed, target])),
        **{f"noise_{s:g}": float(v) for s, v in zip(NOISES, curve.values, strict=True)},
        **{f"wrong_{s:g}": float(v) for s, v in zip(NOISES, wrong.values, strict=True)},
    }


def near_zero(
    task: ImageTask, found: Objectives, stops: Stops, seed: int, target: int
) -> dict[str, Any]:
    """The share of eigenvalues near zero of one network.

    Args:
      task: network and data.
      found: its loss and error rate.
      stops: the contender's networks.
      seed: which of them.
      target: which training loss.

    Returns:
      Shares, and how wide the brackets are that the Lanczos steps allow.
    """
    shares = measure.share_near_zero(
        found.loss,
        _params(task, stops, seed, target),
        NEAR_ZERO,
        key=jax.random.key(seed),
        num_steps=LONG,
    )
    names = [f"{t:g}" for t in NEAR_ZERO]
    wide = zip(names, shares.upper - shares.lower, strict=True)
    return {
        **{
            f"near_zero_{t}": float(v)
            for t, v in zip(names, shares.values, strict=True)
        },
        **{f"bracket_{t}": float(v) for t, v in wide},
    }


def slug(label: str) -> str:
    """A file's name from a label.

    Args:
      label: for people.

    Returns:
      Letters, digits, dots and underscores.
    """
    kept = "".join(c if c.isalnum() or c == "." else " " for c in label.lower())
    return "_".join(kept.split())


def _params(task: ImageTask, stops: Stops, seed: int, target: int) -> Any:
    tree, _ = task.init(jax.random.key(0))
    return ravel_pytree(tree)[1](jnp.asarray(stops.params[seed, target]))


def _task(system: str) -> ImageTask:
    task = make_task(matched_loss.base_settings(system))
    assert isinstance(task, ImageTask)
    return task


def _stops_path(runs: pathlib.Path, system: str, contender: Contender) -> pathlib.Path:
    return runs / system / f"{slug(contender.label)}.npz"


def _choice(task: ImageTask, contender: Contender) -> dict[str, Any]:
    rates = [rate for rate in contender.rates for _ in TUNING_SEEDS]
    seeds = list(TUNING_SEEDS) * len(contender.rates)
    stops = matched_loss.train(task, contender, rates, seeds)
    rate, table = matched_loss.best_rate(task, contender, stops, rates)
    return {"rate": rate, "tried": table}


def _summary(rows: list[dict[str, Any]]) -> str:
    last = [row for row in rows[-len(SEEDS) :] if "trace" in row]
    if not last:
        return "none"
    mean = lambda name: np.mean([row[name] for row in last])
    return f"{last[-1]['target']:g} nats, {len(last)} runs: " + ", ".join(
        f"{name} {mean(name):.4g}" for name in ("test_error", *FLATNESS)
    )
