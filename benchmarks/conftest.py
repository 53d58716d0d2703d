"""What a record keeps besides the times, and the yardstick beside each of them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

# Else PyTorch's threads spin for a while after each of its turns, and slow JAX's down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROUNDS = 20
PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "torch", "entropy-optax")


def pytest_benchmark_generate_machine_info(config):
    del config
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": f"{device.platform} {device.device_kind}",
        "python": platform.python_version(),
        "versions": versions,
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
    }


def pytest_benchmark_generate_commit_info(config):
    del config
    return {}


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keep what was measured: one flat row for each comparison."""
    del config, benchmarks
    output_json["rows"] = [bench["extra_info"] for bench in output_json["benchmarks"]]
    del output_json["benchmarks"]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1] for line in file if "model name" in line]
        return names[0].strip()
    except (OSError, IndexError):
        return platform.processor()


@pytest.fixture
def paired(benchmark) -> Callable[..., None]:
    """Time a function against a yardstick in turn: A B A B ..., after a warm-up.

    ``paired(target, baseline, scale=1.0, rounds=ROUNDS, **row)`` puts the ratio of the
    medians, times ``scale``, into the record with the quartiles of the rounds' own
    ratios. Where the machine changes its speed on the way the two can differ.
    """

    def measure(
        target: Callable[[], Any],
        baseline: Callable[[], Any],
        *,
        scale: float = 1.0,
        rounds: int = ROUNDS,
        **row: Any,
    ) -> None:
        baselines, targets = [], []

        def yardstick() -> None:
            start = time.perf_counter()
            baseline()
            baselines.append(time.perf_counter() - start)

        def timed() -> None:
            start = time.perf_counter()
            target()
            targets.append(time.perf_counter() - start)

        benchmark.pedantic(timed, setup=yardstick, rounds=rounds, warmup_rounds=1)
        baselines, targets = baselines[-rounds:], targets[-rounds:]
        ratios = scale * np.array(targets) / np.array(baselines)
        ratio = scale * statistics.median(targets) / statistics.median(baselines)
        benchmark.extra_info.update(
            **row,
            ratio=round(ratio, 4),
            quartiles=[round(float(q), 4) for q in np.quantile(ratios, [0.25, 0.75])],
            rounds=rounds,
            target_ms=round(1e3 * statistics.median(targets), 3),
            baseline_ms=round(1e3 * statistics.median(baselines), 3),
        )

    return measure
