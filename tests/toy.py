"""A small loss, one driver for each mode, and JAX's strict checks, for the tests."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import entropy_optax as eo


@pytest.fixture(autouse=True)
def strict():
    """Raise on leaked tracers, on keys used twice and on promoted ranks.

    And compile fast: a test runs what it compiles once.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with (
        jax.checking_leaks(),
        jax.debug_key_reuse(True),
        jax.numpy_rank_promotion("raise"),
    ):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def loss(params: Any, row: jax.Array) -> jax.Array:
    """Sum over all elements of (p - row)^2 / 2 + cos p; the row is a scalar."""
    return sum(
        (
            jnp.sum((leaf - row.astype(leaf.dtype)) ** 2 / 2 + jnp.cos(leaf))
            for leaf in jax.tree.leaves(params)
        ),
        start=jnp.zeros([]),
    )


grad_fn = jax.grad(loss)


def make_params() -> dict[str, jax.Array]:
    """Return a tree of one matrix."""
    return {"w": jnp.array([[1.0, -1.0, 0.5], [2.0, 0.1, -0.7]])}


def make_rows(num_outer: int = 3, num_steps: int = 3) -> jax.Array:
    """Return one scalar for each gradient, shape (num_outer, num_steps)."""
    size = num_outer * num_steps
    return jnp.sin(jnp.arange(1.0, 1.0 + size)).reshape(num_outer, num_steps)


class Run(NamedTuple):
    """What a run left: the end, and a stack over the outer steps or the calls."""

    params: Any
    state: Any
    history: Any
    evals: Any = None


def opaque_step(tx: Any, params: Any, state: Any, row: jax.Array, **kwargs: Any):
    """One outer step; the row has one scalar for each of its gradients."""
    grads = grad_fn(params, row[0])
    updates, state = tx.update(
        grads, state, params, grad_fn=grad_fn, batches=row[1:], **kwargs
    )
    return optax.apply_updates(params, updates), state


def single_step(tx: Any, params: Any, state: Any, row: jax.Array, **kwargs: Any):
    """One call of one gradient."""
    updates, state = tx.update(grad_fn(params, row), state, params, **kwargs)
    return optax.apply_updates(params, updates), state


def run_opaque(tx: Any, params: Any, rows: Any, state: Any = None, **kwargs) -> Run:
    """Run with a whole outer step per update; ``history`` is x after each of them."""

    def body(carry: Any, row: jax.Array):
        params, state = opaque_step(tx, carry[0], carry[1], row, **kwargs)
        return (params, state), params

    @jax.jit
    def run(params, state, rows):
        state = tx.init(params) if state is None else state
        (params, state), history = jax.lax.scan(body, (params, state), rows)
        return Run(params, state, history)

    return run(params, state, rows)


def run_single(tx: Any, params: Any, rows: Any, state: Any = None, **kwargs) -> Run:
    """Run with one gradient per update; ``history`` is the params after each call."""

    def body(carry: Any, row: jax.Array):
        params, state = single_step(tx, carry[0], carry[1], row, **kwargs)
        return (params, state), (params, eo.eval_params(state, params))

    @jax.jit
    def run(params, state, rows):
        state = tx.init(params) if state is None else state
        (params, state), seen = jax.lax.scan(body, (params, state), rows)
        return Run(params, state, seen[0], seen[1])

    return run(params, state, rows.reshape(-1))


def assert_close(actual: Any, desired: Any, rtol: float = 1e-5, atol: float = 1e-6):
    """Assert that two trees have the same structure, shapes and nearly the values."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for (path, a), d in zip(
        jax.tree_util.tree_leaves_with_path(actual),
        jax.tree.leaves(desired),
        strict=True,
    ):
        assert a.shape == d.shape, jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            plain(a), plain(d), rtol, atol, err_msg=jax.tree_util.keystr(path)
        )


def assert_equal(actual: Any, desired: Any):
    """Assert that two trees are the same, bit for bit, PRNG keys included."""
    assert_close(actual, desired, rtol=0.0, atol=0.0)


def over_the_data(step: Any, loss_fn: Any, mesh: Any) -> Any:
    """Return a step under ``jax.shard_map`` over the axis "d" of the data.

    The loss takes the mean over the devices; ``step`` gets its gradient as ``grad_fn``.
    """
    mean_grad = jax.grad(lambda params, x: jax.lax.pmean(loss_fn(params, x), "d"))
    return jax.shard_map(
        partial(step, grad_fn=mean_grad),
        mesh=mesh,
        in_specs=(P(), P(), P(None, None, "d")),
        out_specs=P(),
    )


def assert_exports(step: Any, *args: Any, devices: int):
    """For accelerators; compiling and running it is theirs."""
    exported = jax.export.export(jax.jit(step), platforms=["tpu", "cuda"])(*args)
    assert exported.nr_devices == devices
    assert exported.platforms == ("tpu", "cuda")


def plain(leaf: Any) -> np.ndarray:
    """Return an array, or the words of a PRNG key, as NumPy can compare them."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    wide = array.dtype.kind not in "iub" and array.dtype.itemsize < 4
    return array.astype(np.float32) if wide else array
