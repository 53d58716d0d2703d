"""Every float dtype: what is returned, what is accumulated, what is lost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import (
    assert_close,
    grad_fn,
    make_params,
    make_rows,
    opaque_step,
    plain,
    run_opaque,
    run_single,
    single_step,
)
from toy import strict as strict

import entropy_optax as eo

DTYPES = ["float16", "bfloat16", "float32", "float64"]
MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def make(opaque, **changes):
    defaults = {"temperature": 1e-2, "weight_decay": 0.1, "outer_momentum": 0.5}
    settings: dict[str, Any] = defaults | changes
    return eo.entropy_sgd(0.5, gamma=0.5, num_steps=3, opaque_mode=opaque, **settings)


@MODES
@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_and_state_keep_their_dtypes(opaque, dtype):
    """Updates in the params' dtype, mu in float32 at least, scalars in float."""
    with jax.enable_x64(dtype == "float64"):
        params = cast(make_params(), dtype)
        tx = make(opaque)
        step = opaque_step if opaque else single_step
        row = jnp.zeros(3) if opaque else jnp.zeros([])
        state = jax.eval_shape(tx.init, params)
        after, new_state = jax.eval_shape(
            lambda p, s: step(tx, p, s, row), params, state
        )
        updates, _ = jax.eval_shape(
            lambda p, s: (
                tx.update(p, s, p, grad_fn=grad_fn, batches=row[1:])
                if opaque
                else tx.update(p, s, p)
            ),
            params,
            state,
        )
        assert after["w"].dtype == updates["w"].dtype == dtype
        kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), tree)
        assert kinds(state) == kinds(new_state)
        scalar = jnp.result_type(float)
        for name in ("gamma", "distance", "displacement"):
            assert optax.tree.get(new_state, name).dtype == scalar
        if not opaque:
            wide = jnp.promote_types(dtype, jnp.float32)
            assert new_state.mean["w"].dtype == wide
            assert new_state.anchor["w"].dtype == dtype


@MODES
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_follows_the_run_in_double_precision(opaque, dtype):
    """The errors are those of the dtype, and nothing overflows."""
    tolerance = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-5, "float64": 1e-12}
    # Signs are the same numbers in every dtype.
    run = run_opaque if opaque else run_single
    with jax.enable_x64(True):
        rows = make_rows(2, 3).astype(jnp.float32)
        tx = make(opaque, noise="rademacher")
        exact = run(tx, cast(make_params(), "float64"), rows.astype(jnp.float64))
        with jax.enable_x64(dtype == "float64"):
            there = run(tx, cast(make_params(), dtype), rows)
    assert there.params["w"].dtype == dtype
    np.testing.assert_allclose(
        plain(there.params["w"]), exact.params["w"], atol=tolerance[dtype]
    )


def test_float64_agrees_between_the_modes():
    with jax.enable_x64(True):
        params = cast(make_params(), "float64")
        a = run_opaque(make(True), params, make_rows(2, 3))
        b = run_single(make(False), params, make_rows(2, 3))
        assert_close(b.params, a.params, rtol=1e-12, atol=1e-12)


def test_the_direction_survives_bfloat16_params():
    """Steps below bfloat16's resolution: kept in float32, lost if kept in bfloat16."""
    curvature = jnp.linspace(0.5, 1.5, 6)
    gradient = lambda p, i: jax.tree.map(
        lambda leaf: (curvature * leaf.astype(jnp.float32)).astype(leaf.dtype), p
    )

    def direction(dtype, **settings):
        tx = eo.scale_by_local_entropy(
            eo.sgld(1e-3), 5, 0.0, mean_decay=0.5, **settings
        )
        x = {"w": jnp.ones(6, dtype)}
        update = lambda x: tx.update(gradient(x, 0), tx.init(x), x, grad_fn=gradient)
        updates, _ = jax.jit(update)(x)
        assert updates["w"].dtype == dtype
        return plain(updates["w"])

    exact = direction("float32")
    assert np.all(exact > 1e-3)
    np.testing.assert_allclose(direction("bfloat16"), exact, rtol=1e-2)
    naive = direction("bfloat16", accumulator_dtype=jnp.bfloat16)
    assert np.max(np.abs(naive - exact)) > 0.5 * np.min(exact)


def test_float16_norms_do_not_overflow():
    """||x' - x|| beyond 256 has a square beyond float16."""
    x = {"w": jnp.full(4, 300.0, jnp.float16)}
    tx = make(False, temperature=0.0, weight_decay=0.0, momentum=None)
    grads = {"w": jnp.full(4, 3000.0, jnp.float16)}
    _, state = jax.jit(lambda x: tx.update(grads, tx.init(x), x))(x)
    np.testing.assert_allclose(optax.tree.get(state, "displacement"), 600, rtol=1e-2)


MIXED = {"half": "bfloat16", "single": "float32", "tiny": "float16"}


@MODES
def test_mixed_dtypes_in_one_tree(opaque):
    params = {name: jnp.ones(3, dtype) for name, dtype in MIXED.items()}
    run = (run_opaque if opaque else run_single)(make(opaque), params, make_rows(2, 3))
    assert {name: leaf.dtype for name, leaf in run.params.items()} == MIXED
    wide = {name: jnp.ones(3) for name in MIXED}
    exact = (run_opaque if opaque else run_single)(make(opaque), wide, make_rows(2, 3))
    np.testing.assert_allclose(
        run.params["single"], exact.params["single"], rtol=1e-5, atol=1e-5
    )


def test_grad_fn_gets_params_in_their_own_dtype():
    """And a model whose gradients come in another dtype does no harm."""
    params = {name: jnp.ones(3, dtype) for name, dtype in MIXED.items()}
    seen: list[Any] = []

    def gradient(at, i):
        seen.append({name: str(leaf.dtype) for name, leaf in at.items()})
        return cast(at, "float32")

    tx = make(True)
    jax.eval_shape(
        lambda p: tx.update(gradient(p, 0), tx.init(p), p, grad_fn=gradient), params
    )
    assert len(seen) >= 2
    assert all(dtypes == MIXED for dtypes in seen)


def test_float32_params_stay_float32_under_x64():
    with jax.enable_x64(True):
        params = cast(make_params(), "float32")
        tx = make(False)
        state = tx.init(params)
        after, _ = jax.eval_shape(
            lambda p, s: single_step(tx, p, s, jnp.zeros([])), params, state
        )
        assert after["w"].dtype == jnp.float32
        assert optax.tree.get(state, "mean")["w"].dtype == jnp.float32
