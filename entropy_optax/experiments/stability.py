"""Uniform stability: two runs whose training sets differ in one example.

Hardt, Recht and Singer (2016) bound the generalisation gap by how far apart such runs
end. Both start from the same params and see the same minibatches in the same order.
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
from entropy_optax.experiments.compiled import compile_step, draw
from entropy_optax.experiments.flat_minima import base_settings, write_json
from entropy_optax.experiments.grid import with_fields
from entropy_optax.experiments.hyperparameters import rate_field
from entropy_optax.experiments.image_task import minibatches
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.methods import repeats
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.tasks import make_task

NUM_PAIRS = 16
NUM_TRAIN = 500
CHUNK = 20  # gradients between two points of the path
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
    memo = Memo(out / "stability.part", (base, RATES, GAMMAS, NUM_PAIRS, CHUNK))
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
    def losses(params: Any) -> Any:
        batch = task.gather(task.data, jnp.arange(NUM_TRAIN))
        one = lambda p: task.loss(p, {}, batch, jnp.int32(0), jax.random.key(0))[0]
        return jax.vmap(one)(params)

    streams = [
        minibatches(NUM_TRAIN, settings.batch_size, i // 2) for i in range(count)
    ]
    old, path = arrays["params"], np.zeros(count)
    old = jax.tree.map(jnp.copy, old)
    new = old
    for _ in range(0, settings.num_gradients, CHUNK):
        indices = draw(streams, CHUNK // repeats(settings, name))
        for pair in range(NUM_PAIRS):
            twin = indices[2 * pair + 1]
            twin[twin == pair] = NUM_TRAIN + pair
        arrays, _ = step.advance(arrays, traced, task.data, indices)
        new = evaluated(arrays)
        path += np.asarray(norms(old, new))
        old = new
    first = jax.tree.map(lambda leaf: leaf[0::2], new)
    second = jax.tree.map(lambda leaf: leaf[1::2], new)
    return {
        "distance": np.asarray(norms(first, second)).tolist(),
        "path_length": path[0::2].tolist(),
        "training_loss": np.asarray(losses(first)).tolist(),
    }


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
