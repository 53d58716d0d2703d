"""A checkpoint in the middle of a cycle resumes bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from toy import assert_equal, grad_fn, make_params, make_rows, plain, single_step
from toy import strict as strict

import entropy_optax as eo


def through_disk(path, tree):
    """Save a tree, and restore it from its shapes and dtypes alone."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        return checkpointer.restore(path, abstract)


def settings():
    return {
        "gamma": eo.exponential_scoping(0.5, 0.5),
        "num_steps": 3,
        "temperature": 1e-2,
        "outer_momentum": 0.5,
        "weight_decay": 0.1,
    }


def test_one_gradient_per_call_resumes_in_the_middle_of_a_cycle(tmp_path):
    tx = eo.entropy_sgd(0.5, **settings())

    @jax.jit
    def run(params, state, rows):
        body = lambda carry, row: (single_step(tx, carry[0], carry[1], row), None)
        return jax.lax.scan(body, (params, state), rows)[0]

    # Four calls before and after; the whole is two runs without the disk between.
    rows = make_rows(1, 8)[0]
    with jax.check_tracer_leaks(False):  # which would trace every call anew
        middle = run(make_params(), tx.init(make_params()), rows[:4])
        assert optax.tree.get(middle[1], "inner_count") == 1
        restored = through_disk(tmp_path / "checkpoint", middle)
        assert_equal(restored, middle)
        key = optax.tree.get(restored[1], "rng_key")
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        resumed = run(*restored, rows[4:])
        whole = run(*middle, rows[4:])
    assert optax.tree.get(whole[1], "inner_count") == 2
    assert_equal(resumed, whole)
    assert_equal(eo.eval_params(resumed[1], resumed[0]), eo.eval_params(*whole[::-1]))


def test_the_whole_loop_resumes_with_its_carry_and_keys(tmp_path):
    carry_init = {"total": jnp.zeros(()), "key": jax.random.key(7)}
    tx = eo.entropy_sgd(0.5, opaque_mode=True, carry_init=carry_init, **settings())

    def with_carry(params, row, carry):
        key, drop = jax.random.split(carry["key"])
        keep = jax.random.bernoulli(drop, 0.5, params["w"].shape)
        grads = {"w": keep * grad_fn(params, row)["w"]}
        return grads, {"total": carry["total"] + row, "key": key}

    @jax.jit
    def run(params, state, rows):
        def body(carry, row):
            params, state = carry
            updates, state = tx.update(
                grad_fn(params, row[0]),
                state,
                params,
                grad_fn=with_carry,
                batches=row[1:],
            )
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, state), rows)[0]

    rows = make_rows(4, 3)
    with jax.check_tracer_leaks(False):  # which would trace every call anew
        middle = run(make_params(), tx.init(make_params()), rows[:2])
        restored = through_disk(tmp_path / "checkpoint", middle)
        assert_equal(restored, middle)
        resumed, whole = run(*restored, rows[2:]), run(*middle, rows[2:])
    assert_equal(resumed, whole)
    total = optax.tree.get(whole[1], "total")
    np.testing.assert_allclose(total, jnp.sum(rows[:, 1:]), rtol=1e-5)
    before, after = (plain(optax.tree.get(s[1], "key")) for s in (middle, whole))
    assert (before != after).any()
