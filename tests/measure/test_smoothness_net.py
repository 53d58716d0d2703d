"""Smoothness of a network's loss and of its envelope, against dense linear algebra."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from entropy_optax.measure import MeasureError, proximal_point, smoothness_at
from entropy_optax.measure._curvature import hessian_vector_product

pytestmark = pytest.mark.usefixtures("quick_compilation")


def net(seed):
    key = jax.random.key(seed)
    x, w, v = (
        jax.random.normal(jax.random.fold_in(key, i), shape)
        for i, shape in enumerate([(40, 4), (4, 5), (5, 3)])
    )
    labels = jnp.argmax(x[:, :3] + 0.5, axis=1)

    # The data are an argument: one compilation serves all seeds.
    return jax.tree_util.Partial(loss, x, labels), {"w": w, "v": v, "b": jnp.zeros(3)}


def loss(x, labels, params):
    logits = jnp.tanh(x @ params["w"]) @ params["v"] + params["b"]
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(40), labels])


@jax.jit
def dense_hessian(f, params):
    vector, unravel = ravel_pytree(params)
    return jax.hessian(lambda v: f(unravel(v)))(vector)


@jax.jit
def entropy_gradient(f, params, x, gamma):
    """By Newton, from x."""
    _, unravel = ravel_pytree(params)
    slope = lambda p: jax.grad(lambda v: f(unravel(v)))(p) + gamma * (p - x)
    step = lambda _, p: p - jnp.linalg.solve(jax.jacfwd(slope)(p), slope(p))
    return gamma * (x - jax.lax.fori_loop(0, 20, step, x))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_net_against_dense_linear_algebra(seed):
    """The Hessian of the envelope by differences of gamma (x - p), in float64."""
    with jax.enable_x64(True):
        f, params = net(seed)
        vector, _ = ravel_pytree(params)
        gamma = 2.0
        found = smoothness_at(
            f, params, gamma, key=jax.random.key(seed), num_steps=len(vector)
        )
        eigenvalues = np.linalg.eigvalsh(dense_hessian(f, params))
        h = 1e-5
        at = lambda x: np.asarray(entropy_gradient(f, params, x, gamma))
        columns = [
            (at(vector + h * e) - at(vector - h * e)) / (2 * h)
            for e in np.eye(len(vector))
        ]
        hessian = np.stack(columns)
        expected = np.linalg.eigvalsh((hessian + hessian.T) / 2)
        norm = np.linalg.norm(at(vector))
    constants = found.constants
    assert constants.lowest == pytest.approx(eigenvalues[0], rel=1e-6)
    assert constants.highest == pytest.approx(eigenvalues[-1], rel=1e-6)
    assert constants.entropy_lowest == pytest.approx(expected[0], rel=1e-5)
    assert constants.entropy_highest == pytest.approx(expected[-1], rel=1e-5)
    assert constants.entropy_slope == pytest.approx(norm, rel=1e-6)
    assert found.proximal_point.residual < 1e-6
    assert found.eigenvalue_error < 1e-6


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_net_in_float32(seed):
    """Against all eigenvalues of the dense Hessian at x and at p."""
    f, params = net(seed)
    found = smoothness_at(f, params, 2.0, key=jax.random.key(0), num_steps=20)
    assert found.proximal_point.residual < 1e-5
    for point, low, high, gamma in (
        (params, found.constants.lowest, found.constants.highest, None),
        (
            found.proximal_point.params,
            found.constants.entropy_lowest,
            found.constants.entropy_highest,
            2.0,
        ),
    ):
        values = np.linalg.eigvalsh(np.asarray(dense_hessian(f, point), np.float64))
        if gamma:
            values = gamma * values / (gamma + values)
        assert low == pytest.approx(values[0], rel=1e-3, abs=1e-5)
        assert high == pytest.approx(values[-1], rel=1e-4)


def test_a_classifier_never_fulfils_the_lemmas_assumption():
    """A softmax does not see a shift of all logits: an eigenvalue 0 at any params."""
    for seed in (1, 2, 3):
        f, params = net(seed)
        shift = jax.tree.map(jnp.zeros_like, params) | {"b": jnp.ones(3)}
        product = hessian_vector_product(f, params, shift)
        assert float(jnp.linalg.norm(ravel_pytree(product)[0])) < 1e-6


def test_proximal_point_where_gradients_are_tiny_or_gone():
    """Scopes far above and below the curvature, losses near the rounding."""
    scales = jnp.array([1e-3, 1.0, 50.0])
    for size in (1.0, 1e-6):
        f = lambda x, size=size: size * 0.5 * jnp.sum(scales * x**2)
        for gamma in (1e-2 * size, size, 1e4 * size):
            point = proximal_point(f, jnp.ones(3), gamma)
            expected = gamma / (gamma + size * scales)
            np.testing.assert_allclose(point.params, expected, rtol=1e-4)
            np.testing.assert_allclose(point.shift, point.params - 1, atol=1e-6)
            envelope = float(jnp.sum(size * scales * expected) / 2)
            assert point.value == pytest.approx(envelope, rel=1e-4)
            assert point.residual < 1e-4 * size * 50
    point = proximal_point(f, jnp.zeros(3), 1.0)
    assert point.residual == 0
    np.testing.assert_array_equal(point.params, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: smoothness_at(
                jnp.sum, jnp.ones(2), 1.0, key=jax.random.key(0), num_steps=1
            ),
            "num_steps: got 1, wanted 2",
        ),
        (
            lambda: proximal_point(lambda x: jnp.sum(x) * jnp.nan, jnp.ones(2), 1.0),
            "f: the loss at params: 1 of 1 are not finite",
        ),
        (
            lambda: proximal_point(jnp.linalg.norm, jnp.zeros(2), 1.0),
            "f: the gradient at params: 2 of 2 are not finite",
        ),
        (lambda: proximal_point(jnp.sum, jnp.ones(2), 0.0), "gamma: got 0.0, wanted"),
        (lambda: proximal_point(jnp.sum, jnp.ones(2, int), 1.0), "leaf .* is int32"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(MeasureError) as caught:
        call()
    assert re.search(message, str(caught.value).replace("\n", " "))


def test_a_saddle_is_no_proximal_point():
    """Where the Hessian at p is -gamma or less nothing is claimed."""
    f = lambda x: -jnp.sum(x**2) + jnp.sum(x**4) / 1e6  # from 0 no way leads down
    with pytest.raises(MeasureError, match="has an eigenvalue of -2, so it is none"):
        smoothness_at(f, jnp.zeros(3), 1.0, key=jax.random.key(0))


def test_where_a_vector_of_signs_is_an_eigenvector():
    """Every one is, of f = x0 x1, whose eigenvalues are 1 and -1."""
    f = lambda x: x[0] * x[1]
    found = smoothness_at(f, jnp.ones(2), 2.0, key=jax.random.key(0)).constants
    ends = (found.lowest, found.highest, found.entropy_lowest, found.entropy_highest)
    assert ends == pytest.approx((-1, 1, -2, 2 / 3), rel=1e-5)


def test_errors_of_eigenvalues_hold():
    """With fewer steps than params the reported error bounds the true one."""
    f, params = net(1)
    found = smoothness_at(f, params, 2.0, key=jax.random.key(0), num_steps=8)
    values = np.linalg.eigvalsh(np.asarray(dense_hessian(f, params), np.float64))
    error = max(
        abs(found.constants.lowest - values[0]),
        abs(found.constants.highest - values[-1]),
    )
    assert 1e-7 < error < found.eigenvalue_error < 0.1


def test_where_the_krylov_space_is_exhausted():
    """Equal eigenvalues: Lanczos ends after one step, and is right."""
    f = lambda x: jnp.sum(x**2)
    found = smoothness_at(f, jnp.ones(5), 2.0, key=jax.random.key(0)).constants
    ends = (found.lowest, found.highest, found.entropy_lowest, found.entropy_highest)
    assert ends == pytest.approx((2, 2, 1, 1), rel=1e-5)
