"""Train steps over replicas, with BatchNorm and dropout, in linen and nnx."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from frameworks import (
    Linen,
    LinenModel,
    Nnx,
    NnxModel,
    linen_init,
    linen_loss,
    nnx_loss,
    random_batches,
)
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import entropy_optax as eo
from entropy_optax.training import (
    TrainState,
    linen_carry,
    linen_train_step,
    nnx_carry,
    nnx_train_step,
    reestimate_batch_stats,
)

N, L, OUTER = 3, 4, 3
FRAMEWORKS = pytest.mark.parametrize("framework", ["linen", "nnx"])
MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])


def settings(opaque: bool, carry: Any) -> dict[str, Any]:
    return {
        "gamma": 0.5, "num_steps": L, "step_size": 0.1, "temperature": 1e-4,
        "outer_momentum": 0.5, "key": 3, "opaque_mode": opaque,
        "carry_init": carry if opaque else None,
    }  # fmt: skip


def run_linen(
    opaque: bool, n: int, batches: Any, coupling: float = 0.3, place: Any = lambda x: x
) -> TrainState:
    variables = linen_init(jax.random.key(0), random_batches()[0])
    stats = variables["batch_stats"]
    tx = eo.parle(
        0.5, num_replicas=n, coupling=coupling, **settings(opaque, linen_carry(stats))
    )
    state = TrainState.create(
        apply_fn=LinenModel().apply,
        params=jax.tree.map(place, eo.replica_params(variables["params"], n)),
        tx=tx,
        batch_stats=jax.tree.map(place, eo.replica_params(stats, n)),
        rng_key=jax.random.key(7),
    )
    step = jax.jit(linen_train_step(linen_loss, num_replicas=n), donate_argnums=0)
    for t in range(OUTER):
        state, _ = step(state, jax.tree.map(lambda leaf, t=t: leaf[t], batches))
    return state


def make_nnx(n: int) -> NnxModel:
    @nnx.split_rngs(splits=n)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> NnxModel:
        return NnxModel(rngs)

    return make(nnx.Rngs(0))


def run_nnx(opaque: bool, n: int, batches: Any) -> tuple[NnxModel, Any]:
    model = make_nnx(n)
    carry = nnx_carry(model, num_replicas=n)
    tx = eo.parle(0.5, num_replicas=n, coupling=0.3, **settings(opaque, carry))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = nnx.jit(nnx_train_step(nnx_loss, num_replicas=n))
    for t in range(OUTER):
        step(model, optimizer, jax.tree.map(lambda leaf, t=t: leaf[t], batches))
    return model, optimizer


def close(actual: Any, desired: Any) -> None:
    jax.tree.map(
        lambda a, d: np.testing.assert_allclose(a, d, rtol=2e-4, atol=2e-6),
        actual,
        desired,
    )


@MODES
def test_one_replica_is_the_ordinary_step(opaque):
    """Dropout keys and BatchNorm statistics too."""
    batches = random_batches(OUTER, L)
    make = lambda carry: eo.entropy_sgd(0.5, **settings(opaque, carry))
    alone = Linen(make)
    for t in range(OUTER):
        alone.step(jax.tree.map(lambda leaf, t=t: leaf[t], batches))
    one = run_linen(opaque, 1, jax.tree.map(lambda leaf: leaf[:, None], batches))
    close(one.params, jax.tree.map(lambda leaf: leaf[None], alone.params))
    close(one.batch_stats, jax.tree.map(lambda leaf: leaf[None], alone.stats))
    assert int(one.step) == alone.count == OUTER * L


@FRAMEWORKS
def test_both_modes_agree(framework):
    batches = random_batches(OUTER, N, L)
    if framework == "linen":
        first, second = (run_linen(opaque, N, batches) for opaque in (True, False))
        close(first.params, second.params)
        close(first.batch_stats, second.batch_stats)
        center = eo.center_params(first.opt_state, first.params)
        params = first.params
    else:
        (first, opt), (second, _) = (run_nnx(o, N, batches) for o in (True, False))
        kinds = (nnx.Param, nnx.BatchStat)
        close(*(nnx.as_pure(nnx.state(m, kinds)) for m in (first, second)))
        params = nnx.as_pure(nnx.state(first, nnx.Param))
        center = eo.center_params(nnx.as_pure(opt.opt_state), params)
        assert int(opt.step[...]) == OUTER * L
    close(center, jax.tree.map(lambda leaf: leaf.mean(axis=0), params))
    apart = [float(leaf.std(axis=0).max()) for leaf in jax.tree.leaves(params)]
    assert min(apart) > 1e-4  # other batches and dropout part the replicas


def test_statistics_are_reestimated_at_the_centre():
    """BatchNorm's mean there is that of the hidden units, not of any replica."""
    state = run_linen(False, N, random_batches(OUTER, N, L))
    center: Any = eo.center_params(state.opt_state, state.params)
    stats = jax.tree.map(lambda leaf: leaf[0], state.batch_stats)
    inputs = jnp.asarray(random_batches(5)[0])

    def update_stats(stats, batch):
        _, updated = LinenModel().apply(
            {"params": center, "batch_stats": stats}, batch, train=True,
            rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"],
        )  # fmt: skip
        return updated["batch_stats"]

    found = reestimate_batch_stats(update_stats, stats, inputs)
    hidden = inputs.reshape(-1, inputs.shape[-1]) @ center["Dense_0"]["kernel"]
    np.testing.assert_allclose(
        found["BatchNorm_0"]["mean"], hidden.mean(axis=0), rtol=1e-4, atol=1e-5
    )


def test_any_other_replicated_optimizer():
    """Replicated SGD without coupling is n runs of the ordinary step on their batches.

    Without dropout's keys, which no two runs share.
    """

    def loss(params, stats, batch, key):
        del key
        return jnp.mean((batch[0] @ params - batch[1]) ** 2), stats

    params = jnp.ones((5, 3))
    batches = random_batches(N, L)

    def end(tx, params, batches, n=None):
        state = TrainState.create(apply_fn=lambda: None, params=params, tx=tx)
        state, metrics = jax.jit(linen_train_step(loss, n))(state, batches)
        return state.params, metrics["loss"]

    tx = eo.replicated_sgd(0.1, num_replicas=N, coupling=0.0)
    found, mean = end(tx, eo.replica_params(params, N), batches, N)
    sgd = optax.sgd(0.1, momentum=0.9, nesterov=True)
    losses = []
    for i in range(N):
        one, value = end(sgd, params, jax.tree.map(lambda b, i=i: b[i], batches))
        np.testing.assert_allclose(found[i], one, rtol=1e-5)
        losses.append(value)
    np.testing.assert_allclose(mean, np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)
@MODES
def test_a_train_step_on_a_mesh(kind, opaque):
    """Params, statistics, batches and dropout keys of each replica on its device."""
    batches = random_batches(OUTER, N, L)
    single = run_linen(opaque, N, batches)
    mesh = jax.make_mesh((N,), ("replica",), (kind,), devices=jax.devices()[:N])
    with jax.set_mesh(mesh):
        place = lambda spec: (
            lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec))
        )
        spread = jax.tree.map(place(P(None, "replica")), batches)
        many = run_linen(opaque, N, spread, place=place(P("replica")))
    close(many.params, single.params)
    close(many.batch_stats, single.batch_stats)
    for leaf in jax.tree.leaves(many.params):
        assert len(leaf.sharding.device_set) == N


def test_errors():
    with pytest.raises(ValueError, match=r"batches.* leading axis num_replicas = 3"):
        run_linen(True, N, random_batches(OUTER, N + 1, L))
    with pytest.raises(ValueError, match=r"batches.* leading axis num_steps - 1 = 3"):
        run_linen(True, N, random_batches(OUTER, N, L + 1))
    with pytest.raises(ValueError, match=r"model.* leading axis num_replicas = 3"):
        nnx_carry(Nnx(lambda carry: optax.sgd(0.1)).model, num_replicas=N)
