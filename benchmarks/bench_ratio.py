"""Seconds per gradient over those of a jitted SGD step, and the memory it takes."""

from __future__ import annotations

from functools import cache

import jax
import optax
import optax.contrib
import problems
import pytest
from contenders import (
    Contender,
    compilation,
    entropy_sgd,
    one_per_call,
    sgd,
    whole_outer_step,
)
from problems import NUM_STEPS

# Gradients per round of what has no outer step: enough for a steady time.
GRADIENTS = {"allcnn": 4, "char-lstm": 4, "transformer": 4, "transformer-64": 4}


def calls(problem, num_gradients=1):
    return GRADIENTS.get(problem.name, NUM_STEPS) // num_gradients


CONTENDERS = {
    "Entropy-SGD": lambda problem: whole_outer_step(problem),
    "Entropy-SGD, one gradient per call": lambda problem: one_per_call(
        problem, entropy_sgd(opaque_mode=False), calls=calls(problem)
    ),
    "Entropy-SGD, Gaussian noise": lambda problem: whole_outer_step(
        problem, noise="gaussian"
    ),
    "SAM": lambda problem: one_per_call(
        problem,
        optax.contrib.sam(
            sgd(),
            optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
            opaque_mode=True,
        ),
        num_gradients=2,
        calls=calls(problem, 2),
    ),
    "Lookahead": lambda problem: one_per_call(
        problem,
        optax.lookahead(sgd(), sync_period=5, slow_step_size=0.5),
        calls=calls(problem),
        start=optax.LookaheadParams.init_synced,
        at=lambda params: params.fast,
    ),
    "Schedule-Free SGD": lambda problem: one_per_call(
        problem,
        optax.contrib.schedule_free_sgd(1e-3),
        calls=calls(problem),
    ),
}
GOALS = {
    "Entropy-SGD": 1.05,
    "Entropy-SGD, one gradient per call": 1.10,
    "Entropy-SGD, Gaussian noise": 1.15,
}
# Gaussian noise costs most where a gradient costs least beside its params.
ONLY = {"Entropy-SGD, Gaussian noise": ["mnistfc"]}
CASES = [
    (contender, name)
    for contender in CONTENDERS
    for name in ONLY.get(contender, problems.NAMES)
]


@cache
def yardstick(name: str) -> tuple[problems.Problem, Contender]:
    problem = problems.make(name)
    return problem, one_per_call(problem, sgd(), calls=calls(problem))


@pytest.mark.parametrize(("contender", "name"), CASES)
def test_seconds_per_gradient(paired, contender, name):
    measure(paired, contender, name)


@pytest.mark.parametrize("contender", ["Entropy-SGD"])
def test_full_batch(paired, contender):
    """The batch of 64 texts, for which a CPU takes a quarter of an hour."""
    measure(paired, contender, "transformer-64")


def measure(paired, contender, name):
    problem, baseline = yardstick(name)
    timed = CONTENDERS[contender](problem)
    params_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(problem.params))
    paired(
        timed.run,
        baseline.run,
        scale=baseline.num_gradients / timed.num_gradients,
        group="seconds per gradient over SGD's",
        model=name,
        batch=problem.batch,
        baseline_gradients=baseline.num_gradients,
        contender=contender,
        goal=GOALS.get(contender),
        num_gradients=timed.num_gradients,
        params=sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
        temporary_copies=round(
            (timed.temporary_bytes - baseline.temporary_bytes) / params_bytes, 2
        ),
        state_bytes=timed.state_bytes,
    )


@pytest.mark.parametrize("name", ["mnistfc", "lenet"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("algorithm", ["SGD", "Entropy-SGD"])
def test_pytorch(paired, algorithm, compiled, name):
    pytest.importorskip("torch")
    import torch_rival

    make = {"SGD": torch_rival.sgd_steps, "Entropy-SGD": torch_rival.outer_steps}
    problem, baseline = yardstick(name)
    paired(
        make[algorithm](name, 128, compiled=compiled),
        baseline.run,
        scale=baseline.num_gradients / NUM_STEPS,
        group="seconds per gradient over SGD's",
        model=name,
        batch=problem.batch,
        baseline_gradients=baseline.num_gradients,
        contender=f"PyTorch {algorithm}, {'compiled' if compiled else 'eager'}",
        goal=None,
    )


def test_compile_time(paired):
    problem, _ = yardstick("mnistfc")
    paired(
        compilation(problem, 100),
        compilation(problem, 5),
        group="seconds to compile",
        model="mnistfc",
        contender="L = 100 over L = 5",
        goal=1.2,
    )


@pytest.mark.parametrize("unroll", [False, "auto"])
def test_unroll_for_convolutions_of_xla(paired, unroll):
    problem, baseline = yardstick("lenet-xla")
    timed = whole_outer_step(problem, unroll=unroll)
    paired(
        timed.run,
        baseline.run,
        group="seconds per gradient with XLA's convolution over SGD's",
        model="lenet-xla",
        contender=f"unroll={unroll!r}",
        goal=None,
    )


def test_compile_time_of_an_unrolled_loop(paired):
    problem, _ = yardstick("lenet-xla")
    paired(
        compilation(problem, NUM_STEPS),
        compilation(problem, NUM_STEPS, unroll=False),
        rounds=5,
        group="seconds to compile",
        model="lenet-xla",
        contender="unrolled over rolled, L = 20",
        goal=None,
    )


@pytest.mark.parametrize("name", ["mnistfc-16", "mnistfc-64"])
def test_scan_over_outer_steps(paired, name):
    problem = problems.make(name)
    paired(
        whole_outer_step(problem, outer_steps=100, one_scan=True).run,
        whole_outer_step(problem, outer_steps=100).run,
        group="seconds for 100 outer steps",
        model=name,
        contender="one lax.scan over 100 jitted calls",
        goal=1.0,
    )
