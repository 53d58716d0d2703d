"""Closed forms against quadrature, and Laplace against closed forms and limits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from entropy_optax import measure

TEMPERATURES = (1.0, 0.1, 1e-3)


def random_hessian(n, seed):
    matrix = np.random.default_rng(seed).normal(size=(n, n))
    return matrix @ matrix.T / n - 0.1 * np.eye(n)


def double_well(x):
    return jnp.sum((x**2 - 1) ** 2) + 0.2 * jnp.sum(x)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_closed_form_equals_quadrature(n, temperature, seed):
    H, x = random_hessian(n, seed), np.random.default_rng(seed + 9).normal(size=n)
    settings: dict[str, Any] = {"gamma": 0.7, "temperature": temperature}
    exact = measure.quadratic_local_entropy(H, x, **settings)
    grid = measure.quadrature_local_entropy(
        lambda w: 0.5 * w @ jnp.asarray(H) @ w, x, **settings
    )
    assert exact.error == 0
    for name in ("phi", "log_partition", "F"):
        np.testing.assert_allclose(
            getattr(grid, name), getattr(exact, name), rtol=1e-9, atol=1e-9
        )
    for name in ("mean", "gradient", "covariance", "hessian"):
        np.testing.assert_allclose(
            getattr(grid, name), getattr(exact, name), rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_quadrature_equals_scipys(temperature):
    """An adaptive rule on the definition, E exp(-beta f), with the wells marked."""
    gamma, x, beta = 0.7, 0.3, 1 / temperature
    out = measure.quadrature_local_entropy(
        double_well, [x], gamma=gamma, temperature=temperature
    )
    f = lambda w: (w**2 - 1) ** 2 + 0.2 * w
    log_density = lambda w: -beta * (f(w) + gamma / 2 * (w - x) ** 2)
    top = max(log_density(w) for w in np.linspace(-2, 2, 4001))
    integral, _ = integrate.quad(
        lambda w: np.exp(log_density(w) - top),
        -3,
        3,
        points=[-1, 0, 1],
        epsabs=0,
        epsrel=1e-11,
        limit=500,
    )
    log_partition = top + np.log(integral)
    np.testing.assert_allclose(out.log_partition, log_partition, rtol=1e-9)
    volume = 0.5 * np.log(2 * np.pi / (beta * gamma))
    np.testing.assert_allclose(out.phi, log_partition - volume, rtol=1e-9)
    np.testing.assert_allclose(out.F, temperature * log_partition, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2])
def test_derivatives_of_the_value(n):
    """gradient and hessian are those of -F, by central differences."""
    settings: dict[str, Any] = {
        "gamma": 0.7,
        "temperature": 0.4,
        "num_points": 801 if n == 1 else 201,
    }
    x, h = np.array([0.3, -0.6])[:n], 1e-3
    at = lambda x: measure.quadrature_local_entropy(double_well, x, **settings)
    out = at(x)
    for i, e in enumerate(np.eye(n)):
        up, down = at(x + h * e), at(x - h * e)
        np.testing.assert_allclose(-(up.F - down.F) / (2 * h), out.gradient[i], 1e-5)
        np.testing.assert_allclose(
            (up.gradient - down.gradient) / (2 * h),
            out.hessian[i],
            rtol=1e-4,
            atol=1e-6,
        )


def test_scalar_params():
    f = lambda w: (w**2 - 1) ** 2
    scalar = measure.quadrature_local_entropy(f, 0.3, gamma=1.0, temperature=1.0)
    vector = measure.quadrature_local_entropy(
        lambda w: f(w[0]), [0.3], gamma=1.0, temperature=1.0
    )
    assert scalar.phi == vector.phi


def test_a_constant_has_phi_of_its_own():
    """Phi of f = c is -beta c whatever gamma and n are."""
    for n in (1, 2):
        out = measure.quadrature_local_entropy(
            lambda w: 0.7 + 0 * w[0], np.ones(n), gamma=3.0, temperature=0.1
        )
        np.testing.assert_allclose(out.phi, -7.0, rtol=1e-10)
        np.testing.assert_allclose(out.gradient, 0, atol=1e-10)


def test_quadrature_finds_a_valley_far_from_x():
    """500 standard deviations of the Gaussian away, at beta 1000."""
    x, gamma, T = np.array([20.0]), 0.5, 1e-3
    exact = measure.quadratic_local_entropy([[9.0]], x, gamma=gamma, temperature=T)
    out = measure.quadrature_local_entropy(
        lambda w: 4.5 * jnp.sum(w**2), x, gamma=gamma, temperature=T
    )
    np.testing.assert_allclose(out.phi, exact.phi, rtol=1e-9)


def test_quadrature_refuses():
    settings: dict[str, Any] = {"gamma": 1.0, "temperature": 1.0}
    with pytest.raises(measure.MeasureError, match=r"x: got shape \(3,\), wanted"):
        measure.quadrature_local_entropy(jnp.sum, np.ones(3), **settings)
    with pytest.raises(measure.MeasureError, match="num_points: 11 are too few"):
        measure.quadrature_local_entropy(
            double_well, [0.0], gamma=0.1, temperature=0.05, num_points=11
        )
    with pytest.raises(measure.MeasureError, match="does not fall off"):
        measure.quadrature_local_entropy(lambda w: -jnp.sum(w**2), [0.0], **settings)
    with pytest.raises(measure.MeasureError, match=r"the loss on the grid: .* finite"):
        measure.quadrature_local_entropy(
            lambda w: jnp.sum(jnp.log(w)), [1.0], **settings
        )
    with pytest.raises(measure.MeasureError, match=r"shape \(1,\), wanted a scalar"):
        measure.quadrature_local_entropy(lambda w: w**2, [1.0], **settings)
    with pytest.raises(measure.MeasureError, match="gamma: got 0"):
        measure.quadrature_local_entropy(double_well, [1.0], gamma=0, temperature=1)
    with pytest.raises(measure.MeasureError, match="temperature: got -1"):
        measure.quadrature_local_entropy(double_well, [1.0], gamma=1, temperature=-1)


def test_closed_form_refuses():
    with pytest.raises(measure.MeasureError, match="wanted more than 2, minus the"):
        measure.quadratic_local_entropy([[-2.0]], [1.0], gamma=2.0, temperature=1.0)
    with pytest.raises(measure.MeasureError, match=r"wanted \(n, n\) and \(n,\)"):
        measure.quadratic_local_entropy([1.0], [1.0], gamma=2.0, temperature=1.0)
    with pytest.raises(measure.MeasureError, match="hessian: wanted a symmetric"):
        measure.quadratic_local_entropy(
            [[1.0, 5.0], [0.0, 1.0]], [1.0, 1.0], gamma=7.0, temperature=1.0
        )
    with pytest.raises(measure.MeasureError, match="x: 1 of 1 are not finite"):
        measure.quadratic_local_entropy([[1.0]], [np.nan], gamma=2.0, temperature=1.0)


@pytest.mark.parametrize("n", [3, 40])
def test_laplace_is_exact_for_quadratics(n):
    H, x = random_hessian(n, 1), np.random.default_rng(2).normal(size=n)
    settings: dict[str, Any] = {"gamma": 0.7, "temperature": 0.05}
    exact = measure.quadratic_local_entropy(H, x, **settings)
    key = jax.random.key(0)
    with jax.enable_x64(True):
        f = lambda w: 0.5 * w @ jnp.asarray(H) @ w
        dense = measure.laplace_local_entropy(f, jnp.asarray(x), key=key, **settings)
        lanczos = measure.laplace_local_entropy(
            f, jnp.asarray(x), key=key, dense_up_to=0, num_probes=200, **settings
        )
    assert dense.method == "laplace_dense"
    assert lanczos.method == "laplace_lanczos"
    np.testing.assert_allclose(dense.phi, exact.phi, rtol=1e-8)
    np.testing.assert_allclose(dense.gradient, exact.gradient, atol=1e-6)
    # Phi and the log det's half share the error.
    assert 0 < lanczos.standard_error < 1
    assert abs(lanczos.phi - exact.phi) < 3.5 * lanczos.standard_error


def test_laplace_is_the_limit_of_low_temperatures():
    """The error for a quartic is of first order in T."""
    f = lambda x: jnp.sum(x**2 + x**4)
    errors = []
    with jax.enable_x64(True):
        for T in (0.1, 0.01, 0.001):
            settings: dict[str, Any] = {"gamma": 1.0, "temperature": T}
            out = measure.laplace_local_entropy(
                f, jnp.array([0.5]), key=jax.random.key(0), **settings
            )
            grid = measure.quadrature_local_entropy(f, [0.5], **settings)
            errors.append(abs(out.phi - grid.phi))
    assert errors[0] > 1e-2  # it is an approximation
    np.testing.assert_allclose(errors[1] / errors[2], 10, rtol=0.1)


def test_laplace_of_a_tree_in_float32():
    f = lambda tree: 0.5 * (jnp.sum(tree["a"] ** 2) + jnp.sum(tree["b"] ** 2))
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
    out = measure.laplace_local_entropy(
        f, params, gamma=1.0, temperature=0.1, key=jax.random.key(0)
    )
    exact = -0.5 * 8 * np.log(2) - 10 / 2 * 8 / 2
    np.testing.assert_allclose(out.phi, exact, rtol=1e-5)
    np.testing.assert_allclose(out.point.params["a"], 0.5, rtol=1e-4)


def test_laplace_knows_its_rounding():
    """At the paper's temperature the depth is 5e8, of which float32 keeps 7 digits."""
    h = np.arange(1.0, 11.0)
    f = lambda x: 2.3 + 0.5 * jnp.sum(jnp.asarray(h, x.dtype) * x**2)
    settings: dict[str, Any] = {"gamma": 1.0, "temperature": 5e-9}
    x = np.full(10, 0.1)
    out = measure.laplace_local_entropy(
        f, jnp.asarray(x, "f4"), key=jax.random.key(0), **settings
    )
    exact = measure.quadratic_local_entropy(np.diag(h), x, **settings).phi - 2.3 / 5e-9
    assert 1 < abs(out.phi - exact) < 3 * out.standard_error
    assert out.standard_error < 1e-6 * abs(exact)


@pytest.mark.parametrize("rank", [5, 1200])
def test_laplace_of_many_params(rank):
    """Equal eigenvalues: the Krylov spaces end long before 64 steps."""
    f = lambda x: 0.5 * jnp.sum(3.0 * x[:rank] ** 2)
    out = measure.laplace_local_entropy(
        f, jnp.zeros(1200), key=jax.random.key(0), gamma=1.0, temperature=1.0
    )
    assert out.method == "laplace_lanczos"
    assert abs(out.phi + 0.5 * rank * np.log(4)) < 3.5 * out.standard_error


def test_laplace_refuses():
    key = jax.random.key(0)
    settings: dict[str, Any] = {"gamma": 1.0, "temperature": 1.0}
    saddle = lambda x: x[0] ** 2 - 2 * x[1] ** 2 + x[1] ** 4
    with pytest.raises(measure.MeasureError, match="is no maximiser"):
        measure.laplace_local_entropy(saddle, jnp.zeros(2), key=key, **settings)
    with pytest.raises(measure.MeasureError, match="num_probes: got 5, wanted 30"):
        measure.laplace_local_entropy(
            jnp.sum, jnp.ones(2), key=key, dense_up_to=0, num_probes=5, **settings
        )
    stiff = lambda x: 0.5 * jnp.sum(jnp.logspace(-3, 3, 200) * x**2)
    with pytest.raises(measure.MeasureError, match="max_steps: 2 steps of descent"):
        measure.laplace_local_entropy(
            stiff, jnp.ones(200), key=key, max_steps=2, **settings
        )
    # The residual is small, but so is the curvature: 50 nats are left.
    flat = lambda w: 0.5 * (1e3 * w[0] ** 2 - 0.9999 * w[1] ** 2) + 0.01 * w[1]
    with pytest.raises(measure.MeasureError, match="max_steps: 1 steps of descent"):
        measure.laplace_local_entropy(
            flat, jnp.array([0.1, 0.0]), key=key, max_steps=1, gamma=1.0,
            temperature=0.01,
        )  # fmt: skip
    rank_5 = lambda x: 20 * jnp.sum((x[:5] + x[5:10]) ** 2)
    with pytest.raises(measure.MeasureError, match="in whose rounding gamma is lost"):
        measure.laplace_local_entropy(
            rank_5, jnp.zeros(300), key=key, gamma=1e-5, temperature=1.0
        )
    with pytest.raises(measure.MeasureError, match="num_steps: 4 are too few"):
        measure.laplace_local_entropy(
            stiff, jnp.zeros(200), key=key, dense_up_to=0, num_steps=4, **settings
        )
    with pytest.raises(measure.MeasureError, match="the loss at params: 1 of 1 are"):
        measure.proximal_point(lambda x: jnp.sum(x) * jnp.nan, jnp.ones(2), gamma=1.0)
