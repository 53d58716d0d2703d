"""The inner loop's relatives: heat, Hamilton-Jacobi, mean gradients, other geometries.

Exact on quadratics f = x' H x / 2 and polynomials, against closed forms; statistics
have fixed seeds and limits of 4 standard errors.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import strict as strict

import entropy_optax as eo
from entropy_optax import measure

MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])
PLAIN = lambda k: k / (k + 1)
H = np.diag([0.5, 1.0, 3.0]) + 0.2
X = np.array([1.0, -2.0, 0.5])


def direction(
    sampler: Any, num_steps: int, grad_fn: Any, x: Any, opaque: bool, **kwargs
):
    """Return what takes the gradient's place in one outer step."""
    tx: Any = eo.local_entropy(
        optax.sgd(1.0), sampler, num_steps, kwargs.pop("gamma", 0.0),
        opaque_mode=opaque, **kwargs,
    )  # fmt: skip
    params = jnp.asarray(x, jnp.float32)

    @jax.jit
    def end(params):
        state = tx.init(params)
        if opaque:
            updates, _ = tx.update(
                grad_fn(params), state, params, grad_fn=lambda p, i: grad_fn(p)
            )
            return optax.apply_updates(params, updates)
        for _ in range(num_steps):
            updates, state = tx.update(grad_fn(params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    return np.asarray(params - end(params))


def quadratic(x: jax.Array) -> jax.Array:
    return jnp.asarray(H, x.dtype) @ x


@MODES
@pytest.mark.parametrize("num_steps", [1, 5, 40])
def test_hamilton_jacobi_is_the_linear_recursion(opaque, num_steps):
    """x'_k - x* = (1 - eta (H + gamma))^k (x - x*), x* = gamma (H + gamma)^-1 x."""
    gamma, eta = 0.7, 0.2
    found = direction(
        eo.sgld(eta), num_steps, quadratic, X, opaque, gamma=gamma, mean_decay=0.0
    )
    energy = H + gamma * np.eye(3)
    fixed = gamma * np.linalg.solve(energy, X)
    step = np.linalg.matrix_power(np.eye(3) - eta * energy, num_steps)
    exact = X - fixed - step @ (X - fixed)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)


@MODES
def test_hamilton_jacobi_ends_at_the_proximal_point(opaque):
    """x - prox = H (H + gamma)^-1 x, the gradient of the Moreau envelope over gamma."""
    gamma = 0.7
    found = direction(
        eo.sgld(0.4), 100, quadratic, X, opaque, gamma=gamma, mean_decay=0.0
    )
    exact = H @ np.linalg.solve(H + gamma * np.eye(3), X)
    np.testing.assert_allclose(found, exact, rtol=1e-4)


@MODES
def test_the_mean_gradient_is_that_of_the_iterates(opaque):
    """By hand: the average of H x'_k over the recursion of x'_k."""
    gamma, eta, num_steps = 0.7, 0.2, 6
    found = direction(
        eo.sgld(eta), num_steps, quadratic, X, opaque,
        gamma=gamma, mean_decay=PLAIN, mean_of="gradients",
    )  # fmt: skip
    x, total = X.copy(), np.zeros(3)
    for _ in range(num_steps):
        total += H @ x
        x = x - eta * (H @ x + gamma * (x - X))
    np.testing.assert_allclose(found, total / num_steps, rtol=1e-5)


def test_both_means_estimate_the_gradient_of_local_entropy():
    """gamma (x - <x'>) = <grad f(x')> = gamma H (H + gamma)^-1 x, long chains."""
    gamma, eta = 0.7, 0.4
    exact = gamma * H @ np.linalg.solve(H + gamma * np.eye(3), X)
    common: dict[str, Any] = {"gamma": gamma, "mean_decay": PLAIN, "opaque": True}
    iterates = direction(eo.sgld(eta), 4000, quadratic, X, **common)
    gradients = direction(
        eo.sgld(eta), 4000, quadratic, X, mean_of="gradients", **common
    )
    np.testing.assert_allclose(gamma * iterates, exact, atol=5e-3)
    np.testing.assert_allclose(gradients, exact, atol=5e-3)


@MODES
@pytest.mark.parametrize("num_steps", [1, 3, 7])
def test_heat_in_pairs_is_exact_on_a_quadratic(opaque, num_steps):
    """The gradient is linear, so a pair's perturbations cancel."""
    found = direction(
        eo.heat(0.3, antithetic=True), num_steps, quadratic, X, opaque,
        mean_decay=PLAIN, mean_of="gradients",
    )  # fmt: skip
    np.testing.assert_allclose(found, H @ X, rtol=1e-5)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("num_steps", [3, 9])
def test_heat_on_a_quartic(antithetic, num_steps):
    """f = x^4: the smoothed gradient is 4 x^3 + 12 x r^2, whatever L is."""
    x = np.linspace(-1, 1, 4000)
    r = 0.5
    found = direction(
        eo.heat(r, antithetic=antithetic, key=1), num_steps,
        lambda x: 4 * x**3, x, True,
        mean_decay=PLAIN, mean_of="gradients",
    )  # fmt: skip
    error = found - (4 * x**3 + 12 * x * r**2)
    # Along x, too: an error in r^2 is a slope.
    for weight in (np.ones_like(x), x):
        products = weight * error
        standard_error = products.std(ddof=1) / np.sqrt(len(x))
        assert abs(products.mean()) < 4 * standard_error
    assert np.corrcoef(found, 4 * x**3)[0, 1] > 0.5


def test_pairs_have_less_variance():
    x = np.linspace(-1, 1, 2000)
    spread = [
        np.std(
            direction(
                eo.heat(0.5, antithetic=pairs), 9, lambda x: 4 * x**3, x, True,
                mean_decay=PLAIN, mean_of="gradients",
            )
            - (4 * x**3 + 3 * x)
        )
        for pairs in (False, True)
    ]  # fmt: skip
    assert spread[1] < 0.7 * spread[0]


def test_perturbations_have_the_covariance_of_the_radius():
    """All L gradient points together, the one at x included."""
    num_steps, r = 5, 0.5
    sampler: Any = eo.heat(r, key=3)
    x = jnp.zeros(20_000)
    state, at, squares = sampler.init(x), x, 0.0
    for k in range(num_steps - 1):
        moves, state = sampler.update(
            x, state, at, anchor=x, outer_count=0, inner_count=k, num_steps=num_steps,
            mean_of="gradients",
        )  # fmt: skip
        at = at + moves
        squares += float(jnp.mean(at**2))
    # Variance of a mean of squares: 2 r^4 / n, in each of L - 1 groups.
    limit = 4 * r**2 * np.sqrt(2 / (20_000 * (num_steps - 1)))
    assert abs(squares / num_steps - r**2) < limit


@MODES
def test_heat_follows_its_schedules_and_draws_afresh(opaque):
    """Another radius and other noise in each outer step; both modes alike."""
    tx: Any = eo.local_entropy(
        optax.sgd(0.1), eo.heat(lambda t: 0.1 * (t + 1), key=2), 3, 0.0,
        opaque_mode=opaque, mean_decay=PLAIN, mean_of="gradients",
    )  # fmt: skip
    other = eo.local_entropy(
        optax.sgd(0.1), eo.heat(lambda t: 0.1 * (t + 1), key=2), 3, 0.0,
        opaque_mode=not opaque, mean_decay=PLAIN, mean_of="gradients",
    )  # fmt: skip
    grad_fn = lambda p, i=0: p**3
    ends = []
    for mode, t in ((opaque, tx), (not opaque, other)):
        params = jnp.array([1.0, -0.5])
        state = t.init(params)
        update = jax.jit(
            lambda p, s, t=t, mode=mode: t.update(
                grad_fn(p), s, p, **({"grad_fn": grad_fn} if mode else {})
            )
        )
        sizes = []
        for _ in range(3):
            for _ in range(1 if mode else 3):
                updates, state = update(params, state)
                params = optax.apply_updates(params, updates)
            sizes.append(float(optax.tree.get(state, "displacement")))
        ends.append(params)
        assert sizes[0] < sizes[2]
        assert len(set(sizes)) == 3
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_skipped_gradients_leave_the_mean():
    """With heat the last gradient is no special one."""
    grad_fn = lambda p, i: jnp.where(i == 2, jnp.nan, p)
    tx: Any = eo.scale_by_local_entropy(
        eo.heat(0.1, antithetic=True), 3, 0.0, mean_decay=0.5, mean_of="gradients",
        skip_nonfinite=True,
    )  # fmt: skip
    params = jnp.ones(2)
    found, state = jax.jit(lambda p: tx.update(p, tx.init(p), p, grad_fn=grad_fn))(
        params
    )
    first, _ = jax.jit(
        lambda p: eo.scale_by_local_entropy(
            eo.heat(0.1 * np.sqrt(1.5 / 2)), 2, 0.0, mean_decay=0.5, mean_of="gradients"
        ).update(p, tx.init(p), p, grad_fn=lambda p, i: p)
    )(params)
    np.testing.assert_allclose(found, first, rtol=1e-6)
    assert state.num_nonfinite == 1


@MODES
@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_constant_decay_does_not_shrink_the_mean_gradient(opaque, num_steps):
    """Of a constant gradient the mean is that gradient, whatever the decay."""
    found = direction(
        eo.sgld(0.1), num_steps, jnp.ones_like, X, opaque,
        gamma=0.3, mean_decay=0.75, mean_of="gradients",
    )  # fmt: skip
    np.testing.assert_allclose(found, np.ones(3), rtol=1e-6)


def stationary(geometry: Any, num_steps: int = 4000) -> np.ndarray:
    """Return the variances of x' of 500 chains on f = h x^2 / 2 at x = 2."""
    h = jnp.array([0.5, 2.0])
    chains, x = 500, jnp.full((500, 2), 2.0)
    sampler: Any = eo.sgld(0.05, temperature=0.5, noise="gaussian", geometry=geometry)

    def body(loop, _):
        at, state = loop
        moves, state = sampler.update(
            h[None] * at, state, at, anchor=x, gamma=1.0, outer_count=0
        )
        at = at + moves
        return (at, state), at

    _, path = jax.jit(
        lambda: jax.lax.scan(body, (x, sampler.init(x)), None, length=num_steps)
    )()
    late = np.asarray(path[num_steps // 2 :: 200])
    assert late.shape[1:] == (chains, 2)
    return late


def test_the_preconditioned_chain_has_the_anisotropic_gibbs_law():
    """Density exp(-(h x'^2 + gamma (x' - x)^2 / s^2) / 2 T), up to the step's error.

    Of step size eta it is eta s^2 (h + gamma / s^2) / 2 of the variance: 0.05 here.
    """
    s = np.array([0.5, 1.0])
    h = np.array([0.5, 2.0])
    late = stationary(lambda x: jnp.asarray(s, jnp.float32)[None])
    precision = h + 1 / s**2
    mean = (2.0 / s**2) / precision
    # Euler's chain on a quadratic: T / precision / (1 - eta s^2 precision / 2).
    variance = 0.5 / precision / (1 - 0.05 * s**2 * precision / 2)
    independent = late.reshape(-1, 2)
    n = len(independent) / 2  # 200 steps apart: correlation below 1e-3
    np.testing.assert_array_less(
        np.abs(independent.mean(axis=0) - mean), 4 * np.sqrt(variance / n)
    )
    np.testing.assert_array_less(
        np.abs(independent.var(axis=0) / variance - 1), 4 * np.sqrt(2 / n)
    )


def test_geometries():
    kernel = jnp.arange(1.0, 7.0).reshape(3, 2)
    params = {"kernel": kernel, "bias": jnp.array([3.0, 4.0]), "none": None}
    leaf = eo.leaf_geometry()(params)
    np.testing.assert_allclose(leaf["kernel"], np.sqrt(np.mean(kernel**2)), rtol=1e-6)
    np.testing.assert_allclose(leaf["bias"], np.sqrt(12.5), rtol=1e-6)
    filters = eo.filter_geometry()(params)
    by_hand = np.sqrt(np.mean(np.asarray(kernel) ** 2, axis=0, keepdims=True))
    np.testing.assert_allclose(filters["kernel"], by_hand, rtol=1e-6)
    assert filters["bias"] == 0
    tenth = eo.filter_geometry(0.1)(params)["bias"]
    np.testing.assert_allclose(tenth, 0.353553, rtol=1e-5)
    stacked = {"kernel": jnp.stack([kernel, 2 * kernel]), "bias": jnp.ones((2, 2))}
    of_each = jax.vmap(eo.filter_geometry(1.0))(stacked)
    np.testing.assert_allclose(of_each["kernel"], [by_hand, 2 * by_hand], rtol=1e-6)
    assert of_each["bias"].shape == (2, 1)
    conv = eo.filter_geometry()(jnp.ones((3, 3, 4, 8)))
    assert conv.shape == (1, 1, 1, 8)
    small = eo.filter_geometry()(jnp.full((4, 1), 1e-4, jnp.float16))
    np.testing.assert_allclose(small.astype(jnp.float32), 1e-4, rtol=1e-2)
    half = eo.filter_geometry()(kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_filters_of_attention_embedding_and_lstm():
    """One scale for each unit of a head, each feature, each unit of a gate."""
    x = jnp.ones((1, 3, 4))
    attention = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)
    linen: Any = attention.init(jax.random.key(0), x)["params"]
    twin = nnx.MultiHeadAttention(
        num_heads=2, in_features=4, qkv_features=6, decode=False, rngs=nnx.Rngs(0)
    )
    geometry: Any = eo.filter_geometry(0.5)
    for params in (linen, nnx.state(twin, nnx.Param)):
        found = geometry(params)
        for name in ("query", "key", "value"):
            own, scale = params[name], found[name]
            kernel = np.asarray(own["kernel"][...])
            exact = np.sqrt(np.mean(kernel**2, axis=0, keepdims=True))
            assert exact.shape == (1, 2, 3)
            np.testing.assert_allclose(scale["kernel"][...], exact, rtol=1e-6)
            assert scale["bias"][...].shape == (1, 1)
        assert found["out"]["kernel"][...].shape == (1, 1, 4)
    # The instruments mean the same by a filter.
    jax.tree.map(
        lambda s, t, leaf: np.testing.assert_allclose(
            s, jnp.broadcast_to(t, leaf.shape), rtol=1e-6
        ),
        measure.filter_scales(linen),
        eo.filter_geometry()(linen),
        linen,
    )
    cell = nn.OptimizedLSTMCell(5)
    carry = cell.initialize_carry(jax.random.key(0), (1, 4))
    gates: Any = geometry(cell.init(jax.random.key(0), carry, jnp.ones((1, 4))))
    assert {g["kernel"].shape for g in gates["params"].values()} == {(1, 5)}
    table: Any = nn.Embed(7, 3).init(jax.random.key(0), jnp.zeros(1, jnp.int32))
    assert geometry(table)["params"]["embedding"].shape == (1, 3)
    masked = geometry({"kernel": jnp.ones((2, 2)), "bias": optax.MaskedNode()})
    assert masked["bias"] == optax.MaskedNode()


def test_filter_noise_does_not_see_how_relu_layers_are_scaled():
    """w1 -> a w1, w2 -> w2 / a is the same function, and stays so under the noise."""
    inputs = jnp.sin(jnp.arange(12.0)).reshape(4, 3)
    net = lambda p: jax.nn.relu(inputs @ p["w1"]) @ p["w2"]
    base = {"w1": jnp.cos(jnp.arange(6.0)).reshape(3, 2), "w2": jnp.ones((2, 1)) / 2}
    moved = {"w1": 8 * base["w1"], "w2": base["w2"] / 8}

    def perturbed(params, geometry):
        sampler: Any = eo.heat(0.2, geometry=geometry, key=5)
        moves, _ = sampler.update(
            params, sampler.init(params), params,
            anchor=params, outer_count=0, inner_count=0, num_steps=4,
            mean_of="gradients",
        )  # fmt: skip
        return net(optax.apply_updates(params, moves))

    np.testing.assert_allclose(net(base), net(moved), rtol=1e-6)
    alike = [perturbed(p, eo.filter_geometry()) for p in (base, moved)]
    np.testing.assert_allclose(*alike, rtol=1e-5)
    assert np.abs(alike[0] - net(base)).max() > 0.01
    unlike = [perturbed(p, None) for p in (base, moved)]
    assert np.abs(unlike[0] - unlike[1]).max() > 0.1


def test_a_weight_of_scale_0_stays_and_still_has_its_gradient():
    """Biases under filter_geometry: no noise on them, and the gradient in the mean."""
    params = {"w": jnp.ones((2, 2)), "b": jnp.array([1.0, 2.0])}
    tx: Any = eo.scale_by_local_entropy(
        eo.sgld(0.1, temperature=0.1, geometry=eo.filter_geometry()), 4, 0.5,
        mean_decay=PLAIN, mean_of="gradients",
    )  # fmt: skip
    found, _ = jax.jit(lambda p: tx.update(p, tx.init(p), p, grad_fn=lambda p, i: p))(
        params
    )
    np.testing.assert_allclose(found["b"], params["b"], rtol=1e-6)
    assert np.abs(found["w"] - params["w"]).max() > 0.01


def test_scope_of_each_leaf_by_a_users_function():
    """One inner step from x' = x + 1: S g + gamma (x' - x), by hand."""
    scales = {"a": 2.0, "b": 0.5}
    pull: Any = eo.add_scope_pull(lambda x: scales)
    x = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    at = {"a": jnp.ones(2), "b": jnp.ones(2)}
    grads = {"a": jnp.full(2, 3.0), "b": jnp.full(2, 3.0)}
    found, _ = pull.update(grads, pull.init(x), at, anchor=x, gamma=0.1)
    np.testing.assert_allclose(found["a"], 4 * 3 + 0.1, rtol=1e-6)
    np.testing.assert_allclose(found["b"], 0.25 * 3 + 0.1, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_squares_of_scales_do_not_leave_float16(scale):
    """Their products with a gradient of another size are in its range."""
    pull: Any = eo.add_scope_pull(lambda x: jnp.float16(scale))
    x = jnp.zeros(1, jnp.float16)
    grads = jnp.full(1, 1e-3 if scale > 1 else 1e3, jnp.float16)
    found, _ = pull.update(grads, pull.init(x), x, anchor=x, gamma=0.1)
    exact = float(grads[0]) * float(jnp.float16(scale)) ** 2
    np.testing.assert_allclose(found, exact, rtol=5e-3)


def test_errors():
    params = jnp.ones(2)
    sampler: Any = eo.heat(0.1, antithetic=True)
    state = sampler.init(params)
    args: dict[str, Any] = {
        "anchor": params, "outer_count": 0, "inner_count": 0, "num_steps": 3,
        "mean_of": "gradients",
    }  # fmt: skip
    for name in args:
        with pytest.raises(ValueError, match=f"{name}: heat needs it, got None"):
            sampler.update(params, state, params, **{**args, name: None})
    tx: Any = eo.local_entropy(optax.sgd(1.0), eo.heat(0.1), 3, 0.0)
    with pytest.raises(ValueError, match="mean_of must be 'gradients' with heat, got"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"num_steps must be odd for .*, got 4"):
        sampler.update(params, state, params, **{**args, "num_steps": 4})
    with pytest.raises(ValueError, match="radius must be at least 0, got -1"):
        eo.heat(-1.0)
    with pytest.raises(ValueError, match="vectors must be at least 0, got -1"):
        eo.filter_geometry(-1.0)
    with pytest.raises(ValueError, match="noise must be one of"):
        eo.heat(1.0, noise="cauchy")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="mean_of must be 'iterates' or 'gradients'"):
        eo.scale_by_local_entropy(eo.sgld(0.1), 2, 0.1, mean_of="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="mean_of must be 'iterates' or 'gradients'"):
        eo.local_entropy(optax.sgd(1.0), eo.sgld(0.1), 2, 0.1, mean_of="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="scale_by_gamma: the mean of the gradients"):
        eo.scale_by_local_entropy(
            eo.sgld(0.1), 2, 0.1, mean_of="gradients", scale_by_gamma=True
        )
    noise: Any = eo.add_langevin_noise(0.1, 0.1, geometry=eo.leaf_geometry())
    with pytest.raises(ValueError, match="anchor: a geometry is taken at it, got None"):
        noise.update(params, noise.init(params))
