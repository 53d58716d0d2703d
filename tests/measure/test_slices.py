"""Slices and planes on quadratics, exactly, and what rescaling does to them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from entropy_optax import measure

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALPHAS = np.linspace(-1, 1, 7)


def quadratic(seed, size=6):
    """A loss, its matrix and a point."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    hessian, x = jnp.asarray(root @ root.T), jnp.asarray(rng.normal(size=size))
    return (lambda x: x @ hessian @ x / 2), hessian, x


def relu_net(seed):
    """A loss of a ReLU net on fixed data, its params, and the same net rescaled."""
    keys = jax.random.split(jax.random.key(seed), 6)
    inputs, targets = jax.random.normal(keys[0], (20, 4)), jnp.arange(20) % 3
    params = {
        "b1": jax.random.normal(keys[1], (8,)),
        "w1": jax.random.normal(keys[2], (4, 8)),
        "w2": jax.random.normal(keys[3], (8, 3)),
    }

    def loss(params):
        hidden = jax.nn.relu(inputs @ params["w1"] + params["b1"])
        logits = jax.nn.log_softmax(hidden @ params["w2"])
        return -jnp.mean(logits[jnp.arange(20), targets])

    a = 8.0
    scaled = {"b1": a * params["b1"], "w1": a * params["w1"], "w2": params["w2"] / a}
    return loss, params, scaled


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_slice_of_a_quadratic_is_a_parabola(seed):
    with jax.enable_x64(True):
        f, hessian, x = quadratic(seed)
        d = jnp.flip(x)
        exact = f(x) + ALPHAS * (x @ hessian @ d) + ALPHAS**2 / 2 * (d @ hessian @ d)
        np.testing.assert_allclose(
            measure.slice_loss(f, x, d, ALPHAS), exact, rtol=1e-12
        )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_plane_has_the_axes_in_order(seed):
    with jax.enable_x64(True):
        f, _, x = quadratic(seed)
        d1, d2 = jnp.flip(x), jnp.ones_like(x)
        betas = np.array([0.0, 0.3])
        plane = measure.plane_loss(f, x, d1, d2, ALPHAS, betas)
        exact = [[f(x + a * d1 + b * d2) for b in betas] for a in ALPHAS]
        assert plane.shape == (7, 2)
        np.testing.assert_allclose(plane, exact, rtol=1e-12)
        np.testing.assert_allclose(
            plane[:, 0], measure.slice_loss(f, x, d1, ALPHAS), rtol=1e-13
        )


def test_a_line_goes_from_one_solution_to_the_other():
    f, _, x = quadratic(1)
    line = measure.line_between(f, x, -2 * x, [0.0, 1.0, 1 / 3])
    np.testing.assert_allclose(line, [f(x), 4 * f(x), 0.0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_filter_of_a_direction_is_as_long_as_the_nets(seed):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(nn.Conv(5, (3, 3))(x))
            return nn.Dense(4)(x.reshape(x.shape[0], -1))

    params: Any = Net().init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))["params"]
    d = measure.filter_normalized_direction(jax.random.key(seed), params)
    for layer, axes in (("Conv_0", (0, 1, 2)), ("Dense_0", (0,))):
        ours, nets = (
            jnp.sqrt(jnp.sum(tree[layer]["kernel"] ** 2, axis=axes))
            for tree in (d, params)
        )
        np.testing.assert_allclose(ours, nets, rtol=1e-5)
        assert np.all(d[layer]["bias"] == 0)
    assert np.all(d["LayerNorm_0"]["scale"] == 0)
    scales = measure.filter_scales(params)
    kernel = params["Conv_0"]["kernel"]
    rms = jnp.sqrt(jnp.mean(kernel**2, axis=(0, 1, 2)))
    np.testing.assert_allclose(scales["Conv_0"]["kernel"][1, 2, 0], rms, rtol=1e-5)
    assert np.all(scales["Conv_0"]["bias"] == 0)


def test_directions_differ_by_key_and_leaf():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
    one, two = (
        measure.filter_normalized_direction(jax.random.key(seed), params)
        for seed in (1, 2)
    )
    assert not np.allclose(one["a"], two["a"])
    assert not np.allclose(one["a"], one["b"])


def test_exceptions_are_named():
    params = {
        "embedding": jnp.arange(1.0, 7).reshape(3, 2),
        "head": jnp.ones((2, 2)),
        "scale": jnp.array([3.0]),
    }
    d = measure.filter_normalized_direction(
        jax.random.key(0), params, axes={"embedding": 0, "head": None, "scale": 0}
    )
    words = jnp.linalg.norm(params["embedding"], axis=1)
    np.testing.assert_allclose(
        jnp.linalg.norm(d["embedding"], axis=1), words, rtol=1e-6
    )
    assert np.all(d["head"] == 0)
    np.testing.assert_allclose(jnp.abs(d["scale"]), 3.0, rtol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rescaling_a_relu_net_leaves_its_slice_as_it_was(seed):
    loss, params, scaled = relu_net(seed)
    key = jax.random.key(seed)
    slices = [
        measure.slice_loss(loss, p, measure.filter_normalized_direction(key, p), ALPHAS)
        for p in (params, scaled)
    ]
    np.testing.assert_allclose(slices[0], slices[1], rtol=1e-5)
    # While along one and the same direction it does not.
    ones = jax.tree.map(jnp.ones_like, params)
    plain = [measure.slice_loss(loss, p, ones, ALPHAS) for p in (params, scaled)]
    assert np.abs(plain[0] - plain[1]).max() > 0.1


def test_an_objective_is_as_good_as_a_function():
    data = {"x": jnp.eye(3), "y": jnp.ones(3)}
    loss_fn = lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
    f = measure.objective(loss_fn, data, jnp.zeros(3), chunk_size=2)
    np.testing.assert_allclose(
        measure.slice_loss(f, jnp.zeros(3), jnp.ones(3), [0.0, 1.0, 3.0]), [1, 0, 4]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f, x: measure.slice_loss(f, x, jnp.ones(2), [0.0]),
            r"direction: got a tree with leaves of shapes \[\(2,\)\]",
        ),
        (
            lambda f, x: measure.plane_loss(f, x, x, {"a": x}, [0.0], [0.0]),
            "second: got a tree with leaves",
        ),
        (
            lambda f, x: measure.line_between(f, x, jnp.ones(2), [0.0]),
            "end: got a tree with leaves",
        ),
        (
            lambda f, x: measure.slice_loss(f, x, x, 1.0),
            r"alphas: got shape \(\), wanted \[A\]",
        ),
        (
            lambda f, x: measure.slice_loss(f, x, x, [0.0, np.inf]),
            "losses: 1 of 2 are not finite",
        ),
        (
            lambda f, x: measure.slice_loss(f, jnp.arange(3), jnp.arange(3), [0.0]),
            "int32, wanted floats",
        ),
    ],
)
def test_clear_errors(call, message):
    f = lambda x: jnp.sum(x**2)
    with pytest.raises(measure.MeasureError, match=message):
        call(f, jnp.ones(3))


@pytest.mark.parametrize(
    ("params", "axes", "message"),
    [
        ({"a": jnp.ones(3)}, None, "params: no leaf has filters"),
        ({"a": jnp.ones((3, 2))}, {"a": None}, "params: no leaf has filters"),
        ({"a": jnp.ones((3, 2))}, {"emb": 0}, r"axes: no leaf has \['emb'\] in its"),
        ({"a": jnp.ones((3, 2))}, {"a": 2}, r"axes: 2 for \['a'\], which has 2 axes"),
    ],
)
def test_clear_errors_of_directions(params, axes, message):
    with pytest.raises(measure.MeasureError, match=message):
        measure.filter_normalized_direction(jax.random.key(0), params, axes=axes)
