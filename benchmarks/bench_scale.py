"""What several devices cost: time at fixed work per device, and bytes communicated.

    python benchmarks/bench_scale.py RECORD [--rounds N]

The CPU is split into devices, or several processes share it over gloo, so that all rows
run on the same cores. Meshes of one process are timed in turn, round by round;
processes are started anew for each round, in turn with a single one. What is
communicated is read from the compiled program.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import entropy_optax as eo
from entropy_optax.experiments import distributed, meshes
from entropy_optax.experiments.collectives import collectives
from entropy_optax.training import TrainState, linen_carry, linen_train_step

NUM_DEVICES = (1, 2, 4, 8)
NUM_PROCESSES = (1, 2, 4)
ROUNDS, PROCESS_ROUNDS = 15, 3
NUM_STEPS, BATCH, WIDTH = 20, 32, 256
"""Gradients per outer step; examples per gradient of each device; hidden units."""
SECONDS = 0.3
"""A timing takes at least so long, of several outer steps if need be."""
CONTENDERS = {
    "SGD, data parallel": "sgd",
    "Entropy-SGD, data parallel": "entropy_sgd",
    "Parle, a replica on each device": "parle",
    "Parle, two devices for each replica": "parle_pairs",
}


def num_replicas(name: str, devices: int) -> int | None:
    if name == "parle":
        return devices
    return max(devices // 2, 1) if name == "parle_pairs" else None


def make_optimizer(name: str, replicas: int | None) -> Any:
    if name == "sgd":
        return optax.sgd(0.02, momentum=0.9, nesterov=True)
    settings: dict[str, Any] = {
        "num_steps": NUM_STEPS, "gamma": 0.1, "step_size": 0.02, "temperature": 1e-8,
        "opaque_mode": True, "unroll": False, "carry_init": linen_carry(),
    }  # fmt: skip
    if replicas is None:
        return eo.entropy_sgd(1.0, **settings)
    return eo.parle(1.0, num_replicas=replicas, coupling=0.1, **settings)


def loss_fn(params: Any, stats: Any, batch: Any, key: Any) -> Any:
    del key
    images, labels = batch
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), stats


def make_params() -> dict[str, Any]:
    normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / 28
    return {
        "w1": normal(0, 784, WIDTH), "b1": jnp.zeros(WIDTH),
        "w2": normal(1, WIDTH, 10), "b2": jnp.zeros(10),
    }  # fmt: skip


class Run:
    """A compiled outer step of NUM_STEPS gradients on a mesh, and its state."""

    def __init__(self, name: str, devices: list[Any]):
        replicas = num_replicas(name, len(devices))
        mesh = meshes.replica_mesh(devices, replicas or 1)
        place = lambda spec: NamedSharding(mesh, spec)
        own, along = P(), P(None, "batch")
        leading = (NUM_STEPS, BATCH * len(devices) // (replicas or 1))
        if replicas is not None:
            own, along, leading = (
                P("replica"),
                P("replica", *along),
                (replicas, *leading),
            )
        tx = make_optimizer(name, replicas)
        fields = ("step", "params", "opt_state", "rng_key")

        def create() -> dict[str, Any]:
            params = make_params()
            if replicas is not None:
                params = eo.replica_params(params, replicas)
            made = TrainState.create(apply_fn=lambda: None, params=params, tx=tx)
            return {field: getattr(made, field) for field in fields}

        def step(arrays: Any, batches: Any) -> Any:
            state = TrainState(apply_fn=lambda: None, tx=tx, batch_stats={}, **arrays)
            state, _ = linen_train_step(loss_fn, replicas)(state, batches)
            return {field: getattr(state, field) for field in fields}

        places = meshes.replica_shardings(mesh, jax.eval_shape(create), own)
        self.state = jax.jit(create, out_shardings=places)()
        rows = np.random.default_rng(0).standard_normal(784, dtype=np.float32)
        read = lambda index: np.broadcast_to(rows, (*leading, 784))[index]
        label = lambda index: np.zeros(leading, np.int32)[index]
        self.batches = (
            jax.make_array_from_callback((*leading, 784), place(along), read),
            jax.make_array_from_callback(leading, place(along), label),
        )
        compiled = jax.jit(step, donate_argnums=0, out_shardings=places)
        self.step = compiled.lower(self.state, self.batches).compile()
        self.communicated = collectives(self.step.as_text())
        self.seconds(1)  # the first call is slower
        self.number = max(1, round(SECONDS / self.seconds(1)))

    def seconds(self, number: int | None = None) -> float:
        """Return the seconds of one outer step, of several in a row."""
        number = number or self.number
        start = time.perf_counter()
        for _ in range(number):
            self.state = self.step(self.state, self.batches)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / number


def rates(times: list[float], alone: list[float]) -> dict[str, Any]:
    """Return rates as ratios to one device, in the rounds' own pairs."""
    ratios = [one / many for one, many in zip(alone, times, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "seconds_per_outer_step": statistics.median(times),
        "ratio": statistics.median(ratios),
        "quartiles": [low, high],
        "rounds": len(times),
    }


def row(label: str, run: Run, times: list[float], alone: list[float]) -> dict[str, Any]:
    """Return what is kept of a contender on so many devices."""
    if not all(c.trips for c in run.communicated):
        raise RuntimeError(f"{label}: a loop of unknown length communicates")
    # An average over the gradients of an outer step; each device sends what it gets.
    sent = sum(c.num_bytes * c.trips for c in run.communicated) / NUM_STEPS
    return {
        "contender": label,
        **rates(times, alone),
        "bytes_per_gradient": sent,
        "calls_per_outer_step": sum(c.trips for c in run.communicated),
        "in_loop": any(c.in_loop for c in run.communicated),
    }


def on_devices(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for label, name in CONTENDERS.items():
        runs = {d: Run(name, jax.devices()[:d]) for d in NUM_DEVICES}
        times: dict[int, list[float]] = {d: [] for d in NUM_DEVICES}
        for _ in range(rounds):
            for d, run in runs.items():
                times[d].append(run.seconds())
        for d, run in runs.items():
            found = row(label, run, times[d], times[1])
            rows.append({"devices": d, "processes": 1, **found})
    return rows


def on_processes(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for label, name in CONTENDERS.items():
        if name == "parle_pairs":
            continue
        found: dict[int, list[dict[str, Any]]] = {p: [] for p in NUM_PROCESSES}
        for _ in range(rounds):
            for p in NUM_PROCESSES:
                found[p].append(start_processes(name, p))
        alone = [one["seconds"] for one in found[1]]
        for p, made in found.items():
            times = [one["seconds"] for one in made]
            kept = made[0]["row"] | {"contender": label} | rates(times, alone)
            rows.append({"devices": p, "processes": p, **kept})
    return rows


def start_processes(name: str, count: int) -> dict[str, Any]:
    """Start so many processes and return what the first one measured."""
    address = distributed.free_address()
    command = [sys.executable, __file__, "-", "--worker", name, address, str(count)]
    environment = distributed.one_device_environment()
    workers = [
        subprocess.Popen(
            [*command, str(i)], stdout=subprocess.PIPE, env=environment, text=True
        )
        for i in range(count)
    ]
    try:
        outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        raise RuntimeError(f"{name}: a process of {count} failed")
    return json.loads(outputs[0].splitlines()[-1])


def work(name: str, address: str, count: int, index: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, index)
    run = Run(name, jax.devices())
    run.number = 10  # the same in all processes
    times = [run.seconds() for _ in range(5)]
    found = row(name, run, times, times)
    if index == 0:
        print(json.dumps({"seconds": statistics.median(times), "row": found}))
    jax.distributed.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--process-rounds", type=int, default=PROCESS_ROUNDS)
    parser.add_argument("--worker", nargs=4)
    args = parser.parse_args()
    if args.worker:
        name, address, count, index = args.worker
        work(name, address, int(count), int(index))
        return
    jax.config.update("jax_num_cpu_devices", max(NUM_DEVICES))
    rows = on_devices(args.rounds)
    if args.process_rounds:
        rows += on_processes(args.process_rounds)

    from conftest import pytest_benchmark_generate_machine_info as machine_info

    num_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(make_params()))
    record = {
        "machine_info": machine_info(None), "param_bytes": num_bytes,
        "num_steps": NUM_STEPS, "batch": BATCH, "rows": rows,
    }  # fmt: skip
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps(record, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
