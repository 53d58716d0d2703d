"""Replicas on a mesh: one device's result, and what the compiled program says of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toy import assert_close, assert_exports, over_the_data

import entropy_optax as eo
from entropy_optax.experiments.collectives import Collective, collectives

MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])
KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"]
)

# What is communicated; older versions of JAX gather the keys of random numbers on an
# explicit mesh, 64 bytes in each inner step.
COUNTED = pytest.mark.parametrize(
    "kind",
    [
        AxisType.Auto,
        pytest.param(
            AxisType.Explicit,
            marks=pytest.mark.skipif(
                jax.__version_info__ < (0, 10), reason="keys are gathered"
            ),
        ),
    ],
    ids=["automatic", "explicit"],
)
N, L = 4, 5
NUM_BYTES = 4 * (8 * 16 + 16 + 16 * 4)


def make_params() -> Any:
    params = {
        "w": jnp.linspace(-0.3, 0.3, 8 * 16).reshape(8, 16),
        "b": jnp.zeros(16),
        "v": jnp.linspace(-0.5, 0.5, 16 * 4).reshape(16, 4),
    }
    return eo.replica_params(params, N)


def make_data() -> jax.Array:
    """L batches of 16 examples for each replica."""
    return jnp.sin(jnp.arange(N * L * 16 * 8.0)).reshape(N, L, 16, 8)


def loss(params: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - 0.5) ** 2)


grad_fn = jax.grad(loss)


def make(opaque: bool, **kwargs: Any) -> Any:
    return eo.parle(
        0.8, num_replicas=N, coupling=0.3, gamma=0.5, num_steps=L, temperature=1e-3,
        outer_momentum=0.5, opaque_mode=opaque, **kwargs,
    )  # fmt: skip


def outer_step(
    tx: Any, opaque: bool, params: Any, state: Any, data: Any, grad_fn: Any = grad_fn
) -> Any:
    """L gradients of each replica, by either mode."""
    if opaque:
        updates, state = tx.update(
            jax.vmap(grad_fn)(params, data[:, 0]),
            state,
            params,
            grad_fn=grad_fn,
            batches=data[:, 1:],
        )
        return optax.apply_updates(params, updates), state

    def body(loop, batch):
        params, state = loop
        updates, state = tx.update(jax.vmap(grad_fn)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, state), jnp.moveaxis(data, 1, 0))[0]


def place(mesh: Any, data_spec: Any) -> tuple[Any, Any]:
    params = jax.device_put(make_params(), NamedSharding(mesh, P("replica")))
    return params, jax.device_put(make_data(), NamedSharding(mesh, data_spec))


def compiled(tx: Any, opaque: bool, params: Any, data: Any) -> Any:
    step = jax.jit(partial(outer_step, tx, opaque))
    return step.lower(params, tx.init(params), data).compile()


@MODES
@KINDS
@pytest.mark.parametrize("shape", [(2, 1), (2, 4)])
def test_a_mesh_gives_one_devices_result(opaque, kind, shape):
    """Two replicas a device: replica parallel, and replica times data parallel."""
    tx = make(opaque)
    step = jax.jit(partial(outer_step, tx, opaque))
    single = step(make_params(), tx.init(make_params()), make_data())
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ("replica", "data"), (kind, kind), devices=devices)
    with jax.set_mesh(mesh):
        params, data = place(mesh, P("replica", None, "data"))
        state = tx.init(params)
        ends = jax.jit(partial(outer_step, tx, opaque))(params, state, data)
        center = eo.center_params(ends[1], ends[0])
    assert_close(ends[0], single[0], rtol=1e-4, atol=1e-5)
    assert_close(center, eo.center_params(single[1], single[0]), rtol=1e-4, atol=1e-5)
    keys = [optax.tree.get(s, "rng_key") for s in (ends[1], single[1])]
    words = [np.asarray(jax.random.key_data(key)) for key in keys]
    np.testing.assert_array_equal(words[0], words[1])
    sharding = NamedSharding(mesh, P("replica"))
    for leaf in jax.tree.leaves(ends[0]):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@COUNTED
def test_no_communication_in_the_inner_loop_and_one_all_reduce_in_a_step(kind):
    """The rule of replica parallelism, read from the compiled program."""
    tx = make(True, unroll=False)
    mesh = jax.make_mesh((4,), ("replica",), (kind,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        params, data = place(mesh, P("replica"))
        program = compiled(tx, True, params, data).as_text()
    assert "while(" in program
    assert collectives(program) == [
        Collective("all-reduce", NUM_BYTES, 1, False, False)
    ]


@COUNTED
def test_two_replicas_on_a_device_and_bfloat16(kind):
    """One mean of the params all the same; of bfloat16 it is computed in float32."""
    mesh = jax.make_mesh((2,), ("replica",), (kind,), devices=jax.devices()[:2])
    for dtype in (jnp.float32, jnp.bfloat16):
        tx = make(True, unroll=False)
        with jax.set_mesh(mesh):
            params, data = place(mesh, P("replica"))
            params = jax.tree.map(lambda leaf, d=dtype: leaf.astype(d), params)
            program = compiled(tx, True, params, data).as_text()
        once = Collective("all-reduce", NUM_BYTES, 1, in_loop=False, conditional=False)
        assert collectives(program) == [once]


@pytest.mark.parametrize("name", ["sgd", "entropy_sgd"])
def test_data_parallel_training_reduces_each_gradient(name):
    """L all-reduces of the gradients in L steps, for the rows of docs/scaling.md."""
    make_tx = {
        "sgd": lambda: optax.sgd(0.1, momentum=0.9),
        "entropy_sgd": lambda: eo.entropy_sgd(1.0, num_steps=L),
    }[name]
    tx: Any = optax.with_extra_args_support(make_tx())
    mesh = jax.make_mesh((4,), ("d",), (AxisType.Auto,), devices=jax.devices()[:4])
    put = lambda leaf, *spec: jax.device_put(leaf, NamedSharding(mesh, P(*spec)))
    params = jax.tree.map(lambda leaf: put(leaf[0]), make_params())
    data = put(make_data()[0], None, "d")

    def step(params, state, data):
        def body(loop, batch):
            params, state = loop
            updates, state = tx.update(grad_fn(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, state), data)[0]

    lowered = jax.jit(step).lower(params, tx.init(params), data)
    program: Any = lowered.compile().as_text()
    each = Collective("all-reduce", NUM_BYTES, L, in_loop=True, conditional=False)
    assert collectives(program) == [each]


@COUNTED
def test_with_one_gradient_per_call_the_all_reduce_is_in_the_branch(kind):
    tx = make(False)
    mesh = jax.make_mesh((4,), ("replica",), (kind,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        params, data = place(mesh, P("replica"))
        program = compiled(tx, False, params, data).as_text()
    # In the loop over calls, but in a branch which is taken once in L.
    assert collectives(program) == [Collective("all-reduce", NUM_BYTES, L, True, True)]


def test_without_coupling_nothing_is_communicated():
    tx = eo.parle(0.8, num_replicas=N, coupling=0.0, num_steps=L, opaque_mode=True)
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("replica",), auto, devices=jax.devices()[:4])
    params, data = place(mesh, P("replica"))
    assert collectives(compiled(tx, True, params, data).as_text()) == []


@COUNTED
def test_replica_times_data_reduces_gradients_within_and_params_between(kind):
    """One all-reduce of the gradients a step of the loop, over the data axis."""
    tx = make(True, unroll=False)
    mesh = jax.make_mesh((2, 4), ("replica", "data"), (kind, kind))
    with jax.set_mesh(mesh):
        params, data = place(mesh, P("replica", None, "data"))
        found = collectives(compiled(tx, True, params, data).as_text())
    assert {c.kind for c in found} == {"all-reduce"}
    inside = [c for c in found if c.in_loop]
    # Two replicas a device: their gradients, but one mean of params.
    assert [(c.num_bytes, c.trips) for c in inside] == [(2 * NUM_BYTES, L - 1)]
    outside = sorted(c.num_bytes for c in found if not c.in_loop)
    assert outside == [NUM_BYTES, 2 * NUM_BYTES]


def test_sharded_params_of_each_replica():
    """FSDP-like within a replica: the optimizer is the same, and so is the result."""
    tx = make(True)
    step = jax.jit(partial(outer_step, tx, True))
    single = step(make_params(), tx.init(make_params()), make_data())
    mesh = jax.make_mesh((2, 4), ("replica", "data"), (AxisType.Auto,) * 2)
    specs = {"w": P("replica", "data"), "b": P("replica"), "v": P("replica", "data")}
    params = jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
        make_params(),
        specs,
    )
    data = jax.device_put(make_data(), NamedSharding(mesh, P("replica", None, "data")))
    ends, state = step(params, tx.init(params), data)
    assert_close(ends, single[0], rtol=1e-4, atol=1e-5)
    buffers = optax.tree.get(state, "trace")
    for name, spec in specs.items():
        sharding = NamedSharding(mesh, spec)
        assert ends[name].sharding.is_equivalent_to(sharding, ends[name].ndim)
        assert buffers[name].sharding.is_equivalent_to(sharding, ends[name].ndim)


@MODES
def test_shard_map_over_the_data_gives_one_devices_result(opaque):
    """All replicas on each device; no axis name goes to them, only to the loss."""
    tx = make(opaque)
    single = jax.jit(partial(outer_step, tx, opaque))
    wanted = single(make_params(), tx.init(make_params()), make_data())
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    sharded = over_the_data(partial(outer_step, tx, opaque), loss, mesh)
    ends = jax.jit(sharded)(make_params(), tx.init(make_params()), make_data())
    assert_close(ends[0], wanted[0], rtol=1e-4, atol=1e-5)


def test_shard_map_over_the_replicas_is_refused():
    """There the mean would be that of one device's own."""
    tx = make(True)
    auto = (AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("replica",), auto, devices=jax.devices()[:4])
    update = lambda g, p: tx.update(g, tx.init(p), p, grad_fn=grad_fn)[0]
    sharded = jax.shard_map(
        update, mesh=mesh, in_specs=(P("replica"),) * 2, out_specs=P("replica")
    )
    with pytest.raises(ValueError, match=r"leading axis num_replicas = 4, got shape"):
        sharded(make_params(), make_params())


def other_optimizers() -> dict[str, Any]:
    local = lambda sampler, **kwargs: eo.replicate(
        eo.local_entropy(
            optax.chain(eo.add_replica_pull(0.3), optax.adam(0.1)), sampler, L, 0.5,
            **kwargs,
        ),
        N,
    )  # fmt: skip
    narrow = eo.filter_geometry()
    return {
        "replicated_sgd": eo.replicated_sgd(0.1, num_replicas=N, coupling=0.3),
        "elastic_averaging": eo.elastic_averaging(0.1, num_replicas=N),
        "geometry": local(eo.sgld(0.1, temperature=1e-3, geometry=narrow)),
        "heat": local(
            eo.heat(0.1, antithetic=True, geometry=narrow), mean_of="gradients"
        ),
    }


@pytest.mark.parametrize("name", list(other_optimizers()))
def test_export_of_the_relatives_on_a_mesh(name):
    """On eight devices, for every platform."""
    tx = other_optimizers()[name]
    mesh = jax.make_mesh((2, 4), ("replica", "data"), (AxisType.Auto,) * 2)
    params, data = place(mesh, P("replica", None, "data"))
    step = partial(outer_step, tx, False)
    assert_exports(step, params, tx.init(params), data, devices=8)


@MODES
def test_export_lowers_for_every_platform(opaque):
    tx = make(opaque)
    params, data = make_params(), make_data()
    step = jax.jit(partial(outer_step, tx, opaque))
    state = tx.init(params)
    exported = jax.export.export(step, platforms=["tpu", "cuda", "cpu"])(
        params, state, data
    )
    wanted = step(params, tx.init(params), data)
    assert_close(exported.call(params, state, data)[0], wanted[0])


@KINDS
def test_export_of_a_sharded_step_lowers_for_every_platform(kind):
    """On eight devices, with its collectives."""
    tx = make(True)
    mesh = jax.make_mesh((2, 4), ("replica", "data"), (kind, kind))
    with jax.set_mesh(mesh):
        params, data = place(mesh, P("replica", None, "data"))
        step = partial(outer_step, tx, True)
        assert_exports(step, params, tx.init(params), data, devices=8)


HLO = """HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %g = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), to_apply=%sum
  ROOT %t = (s32[], f32[4]) tuple(%i, %g)
}

%cond (p: (s32[], f32[4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n)
}

%branch (q: f32[4]) -> f32[8] {
  ROOT %ag = f32[8]{0} all-gather(%q), dimensions={0}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %w2 = (s32[], f32[4]) while(%t), condition=%cond, body=%body
  %k = f32[8] conditional(%b, %p, %p), branch_computations={%branch, %branch}
  %g = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), dimensions={0}
  %s = f32[4]{0} all-reduce-start(%p), to_apply=%sum
  ROOT %d = f32[4]{0} all-reduce-done(%s)
}
"""  # noqa: E501


def test_collectives_are_read_from_loops_branches_and_pairs():
    assert collectives(HLO) == [
        Collective("all-reduce", 4 * 4 + 6 * 2, 7, True, False),
        Collective("all-reduce", 4 * 4 + 6 * 2, 0, True, False),
        Collective("all-gather", 32, 1, False, True),
        Collective("all-gather", 32, 1, False, True),
        Collective("all-gather", 64, 1, False, False),
        Collective("all-reduce", 16, 1, False, False),
    ]
    with pytest.raises(ValueError, match="hlo: has no ENTRY computation"):
        collectives("module {}")
