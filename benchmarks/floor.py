"""How near the time of a step is to what this machine's memory allows.

    python benchmarks/floor.py mnistfc

measures how long one pass over the params takes, by sums of arrays as many and as large
as those of an inner step, and what the parts of a step cost: an inner step makes 13
passes over each leaf, SGD 7 (docs/performance.md counts them).
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import problems
from contenders import (
    Contender,
    entropy_sgd,
    one_per_call,
    sgd,
    whole_outer_step,
)

from entropy_optax.samplers._noise import _bits

ROUNDS = 20


def uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Return uniform noise of variance 1: the cost of a word for each element."""
    words = _bits(key, math.prod(shape)).reshape(shape)
    floats = jax.lax.bitcast_convert_type(words >> 9 | jnp.uint32(0x3F800000), dtype)
    return (floats - 1.5) * jnp.asarray(math.sqrt(12), dtype)


NOISES = {
    "uniform": uniform,
    "jax.random.rademacher": lambda key, shape, dtype: jax.random.rademacher(
        key, tuple(shape), dtype
    ),
    "'gaussian'": "gaussian",
    "jax.random.normal": jax.random.normal,
}


def within_a_cycle() -> optax.GradientTransformation:
    """Return one gradient per call, compiled for a call which neither begins nor ends.

    What is more in the ordinary call serves the first and the last of a cycle.
    """
    tx = entropy_sgd(opaque_mode=False)

    def update(updates, state, params=None, **extra_args):
        state = optax.tree.set(state, inner_count=1)
        updates, state = tx.update(updates, state, params, **extra_args)
        # Else the sum x' + u, taken for mu, would serve the loop's own x' + u as well.
        return jax.lax.optimization_barrier(updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def with_jax_threefry(problem: problems.Problem) -> Contender:
    """Return an outer step whose random words come from `jax.random.bits`."""
    bits = lambda key, size, **_: jax.random.bits(key, (size,), jnp.uint32)
    with mock.patch("entropy_optax.samplers._noise._bits", bits):
        return whole_outer_step(problem)


def without_displacement(problem: problems.Problem, **kwargs: Any) -> Contender:
    """Return an outer step which leaves out the mean of ||x' - x||."""
    name = "entropy_optax.transforms._inner.norm"
    with mock.patch(name, return_value=jnp.zeros([])):
        return whole_outer_step(problem, **kwargs)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def streaming(params: Any) -> tuple[Callable[[], Any], int]:
    """Return sums of trees like the params, in place, and the bytes they move.

    Six trees in turn, those of an inner step (x', x, mu, gradient, momentum, and what
    is written next), so that no cache holds what it would not hold there.
    """
    add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)
    trees = [jax.tree.map(jnp.copy, params) for _ in range(6)]
    rounds = 6

    def run():
        for _ in range(rounds):
            for i in (0, 2, 4):
                trees[i] = add(trees[i], trees[i + 1])
        jax.block_until_ready(trees)

    params_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return run, rounds * 3 * 3 * params_bytes


def main(name: str) -> None:
    problem = problems.make(name)
    params_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(problem.params))
    stream, stream_bytes = streaming(problem.params)
    one_gradient = lambda tx: one_per_call(problem, tx, calls=20)
    steps = {
        "SGD": one_gradient(sgd()),
        "Entropy-SGD": whole_outer_step(problem),
        "Entropy-SGD, no noise": whole_outer_step(problem, temperature=0.0),
        "Entropy-SGD, no displacement": without_displacement(problem),
        "Entropy-SGD, neither": without_displacement(problem, temperature=0.0),
        "Entropy-SGD, unroll=2": whole_outer_step(problem, unroll=2),
        "Entropy-SGD, Threefry as JAX runs it": with_jax_threefry(problem),
        **{
            f"Entropy-SGD, noise={label}": whole_outer_step(problem, noise=noise)
            for label, noise in NOISES.items()
        },
        **{
            f"Entropy-SGD, noise={noise!r}, rbg keys": whole_outer_step(
                problem, noise=noise, key=jax.random.key(0, impl="rbg")
            )
            for noise in ("rademacher", "gaussian")
        },
        "Entropy-SGD, one gradient per call": one_gradient(
            entropy_sgd(opaque_mode=False)
        ),
        "the same without branches": one_gradient(within_a_cycle()),
    }
    times: dict[str, list[float]] = {key: [] for key in (*steps, "stream")}
    for _ in range(ROUNDS + 1):
        times["stream"].append(seconds(stream))
        for key, step in steps.items():
            times[key].append(seconds(step.run) / step.num_gradients)
    medians = {key: statistics.median(each[1:]) for key, each in times.items()}
    pass_ms = 1e3 * params_bytes * medians["stream"] / stream_bytes
    print(
        f"{name}: a pass over the {params_bytes / 1e6:.2f} MB of the params takes "
        f"{pass_ms:.2f} ms; medians of {ROUNDS} rounds in turn\n"
    )
    print("| step | ms | ratio |")
    print("|---|---|---|")
    for key in steps:
        ratio = medians[key] / medians["SGD"]
        print(f"| {key} | {1e3 * medians[key]:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
