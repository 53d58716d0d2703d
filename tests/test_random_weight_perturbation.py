"""Gradients at perturbed weights: exact laws, limits, pairs, replicas and meshes.

Statistics have fixed seeds and limits of 4 standard errors.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from toy import assert_exports
from toy import strict as strict

import entropy_optax as eo
from entropy_optax.experiments.collectives import collectives

H = np.diag([0.5, 1.0, 3.0]) + 0.2
X = np.array([1.0, -2.0, 0.5])
STAY = optax.set_to_zero()
eval_params: Any = eo.eval_params


def params_() -> Any:
    kernel = np.cos(np.arange(12.0)).reshape(4, 3) * [0.1, 1.0, 5.0]
    return {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.array([1.0, 2.0, 3.0]),
    }


def drive(tx: Any, params: Any, grad_fn: Any, count: int) -> tuple[list[Any], Any]:
    """Return the params of each gradient, and the state after the last."""
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grad_fn(params), state, params)
        return optax.apply_updates(params, updates), state

    path = [params]
    for _ in range(count):
        params, state = step(params, state)
        path.append(params)
    return path, state


def perturbations(x: Any, count: int, **kwargs: Any) -> Any:
    """Return params minus x at gradients 2 .. count + 1, x never moved."""
    tx: Any = eo.random_weight_perturbation(STAY, **kwargs)
    path, _ = drive(tx, x, lambda p: p, count)
    return jax.tree.map(
        lambda x, *all_: np.stack([np.asarray(a) - np.asarray(x) for a in all_]),
        x,
        *path[1:],
    )


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, 0.9, True), optax.adam(0.1)])
def test_radius_0_is_the_optimizer(optimizer):
    tx: Any = eo.random_weight_perturbation(
        optimizer, 0.0, geometry=eo.filter_geometry()
    )
    grad_fn = lambda p: jax.tree.map(jnp.sin, p)
    ours, state = drive(tx, params_(), grad_fn, 7)
    alone, _ = drive(optimizer, params_(), grad_fn, 7)
    # To rounding: the way to the params is undone and gone again.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7),
        ours[-1],
        alone[-1],
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7),
        eval_params(state, ours[-1]),
        alone[-1],
    )


def test_radius_tends_to_0_as_the_plain_gradient():
    """On a cubic term the difference of the smoothed gradient is of order r^2."""
    grad_fn = lambda p: jax.tree.map(lambda a: a**3, p)
    ends = []
    for radius in (0.0, 1e-2, 1e-4):
        tx: Any = eo.random_weight_perturbation(optax.sgd(0.1), radius)
        path, state = drive(tx, params_(), grad_fn, 3)
        ends.append(eval_params(state, path[-1])["bias"])
    far, near = (np.abs(end - ends[0]).max() for end in ends[1:])
    assert near < 1e-3 < far
    assert far < 0.2


def test_perturbations_have_the_size_of_each_filter():
    """Of mean 0 and standard deviation r s, biases not at all."""
    x = params_()
    found = perturbations(x, 800, radius=0.3, geometry=eo.filter_geometry())
    scale = np.sqrt(np.mean(np.asarray(x["kernel"]) ** 2, axis=0))
    n = 800 * 4
    sizes = found["kernel"].reshape(-1, 3)
    np.testing.assert_array_less(
        np.abs(sizes.mean(axis=0)), 4 * 0.3 * scale / np.sqrt(n)
    )
    np.testing.assert_allclose(
        sizes.var(axis=0) / (0.3 * scale) ** 2, 1, atol=4 * np.sqrt(2 / n)
    )
    np.testing.assert_array_equal(found["bias"], 0)
    # One after another they are independent.
    flat = found["kernel"].reshape(800, -1) / np.tile(0.3 * scale, 4)
    products = np.mean(flat[1:] * flat[:-1], axis=0)
    assert np.abs(products.mean()) < 4 / np.sqrt(799 * 12)


def test_the_optimizer_sees_x_and_the_gradient_at_the_params():
    """x_{t+1} = x_t - eta (H p_t + lambda x_t), exactly, for the params p_t seen."""
    eta, decay = 0.1, 0.3
    tx: Any = eo.random_weight_perturbation(
        optax.chain(optax.add_decayed_weights(decay), optax.sgd(eta)), 0.5
    )
    h = jnp.asarray(H, jnp.float32)
    path, state = drive(tx, jnp.asarray(X, jnp.float32), lambda p: h @ p, 20)
    x = X.copy()
    for p in path[:-1]:
        x = x - eta * (H @ np.asarray(p, np.float64) + decay * x)
    np.testing.assert_allclose(eval_params(state, path[-1]), x, atol=2e-5)
    assert np.abs(np.asarray(path[-1]) - x).max() > 0.05
    assert eo.num_gradients(state) == 20


def test_the_mean_on_a_quadratic_is_that_of_gradient_descent():
    """E x_t = (1 - eta H)^t x_0 for any S, over 4,000 keys."""
    scales = jnp.array([0.1, 1.0, 2.0])
    h = jnp.asarray(H, jnp.float32)
    x = jnp.asarray(X, jnp.float32)

    def end(key):
        tx: Any = eo.random_weight_perturbation(
            optax.sgd(0.1), 0.5, geometry=lambda x: scales, key=key
        )
        state = tx.init(x)

        def step(loop, _):
            params, state = loop
            updates, state = tx.update(h @ params, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (x, state), None, length=10)
        return eval_params(state, params)

    ends = np.asarray(jax.jit(jax.vmap(end))(jax.random.split(jax.random.key(0), 4000)))
    exact = np.linalg.matrix_power(np.eye(3) - 0.1 * H, 10) @ X
    errors = ends.std(axis=0, ddof=1) / np.sqrt(len(ends))
    np.testing.assert_array_less(np.abs(ends.mean(axis=0) - exact), 4 * errors)
    # eta^2 sum_k (1 - eta H)^k H S H (1 - eta H)^k; the first call draws none.
    s = np.diag((0.5 * np.asarray(scales)) ** 2)
    step = np.eye(3) - 0.1 * H
    cov = sum(
        0.01 * np.linalg.matrix_power(step, k) @ H @ s @ H
        @ np.linalg.matrix_power(step, k)
        for k in range(9)
    )  # fmt: skip
    np.testing.assert_allclose(
        np.diag(np.cov(ends.T)) / np.diag(cov), 1, atol=4 * np.sqrt(2 / len(ends))
    )


def smoothed(grad_fn: Any, x: Any, scales: Any, count: int, **kwargs: Any) -> Any:
    """Return mean and standard error of the gradients over replicas, x at rest."""
    tx: Any = eo.random_weight_perturbation(
        STAY, 1.0, geometry=lambda x: scales, num_replicas=count, **kwargs
    )
    path, _ = drive(tx, eo.replica_params(x, count), lambda p: p, 1)
    grads = np.asarray(jax.vmap(grad_fn)(path[-1]), np.float64)
    return grads.mean(axis=0), grads.std(axis=0, ddof=1) / np.sqrt(count)


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_smoothed_gradient_in_one_and_two_dimensions(antithetic):
    """Against Gauss-Hermite quadrature of E grad f(x + S^1/2 xi)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    f1 = lambda x: jnp.sum(jnp.sin(3 * x) + x**4 / 4)
    s, x = 0.7, 0.4
    at = x + s * nodes
    exact = np.sum(weights * (3 * np.cos(3 * at) + at**3))
    mean, error = smoothed(
        jax.grad(f1), jnp.array([x]), jnp.array([s]), 20_000, antithetic=antithetic
    )
    assert abs(mean[0] - exact) < 4 * error[0]
    assert error[0] < 0.05
    assert abs(3 * np.cos(3 * x) + x**3 - exact) > 0.3  # far from the gradient at x

    f2 = lambda x: jnp.sin(x[0] * 2 + x[1]) + x[0] ** 2 * x[1] ** 2
    s2, x2 = np.array([0.3, 0.9]), np.array([0.5, -0.8])
    a, b = np.meshgrid(*(x2[:, None] + s2[:, None] * nodes), indexing="ij")
    both = weights[:, None] * weights
    cosine = np.cos(2 * a + b)
    exact = np.array(
        [
            np.sum(both * (2 * cosine + 2 * a * b**2)),
            np.sum(both * (cosine + 2 * a**2 * b)),
        ]
    )
    mean, error = smoothed(
        jax.grad(f2),
        jnp.asarray(x2, jnp.float32),
        jnp.asarray(s2, jnp.float32),
        20_000,
        antithetic=antithetic,
    )
    np.testing.assert_array_less(np.abs(mean - exact), 4 * error)


def test_local_entropy_tends_to_it_as_the_temperature_grows():
    """The exact gradient of F_S, of covariance S, at T = 10 to 1,000: by quadrature."""
    s, x = 0.7, 0.4
    grid = np.linspace(x - 8 * s, x + 8 * s, 20_001)
    slope = 3 * np.cos(3 * grid) + grid**3
    prior = np.exp(-(((grid - x) / s) ** 2) / 2)
    heat = np.sum(prior * slope) / np.sum(prior)
    gaps = []
    for temperature in (10.0, 100.0, 1000.0):
        weight = prior * np.exp(-(np.sin(3 * grid) + grid**4 / 4) / temperature)
        gaps.append(abs(np.sum(weight * slope) / np.sum(weight) - heat))
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2]  # of order 1 / T
    # And the chain that samples it agrees with the perturbations that are its limit.
    temperature, gamma = 1000.0, 1000.0
    tx: Any = eo.scale_by_local_entropy(
        eo.sgld(0.1 / gamma, temperature=temperature, noise="gaussian",
                geometry=lambda x: jnp.full((1,), s)),
        400, gamma, mean_of="gradients", mean_decay=lambda k: k / (k + 1),
    )  # fmt: skip
    grad_fn = lambda p, i: 3 * jnp.cos(3 * p) + p**3
    many = jnp.full((256, 1), x)

    def direction(params, key):
        state = tx.init(params)
        state = state._replace(
            sampler_state=jax.tree.map(
                lambda leaf: key if leaf.dtype == key.dtype else leaf,
                state.sampler_state,
            )
        )
        return tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)[0]

    keys = jax.random.split(jax.random.key(3), 256)
    found = np.asarray(jax.jit(jax.vmap(direction))(many, keys))
    # Euler's chain is wider than S by 1 / (1 - 0.1 / 2), and starts at x.
    wide = np.exp(-(((grid - x) / s) ** 2) / 2 * 0.95)
    limit = np.sum(wide * slope) / np.sum(wide)
    error = found.std(ddof=1) / 16
    assert abs(found.mean() - limit) < 4 * error + 0.05 * abs(limit - slope[10_000])


def test_successive_pairs_and_pairs_of_replicas():
    x = params_()
    kwargs: dict[str, Any] = {"radius": 0.3, "geometry": eo.filter_geometry()}
    found = perturbations(x, 5, antithetic=True, **kwargs)["kernel"]
    # Call 2 is alone; calls 3 and 4, 5 and 6 are pairs.
    np.testing.assert_allclose(found[1], -found[2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[3], -found[4], rtol=1e-4, atol=1e-6)
    assert np.abs(found[1] - found[3]).max() > 0.01
    tx: Any = eo.random_weight_perturbation(
        STAY, antithetic=True, num_replicas=4, **kwargs
    )
    path, _ = drive(tx, eo.replica_params(x, 4), lambda p: p, 2)
    away = np.asarray(path[-1]["kernel"]) - np.asarray(x["kernel"])
    np.testing.assert_allclose(away[::2], -away[1::2], rtol=1e-4, atol=1e-6)
    assert np.abs(away[0] - away[2]).max() > 0.01


def test_a_pair_in_each_step_is_exact_on_a_quadratic():
    tx: Any = eo.random_weight_perturbation(
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        0.5,
        antithetic=True,
    )
    h = jnp.asarray(H, jnp.float32)
    path, state = drive(tx, jnp.asarray(X, jnp.float32), lambda p: h @ p, 8)
    # The first step's pair is the start and a perturbation of it.
    first = (np.asarray(path[0]) + np.asarray(path[1])) / 2
    x = X - 0.1 * H @ first
    x = np.linalg.matrix_power(np.eye(3) - 0.1 * H, 3) @ x
    np.testing.assert_allclose(eval_params(state, path[-1]), x, atol=1e-5)


def test_a_step_of_k_gradients_is_their_mean():
    tx: Any = eo.random_weight_perturbation(
        optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation(), 0.5
    )
    path, state = drive(tx, jnp.asarray(X, jnp.float32), jnp.sin, 6)
    x = X.copy()
    for three in (path[:3], path[3:6]):
        x = x - 0.1 * np.mean([np.sin(p) for p in three], axis=0)
    np.testing.assert_allclose(eval_params(state, path[-1]), x, atol=1e-5)


def test_replicas_are_perturbations_side_by_side():
    """The optimizer sees the mean gradient, and x has no leading axis."""
    n, x = 4, jnp.asarray(X, jnp.float32)
    tx: Any = eo.random_weight_perturbation(optax.sgd(0.1, 0.9), 0.5, num_replicas=n)
    path, state = drive(tx, eo.replica_params(x, n), jnp.sin, 5)
    by_hand, trace = X.copy(), np.zeros(3)
    for p in path[:-1]:
        trace = 0.9 * trace + np.sin(np.asarray(p)).mean(axis=0)
        by_hand = by_hand - 0.1 * trace
    assert state.anchor.shape == (3,)
    np.testing.assert_allclose(state.anchor, by_hand, atol=1e-5)
    np.testing.assert_array_equal(
        eval_params(state, path[-1]), np.tile(state.anchor, (n, 1))
    )
    center: Any = eo.center_params(state, path[-1])
    np.testing.assert_allclose(center, state.anchor, rtol=1e-6)
    away = np.asarray(path[-1]) - np.asarray(state.anchor)
    assert len({tuple(row) for row in away.round(5)}) == n
    assert eo.num_gradients(state) == 5


def test_the_function_is_perturbed_alike_however_relu_layers_are_scaled():
    """w1 -> a w1, w2 -> w2 / a: the same functions, and gradients scaled back."""
    inputs = jnp.sin(jnp.arange(12.0)).reshape(4, 3)
    net = lambda p: jax.nn.relu(inputs @ p["w1"]) @ p["w2"]
    loss = lambda p: jnp.sum((net(p) - 1.0) ** 2)
    base = {"w1": jnp.cos(jnp.arange(6.0)).reshape(3, 2), "w2": jnp.ones((2, 1)) / 2}
    a = {"w1": jnp.float32(8.0), "w2": jnp.float32(1 / 8)}
    moved = jax.tree.map(jnp.multiply, a, base)

    def second(params, geometry):
        tx: Any = eo.random_weight_perturbation(STAY, 0.3, geometry=geometry, key=5)
        return drive(tx, params, lambda p: p, 1)[0][-1]

    one, other = (second(p, eo.filter_geometry()) for p in (base, moved))
    np.testing.assert_allclose(net(one), net(other), rtol=1e-5)
    assert np.abs(net(one) - net(base)).max() > 0.01
    back = jax.tree.map(jnp.multiply, a, jax.grad(loss)(other))
    jax.tree.map(
        lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-4, atol=1e-5),
        jax.grad(loss)(one),
        back,
    )
    one, other = (second(p, None) for p in (base, moved))
    assert np.abs(net(one) - net(other)).max() > 0.1


def test_the_radius_follows_its_schedule():
    """Of the number of calls: two of size 1, then none."""
    radius = lambda count: jnp.where(count <= 2, 1.0, 0.0)
    found = perturbations(jnp.ones(50), 4, radius=radius)
    sizes = np.abs(found).max(axis=1)
    assert (sizes[:2] > 0.5).all()
    np.testing.assert_allclose(sizes[2:], 0, atol=1e-6)


def test_a_user_s_noise_and_signs():
    ones: Any = lambda key, shape, dtype: jnp.ones(shape, dtype)
    found = perturbations(jnp.arange(3.0), 2, radius=0.25, noise=ones)
    np.testing.assert_allclose(found, 0.25)
    signs = perturbations(jnp.zeros(64), 2, radius=0.25, noise="rademacher")
    np.testing.assert_allclose(np.abs(signs), 0.25)
    assert 0 < (signs > 0).sum() < signs.size


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes_are_kept(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params_())
    tx: Any = eo.filter_entropy_sgd(0.1, 0.3, weight_decay=0.01)
    state = tx.init(params)
    updates, new = jax.jit(tx.update)(params, state, params)
    assert jax.tree.map(lambda a: a.dtype, updates) == jax.tree.map(
        lambda a: a.dtype, params
    )
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), new
    )
    # One step of Nesterov's: 1.9 times the rate, of the gradient and the decay.
    wanted = jax.tree.map(lambda a: (1 - 0.19 * 1.01) * a.astype(jnp.float32), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), b, rtol=4 * float(jnp.finfo(dtype).eps), atol=1e-6
        ),
        eval_params(new, optax.apply_updates(params, updates)),
        wanted,
    )


def test_masked_leaves_are_the_params_own():
    params = params_() | {"frozen": jnp.ones(2)}
    mask = {"kernel": True, "bias": True, "frozen": False}
    tx: Any = optax.masked(eo.filter_entropy_sgd(0.1, 0.3), mask)
    zero = lambda p: jax.tree.map(jnp.zeros_like, p)
    path, state = drive(tx, params, zero, 3)
    found = eval_params(state, path[-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b), found, params)
    assert np.abs(path[-1]["kernel"] - params["kernel"]).max() > 0.1


def test_the_state_shares_no_buffer_and_can_be_donated():
    tx: Any = eo.filter_entropy_sgd(0.1, 0.3)
    params = params_()
    state = tx.init(params)

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
        params, state = step(params, state)
    assert np.isfinite(eval_params(state, params)["kernel"]).all()


def test_extra_arguments_reach_the_optimizer():
    tx: Any = eo.random_weight_perturbation(
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), 0.1
    )
    params = jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params, value=jnp.float32(3.0))
    assert optax.tree.get(state, "best_value") == 3.0


def test_members_of_an_ensemble_have_their_own_perturbations():
    def two(key):
        tx: Any = eo.random_weight_perturbation(STAY, 1.0, key=key)
        x = jnp.zeros(3)
        updates, _ = tx.update(x, tx.init(x), x)
        return updates

    found = np.asarray(jax.vmap(two)(jax.random.split(jax.random.key(0), 5)))
    assert len({tuple(row) for row in found}) == 5


@pytest.mark.parametrize("members", [2, 3])
def test_an_ensemble_of_replicas_evaluates_each_member_at_its_own_x(members):
    tx: Any = eo.random_weight_perturbation(STAY, 1.0, num_replicas=2)
    x = jnp.arange(1.0, members + 1)[:, None]  # [members, 1]
    params = jax.vmap(lambda x: eo.replica_params(x, 2))(x)
    state = jax.vmap(tx.init)(params)
    _, state = jax.vmap(tx.update)(params, state, params)
    np.testing.assert_array_equal(
        eval_params(state, params), np.broadcast_to(x[:, None], (members, 2, 1))
    )


def mesh_step(tx: Any) -> Any:
    h = jnp.asarray(H, jnp.float32)

    def step(params, state):
        grads = jax.vmap(lambda p: jnp.sin(h @ p))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_each_device_perturbs_for_itself(kind):
    """One device's numbers, and one all-reduce of the gradients' size."""
    n = 4
    tx: Any = eo.random_weight_perturbation(optax.sgd(0.1), 0.5, num_replicas=n)
    x = eo.replica_params(jnp.asarray(X, jnp.float32), n)
    alone, alone_state = drive(tx, x, mesh_grads, 3)
    mesh = jax.make_mesh((n,), ("replica",), (kind,), devices=jax.devices()[:n])
    with jax.set_mesh(mesh):
        params = jax.device_put(x, NamedSharding(mesh, P("replica")))
        state = jax.jit(tx.init)(params)
        step = jax.jit(mesh_step(tx))
        compiled = step.lower(params, state).compile()
        for _ in range(3):
            params, state = jax.block_until_ready(step(params, state))
    np.testing.assert_allclose(params, alone[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.anchor, alone_state.anchor, rtol=1e-5)
    assert params.sharding.spec[0] == "replica"
    (found,) = collectives(compiled.as_text() or "")
    assert found.kind == "all-reduce"
    assert found.num_bytes == 4 * 3


def mesh_grads(params: Any) -> Any:
    return jax.vmap(lambda p: jnp.sin(jnp.asarray(H, jnp.float32) @ p))(params)


def test_it_exports_for_every_platform():
    tx: Any = eo.filter_entropy_sgd(0.1, 0.3, antithetic=True)
    params = params_()
    assert_exports(
        lambda params, state: tx.update(params, state, params),
        params,
        tx.init(params),
        devices=1,
    )


def test_filter_entropy_sgd_is_its_parts():
    ours = eo.filter_entropy_sgd(0.1, 0.4, weight_decay=0.01, vectors=0.2, key=3)
    parts: Any = eo.random_weight_perturbation(
        optax.chain(
            optax.add_decayed_weights(0.01),
            optax.sgd(0.1, momentum=0.9, nesterov=True),
        ),
        0.4,
        geometry=eo.filter_geometry(0.2),
        key=3,
    )
    grad_fn = lambda p: jax.tree.map(jnp.cos, p)
    one, other = (drive(tx, params_(), grad_fn, 4)[0][-1] for tx in (ours, parts))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"radius": -0.1}, "radius must be at least 0, got -0.1"),
        ({"noise": "uniform"}, "noise"),
        ({"num_replicas": 0}, "num_replicas must be an int of at least 1, got 0"),
        (
            {"num_replicas": 3, "antithetic": True},
            "num_replicas must be even for antithetic pairs, got 3",
        ),
        ({"vectors": -1.0}, "vectors must be at least 0, got -1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        eo.filter_entropy_sgd(0.1, **({"radius": 0.1} | kwargs))


def test_bad_calls():
    tx: Any = eo.random_weight_perturbation(optax.sgd(0.1), 0.1)
    with pytest.raises(ValueError, match="params: random_weight_perturbation needs"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    many: Any = eo.random_weight_perturbation(optax.sgd(0.1), 0.1, num_replicas=2)
    with pytest.raises(ValueError, match=r"params.*leading axis"):
        many.init(jnp.ones(3))
    state = many.init(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"grads.*leading axis"):
        many.update(jnp.ones(3), state, jnp.ones((2, 3)))
