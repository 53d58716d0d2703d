"""Trees of every kind: empty, scalar, wide, zero-size, named, with None."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import (
    assert_close,
    assert_equal,
    make_rows,
    opaque_step,
    run_opaque,
    run_single,
    single_step,
)
from toy import strict as strict

import entropy_optax as eo


class Layer(NamedTuple):
    """A module's params by name."""

    weight: Any
    bias: Any


TREES = {
    "empty": {},
    "scalar": jnp.float32(0.7),
    "zero size": {"none": jnp.zeros((0, 3)), "some": jnp.ones(2)},
    "only zero size": jnp.zeros((0,)),
    "named": [Layer(jnp.ones((2, 2)), jnp.zeros(2)), Layer(jnp.ones((2, 1)), None)],
    "nested": {"a": (jnp.ones(2), [jnp.zeros(()), None]), "b": {"c": {}}},
}


def make(opaque, **changes):
    settings: dict[str, Any] = {"temperature": 1e-2, "noise": "rademacher"} | changes
    return eo.entropy_sgd(
        0.5,
        gamma=0.5,
        num_steps=3,
        weight_decay=0.1,
        outer_momentum=0.5,
        skip_nonfinite=True,
        opaque_mode=opaque,
        **settings,
    )


@pytest.mark.parametrize("name", TREES)
def test_both_modes_on_a_tree_of_every_kind(name):
    params, rows = TREES[name], make_rows(2, 3)
    a = run_opaque(make(True), params, rows)
    b = run_single(make(False), params, rows)
    assert_close(b.params, a.params, atol=1e-5)
    assert jax.tree.structure(a.params) == jax.tree.structure(params)
    x = eo.eval_params(b.state, b.params)
    assert_equal(x, b.params)  # a cycle has just ended
    assert eo.num_gradients(a.state) == eo.num_gradients(b.state) == 6


def test_gaussian_noise_on_zero_size_leaves():
    run = run_single(make(False, noise="gaussian"), TREES["zero size"], make_rows(1, 1))
    assert run.params["none"].shape == (0, 3)


def thousand_leaves():
    """Return 1,000 leaves in 40 groups of 25, of NumPy, as JAX makes each slowly."""
    leaf = lambda value: np.full(2, value, np.float32)
    return [{f"leaf{j}": leaf(i + j / 25) for j in range(25)} for i in range(40)]


@pytest.mark.parametrize(
    "opaque",
    [pytest.param(True, marks=pytest.mark.slow), False],
    ids=["opaque", "single"],
)
def test_a_thousand_leaves(opaque):
    """Without noise: XLA compiles a generator for each leaf, for Optax's own too."""
    params = thousand_leaves()
    tx = eo.local_entropy(optax.sgd(0.5), eo.sgld(0.1), 2, 0.5, opaque_mode=opaque)
    kwargs = {"grad_fn": lambda p, i: p} if opaque else {}
    # The two checks take time in proportion to the square of the leaves.
    with jax.check_tracer_leaks(False), jax.debug_key_reuse(False):
        update = jax.jit(lambda p: tx.update(p, tx.init(p), p, **kwargs))
        updates, state = update(params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    # By hand: x' = 1, 0.9, 0.815 and mu = 1, 0.975, 0.935 for x = 1.
    factor = -0.5 * (1 - 0.935) if opaque else -0.1
    x, moves = (np.stack(jax.tree.leaves(tree)) for tree in (params, updates))
    np.testing.assert_allclose(moves, factor * x, rtol=1e-3)
    assert eo.num_gradients(state) == (2 if opaque else 1)


def equations(tree, opaque) -> int:
    """Return the size of the program of one step."""
    tx = make(opaque)
    row = make_rows(1, 3)[0] if opaque else jnp.float32(0.5)
    step = opaque_step if opaque else single_step
    program = jax.make_jaxpr(lambda p: step(tx, p, tx.init(p), row))(tree)
    return str(program).count("\n")


@pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])
def test_the_program_grows_no_faster_than_the_tree(opaque):
    few, some, many = (
        equations([jnp.ones(2)] * leaves, opaque) for leaves in (10, 20, 40)
    )
    assert many - some <= 2.2 * (some - few)


def test_the_program_does_not_grow_with_the_number_of_steps():
    def size(num_steps):
        tx = eo.entropy_sgd(1.0, num_steps=num_steps, opaque_mode=True)
        rows = jnp.ones(num_steps)
        step = lambda p: opaque_step(tx, p, tx.init(p), rows)
        return str(jax.make_jaxpr(step)(jnp.ones(2))).count("\n")

    assert size(50) <= size(5) + 2
