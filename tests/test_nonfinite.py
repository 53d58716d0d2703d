"""Gradients with a NaN or an infinity, at every position of the inner loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import assert_close, assert_equal, grad_fn, make_params, make_rows, plain
from toy import strict as strict

import entropy_optax as eo

BAD = jnp.array([jnp.nan, jnp.inf, -jnp.inf])
CASES = [(position, bad) for position in range(3) for bad in range(3)]
MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])


def make(opaque, num_steps=3, skip=True, **settings):
    return eo.local_entropy(
        optax.sgd(0.5),
        eo.sgld(0.1, temperature=1e-2, momentum=0.9),
        num_steps,
        0.5,
        opaque_mode=opaque,
        skip_nonfinite=skip,
        **settings,
    )


def poisoned(params, data):
    """The toy's gradient, one element of which a poison (0 if none) is added to."""
    row, poison = data
    return {"w": grad_fn(params, row)["w"].at[0, 1].add(poison)}


def outer_step(opaque, tx, params, rows, poisons) -> tuple[Any, Any]:
    """One outer step from a fresh state, rows and poisons having the shape (L,)."""
    state: Any = tx.init(params)
    if opaque:
        updates, state = tx.update(
            poisoned(params, (rows[0], poisons[0])),
            state,
            params,
            grad_fn=poisoned,
            batches=(rows[1:], poisons[1:]),
        )
        return optax.apply_updates(params, updates), state

    def body(carry, data):
        params, state = carry
        updates, state = tx.update(poisoned(params, data), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, state), (rows, poisons))[0]


@MODES
def test_one_bad_gradient_is_a_step_left_out(opaque):
    """For NaN, +Inf and -Inf first, in the middle and last: noise and all the same."""
    rows = make_rows(1, 3)[0]
    all_poisons = jnp.stack(
        [jnp.zeros(3).at[position].set(BAD[bad]) for position, bad in CASES]
    )
    shorter = jnp.stack([jnp.delete(rows, position) for position in range(3)])

    @jax.jit
    def run(params):
        step = lambda data: outer_step(opaque, make(opaque), params, rows, data)
        less = lambda row: outer_step(
            opaque, make(opaque, 2), params, row, jnp.zeros(2)
        )
        return jax.lax.map(step, all_poisons), jax.lax.map(less, shorter)

    (bad, bad_state), (good, good_state) = run(make_params())
    positions = jnp.array([position for position, _ in CASES])
    np.testing.assert_allclose(bad["w"], good["w"][positions], rtol=1e-5, atol=1e-6)
    keys, shorter_keys = (
        plain(optax.tree.get(state, "rng_key")) for state in (bad_state, good_state)
    )
    np.testing.assert_array_equal(keys, shorter_keys[positions])
    np.testing.assert_array_equal(optax.tree.get(bad_state, "num_nonfinite"), [1] * 9)
    np.testing.assert_array_equal(eo.num_gradients(bad_state), [3] * 9)
    np.testing.assert_allclose(
        optax.tree.get(bad_state, "distance"),
        jnp.repeat(optax.tree.get(good_state, "distance"), 3),
        rtol=1e-4,
    )


@MODES
def test_all_bad_is_no_step_at_all(opaque):
    params = make_params()
    tx = make(opaque)

    @jax.jit
    def run(params):
        return outer_step(opaque, tx, params, make_rows(1, 3)[0], BAD)

    after, state = run(params)
    assert_equal(after, params)
    assert optax.tree.get(state, "num_nonfinite") == 3
    assert optax.tree.get(state, "distance") == 0.0
    assert optax.tree.get(state, "outer_count") == 1
    # The sampler drew nothing, so its key is the first one.
    assert_equal(
        optax.tree.get(state, "rng_key"), optax.tree.get(tx.init(params), "rng_key")
    )


@MODES
def test_without_skipping_what_is_not_finite_flows_on(opaque):
    """An overflow is not hidden: the params and the distance show it."""
    params = make_params()

    @jax.jit
    def run(params):
        step = lambda poison: outer_step(
            opaque,
            make(opaque, skip=False),
            params,
            make_rows(1, 3)[0],
            jnp.zeros(3).at[1].set(poison),
        )
        return jax.lax.map(step, BAD)

    after, state = run(params)
    assert not jnp.any(jnp.isfinite(after["w"][:, 0, 1]))
    assert not jnp.any(jnp.isfinite(optax.tree.get(state, "distance")))
    assert jnp.all(jnp.isfinite(after["w"][:, 1]))  # the other elements are unharmed
    np.testing.assert_array_equal(optax.tree.get(state, "num_nonfinite"), [0, 0, 0])


@MODES
def test_under_vmap_only_the_bad_member_skips(opaque):
    rows = make_rows(1, 3)[0]
    poisons = jnp.zeros((2, 3)).at[1, 1].set(jnp.nan)

    @jax.jit
    def run(params):
        tx = make(opaque)
        step = lambda poison: outer_step(opaque, tx, params, rows, poison)
        good = outer_step(opaque, tx, params, rows, jnp.zeros(3))
        return jax.vmap(step)(poisons), good

    # Under vmap the branch is a selection, which reads the old key and the new one.
    with jax.debug_key_reuse(False):
        (members, state), (good, _) = run(make_params())
    np.testing.assert_array_equal(optax.tree.get(state, "num_nonfinite"), [0, 1])
    np.testing.assert_allclose(members["w"][0], good["w"], rtol=1e-5)
    assert jnp.all(jnp.isfinite(members["w"][1]))
    assert jnp.max(jnp.abs(members["w"][1] - good["w"])) > 1e-3


def test_a_bad_gradient_leaves_the_carry_as_it_was():
    """Statistics of a forward pass which overflowed are as bad as its gradient."""
    rows = make_rows(1, 3)[0]
    carry_init = {"count": jnp.zeros([], jnp.int32), "key": jax.random.key(1)}
    tx = make(True, carry_init=carry_init)

    def with_carry(params, data, carry):
        new = {"count": carry["count"] + 1, "key": jax.random.split(carry["key"])[0]}
        return poisoned(params, data), new

    @jax.jit
    def run(params):
        def one(poisons):
            _, state = tx.update(
                poisoned(params, (rows[0], poisons[0])),
                tx.init(params),
                params,
                grad_fn=with_carry,
                batches=(rows[1:], poisons[1:]),
            )
            carry: Any = optax.tree.get(state, "carry")
            return carry

        # Good, the given gradient bad, one bad, both that grad_fn returns bad.
        nan = jnp.nan
        return jax.lax.map(
            one, jnp.array([[0, 0, 0], [nan, 0, 0], [0, nan, 0], [0, nan, nan]])
        )

    # The carry's key is read both as the old and as the new one, to choose.
    with jax.debug_key_reuse(False):
        carry = run(make_params())
    np.testing.assert_array_equal(carry["count"], [2, 2, 1, 0])
    keys = plain(carry["key"])
    np.testing.assert_array_equal(keys[3], plain(jax.random.key(1)))
    assert (keys[2] != keys[3]).any()
    assert (keys[0] != keys[2]).any()


def test_a_gradient_beyond_the_range_of_the_first_leaves_the_carry():
    """1e6 is finite in float32, and infinite in float16, the first gradient's dtype."""
    tx = make(True, carry_init=jnp.zeros([]))
    params = jax.tree.map(lambda p: p.astype(jnp.float16), make_params())
    large = lambda params, i, carry: (
        jax.tree.map(lambda p: jnp.full(p.shape, 1e6), params),
        carry + 1,
    )
    _, state = jax.jit(lambda p: tx.update(p, tx.init(p), p, grad_fn=large))(params)
    assert optax.tree.get(state, "num_nonfinite") == 2
    assert optax.tree.get(state, "carry") == 0


def test_the_count_goes_on_over_outer_steps():
    tx = make(False)

    @jax.jit
    def run(params):
        rows = make_rows(1, 7)[0]
        poisons = jnp.array([0, jnp.nan, 0, 0, jnp.inf, jnp.nan, 0])
        return outer_step(False, tx, params, rows, poisons)

    params, state = run(make_params())
    assert optax.tree.get(state, "num_nonfinite") == 3
    assert optax.tree.get(state, "outer_count") == 2
    assert optax.tree.get(state, "inner_count") == 1
    assert_close(*[jax.tree.map(jnp.isfinite, params)] * 2)
    assert jnp.all(jnp.isfinite(params["w"]))


def test_a_huge_but_finite_gradient_is_not_skipped():
    """The sum of its squares overflows; only the elements themselves count."""
    tx = make(False)

    @jax.jit
    def update(params):
        big = jax.tree.map(lambda p: jnp.full_like(p, 3e30), params)
        return tx.update(big, tx.init(params), params)

    _, state = update(make_params())
    assert optax.tree.get(state, "num_nonfinite") == 0
