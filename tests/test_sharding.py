"""Eight devices give one device's result, and the state lies where its params lie."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toy import assert_close, assert_equal, assert_exports, over_the_data
from toy import strict as strict

import entropy_optax as eo

MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])
SPECS = {"w": P("d", None), "b": P()}


@pytest.fixture(autouse=True)
def _checked_keys(strict):
    # Before JAX 0.10 the checker rejects every jax.random.normal(out_sharding=...).
    with jax.debug_key_reuse(jax.__version_info__ >= (0, 10)):
        yield


def make_params():
    return {"w": jnp.linspace(-1, 1, 32).reshape(8, 4), "b": jnp.zeros(4)}


def make_data():
    """Two outer steps of three batches of 16 samples with 8 features."""
    return jnp.sin(jnp.arange(2 * 3 * 16 * 8.0)).reshape(2, 3, 16, 8)


def loss(params, x, gather=lambda w: w):
    hidden = jnp.tanh(x @ gather(params["w"]) + params["b"][None, :])
    return jnp.mean(jnp.sum((hidden - 0.5) ** 2, axis=1))


grad_fn = jax.grad(loss)


def make(opaque):
    return eo.local_entropy(
        optax.sgd(0.5, momentum=0.5),
        eo.sgld(0.1, temperature=1e-2, momentum=0.9),
        3,
        0.5,
        opaque_mode=opaque,
        skip_nonfinite=True,
    )


def run(tx, opaque, params, state, data, grad_fn=grad_fn):
    """Two outer steps, the batches one after another."""

    def outer(carry, batches):
        params, state = carry
        updates, state = tx.update(
            grad_fn(params, batches[0]),
            state,
            params,
            grad_fn=grad_fn,
            batches=batches[1:],
        )
        return (optax.apply_updates(params, updates), state), None

    def inner(carry, batch):
        params, state = carry
        updates, state = tx.update(grad_fn(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def both(carry, batches):
        if opaque:
            return outer(carry, batches)
        return jax.lax.scan(inner, carry, batches)

    return jax.lax.scan(both, (params, state), data)[0]


@cache
def one_device(opaque):
    tx = make(opaque)
    step = jax.jit(partial(run, tx, opaque))
    return step(make_params(), tx.init(make_params()), make_data())


def assert_same_run(sharded, single):
    """To rounding, the noise included; its keys are the same bit for bit."""
    assert_close(sharded[0], single[0], atol=1e-5)
    keys = [optax.tree.get(state, "rng_key") for state in (sharded[1], single[1])]
    with jax.debug_key_reuse(False):
        assert_equal(*(jax.random.key_data(key) for key in keys))
    assert eo.num_gradients(sharded[1]) == 6
    distances = (optax.tree.get(run[1], "distance") for run in (sharded, single))
    np.testing.assert_allclose(*distances, rtol=1e-4)


def param_like(tx, state, specs):
    """Return pairs of (state leaf, spec) for all that has the shape of a param."""
    pairs: list[Any] = []
    optax.tree.map_params(
        tx, lambda leaf, spec: pairs.append((leaf, spec)), state, specs
    )
    return pairs


@MODES
@pytest.mark.parametrize("kind", ["data parallel", "fsdp"])
def test_an_automatic_mesh_gives_one_devices_result(opaque, kind):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    specs = SPECS if kind == "fsdp" else {"w": P(), "b": P()}
    place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    params = jax.tree.map(place, make_params(), specs)
    tx = make(opaque)
    state = tx.init(params)
    data = place(make_data(), P(None, None, "d"))
    for leaf, spec in param_like(tx, state, specs):
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)

    ends = jax.jit(partial(run, tx, opaque))(params, state, data)
    assert_same_run(ends, one_device(opaque))
    pairs = param_like(tx, ends[1], specs)
    assert len(pairs) == 2 * (1 if opaque else 4)  # outer momentum; v, x and mu
    for leaf, spec in pairs:
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)


@MODES
@pytest.mark.parametrize("kind", ["data parallel", "fsdp"])
def test_an_explicit_mesh_gives_one_devices_result(opaque, kind):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    specs = SPECS if kind == "fsdp" else {"w": P(), "b": P()}
    # In an explicit mesh it is the model that says where a weight is gathered.
    gathered = lambda w: jax.sharding.reshard(w, P())
    with jax.set_mesh(mesh):
        params = jax.tree.map(jax.device_put, make_params(), specs)
        data = jax.device_put(make_data(), P(None, None, "d"))
        tx = make(opaque)
        state = tx.init(params)
        grad_fn = jax.grad(partial(loss, gather=gathered))
        ends = jax.jit(partial(run, tx, opaque, grad_fn=grad_fn))(params, state, data)
        for leaf, spec in param_like(tx, ends[1], specs):
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)
    assert_same_run(ends, one_device(opaque))


@MODES
def test_shard_map_with_the_mean_in_the_users_loss(opaque):
    """No axis name goes to local entropy: the loss is a mean over the devices."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    tx = make(opaque)
    sharded = over_the_data(partial(run, tx, opaque), loss, mesh)
    ends = jax.jit(sharded)(make_params(), tx.init(make_params()), make_data())
    assert_same_run(ends, one_device(opaque))


@pytest.mark.parametrize("kind", ["data parallel", "fsdp", "explicit", "shard_map"])
def test_export_lowers_every_mesh_for_every_platform(kind):
    """On eight devices; compiling and running it is the platform's."""
    explicit = kind == "explicit"
    axis_type = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    specs = SPECS if kind == "fsdp" else {"w": P(), "b": P()}
    tx = make(True)
    step = partial(run, tx, True)
    if kind == "shard_map":
        step = over_the_data(step, loss, mesh)
    with jax.set_mesh(mesh):
        put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
        params = jax.tree.map(put, make_params(), specs)
        data = put(make_data(), P(None, None, "d"))
        assert_exports(step, params, tx.init(params), data, devices=8)


def test_rules_for_placement_follow_from_map_params():
    """The recipe for jax.jit(out_shardings=...) and for checkpoints."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    tx = make(False)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    whole = NamedSharding(mesh, P())
    wanted = optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, make_params()),
        shardings,
        transform_non_params=lambda _: whole,
    )
    state = jax.jit(tx.init, out_shardings=wanted)(make_params())
    assert state.anchor["w"].sharding == state.mean["w"].sharding == shardings["w"]
    assert state.mean["b"].sharding.is_fully_replicated
    assert state.inner_count.sharding.is_fully_replicated
