"""Sharpness against brute force and closed forms, and under rescaling."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from entropy_optax import measure

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = [1, 2, 3]
OTHER: Any = "other"


def quadratic(seed, shift=0.0):
    """A loss with eigenvalues of both signs where shifted, its matrix, slope, point."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(6, 6))
    hessian = root @ root.T - shift * np.eye(6)
    linear, x = rng.normal(size=6), rng.normal(size=6)
    h, c = jnp.asarray(hessian), jnp.asarray(linear)
    return (lambda w: (w - x) @ h @ (w - x) / 2 + c @ (w - x)), hessian, linear, x


@pytest.mark.parametrize("solver", ["ascent", "lbfgs"])
@pytest.mark.parametrize("seed", SEEDS)
def test_epsilon_sharpness_of_a_convex_quadratic_is_at_a_corner(seed, solver):
    with jax.enable_x64(True):
        f, hessian, linear, x = quadratic(seed)
        sides = 0.2 * (np.abs(x) + 1)
        corners = sides * np.array(list(itertools.product([-1, 1], repeat=6)))
        exact = max(d @ hessian @ d / 2 + linear @ d for d in corners)
        found = measure.epsilon_sharpness(
            f,
            jnp.asarray(x),
            epsilon=0.2,
            key=jax.random.key(seed),
            num_restarts=40,
            solver=solver,
        )
        assert found.value == pytest.approx(100 * exact / (1 + found.loss), rel=1e-9)
        assert found.highest == pytest.approx(float(f(found.point)), rel=1e-9)
        assert np.all(np.abs(found.point - x) <= sides * (1 + 1e-12))
        assert found.restarts.max() == found.highest


@pytest.mark.parametrize("solver", ["ascent", "lbfgs"])
@pytest.mark.parametrize("seed", SEEDS)
def test_epsilon_sharpness_of_a_concave_quadratic_is_inside(seed, solver):
    with jax.enable_x64(True):
        f, hessian, linear, x = quadratic(seed, shift=40.0)
        assert np.linalg.eigvalsh(hessian).max() < 0
        sides = 0.2 * (np.abs(x) + 1)
        # max of -(1/2) d'Ad + c'd in a box is bounded least squares, root(A) d = b.
        root = np.linalg.cholesky(-hessian).T
        best = optimize.lsq_linear(
            root, np.linalg.solve(root.T, linear), (-sides, sides), tol=1e-14
        ).x
        exact = best @ hessian @ best / 2 + linear @ best
        found = measure.epsilon_sharpness(
            f,
            jnp.asarray(x),
            epsilon=0.2,
            key=jax.random.key(seed),
            num_steps=500,
            solver=solver,
        )
        # Steps of one size for all weights end within the last one of the maximum.
        loose = 5e-3 if solver == "ascent" else 1e-6
        assert found.value == pytest.approx(100 * exact, rel=loose)


@pytest.mark.parametrize("seed", SEEDS)
def test_adaptive_sharpness_in_a_box_is_at_a_corner(seed):
    with jax.enable_x64(True):
        f, hessian, linear, x = quadratic(seed)
        corners = 0.3 * x * np.array(list(itertools.product([-1, 1], repeat=6)))
        exact = max(d @ hessian @ d / 2 + linear @ d for d in corners)
        found = measure.adaptive_sharpness(
            f, jnp.asarray(x), radius=0.3, key=jax.random.key(seed), num_restarts=40
        )
        assert found.value == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_adaptive_sharpness_in_a_ball_is_a_trust_region_problem(seed, shift):
    """Exact by the secular equation: d = (m - H)^-1 c, |d| = radius, m > top of H."""
    with jax.enable_x64(True):
        f, hessian, linear, x = quadratic(seed, shift)
        scaled = np.abs(x)[:, None] * hessian * np.abs(x)
        slope, radius = np.abs(x) * linear, 0.5
        top = np.linalg.eigvalsh(scaled).max()
        step = lambda m: np.linalg.solve(m * np.eye(6) - scaled, slope)
        m = optimize.brentq(
            lambda m: np.linalg.norm(step(m)) - radius, top + 1e-9, top + 1e3
        )
        u = step(m)
        exact = u @ scaled @ u / 2 + slope @ u
        found = measure.adaptive_sharpness(
            f,
            jnp.asarray(x),
            radius=radius,
            norm="l2",
            key=jax.random.key(seed),
            num_steps=200,
        )
        assert found.value == pytest.approx(exact, rel=1e-4)
        assert found.value <= exact * (1 + 1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_average_sharpness_of_a_quadratic_is_exact(seed):
    with jax.enable_x64(True):
        f, hessian, _, x = quadratic(seed)
        found = measure.average_sharpness(
            f, jnp.asarray(x), radius=0.1, key=jax.random.key(seed), num_samples=1000
        )
        exact = 0.1**2 / 2 * np.sum(np.diag(hessian) * x**2)
        assert abs(found.value - exact) < 4.5 * found.standard_error
        assert found.num_samples == 1000


@pytest.mark.parametrize("seed", SEEDS)
def test_rescaling_a_relu_net_moves_epsilon_sharpness_only(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    inputs, targets = jax.random.normal(keys[0], (20, 4)), jnp.ones((20, 3))
    params = {
        "b1": jax.random.normal(keys[1], (8,)),
        "w1": jax.random.normal(keys[2], (4, 8)),
        "w2": jax.random.normal(keys[3], (8, 3)),
    }

    def f(p):
        hidden = jax.nn.relu(inputs @ p["w1"] + p["b1"])
        return jnp.mean((hidden @ p["w2"] - targets) ** 2)

    # A factor of its own for each hidden unit.
    a = 2.0 ** jnp.arange(8)
    scaled = {
        "b1": a * params["b1"],
        "w1": a * params["w1"],
        "w2": params["w2"] / a[:, None],
    }
    np.testing.assert_allclose(f(scaled), f(params), rtol=1e-5)
    key = jax.random.key(seed)
    # In a ball rounding grows along the path, in a box it does not.
    cases: Any = (("linf", 1e-4), ("l2", 1e-2))
    for norm, loose in cases:
        one, two = (
            measure.adaptive_sharpness(f, p, radius=0.1, norm=norm, key=key).value
            for p in (params, scaled)
        )
        assert one == pytest.approx(two, rel=loose)
    one, two = (
        measure.average_sharpness(f, p, radius=0.1, key=key).value
        for p in (params, scaled)
    )
    assert one == pytest.approx(two, rel=1e-3)
    one, two = (
        measure.epsilon_sharpness(f, p, epsilon=0.01, key=key).value
        for p in (params, scaled)
    )
    assert two > 2 * one


def test_weights_of_zero_do_not_move():
    found = measure.adaptive_sharpness(
        lambda w: jnp.sum(w), jnp.array([0.0, 2.0]), radius=0.5, key=jax.random.key(0)
    )
    np.testing.assert_allclose(found.point, [0.0, 3.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f, w, k: measure.epsilon_sharpness(f, w, epsilon=0.0, key=k),
            "epsilon: got 0.0, wanted a number above 0",
        ),
        (
            lambda f, w, k: measure.epsilon_sharpness(f, w, solver=OTHER, key=k),
            "solver: got 'other', wanted 'ascent' or 'lbfgs'",
        ),
        (
            lambda f, w, k: measure.adaptive_sharpness(f, w, radius=-1.0, key=k),
            "radius: got -1.0, wanted a number above 0",
        ),
        (
            lambda f, w, k: measure.adaptive_sharpness(
                f, w, radius=1.0, norm=OTHER, key=k
            ),
            "norm: got 'other', wanted 'l2' or 'linf'",
        ),
        (
            lambda f, w, k: measure.adaptive_sharpness(
                f, w, radius=1.0, key=k, num_restarts=1
            ),
            "num_restarts: got 1, wanted 2 or more: at a minimum",
        ),
        (
            lambda f, w, k: measure.epsilon_sharpness(f, w, key=k, num_steps=0),
            "num_steps: got 0, wanted 1 or more",
        ),
        (
            lambda f, w, k: measure.average_sharpness(
                f, w, radius=1.0, key=k, num_samples=5
            ),
            "num_samples: got 5, wanted 30 or more",
        ),
        (
            lambda f, w, k: measure.epsilon_sharpness(
                lambda w: jnp.log(-f(w)), w, key=k
            ),
            r"f\(params\): 1 of 1 are not finite",
        ),
        (
            lambda f, w, k: measure.epsilon_sharpness(f, jnp.arange(3), key=k),
            "int32, wanted floats",
        ),
    ],
)
def test_clear_errors(call, message):
    with pytest.raises(measure.MeasureError, match=message):
        call(lambda w: jnp.sum(w**2), jnp.ones(3), jax.random.key(0))
