"""A loss in units of the filters: curvature and local entropy, against closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropy_optax as eo
from entropy_optax import measure

H = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.5]])
X = np.array([1.0, -2.0, 0.5])
S = np.array([0.3, 1.0, 2.0])


def quadratic(x: jax.Array) -> jax.Array:
    return x @ jnp.asarray(H, x.dtype) @ x / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_value_and_gradient_of_the_anisotropic_local_entropy(temperature):
    """Phi = log E exp(-beta f(x + S^1/2 xi)), any S, in closed form by hand."""
    radius = 0.7
    g, y = measure.in_geometry(
        quadratic, jnp.asarray(X, jnp.float32), lambda x: jnp.asarray(S, jnp.float32)
    )
    gamma = temperature / radius**2
    cov = np.diag((radius * S) ** 2)
    beta = 1 / temperature
    # The Gaussian integral over x' itself, without a change of coordinates.
    inverse = np.linalg.inv(np.linalg.inv(cov) + beta * H)
    phi = 0.5 * np.linalg.slogdet(inverse @ np.linalg.inv(cov))[1]
    mean = inverse @ np.linalg.solve(cov, X)
    phi -= 0.5 * (X @ np.linalg.solve(cov, X) - mean @ np.linalg.solve(inverse, mean))
    # In the coordinates of the geometry H is S^1/2 H S^1/2 and x is S^-1/2 x.
    s = np.diag(S)
    exact = measure.quadratic_local_entropy(
        s @ H @ s, X / S, gamma=gamma, temperature=temperature
    )
    np.testing.assert_allclose(exact.phi, phi, rtol=1e-9)
    np.testing.assert_allclose(S * exact.mean, mean, rtol=1e-9)
    # F's gradient: S^-1 (x - <x'>), with S of the integral.
    by_mean = temperature * np.linalg.solve(cov, X - mean)
    np.testing.assert_allclose(by_mean, exact.gradient / S, rtol=1e-9)
    np.testing.assert_allclose(by_mean, H @ mean, rtol=1e-9)
    # And the instrument on g finds it.
    found = measure.local_entropy(
        g, y, gamma=gamma, temperature=temperature, key=jax.random.key(1)
    )
    assert abs(found.phi - phi) < 4 * found.standard_error + 1e-4 * abs(phi)


def test_one_and_two_dimensions_by_quadrature():
    """Against the integral over x' itself."""
    f = lambda x: jnp.sum(jnp.sin(3 * x)) + jnp.sum(x**2) / 4 + jnp.prod(x)
    temperature, radius = 0.5, 0.8
    for x, s in ((np.array([0.4]), np.array([0.7])), (np.array([0.4, -1.0]), S[:2])):
        scales = lambda p, s=s: jnp.asarray(s, p.dtype)
        grids = [
            a + np.linspace(-9, 9, 1201) * radius * b for a, b in zip(x, s, strict=True)
        ]
        mesh = np.stack(np.meshgrid(*grids, indexing="ij"), -1)
        energy = np.sum(np.sin(3 * mesh), -1) + np.sum(mesh**2, -1) / 4
        energy += np.prod(mesh, -1)
        prior = np.exp(-0.5 * np.sum(((mesh - x) / (radius * s)) ** 2, -1))
        phi = np.log(np.sum(prior * np.exp(-energy / temperature)) / np.sum(prior))
        with jax.enable_x64(True):
            g, y = measure.in_geometry(f, jnp.asarray(x), scales)
            found = measure.quadrature_local_entropy(
                g, y, gamma=temperature / radius**2, temperature=temperature
            )
        np.testing.assert_allclose(found.phi, phi, rtol=1e-6)


def test_curvature_does_not_see_how_relu_layers_are_scaled():
    """w1 -> a w1, w2 -> w2 / a moves the Hessian's spectrum, not that of g."""
    inputs = jnp.sin(jnp.arange(12.0)).reshape(4, 3)

    def loss(p: Any) -> jax.Array:
        return jnp.sum((jax.nn.relu(inputs @ p["w1"]) @ p["w2"] - 1.0) ** 2)

    base = {"w1": jnp.cos(jnp.arange(6.0)).reshape(3, 2), "w2": jnp.ones((2, 1)) / 2}
    moved = {"w1": 8 * base["w1"], "w2": base["w2"] / 8}
    spectra = {}
    for name, params in (("base", base), ("moved", moved)):
        g, y = measure.in_geometry(loss, params, eo.filter_geometry())
        assert float(g(y)) == pytest.approx(float(loss(params)))
        spectra[name] = measure.dense_spectrum(g, y)
        spectra[name + " plain"] = measure.dense_spectrum(loss, params)
    np.testing.assert_allclose(spectra["base"], spectra["moved"], rtol=1e-3, atol=1e-4)
    assert spectra["moved plain"].max() > 3 * spectra["base plain"].max()


def test_an_objective_stays_an_argument():
    """Its data are leaves of g, not constants of the compiled functions."""
    data = {"x": jnp.eye(3), "y": jnp.full(3, 7.0)}
    loss = lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
    f = measure.objective(loss, data, jnp.zeros(3))
    g, y = measure.in_geometry(f, jnp.array([1.0, 2.0, 3.0]), eo.leaf_geometry())
    assert any(np.all(leaf == 7) and leaf.size == 3 for leaf in jax.tree.leaves(g))
    # 2 / 3 I, times the mean square of the leaf.
    np.testing.assert_allclose(
        measure.dense_spectrum(g, y), 2 / 3 * np.full(3, 14 / 3), rtol=1e-5
    )


def test_bad_params():
    with pytest.raises(measure.MeasureError, match="params"):
        measure.in_geometry(quadratic, {}, eo.leaf_geometry())
