"""Uniform stability: two runs whose training sets differ in one example.

Hardt, Recht and Singer (2016) bound the generalisation gap by how far apart the losses
of such runs are at any example, and that by how far apart their params are. Both start
from the same params and see the same minibatches in the same order.
"""

import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from entropy_optax.experiments import methods
from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.compiled import compile_step, draw
from entropy_optax.experiments.flat_minima import base_settings
from entropy_optax.experiments.grid import with_fields
from entropy_optax.experiments.hyperparameters import rate_field
from entropy_optax.experiments.image_task import minibatches
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.methods import repeats
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.tasks import make_task
from entropy_optax.measure._stability import growth_exponent

NUM_PAIRS = 16
NUM_TRAIN = 500
NUM_HELD_OUT = 2000
CHUNK = 20  # gradients between two steps of the path length
NUM_POINTS = 24  # at most, at which the path is recorded
GROWTH_FROM = 100  # gradients: before, each example has been seen a few times only
RATES = (0.0125, 0.025, 0.05, 0.1, 0.2)
FIXED_RATE = 0.05  # at 0.1 some diverge
GAMMAS = (0.0, 1.0, 3.0, 10.0)


def contenders(settings: Settings) -> list[tuple[str, str, Settings]]:
    """What is compared.

    Args:
      settings: shared ones.

    Returns:
      Label, optimizer and settings: SGD, SAM, EMA and Entropy-SGD of L = 20 at several
      gamma, 0 being averaging alone. All have momentum 0.9 and no decay.
    """
    found = [(name, name, settings) for name in ("sgd", "sam", "ema")]
    for gamma in GAMMAS:
        fields = {"gamma": gamma, "gamma_growth": 0.0}
        ours = with_fields(settings, "entropy_sgd", fields)
        found.append((f"entropy_sgd, gamma {gamma:g}", "entropy_sgd", ours))
    return found


def measure(out: pathlib.Path, console: Console, num_gradients: int = 3000) -> None:
    """Runs all pairs of all contenders at all rates, constant over the run; resumable.

    Args:
      out: folder of the study.
      console: where progress goes.
      num_gradients: per run.
    """
    # The example that differs is drawn from those behind the first NUM_TRAIN.
    base = dataclasses.replace(
        base_settings("500"),
        num_train=NUM_TRAIN + NUM_PAIRS,
        rate_schedule="constant",
        report_every=CHUNK,
        num_gradients=num_gradients,
        evaluate_every=num_gradients,
    )
    task = make_task(base)
    numbers = (NUM_PAIRS, NUM_HELD_OUT, CHUNK, NUM_POINTS, GROWTH_FROM)
    memo = Memo(out / "stability.part", (base, RATES, GAMMAS, numbers))
    rows: list[dict[str, Any]] = []
    for label, name, settings in contenders(base):
        step = compile_step(task, name, settings, 2 * NUM_PAIRS)
        for rate in RATES:
            field = rate_field(getattr(settings, name))
            chosen = with_fields(settings, name, {field: rate})
            row = memo(
                f"{label}, rate {rate:g}",
                functools.partial(_pairs, task, step, name, chosen),
            )
            rows.append({"contender": label, "method": name, "rate": rate} | row)
            console.print(
                f"{label}, rate {rate:g}: distance {np.mean(row['distance']):.3f},"
                f" path {np.mean(row['path_length']):.2f}, training loss"
                f" {np.mean(row['training_loss']):.4f}"
            )
    content = {
        "settings": base,
        "num_pairs": NUM_PAIRS,
        "num_train": NUM_TRAIN,
        "rows": rows,
    }
    write_json(out / "stability.json", content)
    memo.remove()


def _pairs(task: Any, step: Any, name: str, settings: Settings) -> dict[str, Any]:
    # Members 2p and 2p + 1 are a pair; in the second, example p is another one.
    traced, _ = methods.split_settings(name, settings)
    method = methods.make_method(
        name, settings, traced, key=jax.random.key(0), carry_init=None
    )
    count = 2 * NUM_PAIRS
    traced = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), traced)
    keys = jnp.stack([jax.random.key(i // 2) for i in range(count)])
    arrays = step.init(traced, keys)

    @jax.jit
    def evaluated(arrays: Any) -> Any:
        params = jax.vmap(method.eval_params)(arrays["opt_state"], arrays["params"])
        return jax.tree.map(jnp.copy, params)

    @jax.jit
    def norms(a: Any, b: Any) -> Any:
        squares = jax.tree.map(
            lambda x, y: jnp.sum((x - y) ** 2, axis=tuple(range(1, x.ndim))), a, b
        )
        return jnp.sqrt(sum(jax.tree.leaves(squares)))

    @jax.jit
    def losses(params: Any, examples: Any) -> Any:
        # Of each member at each example: batches of one.
        batches = jax.tree.map(lambda leaf: leaf[:, None], examples)
        one = lambda p, b: task.loss(p, {}, b, jnp.int32(0), jax.random.key(0))[0]
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(params, batches)

    training = task.gather(task.data, jnp.arange(NUM_TRAIN))
    test = task.dataset.test
    held_out = jax.tree.map(
        lambda leaf: jnp.asarray(leaf[:NUM_HELD_OUT]), (test.images, test.labels)
    )

    def observe(params: Any) -> dict[str, np.ndarray]:
        first, second = (
            jax.tree.map(lambda leaf, i=i: leaf[i::2], params) for i in (0, 1)
        )
        own = np.asarray(losses(params, training), np.float64)
        seen = np.asarray(losses(params, held_out), np.float64)
        changes = np.abs(seen[0::2] - seen[1::2])
        pairs = np.arange(NUM_PAIRS)
        return {
            "distance": np.asarray(norms(first, second), np.float64),
            "training_loss": own[0::2].mean(axis=1),
            "test_loss": seen[0::2].mean(axis=1),
            # |f(w_S; z) - f(w_S'; z)|, at z that neither has seen, and that one has.
            "held_out_mean": changes.mean(axis=1),
            "held_out_max": changes.max(axis=1),
            "differing": np.abs(own[2 * pairs, pairs] - own[2 * pairs + 1, pairs]),
        }

    streams = [
        minibatches(NUM_TRAIN, settings.batch_size, i // 2) for i in range(count)
    ]
    path = np.zeros(count)
    old = jax.tree.map(jnp.copy, arrays["params"])
    points = path_points(settings.num_gradients)
    found = []
    for done in range(CHUNK, settings.num_gradients + 1, CHUNK):
        indices = draw(streams, CHUNK // repeats(settings, name))
        for pair in range(NUM_PAIRS):
            twin = indices[2 * pair + 1]
            twin[twin == pair] = NUM_TRAIN + pair
        arrays, _ = step.advance(arrays, traced, task.data, indices)
        new = evaluated(arrays)
        path += np.asarray(norms(old, new))
        old = new
        if done in points:
            found.append(observe(new))
    return _row(points, found, path[0::2])


def path_points(num_gradients: int) -> list[int]:
    """Where the path of a run is recorded.

    Args:
      num_gradients: of the run.

    Returns:
      Numbers of gradients, multiples of `CHUNK`, evenly spaced on a log scale.
    """
    chunks = np.geomspace(1, num_gradients // CHUNK, NUM_POINTS)
    return [CHUNK * int(n) for n in np.unique(np.rint(chunks))]


def _row(
    points: list[int], found: list[dict[str, np.ndarray]], path_length: np.ndarray
) -> dict[str, Any]:
    # Each pair's numbers at the end; over the path their means and standard errors.
    last = found[-1] | {"path_length": path_length}
    row: dict[str, Any] = {name: _rounded(values) for name, values in last.items()}
    late = [i for i, gradients in enumerate(points) if gradients >= GROWTH_FROM]
    distances = np.array([found[i]["distance"] for i in late]).T
    row["growth"] = None
    if len(late) > 1 and np.all(np.isfinite(distances) & (distances > 0)):
        growth = growth_exponent([points[i] for i in late], distances)
        row["growth"] = _rounded(np.array([growth.value, growth.standard_error]))
    path: dict[str, Any] = {"gradients": points}
    row["path"] = path
    for name in found[0]:
        values = np.stack([point[name] for point in found])
        path[name] = _rounded(values.mean(axis=1))
        if name in ("distance", "held_out_mean"):
            errors = values.std(axis=1, ddof=1) / NUM_PAIRS**0.5
            path[f"{name}_error"] = _rounded(errors)
    return row


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def at_matched_loss(rows: list[dict[str, Any]], loss: float) -> float | None:
    """Mean distance where a contender's training loss is as given.

    Interpolates the logarithms of loss and distance between neighbouring rates, the
    lowest two that have the loss between them, the higher rate with the lower loss.

    Args:
      rows: of one contender; None in them stands for what is not finite.
      loss: training loss in nats.

    Returns:
      The distance, or None if no two rates have the loss between them.
    """
    mean = lambda values: float(np.mean(np.array(values, float)))
    points = [
        (mean(row["training_loss"]), mean(row["distance"]))
        for row in sorted(rows, key=lambda row: row["rate"])
    ]
    for pair in itertools.pairwise(points):
        losses, distances = zip(*sorted(pair), strict=True)
        # Where a higher rate no longer fits better the runs have begun to diverge.
        falling = pair[0][0] > pair[1][0]
        if falling and 0 < losses[0] <= loss <= losses[1] < np.inf:  # never with NaN
            logs = np.interp(np.log(loss), np.log(losses), np.log(distances))
            return float(np.exp(logs))
    return None


def at_stopped_loss(row: dict[str, Any], loss: float) -> dict[str, float] | None:
    """Means over the pairs where their training loss has fallen to a value.

    Interpolates logarithms between the first point of the path with a lower loss and
    the one before it.

    Args:
      row: of one contender at one rate.
      loss: training loss in nats.

    Returns:
      Gradients, distance and mean change of the loss of held-out examples; None if the
      loss was not reached, or before the first point.
    """
    path = row["path"]
    losses = np.array(path["training_loss"], float)
    below = np.flatnonzero(losses <= loss)
    if not below.size or below[0] == 0:
        return None
    ends = slice(below[0] - 1, below[0] + 1)
    at = lambda name: float(
        np.exp(
            np.interp(
                -np.log(loss), -np.log(losses[ends]), np.log(np.array(path[name])[ends])
            )
        )
    )
    return {name: at(name) for name in ("gradients", "distance", "held_out_mean")}
