"""Replicas: limit cases exactly, Parle against NumPy, the joint loss, and errors."""

from __future__ import annotations

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
    run_opaque,
    run_single,
)
from toy import strict as strict

import entropy_optax as eo
from entropy_optax import reference

MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])
N, T, L = 3, 3, 4
NOISY: dict[str, Any] = {
    "num_steps": L, "gamma": 0.3, "step_size": 0.1, "temperature": 1e-2,
    "outer_momentum": 0.5, "weight_decay": 0.01, "key": 7,
}  # fmt: skip


def make_data(num_replicas: int = N, num_outer: int = T, num_steps: int = L):
    """Return scalars of shape (num_outer, num_steps, num_replicas), all different."""
    size = num_replicas * num_outer * num_steps
    return jnp.sin(jnp.arange(1.0, 1 + size)).reshape(num_outer, num_steps, -1)


def run(tx: Any, opaque: bool, params: Any, data: jax.Array, state: Any = None):
    """Run replicas; return the centre's path too, after each update."""

    def outer(loop, rows):
        params, state = loop
        updates, state = tx.update(
            jax.vmap(grad_fn)(params, rows[0]),
            state,
            params,
            grad_fn=grad_fn,
            batches=rows[1:].T,
        )
        params = optax.apply_updates(params, updates)
        return (params, state), eo.center_params(state, params)

    def single(loop, row):
        params, state = loop
        updates, state = tx.update(jax.vmap(grad_fn)(params, row), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), eo.center_params(state, params)

    @jax.jit
    def whole(params, state, data):
        state = tx.init(params) if state is None else state
        if opaque:
            return jax.lax.scan(outer, (params, state), data)
        rows = data.reshape(-1, data.shape[-1])
        return jax.lax.scan(single, (params, state), rows)

    return whole(params, state, data)


def member(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i] if leaf.ndim else leaf, tree)


def starts(num_replicas: int = N) -> Any:
    """Return different params for each replica."""
    scales = 1 + 0.1 * jnp.arange(num_replicas, dtype=jnp.float32)
    params: Any = eo.replica_params(make_params(), num_replicas)
    return jax.tree.map(lambda leaf: leaf * scales[:, None, None], params)


@MODES
@pytest.mark.parametrize("coupling", [0.0, 0.7])
def test_one_replica_is_entropy_sgd(opaque, coupling):
    """Bit for bit, noise and all: nothing pulls one replica to its own centre."""
    tx: Any = eo.parle(
        0.8, num_replicas=1, coupling=coupling, opaque_mode=opaque, **NOISY
    )
    alone = eo.entropy_sgd(0.8, opaque_mode=opaque, **NOISY)
    data = make_data(1)
    (params, state), _ = run(tx, opaque, eo.replica_params(make_params(), 1), data)
    one = (run_opaque if opaque else run_single)(alone, make_params(), data[..., 0])
    assert_equal(member(params, 0), one.params)
    assert eo.num_gradients(state).tolist() == [T * L]
    keys = (optax.tree.get(s, "rng_key") for s in (member(state, 0), one.state))
    assert_equal(*keys)


@MODES
def test_coupling_0_is_independent_runs(opaque):
    """Bit for bit, with the keys that the replicas say they have."""
    tx: Any = eo.parle(0.8, num_replicas=N, coupling=0.0, opaque_mode=opaque, **NOISY)
    alone = eo.entropy_sgd(0.8, opaque_mode=opaque, **NOISY)
    data, params = make_data(), starts()
    keys = optax.tree.get(tx.init(params), "rng_key")
    assert keys.shape == (N,)
    words = {tuple(np.asarray(jax.random.key_data(key))) for key in keys}
    assert len(words) == N
    (ends, _), _ = run(tx, opaque, params, data)
    for i in range(N):
        with jax.debug_key_reuse(False):
            state = alone.init(member(params, i))
            state = optax.tree.set(state, rng_key=keys[i])
            drive = run_opaque if opaque else run_single
            one = drive(alone, member(params, i), data[..., i], state)
        assert_equal(member(ends, i), one.params)


def test_no_replica_has_a_key_that_another_splits_off():
    """In Threefry fold_in(key, i) is split(key)[i]: small numbers would collide."""
    tx: Any = eo.replicate(eo.add_langevin_noise(0.1, 1.0), 4)
    keys = tx.init(jnp.zeros((4, 2))).rng_key
    with jax.debug_key_reuse(False):
        below = jax.vmap(lambda key: jax.random.split(key, 100))(keys).ravel()
        every = jax.random.key_data(jnp.concatenate([keys, below]))
    assert len(np.unique(np.asarray(every), axis=0)) == 4 * 101


def test_both_modes_take_the_same_steps():
    ends = []
    for opaque in (True, False):
        tx = eo.parle(0.8, num_replicas=N, coupling=0.4, opaque_mode=opaque, **NOISY)
        (params, _), centers = run(tx, opaque, starts(), make_data())
        every = 1 if opaque else L
        ends.append((params, jax.tree.map(lambda c, e=every: c[e - 1 :: e], centers)))
    assert_close(*ends)


@MODES
def test_parle_against_numpy(opaque):
    """The inner loops of the reference, and its outer step with the pull by hand."""
    eta, rho0, growth, m = 0.8, 0.2, 0.5, 0.5
    tx: Any = eo.parle(
        eta, num_replicas=N, coupling=eo.exponential_scoping(rho0, growth),
        gamma=eo.exponential_scoping(0.3, 0.1), num_steps=L, step_size=0.1,
        momentum=0.9, outer_momentum=m, opaque_mode=opaque,
    )  # fmt: skip
    data, params = make_data(), starts()
    (ends, state), centers = run(tx, opaque, params, data)

    x = np.asarray(params["w"], np.float64).reshape(N, -1)
    buffer, path, rho, distances = np.zeros_like(x), [], 0.0, np.zeros(N)
    for t in range(T):
        mu = np.empty_like(x)
        for a in range(N):
            rows = np.asarray(data[t, :, a], np.float64)
            mu[a] = reference.entropy_sgd(
                lambda p, _, k, rows=rows: p - rows[k] - np.sin(p),
                x[a], np.zeros((1, L, x.shape[1])), learning_rate=1.0,
                gamma0=0.3 * 1.1**t, step_size=0.1, momentum=0.9,
            ).mu[0]  # fmt: skip
        rho = rho0 * (1 + growth) ** t
        direction = (x - mu) + rho * (x - x.mean(axis=0))
        distances = np.linalg.norm(x - x.mean(axis=0), axis=1)
        buffer = m * buffer + direction
        x = x - eta * (direction + m * buffer)
        path.append(x.mean(axis=0))
    np.testing.assert_allclose(ends["w"].reshape(N, -1), x, rtol=2e-5, atol=1e-6)
    seen = centers["w"][:: 1 if opaque else L].reshape(-1, x.shape[1])
    first = 0 if opaque else 1  # with one gradient per call x moves at the last
    np.testing.assert_allclose(
        seen[first:], path[: len(seen) - first], rtol=2e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        optax.tree.get(state, "coupling"), np.full(N, rho), rtol=1e-6
    )
    np.testing.assert_allclose(
        optax.tree.get(state, "center_distance"), distances, rtol=1e-5
    )


@MODES
def test_elastic_averaging_is_the_case_of_one_step(opaque):
    """Steps of 1 / 8 are exact in binary: x - (x - g / 8) rounds g alone."""
    rate, share = 0.125, 0.25
    parle = eo.parle(
        1.0, num_replicas=N, coupling=share, num_steps=1, step_size=rate,
        momentum=None, mean_decay=0.0, opaque_mode=opaque,
    )  # fmt: skip
    data = make_data(num_steps=1)
    (ends, _), _ = run(parle, opaque, starts(), data)
    elastic = eo.elastic_averaging(rate, num_replicas=N, coupling=share / rate)
    (wanted, _), _ = run(elastic, False, starts(), data)
    assert_close(ends, wanted)


def test_replicated_sgd_is_sgd_on_the_joint_loss():
    coupling = lambda t: 0.2 + 0.1 * t
    tx: Any = eo.replicated_sgd(
        0.05, num_replicas=N, coupling=coupling, weight_decay=0.1
    )
    sgd = optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9, nesterov=True)
    )
    data = make_data(num_steps=1)
    (ends, _), _ = run(tx, False, starts(), data)

    def joint(params, row, t):
        w = params["w"]
        own = jnp.sum((w - row[:, None, None]) ** 2 / 2 + jnp.cos(w))
        apart = jnp.sum((w - w.mean(axis=0, keepdims=True)) ** 2)
        return own + coupling(t) / 2 * apart

    params: Any = starts()
    state = sgd.init(params)
    for t in range(T):
        grads = jax.grad(joint)(params, data[t, 0], t)
        updates, state = sgd.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(ends, params)


def test_elastic_averaging_keeps_the_pull_out_of_the_momentum():
    """By hand: no gradient, so momentum has nothing to move after the first step."""
    tx: Any = eo.elastic_averaging(0.1, num_replicas=2, coupling=2.0, momentum=0.9)
    params: Any = jnp.array([[0.0], [1.0]])
    state = tx.init(params)
    for t in range(1, 4):
        updates, state = tx.update(jnp.zeros((2, 1)), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params[1, 0] - params[0, 0], 0.8**t, rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
        optax.contrib.muon(0.1),
        optax.chain(optax.add_noise(0.1, 0.5, key=3), optax.sgd(0.1)),
    ],
    ids=["adam", "clip", "muon", "add_noise"],
)
def test_any_optimizer_per_replica(optimizer):
    """A norm or a matrix is each replica's own, and so is Optax's own noise."""
    tx: Any = eo.replicate(optimizer, N)
    params: Any = starts()
    (ends, _), _ = run(tx, False, params, make_data(num_steps=1))
    keys = optax.tree.get_all_with_path(tx.init(params), "rng_key")

    def alone(params, state, rows):
        def body(loop, row):
            params, state = loop
            updates, state = optimizer.update(grad_fn(params, row), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, state), rows)[0]

    for i in range(N):
        with jax.debug_key_reuse(False):
            state = optimizer.init(member(params, i))
            if keys:
                state = optax.tree.set(state, rng_key=keys[0][1][i])
            rows = make_data(num_steps=1)[:, 0, i]
            one, _ = jax.jit(alone)(member(params, i), state, rows)
        assert_close(member(ends, i), one)


def test_any_outer_and_inner_optimizer():
    """Adam outside, RMSProp inside, both per replica: n independent runs at rho 0."""
    make = lambda coupling: eo.local_entropy(
        optax.chain(eo.add_replica_pull(coupling), optax.adam(0.05)),
        optax.chain(optax.scale_by_rms(), eo.sgld(0.01)),
        L,
        0.3,
        opaque_mode=True,
    )
    (ends, _), _ = run(eo.replicate(make(0.0), N), True, starts(), make_data())
    for i in range(N):
        one = run_opaque(
            eo.local_entropy(
                optax.adam(0.05),
                optax.chain(optax.scale_by_rms(), eo.sgld(0.01)),
                L,
                0.3,
                opaque_mode=True,
            ),
            member(starts(), i),
            make_data()[..., i],
        )
        assert_close(member(ends, i), one.params)
    (pulled, _), _ = run(eo.replicate(make(5.0), N), True, starts(), make_data())
    assert eo.replica_distance(pulled) < eo.replica_distance(ends)


def test_the_outer_step_stays_in_a_condition():
    """One inner count for all replicas: else each call would pay for the mean."""
    tx: Any = eo.parle(1.0, num_replicas=N, coupling=0.1, num_steps=L)
    params: Any = starts()
    jaxpr = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    assert "cond[" in jaxpr
    assert optax.tree.get(tx.init(params), "inner_count").shape == ()


def test_the_centre_is_where_x_is_in_the_middle_of_a_cycle():
    tx: Any = eo.parle(1.0, num_replicas=N, coupling=0.1, num_steps=L)
    params: Any = starts()
    center = jax.tree.map(lambda leaf: leaf.mean(axis=0), params)
    (moved, state), _ = run(tx, False, params, make_data(num_outer=1)[:, :2])
    assert float(jnp.max(jnp.abs(moved["w"] - params["w"]))) > 0.01
    assert_close(eo.center_params(state, moved), center)


def test_the_centre_of_bfloat16_is_computed_in_float32():
    tx: Any = eo.elastic_averaging(1.0, num_replicas=3, coupling=1.0)
    params: Any = jnp.array([[256.0], [257.0], [258.0]]).astype(
        jnp.bfloat16
    )  # 256, 256, 258
    updates, _ = tx.update(jnp.zeros((3, 1), jnp.bfloat16), tx.init(params), params)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        updates.astype(jnp.float32).ravel(), [0.6667, 0.6667, -1.3333], rtol=4e-3
    )
    center: Any = eo.center_params(tx.init(params), params)
    assert center.dtype == jnp.bfloat16


def test_replicas_with_carry_and_skipped_gradients():
    """Each replica has its own carry, and its own count of what is not finite."""
    tx: Any = eo.parle(
        1.0, num_replicas=2, coupling=0.1, num_steps=3, opaque_mode=True,
        carry_init=jnp.zeros([]), skip_nonfinite=True,
    )  # fmt: skip
    params: Any = jnp.ones((2, 2))
    state = tx.init(params)

    def with_carry(params, row, carry):
        return params * row, carry + row

    rows = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    step = jax.jit(
        lambda params, state: tx.update(
            params, state, params, grad_fn=with_carry, batches=rows, carry=jnp.zeros(2)
        )
    )
    with jax.debug_key_reuse(False):  # it takes the branches of a select for a reuse
        _, state = step(params, state)
    assert optax.tree.get(state, "carry").tolist() == [3.0, 3.0]
    assert optax.tree.get(state, "num_nonfinite").tolist() == [0, 1]


def test_trees_with_nothing_in_some_places():
    tx: Any = eo.parle(1.0, num_replicas=2, coupling=0.5, num_steps=2, temperature=1e-3)
    params: Any = {"w": jnp.ones((2, 3)), "none": None, "scalar": jnp.array([0.0, 1.0])}
    grads = {"w": jnp.ones((2, 3)), "none": None, "scalar": jnp.ones(2)}
    state = tx.init(params)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert params["none"] is None
    leaves = optax.tree.map_params(
        tx, lambda leaf: leaf, state, transform_non_params=lambda leaf: None
    )
    names = [leaf.shape for leaf in jax.tree.leaves(leaves)]
    assert set(names) == {(2, 3), (2,)}
    masked: Any = optax.masked(tx, {"w": True, "none": None, "scalar": False})
    updates: Any = masked.update(grads, masked.init(params), params)[0]
    np.testing.assert_array_equal(updates["scalar"], grads["scalar"])


def test_donation():
    tx: Any = eo.parle(1.0, num_replicas=2, coupling=0.5, num_steps=2, temperature=1e-3)
    params: Any = eo.replica_params(jnp.ones(3), 2)
    state = tx.init(params)

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
        params, state = step(params, state)
    assert np.isfinite(params).all()


def test_automatic_scoping():
    gamma: Any = eo.automatic_scoping(3.0, 2.0, 100, factor=16.0, max_gamma=99.0)
    values = [float(gamma(t)) for t in (0, 50, 100, 1000)]
    np.testing.assert_allclose(values, [1.5, 6.0, 24.0, 24.0], rtol=1e-6)
    # Losses and distances that are traced, as in a compiled search.
    traced = jax.jit(lambda f, d: eo.automatic_scoping(f, d, 100, max_gamma=99.0)(0))
    np.testing.assert_allclose(traced(3.0, 2.0), 1.5)
    capped: Any = eo.automatic_scoping(3.0, 2.0, 100, factor=16.0, max_gamma=7.0)
    assert float(capped(100)) == 7.0


def test_automatic_coupling_brings_the_replicas_together():
    """Each has other data; the cap makes it exact, for then all is stationary.

    On f_a = (x - r_a)^2 / 2 the offsets from the centre are r_a / (1 + rho).
    """
    params: Any = jnp.array([[3.0], [0.0], [-2.0]])
    offsets = jnp.array([-1.0, 0.0, 1.0])
    grads = lambda params: params - offsets[:, None]
    losses = (params - offsets[:, None]) ** 2 / 2
    coupling: Any = eo.automatic_scoping(
        losses.mean(), eo.replica_distance(params), 200, factor=100.0, max_gamma=9.0
    )
    assert 0 < coupling(0) < 5
    tx: Any = eo.replicated_sgd(0.05, num_replicas=3, coupling=coupling)

    def body(loop, _):
        params, state = loop
        updates, state = tx.update(grads(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(
        lambda p: jax.lax.scan(body, (p, tx.init(p)), None, length=400)
    )(params)
    np.testing.assert_allclose(params[:, 0], offsets / 10, atol=1e-5)


def test_replica_distance():
    params: Any = {
        "a": jnp.array([[0.0], [2.0]]),
        "b": jnp.array([[1.0, 5.0], [1.0, 1.0]]),
    }
    np.testing.assert_allclose(eo.replica_distance(params), np.sqrt(1 + 4))


def test_the_centre_wants_one_leading_axis():
    assert eo.replica_distance({}) == 0
    tx = eo.parle(1.0, num_replicas=2)
    state = tx.init(jnp.ones((2, 1)))
    for params in (jnp.ones([]), {"a": jnp.ones((2, 1)), "b": jnp.ones((4, 1))}):
        for measure in (eo.replica_distance, lambda p: eo.center_params(state, p)):
            with pytest.raises(ValueError, match="must have the leading axis num_rep"):
                measure(params)


@pytest.mark.parametrize("num_replicas", [0, -1, 1.5, None])
def test_number_of_replicas_must_be_one_or_more(num_replicas):
    for make in (
        lambda: eo.replicate(optax.sgd(0.1), num_replicas),
        lambda: eo.parle(1.0, num_replicas=num_replicas),
        lambda: eo.replica_params(jnp.ones(2), num_replicas),
    ):
        with pytest.raises(ValueError, match="num_replicas must be an int of at"):
            make()


def test_errors():
    tx: Any = eo.parle(1.0, num_replicas=3, num_steps=4, opaque_mode=True)
    good, bad = {"w": jnp.ones((3, 2))}, {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"params\['w'\] must have the leading axis"):
        tx.init(bad)
    with pytest.raises(ValueError, match=r"params must have .*= 3, got shape \(\)"):
        tx.init(jnp.ones([]))
    state = tx.init(good)
    with pytest.raises(ValueError, match=r"grads\['w'\] must have the leading axis"):
        tx.update(bad, state, good, grad_fn=lambda p, i: p)
    with pytest.raises(ValueError, match=r"batches must have the leading axis num_rep"):
        tx.update(good, state, good, grad_fn=lambda p, i: p, batches=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"batches must have the leading axis num_s"):
        tx.update(good, state, good, grad_fn=lambda p, i: p, batches=jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="grad_fn: scale_by_local_entropy calls it"):
        tx.update(good, state, good)
    with pytest.raises(ValueError, match="params"):
        tx.update(good, state)
    pull: Any = eo.add_replica_pull(0.1)
    with pytest.raises(ValueError, match=r"works within replicate\(optimizer, num_rep"):
        pull.update(good, pull.init(good), good)
    with pytest.raises(ValueError, match="params: add_replica_pull needs them"):
        pull.update(good, pull.init(good))
    with pytest.raises(ValueError, match="coupling must be at least 0, got -1"):
        eo.parle(1.0, coupling=-1.0)
    for make in (eo.replicated_sgd, eo.elastic_averaging):
        with pytest.raises(ValueError, match="weight_decay must be at least 0, got -1"):
            make(0.1, coupling=0.1, weight_decay=-1.0)
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
            make(0.1, coupling=0.1, momentum=1.5)
    for given, message in {
        (-1.0, 1.0, 5): "loss must be at least 0, got -1",
        (1.0, 0.0, 5): "distance must be above 0, got 0",
        (1.0, 1.0, 0): "num_steps must be at least 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            eo.automatic_scoping(*given, max_gamma=1.0)
    with pytest.raises(ValueError, match=r"factor must be finite and .*, got 0\.5"):
        eo.automatic_scoping(1.0, 1.0, 5, factor=0.5, max_gamma=1.0)


def test_no_recompilation_and_no_change_of_types():
    tx: Any = eo.parle(1.0, num_replicas=N, coupling=0.3, num_steps=L, temperature=1e-3)
    params: Any = starts()
    state = tx.init(params)
    _, after = jax.eval_shape(tx.update, params, state, params)
    type_of = lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type)
    types = lambda tree: jax.tree.map(type_of, tree)
    assert types(jax.eval_shape(lambda: state)) == types(after)


def test_each_replica_has_its_own_data():
    """Without coupling the data of one replica moves that replica alone."""
    data = make_data()
    other = data.at[:, :, 1].add(1.0)
    tx = eo.parle(0.8, num_replicas=N, coupling=0.0, **NOISY)
    (a, _), _ = run(tx, False, starts(), data)
    (b, _), _ = run(tx, False, starts(), other)
    apart = np.abs(np.asarray(a["w"] - b["w"])).max(axis=(1, 2))
    assert apart[1] > 0.1
    assert apart[[0, 2]].max() == 0


@pytest.mark.parametrize(
    ("make", "momentum", "nesterov", "bound"),
    [
        (eo.elastic_averaging, None, True, 2.0),
        (eo.elastic_averaging, 0.9, True, 2.0),
        (eo.replicated_sgd, 0.9, True, 2 * 1.9 / 2.8),
        (eo.replicated_sgd, 0.9, False, 3.8),
        (eo.parle, 0.9, True, 2 * 1.9 / 2.8),
    ],
)
def test_a_pull_that_is_too_strong_is_warned_of(make, momentum, nesterov, bound):
    """On a flat loss the replicas meet below the bound, and part above it."""
    is_parle = make is eo.parle
    kwargs: dict[str, Any] = {"outer_momentum" if is_parle else "momentum": momentum}
    if is_parle:
        kwargs |= {"num_steps": 1, "gamma": 0.0}
    else:
        kwargs["nesterov"] = nesterov

    def distance(share):
        tx = make(0.5, num_replicas=2, coupling=share * bound / 0.5, **kwargs)
        params: Any = jnp.array([[-1.0], [1.0]])

        def body(loop, _):
            params, state = loop
            updates, state = tx.update(jnp.zeros_like(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        whole = lambda p: jax.lax.scan(body, (p, tx.init(p)), None, length=1000)
        return float(eo.replica_distance(jax.jit(whole)(params)[0][0]))

    assert distance(0.98) < 0.1
    with pytest.warns(UserWarning, match="of a stable pull: the replicas part"):
        assert not distance(1.02) < 10


@pytest.mark.parametrize("wrap", ["named_chain", "masked", "partition", "inject"])
def test_wrappers_that_hand_on_keep_one_inner_count(wrap):
    """The outer step, and its communication, is then a branch taken once in L."""
    local = lambda: eo.local_entropy(
        optax.chain(eo.add_replica_pull(0.3), optax.sgd(0.8)), eo.sgld(0.1), 2, 0.3
    )
    wrapped: Any = {
        "named_chain": lambda: optax.named_chain(("a", local())),
        "masked": lambda: optax.masked(local(), {"w": True}),
        "partition": lambda: optax.partition({"a": local()}, {"w": "a"}),
        "inject": lambda: optax.inject_hyperparams(lambda rate: local())(rate=0.1),
    }[wrap]
    ends = []
    for tx in (eo.replicate(wrapped(), N), eo.replicate(local(), N)):
        params: Any = starts()
        state: Any = tx.init(params)
        assert optax.tree.get(state, "inner_count").shape == ()
        (params, _), _ = run(tx, False, params, make_data(num_outer=2))
        ends.append(params)
    assert_close(*ends)


@pytest.mark.parametrize("wrap", ["multi_steps", "apply_if_finite"])
def test_wrappers_that_select_between_states(wrap):
    """Inside they select for each replica; outside for all. The steps are the same."""
    local = lambda: eo.local_entropy(
        optax.chain(eo.add_replica_pull(0.3), optax.sgd(0.8)), eo.sgld(0.1), 2, 0.3
    )
    wrapped: Any = {
        "multi_steps": lambda tx: optax.MultiSteps(tx, 2),
        "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    }[wrap]
    # MultiSteps is no GradientTransformation, but makes one.
    as_tx = lambda tx: getattr(tx, "gradient_transformation", lambda: tx)()
    inside = eo.replicate(as_tx(wrapped(local())), N)
    outside = as_tx(wrapped(eo.replicate(local(), N)))
    ends = []
    for tx in (inside, outside):
        params: Any = starts()
        state: Any = tx.init(params)
        update: Any = jax.jit(tx.update)
        with jax.debug_key_reuse(False):  # it takes the branches of a select for one
            for row in make_data(num_outer=2).reshape(-1, N):
                updates, state = update(jax.vmap(grad_fn)(params, row), state, params)
                params = optax.apply_updates(params, updates)
        ends.append(params)
    assert_close(*ends)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ends[0], starts())
    assert moved["w"] > 0.1


def test_replicas_of_replicas_are_refused():
    noisy = eo.replicate(eo.add_langevin_noise(0.1, 1.0), 2)
    with pytest.raises(ValueError, match=r"holds an array of keys of shape \(2,\)"):
        eo.replicate(noisy, 2).init(jnp.zeros((2, 2, 3)))
