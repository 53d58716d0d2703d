"""What the instruments of entropy_optax.measure cost: time and peak memory.

    python benchmarks/bench_measure.py RECORD [--sizes 1e4 1e5 1e6] [--only NAME ...]

Each instrument at each size has a process of its own, so that its peak is its own. It
times the instrument in turn with one full-batch gradient, the unit of the table.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from entropy_optax import measure

SIZES = (10_000, 100_000, 1_000_000)
NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES = 500, 64, 10
TRAINING_STEPS = 20
ROUNDS, BUDGET = 15, 10.0
"""Rounds at most, and seconds for all of them; there is one at least."""
ONCE = 20.0
"""A first call that takes longer, in seconds, is not repeated."""
STEADY = 0.05
"""Shorter calls are timed several in a row, for at least so many seconds."""
CHAINS = measure.ChainSettings(num_chains=8, num_steps=12, num_burn=6, num_samples=500)


class Problem(NamedTuple):
    """A loss, params and a direction at which instruments are tried."""

    f: measure.Objective
    params: Any
    direction: Any
    key: jax.Array


def make_problem(size: int) -> Problem:
    """A perceptron 64-h-10 with about so many params, on labels of a linear teacher."""
    width = round((size - NUM_CLASSES) / (NUM_FEATURES + NUM_CLASSES + 1))
    keys = jax.random.split(jax.random.key(0), 5)
    normal = lambda key, *shape: jax.random.normal(key, shape) / shape[0] ** 0.5
    images = jax.random.normal(keys[0], (NUM_EXAMPLES, NUM_FEATURES))
    labels = jnp.argmax(images @ normal(keys[1], NUM_FEATURES, NUM_CLASSES), axis=1)
    params = {
        "hidden": normal(keys[2], NUM_FEATURES, width),
        "hidden_bias": jnp.zeros(width),
        "out": normal(keys[3], width, NUM_CLASSES),
        "out_bias": jnp.zeros(NUM_CLASSES),
    }

    def predict(params, batch):
        hidden = jax.nn.relu(batch[0] @ params["hidden"] + params["hidden_bias"])
        return hidden @ params["out"] + params["out_bias"]

    def criterion(logits, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return losses.mean()

    f = measure.model_objective(predict, criterion, (images, labels), params)
    params = _train(f, params)
    direction = measure.filter_normalized_direction(keys[4], params)
    return Problem(f, params, direction, jax.random.key(1))


@jax.jit
def _train(f, params):
    # Somewhat down the hill: the spectrum of a start tells little of that of a minimum.
    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)

    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(f)(params), state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, TRAINING_STEPS, step, (params, tx.init(params)))[0]


@jax.jit
def gradient(p: Problem) -> Any:
    return jax.grad(p.f)(p.params)


@jax.jit
def hessian_product(p: Problem) -> Any:
    return measure.hessian_vector_product(p.f, p.params, p.direction)


@jax.jit
def gauss_newton_product(p: Problem) -> Any:
    return measure.gauss_newton_vector_product(p.f, p.params, p.direction)


def plane(p: Problem) -> Any:
    line = np.linspace(-1, 1, 11)
    other = jax.tree.map(jnp.flip, p.direction)
    return measure.plane_loss(p.f, p.params, p.direction, other, line, line)


def local_entropy(method: str) -> Callable[[Problem], Any]:
    def run(p: Problem) -> Any:
        # Two rungs: a colder target takes more, each as dear as the first two.
        found = measure.local_entropy(
            p.f,
            p.params,
            gamma=1e3,
            temperature=1.0,
            key=p.key,
            method=method,
            settings=CHAINS,
        )
        if not found.converged:
            raise measure.MeasureError(str(found))
        return found

    return run


INSTRUMENTS: dict[str, Callable[[Problem], Any]] = {
    "gradient": gradient,
    "Hessian-vector product": hessian_product,
    "Gauss-Newton-vector product": gauss_newton_product,
    "extreme eigenvalues, one at each end": lambda p: measure.extreme_eigenvalues(
        p.f, p.params, key=p.key, tolerance=1e-3
    ),
    "spectral density, 30 probes x 20 steps": lambda p: measure.spectral_density(
        p.f, p.params, key=p.key, num_probes=30, num_steps=20
    ),
    "share near zero, 200 steps": lambda p: measure.share_near_zero(
        p.f, p.params, key=p.key, num_steps=200
    ),
    "traces, 30 probes": lambda p: measure.traces(
        p.f, p.params, key=p.key, num_probes=30
    ),
    "dense spectrum": lambda p: measure.dense_spectrum(p.f, p.params),
    "noise curve, 30 samples x 3 sizes": lambda p: measure.noise_curve(
        p.f, p.params, [0.1, 0.2, 0.4], kind="filter", key=p.key, num_samples=30
    ),
    "epsilon sharpness, 4 x 50 steps": lambda p: measure.epsilon_sharpness(
        p.f, p.params, key=p.key
    ),
    "adaptive sharpness, 4 x 50 steps": lambda p: measure.adaptive_sharpness(
        p.f, p.params, radius=0.01, key=p.key
    ),
    "slice, 21 points": lambda p: measure.slice_loss(
        p.f, p.params, p.direction, np.linspace(-1, 1, 21)
    ),
    "plane, 11 x 11 points": plane,
    "smoothness at a point, 20 steps": lambda p: measure.smoothness_at(
        p.f, p.params, 1e3, key=p.key, num_steps=20
    ),
    "Laplace's local entropy, 30 probes x 20 steps": lambda p: (
        measure.laplace_local_entropy(
            p.f, p.params, gamma=1e3, temperature=1.0, key=p.key, num_steps=20
        )
    ),
    "local entropy, 500 draws": local_entropy("monte_carlo"),
    "local entropy, 2 rungs of 8 chains": local_entropy("thermodynamic_integration"),
}
EXTRA_SIZES = {"gradient": (1_000,), "dense spectrum": (1_000,)}


def measure_one(name: str, size: int) -> dict[str, Any]:
    """Run one instrument at one size, in a process that has done nothing else."""
    problem = jax.block_until_ready(make_problem(size))
    run = lambda: jax.block_until_ready(INSTRUMENTS[name](problem))
    row = {
        "group": "instruments",
        "instrument": name,
        "size": size,
        "params": ravel_pytree(problem.params)[0].size,
    }
    before = _start_memory()
    try:
        first = _seconds(run)
    except measure.MeasureError as error:
        return row | {"refused": str(error)}
    row |= {"first_s": round(first, 4), "first_bytes": _peak(before)}
    rounds = 0 if first > ONCE else int(np.clip(BUDGET / first, 1, ROUNDS))
    unit = lambda: jax.block_until_ready(gradient(problem))
    unit()
    units, times = [], []
    for _ in range(rounds or 3):
        units.append(_seconds(unit, STEADY))
        times.append(_seconds(run, STEADY) if rounds else first)
    ratios = np.array(times) / np.array(units)
    row |= {
        "rounds": rounds,
        "seconds": round(statistics.median(times), 6),
        "gradient_s": round(statistics.median(units), 6),
        "gradients": float(
            f"{statistics.median(times) / statistics.median(units):.4g}"
        ),
        "quartiles": [float(f"{q:.4g}") for q in np.quantile(ratios, [0.25, 0.75])],
    }
    if rounds:
        before = _start_memory()
        run()
        row["again_bytes"] = _peak(before)
    return row


def _seconds(run: Callable[[], Any], at_least: float = 0.0) -> float:
    start, count, spent = time.perf_counter(), 0, 0.0
    while not count or spent < at_least:
        run()
        count, spent = count + 1, time.perf_counter() - start
    return spent / count


def _start_memory() -> int:
    # What was freed goes back, and Linux begins a new high-water mark.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(before: int) -> int:
    # Not getrusage's maximum, which a process inherits from the one that started it.
    return _status("VmHWM") - before


def _status(field: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", text)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=pathlib.Path)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--only", nargs="+", default=list(INSTRUMENTS))
    parser.add_argument("--one", action="store_true", help="of one size, in here")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes]
    if args.one:
        row = measure_one(args.only[0], sizes[0])
        args.record.write_text(json.dumps(row), encoding="utf-8")
        return
    rows = []
    part = args.record.with_suffix(".part")
    args.record.parent.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        extra = EXTRA_SIZES.get(name, ()) if args.sizes is SIZES else ()
        for size in (*extra, *sizes):
            command = [sys.executable, __file__, str(part), "--one"]
            subprocess.run([*command, "--only", name, "--sizes", str(size)], check=True)
            rows.append(json.loads(part.read_text(encoding="utf-8")))
            print({k: v for k, v in rows[-1].items() if k != "group"}, flush=True)
    part.unlink()
    # Imported here: it is pytest's.
    from conftest import pytest_benchmark_generate_machine_info as machine_info

    record = {"machine_info": machine_info(None), "rows": rows}
    args.record.write_text(json.dumps(record, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
