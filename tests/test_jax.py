"""JAX's transformations: jit, counted gradients, donation, vmap, export."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import (
    assert_close,
    assert_equal,
    grad_fn,
    make_params,
    make_rows,
    opaque_step,
    run_opaque,
    run_single,
    single_step,
)
from toy import strict as strict

import entropy_optax as eo

MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])


def make(opaque, key: Any = 0, temperature=1e-2, **settings):
    return eo.entropy_sgd(
        0.5,
        gamma=0.5,
        num_steps=3,
        temperature=temperature,
        outer_momentum=0.5,
        opaque_mode=opaque,
        key=key,
        **settings,
    )


def step_of(opaque, tx, **kwargs):
    """Return step(params, state, row); in both modes the row is what it eats."""
    one = opaque_step if opaque else single_step
    return lambda params, state, row: one(tx, params, state, row, **kwargs)


def rows_of(opaque):
    rows = make_rows(3, 3)
    return rows if opaque else rows.reshape(-1)


@MODES
@pytest.mark.parametrize("num_steps", [1, 3])
def test_an_outer_step_costs_exactly_num_steps_gradient_calls(opaque, num_steps):
    calls = []

    def counted(params, row):
        jax.debug.callback(lambda: calls.append(1))
        return grad_fn(params, row)

    tx = eo.entropy_sgd(1.0, num_steps=num_steps, temperature=0.0, opaque_mode=opaque)

    @jax.jit
    def run(params, rows):
        def body(carry, row):
            params, state = carry
            kwargs = {"grad_fn": counted, "batches": row[1:]} if opaque else {}
            grads = counted(params, row[0] if opaque else row)
            updates, state = tx.update(grads, state, params, **kwargs)
            return (optax.apply_updates(params, updates), state), None

        rows = rows if opaque else rows.reshape(-1)
        return jax.lax.scan(body, (params, tx.init(params)), rows)[0]

    _, state = run(make_params(), make_rows(4, num_steps))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(calls) == 4 * num_steps == eo.num_gradients(state)


@MODES
def test_no_recompilation_on_the_second_call(opaque, caplog):
    # A leak check would trace every call anew.
    tx = make(opaque)
    traces = []

    def step(params, state, row):
        traces.append(1)
        return step_of(opaque, tx)(params, state, row)

    with jax.check_tracer_leaks(False), jax.log_compiles():
        jitted = jax.jit(step)
        params, rows = make_params(), rows_of(opaque)
        rows = [rows[0], rows[1], rows[2]]
        state = tx.init(params)
        with caplog.at_level(logging.WARNING):
            params, state = jitted(params, state, rows[0])
            assert "Compiling" in caplog.text  # so that silence means something
            caplog.clear()
            for row in rows[1:]:
                params, state = jitted(params, state, row)
            assert "Compiling" not in caplog.text
    assert len(traces) == 1


@MODES
def test_a_scan_over_steps_keeps_every_type(opaque):
    """Weak types or other shapes would make the scan of a training loop fail."""
    tx = make(opaque)
    state = jax.eval_shape(tx.init, make_params())
    row = rows_of(opaque)[0]
    _, after = jax.eval_shape(step_of(opaque, tx), make_params(), state, row)
    kind = lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type)
    assert jax.tree.map(kind, after) == jax.tree.map(kind, state)


@pytest.mark.parametrize("unroll", [2, True])
def test_unrolled_equals_rolled(unroll):
    rolled, unrolled = (
        eo.scale_by_local_entropy(
            eo.sgld(0.1, temperature=1e-2), 4, 0.5, unroll=setting
        )
        for setting in ("auto", unroll)
    )
    rows = make_rows(2, 4)
    a, b = (run_opaque(tx, make_params(), rows) for tx in (rolled, unrolled))
    assert_close(b.history, a.history)


def test_a_rolled_scan_is_one_program_for_every_length():
    """What is compiled does not grow with L, so neither does the time it takes."""

    def num_lines(num_steps):
        tx = eo.entropy_sgd(1.0, num_steps=num_steps, opaque_mode=True)
        (row,) = make_rows(1, num_steps)
        state = tx.init(make_params())
        step = jax.jit(partial(opaque_step, tx))
        lowered = step.lower(make_params(), state, row)
        return len(lowered.as_text().splitlines())

    assert num_lines(5) == num_lines(100)


def test_the_state_between_outer_steps_is_small():
    """The outer optimizer's own, and less than 1 KiB whatever the params' size."""
    params = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    tx = eo.entropy_sgd(1.0, outer_momentum=0.9, opaque_mode=True)
    outer = optax.sgd(1.0, momentum=0.9, nesterov=True)
    ours, theirs = (
        sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(jax.eval_shape(each.init, params))
        )
        for each in (tx, outer)
    )
    assert theirs == 4_000_000
    assert 0 < ours - theirs < 1024


@MODES
def test_donation_of_params_and_state_in_a_loop(opaque):
    """The user's key, carry_init and a copy of the params outlive the donation."""
    key = jax.random.key(5)
    carry_init = jnp.arange(3.0)
    tx = make(opaque, key=key, carry_init=carry_init if opaque else None)

    def step(params, state, row):
        if not opaque:
            return single_step(tx, params, state, row)
        with_carry = lambda p, r, carry: (grad_fn(p, r), carry + 1)
        updates, state = tx.update(
            grad_fn(params, row[0]),
            state,
            params,
            grad_fn=with_carry,
            batches=row[1:],
        )
        return optax.apply_updates(params, updates), state

    with jax.check_tracer_leaks(False):  # which would trace every call anew
        loop = jax.jit(step, donate_argnums=(0, 1))
        params, kept = make_params(), make_params()
        state = tx.init(params)
        for row in rows_of(opaque):
            old = (params, state)
            params, state = loop(params, state, row)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old[0]))
    assert_close(
        params,
        (run_opaque if opaque else run_single)(
            make(opaque, key=jax.random.key(5)), kept, make_rows(3, 3)
        ).params,
        atol=1e-5,
    )
    np.testing.assert_array_equal(carry_init, [0.0, 1.0, 2.0])
    assert not key.is_deleted()
    if opaque:
        np.testing.assert_array_equal(optax.tree.get(state, "carry"), [6.0, 7.0, 8.0])


@MODES
def test_the_first_state_shares_no_buffer_with_the_users_arrays(opaque):
    key = jax.random.key(5)
    carry_init = jnp.arange(3.0)
    tx = make(opaque, key=key, carry_init=carry_init if opaque else None)
    params = make_params()
    state = tx.init(params)
    users = [*jax.tree.leaves(params), jax.random.key_data(key), carry_init]
    pointers = {leaf.unsafe_buffer_pointer() for leaf in users}
    pointers.add(key.unsafe_buffer_pointer())
    mine = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
    assert not mine & pointers


def test_the_carry_of_a_call_survives_the_donation_of_the_state():
    """Also a part that grad_fn hands through, and one inner step, which calls none."""
    with jax.check_tracer_leaks(False):
        for num_steps in (1, 3):
            carry = {"counted": jnp.zeros(2), "constant": jnp.ones(2)}
            tx = eo.scale_by_local_entropy(
                eo.sgld(0.1), num_steps, 0.5, carry_init=carry
            )

            def with_carry(params, row, carry):
                return grad_fn(params, row), {**carry, "counted": carry["counted"] + 1}

            def step(params, state, row, carry, tx=tx):
                updates, state = tx.update(
                    grad_fn(params, row[0]),
                    state,
                    params,
                    grad_fn=with_carry,
                    batches=row[1:],
                    carry=carry,
                )
                return optax.apply_updates(params, updates), state

            loop = jax.jit(step, donate_argnums=(0, 1))
            params = make_params()
            state = tx.init(params)
            for row in make_rows(3, num_steps):
                params, state = loop(params, state, row, carry)
            assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(carry))


@MODES
def test_ensemble_members_have_their_own_noise(opaque):
    """vmap init, set the keys, run: member i is the single run with key i."""
    tx = make(opaque)
    run = run_opaque if opaque else run_single
    rows = make_rows(2, 3)

    @jax.jit
    def ensemble(params):
        stacked = jax.tree.map(lambda p: jnp.stack([p, p]), params)
        state = jax.vmap(tx.init)(stacked)
        keys = jax.random.split(jax.random.key(9), 2)
        state = optax.tree.set(state, rng_key=keys)
        ran = jax.vmap(lambda p, s: run(tx, p, rows, s))(stacked, state)
        return ran, eo.eval_params(ran.state, ran.params), eo.num_gradients(ran.state)

    ran, x, spent = ensemble(make_params())
    assert x["w"].shape == (2, 2, 3)
    np.testing.assert_array_equal(spent, [6, 6])
    assert jnp.min(jnp.abs(ran.params["w"][0] - ran.params["w"][1])) > 1e-3

    single = make(opaque, key=jax.random.split(jax.random.key(9), 2)[1])
    alone = run(single, make_params(), rows)
    np.testing.assert_allclose(ran.params["w"][1], alone.params["w"], rtol=1e-5)
    member = jax.tree.map(lambda leaf: leaf[1], ran.state)
    assert_equal(
        optax.tree.get(member, "rng_key"), optax.tree.get(alone.state, "rng_key")
    )


def test_an_ensemble_out_of_step_evaluates_each_member_at_its_own_x():
    """Members in different places of the cycle, and leaves of several ranks."""
    tx = eo.entropy_sgd(1.0, num_steps=3, temperature=0.0)
    params = {"scalar": jnp.ones(2), "matrix": jnp.ones((2, 2, 3))}

    @jax.jit
    def run(params):
        state = jax.vmap(tx.init)(params)
        two = jax.tree.map(lambda p: 2 * p, params)
        _, moved = jax.vmap(tx.update)(params, state, params)
        # Member 0 is at the start of a cycle, member 1 in the middle.
        pick = jnp.array([False, True])
        state = jax.vmap(lambda c, a, b: optax.tree.where(c, a, b))(pick, moved, state)
        return eo.eval_params(state, two)

    # Without noise both states hold one key; the choice between them reads it twice.
    with jax.debug_key_reuse(False):
        x = run(params)
    np.testing.assert_array_equal(x["scalar"], [2.0, 1.0])
    np.testing.assert_array_equal(x["matrix"][:, 0, 0], [2.0, 1.0])


@MODES
def test_vmap_over_hyperparameters(opaque):
    """The factory itself under vmap: temperature, gamma and step size traced."""
    run = run_opaque if opaque else run_single

    def final(gamma, step_size):
        tx = eo.entropy_sgd(
            1.0,
            gamma=gamma,
            num_steps=3,
            step_size=step_size,
            temperature=0.0,
            opaque_mode=opaque,
        )
        return run(tx, make_params(), make_rows(1, 3)).params["w"]

    gammas, sizes = jnp.array([0.1, 2.0]), jnp.array([0.1, 0.2])
    finals = jax.jit(jax.vmap(final))(gammas, sizes)
    np.testing.assert_allclose(finals[1], final(2.0, 0.2), rtol=1e-5)


@MODES
def test_export_lowers_for_every_platform_and_runs_here(opaque):
    tx = make(opaque)
    params, row = make_params(), rows_of(opaque)[0]
    state = tx.init(params)
    step = jax.jit(step_of(opaque, tx))
    exported = jax.export.export(step, platforms=["tpu", "cuda", "cpu"])(
        params, state, row
    )
    assert exported.platforms == ("tpu", "cuda", "cpu")
    wanted = step(params, tx.init(params), row)
    assert_close(exported.call(params, state, row), wanted)


def test_gradient_through_the_whole_loop():
    """Hyper-gradients: the update is differentiable, and as differences say."""

    def final(step_size):
        tx = eo.scale_by_local_entropy(eo.sgld(step_size, momentum=0.9), 3, 0.5)
        return jnp.sum(run_opaque(tx, make_params(), make_rows(1, 3)).params["w"])

    slope, low, high = jax.jit(
        lambda s: (jax.grad(final)(s), final(s - 0.01), final(s + 0.01))
    )(jnp.float32(0.1))
    np.testing.assert_allclose(slope, (high - low) / 0.02, rtol=1e-2)
