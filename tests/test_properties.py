"""Invariants over random trees, dtypes and settings."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from toy import (
    grad_fn,
    make_rows,
    opaque_step,
    plain,
    run_opaque,
    run_single,
    single_step,
)

import entropy_optax as eo

# The strict checks are not a fixture here, which hypothesis would share among examples.
SHAPES = st.sampled_from([(), (0,), (1,), (3,), (2, 2)])
HALF_OR_SINGLE = st.sampled_from(["float16", "bfloat16", "float32"])


@st.composite
def leaves(draw, dtypes=HALF_OR_SINGLE):
    shape = draw(SHAPES)
    start = draw(st.floats(-2, 2, width=16))
    size = int(np.prod(shape))
    values = start + np.linspace(-1, 1, size).reshape(shape)
    return jnp.asarray(values, draw(dtypes))


def trees(dtypes=HALF_OR_SINGLE, max_leaves=3):
    """Draw a tree; None alone would be the params that Optax was not given."""
    nested = st.recursive(
        leaves(dtypes) | st.none(),
        lambda children: (
            st.lists(children, max_size=2)
            | st.tuples(children, children)
            | st.dictionaries(st.sampled_from("abc"), children, max_size=2)
        ),
        max_leaves=max_leaves,
    )
    return st.fixed_dictionaries({"root": nested})


SETTINGS = st.fixed_dictionaries(
    {
        "learning_rate": st.sampled_from([0.1, 1.0]),
        "gamma": st.sampled_from([0.0, 0.5, eo.linear_scoping(0.1, 1.0)]),
        "num_steps": st.integers(1, 3),
        "step_size": st.sampled_from([0.01, 0.1]),
        "temperature": st.sampled_from([0.0, 1e-2]),
        "momentum": st.sampled_from([None, 0.0, 0.9]),
        "outer_momentum": st.sampled_from([None, 0.5]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "mean_decay": st.sampled_from([0.0, 0.75, lambda k: k / (k + 1)]),
        "noise": st.sampled_from(["gaussian", "rademacher"]),
        "key": st.integers(0, 2**31 - 1),
        "skip_nonfinite": st.booleans(),
    }
)


def kinds(tree: Any):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@settings(max_examples=20)
@given(params=trees(max_leaves=4), given_settings=SETTINGS)
def test_structure_shapes_and_dtypes_are_kept(params, given_settings):
    """By abstract evaluation, which compiles nothing."""
    for opaque in (True, False):
        tx = eo.entropy_sgd(opaque_mode=opaque, **given_settings)
        rows = make_rows(1, given_settings["num_steps"])[0]
        state = jax.eval_shape(tx.init, params)
        step = opaque_step if opaque else single_step
        row = rows if opaque else rows[0]
        after, new_state = jax.eval_shape(
            lambda p, s, tx=tx, step=step, row=row: step(tx, p, s, row), params, state
        )
        assert kinds(after) == kinds(params)
        assert kinds(new_state) == kinds(state)
        same = optax.tree.map_params(tx, lambda leaf: leaf, state)
        assert jax.tree.structure(same) == jax.tree.structure(state)


@settings(max_examples=8)
@given(params=trees(), given_settings=SETTINGS)
def test_the_modes_agree_and_x_is_known_at_any_call(params, given_settings):
    """To rounding: in half precision one gradient per call keeps x' less precisely."""
    length = given_settings["num_steps"]
    rows = make_rows(2, length)
    with (
        jax.checking_leaks(),
        jax.debug_key_reuse(True),
        jax.numpy_rank_promotion("raise"),
    ):
        a = run_opaque(eo.entropy_sgd(opaque_mode=True, **given_settings), params, rows)
        b = run_single(eo.entropy_sgd(**given_settings), params, rows)
    assert jax.tree.structure(a.params) == jax.tree.structure(params)
    tolerance = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.3}
    for p, q in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(plain(p), plain(q), atol=tolerance[str(p.dtype)])
    ends = jax.tree.map(lambda leaf: leaf[length - 1 :: length], b.history)
    first = jax.tree.map(lambda leaf: leaf[None], params)
    at = jax.tree.map(lambda leaf, x: jnp.concatenate([x, leaf]), ends, first)
    for call in range(2 * length):
        done = (call + 1) // length
        for seen, x in zip(jax.tree.leaves(b.evals), jax.tree.leaves(at), strict=True):
            np.testing.assert_array_equal(plain(seen[call]), plain(x[done]))


@settings(max_examples=5)
@given(
    params=trees(st.just("float32")),
    position=st.integers(0, 2),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_no_bad_gradient_gets_through(params, position, bad):
    """The params stay finite; an empty tree has nothing that could be bad."""
    tx = eo.entropy_sgd(1.0, num_steps=3, temperature=0.0, skip_nonfinite=True)
    poisons = jnp.zeros(3).at[position].set(bad)

    def body(carry, data):
        params, state = carry
        row, poison = data
        grads = jax.tree.map(lambda g: g + poison, grad_fn(params, row))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        data = (make_rows(1, 3)[0], poisons)
        return jax.lax.scan(body, (params, tx.init(params)), data)[0]

    after, state = run(params)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    elements = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert optax.tree.get(state, "num_nonfinite") == (1 if elements else 0)
