"""Spectra against dense linear algebra, and stochastic ones within their errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from entropy_optax import measure

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = (1, 2, 3)


def with_spectrum(values):
    """A quadratic with the given eigenvalues in a random basis, and its matrix."""
    n = len(values)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))
    matrix = basis @ np.diag(values) @ basis.T
    return (lambda x: 0.5 * x @ jnp.asarray(matrix, x.dtype) @ x), matrix


def network():
    """A small perceptron's loss, as an objective of 37 examples in chunks of 10."""
    generator = np.random.default_rng(1)
    data = {
        "x": generator.normal(size=(37, 5)),
        "y": generator.integers(0, 3, size=37),
    }
    params = {
        "w1": jnp.asarray(generator.normal(size=(5, 6))),
        "b1": jnp.zeros(6, jnp.result_type(float)),
        "w2": jnp.asarray(generator.normal(size=(6, 3))),
    }

    def predict(params, batch):
        return jnp.tanh(batch["x"] @ params["w1"] + params["b1"]) @ params["w2"]

    def criterion(logits, batch):
        rows = jnp.arange(len(batch["y"]))
        return -jnp.mean(jax.nn.log_softmax(logits)[rows, batch["y"]])

    f = measure.model_objective(predict, criterion, data, params, chunk_size=10)
    return f, params, data, predict, criterion


@pytest.mark.parametrize(("seed", "num_smallest"), [(1, 0), (2, 1), (3, 5)])
def test_extremes_equal_dense_ones(seed, num_smallest):
    values = np.concatenate([[40.0, 12.0, 11.9], np.linspace(-0.5, 1.0, 97)])
    f, _ = with_spectrum(values)
    key = jax.random.key(seed)
    with jax.enable_x64(True):
        found = measure.extreme_eigenvalues(f, jnp.ones(100), key=key, num=3)
    np.testing.assert_allclose(found.largest, [40.0, 12.0, 11.9], rtol=1e-4)
    np.testing.assert_allclose(found.smallest, np.sort(values)[:3], rtol=1e-4)
    assert found.largest_residuals.max() < 1e-2
    with jax.enable_x64(True):
        few = measure.extreme_eigenvalues(
            f, jnp.ones(100), key=key, num=3, num_smallest=num_smallest
        )
    np.testing.assert_allclose(few.largest, found.largest, rtol=1e-4)
    np.testing.assert_allclose(few.smallest, np.sort(values)[:num_smallest], rtol=1e-4)
    assert few.smallest_vectors.shape == (num_smallest, 100)
    assert few.smallest_residuals.shape == (num_smallest,)
    # There is an eigenvalue within the residual of each.
    for value, residual in zip(found.smallest, found.smallest_residuals, strict=True):
        assert np.abs(values - value).min() <= residual + 1e-9
    lengths = np.linalg.norm(found.smallest_vectors, axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_a_network_against_the_textbook(curvature):
    with jax.enable_x64(True):
        f, params, data, predict, criterion = network()
        vector, unravel = ravel_pytree(params)
        loss = lambda v: criterion(predict(unravel(v), data), data)
        if curvature == "hessian":
            exact = jax.hessian(loss)(vector)
        else:
            jacobian = jax.jacobian(lambda v: predict(unravel(v), data))(vector)
            inner = jax.hessian(lambda o: criterion(o, data))(predict(params, data))
            exact = jnp.einsum("abi,abcd,cdj->ij", jacobian, inner, jacobian)
        dense = measure.dense_hessian(f, params, curvature=curvature, block_size=7)
        np.testing.assert_allclose(dense, exact, atol=1e-12)
        values = np.linalg.eigvalsh(exact)
        spectrum = measure.dense_spectrum(f, params, curvature=curvature)
        np.testing.assert_allclose(spectrum, values, atol=1e-12)
        ends = measure.extreme_eigenvalues(
            f, params, key=jax.random.key(1), curvature=curvature
        )
        np.testing.assert_allclose(ends.largest[0], values[-1], rtol=1e-4)
        np.testing.assert_allclose(ends.smallest[0], values[0], rtol=1e-4, atol=1e-9)


def test_float32_agrees_with_float64():
    f, params, *_ = network()
    ends = measure.extreme_eigenvalues(f, params, key=jax.random.key(1))
    with jax.enable_x64(True):
        f, params, *_ = network()
        exact = measure.dense_spectrum(f, params)
    np.testing.assert_allclose(ends.largest[0], exact[-1], rtol=1e-4)
    np.testing.assert_allclose(ends.smallest[0], exact[0], rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_density_is_within_its_errors(seed):
    values = np.concatenate([np.zeros(70), np.linspace(0.5, 20, 26), -np.ones(4)])
    f, matrix = with_spectrum(values)
    with jax.enable_x64(True):
        found = measure.spectral_density(
            f, jnp.zeros(100), key=jax.random.key(seed), num_probes=40, num_steps=80
        )
    for estimate, exact in (
        (found.share_within(0.1), 0.7),
        (found.trace(), np.trace(matrix)),
        (found.trace_of_square(), np.trace(matrix @ matrix)),
        (found.log_determinant(2.0), np.sum(np.log1p(values / 2.0))),
    ):
        assert abs(estimate.value - exact) < 3.5 * estimate.standard_error
        assert estimate.num_samples == 40
    np.testing.assert_allclose(found.nodes.max(), 20.0, rtol=1e-6)
    grid = np.linspace(-3, 23, 400)
    curve = found.curve(grid, 0.5)
    exact = np.exp(-(((grid[:, None] - values) / 0.5) ** 2) / 2).mean(axis=1)
    exact /= 0.5 * np.sqrt(2 * np.pi)
    misses = np.abs(curve.values - exact) > 3.5 * curve.standard_errors + 1e-9
    assert misses.mean() < 0.02
    np.testing.assert_allclose(np.trapezoid(curve.values, grid), 1.0, rtol=1e-3)
    bins = found.histogram(np.array([-2.0, -0.1, 0.1, 30.0]))
    np.testing.assert_allclose(bins.values.sum(), 1.0)
    assert abs(bins.values[1] - 0.7) < 3.5 * bins.standard_errors[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_brackets_hold_what_too_few_steps_miss(seed):
    values = np.concatenate([np.linspace(0.0, 1.0, 99), [40.0]])
    f, _ = with_spectrum(values)
    with jax.enable_x64(True):
        x, key = jnp.zeros(100), jax.random.key(seed)
        few = measure.spectral_density(f, x, key=key, num_steps=4)
        many = measure.spectral_density(f, x, key=key, num_steps=100)
    exact = np.mean(values <= 0.45)
    biased, right = few.share_within(0.45), many.share_within(0.45)
    assert abs(right.value - exact) < 3.5 * right.standard_error
    assert abs(biased.value - exact) > 5 * right.standard_error
    for density, widest in ((few, 1.0), (many, 0.1)):
        least, most = density.bracket(0.45)
        assert least.value - 3.5 * least.standard_error <= exact
        assert exact <= most.value + 3.5 * most.standard_error
        assert most.value - least.value <= widest


@pytest.mark.parametrize("num_steps", [3, 10, 40])
def test_brackets_are_true_of_every_probe(num_steps):
    # In float64 the spectrum of each probe is known: its squared components.
    values = np.sort(np.random.default_rng(2).laplace(scale=0.1, size=80))
    f, matrix = with_spectrum(values)
    basis = np.linalg.eigh(matrix)[1]
    with jax.enable_x64(True):
        key = jax.random.key(1)
        found = measure.spectral_density(f, jnp.zeros(80), key=key, num_steps=num_steps)
        probes = [
            np.asarray(jax.random.rademacher(k, (80,), jnp.float64))
            for k in jax.random.split(key, 30)
        ]
    for threshold in (0.01, 0.1, 0.3):
        masses = [
            np.sum((basis.T @ z)[np.abs(values) <= threshold] ** 2) / 80 for z in probes
        ]
        least, most = found.bounds(threshold)
        assert np.all(least <= np.array(masses) + 1e-9)
        assert np.all(np.array(masses) <= most + 1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_share_near_zero(seed):
    values = np.concatenate([np.linspace(-1e-3, 1e-3, 900), np.geomspace(0.1, 30, 100)])
    f = lambda x: 0.5 * jnp.sum(jnp.asarray(values, x.dtype) * x**2)
    with jax.enable_x64(True):
        key = jax.random.key(seed)
        found = measure.share_near_zero(
            f, jnp.zeros(1000), (1e-4, 1e-2), key=key, num_steps=300
        )
        few = measure.share_near_zero(
            f, jnp.zeros(1000), (1e-4, 1e-2), key=key, num_steps=10
        )
    exact = np.array([np.mean(np.abs(values) <= t) for t in (1e-4, 1e-2)])
    assert np.all(np.abs(found.values - exact) < 3.5 * found.standard_errors)
    slack = 3.5 * found.standard_errors
    for shares in (found, few):
        assert np.all(shares.lower - slack <= exact)
        assert np.all(exact <= shares.upper + slack)
    assert np.all(found.upper - found.lower < 0.05)
    # Ten steps have not seen the bulk: what they say is not certain, and they say so.
    assert few.upper[0] - few.lower[0] > 0.5
    assert np.all(few.standard_errors > 0.005)
    p = np.clip(0.5, found.lower, found.upper)
    np.testing.assert_allclose(found.standard_errors, np.sqrt(2 * p * (1 - p) / 1002))


def test_exhausted_krylov_spaces():
    # One or two distinct eigenvalues: Lanczos is done after as many steps.
    n = 50
    for values, share in (
        (np.ones(n), 0.0),
        (np.zeros(n), 1.0),
        (np.arange(n) % 2, 0.5),
    ):
        f = lambda x, values=values: 0.5 * jnp.sum(jnp.asarray(values, x.dtype) * x**2)
        x, key = jnp.zeros(n), jax.random.key(0)
        for batch_size in (1, 8, 30):
            found = measure.spectral_density(
                f, x, key=key, num_steps=12, batch_size=batch_size
            )
            assert found.share_within(0.5).value == pytest.approx(share, abs=1e-5)
            assert found.trace().value == pytest.approx(values.sum(), abs=1e-3)
        ends = measure.extreme_eigenvalues(f, x, key=key)
        assert ends.largest[0] == pytest.approx(values.max(), abs=1e-5)
        assert ends.smallest[0] == pytest.approx(values.min(), abs=1e-5)
        for count in (0, 2):
            ends = measure.extreme_eigenvalues(f, x, key=key, num_smallest=count)
            assert ends.largest == pytest.approx([values.max()], abs=1e-5)
            assert ends.smallest == pytest.approx([values.min()] * count, abs=1e-5)
            assert ends.smallest_vectors.shape == (count, n)


def test_batches_of_probes_change_nothing():
    f, params, *_ = network()
    key, done = jax.random.key(3), []
    whole = measure.spectral_density(f, params, key=key, num_steps=10)
    parts = measure.spectral_density(
        f,
        params,
        key=key,
        num_steps=10,
        batch_size=7,
        progress=lambda *at: done.append(at),
    )
    np.testing.assert_allclose(whole.nodes, parts.nodes, rtol=1e-4, atol=1e-4)
    assert done == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]


@pytest.mark.parametrize("seed", SEEDS)
def test_traces_are_within_their_errors(seed):
    with jax.enable_x64(True):
        f, params, *_ = network()
        exact = measure.dense_hessian(f, params)
        found = measure.traces(f, params, key=jax.random.key(seed), num_probes=200)
    for estimate, matrix in (
        (found.trace, exact),
        (found.trace_of_square, exact @ exact),
    ):
        assert abs(estimate.value - np.trace(matrix)) < 3.5 * estimate.standard_error


def test_student_intervals_cover_the_trace():
    # 400 repeats with 30 probes: 95 % within binomial error of 3.3 %.
    f, matrix = with_spectrum(np.linspace(-1.0, 5.0, 60))
    hits = 0
    for seed in range(400):
        found = measure.traces(
            f, jnp.zeros(60), key=jax.random.key(seed), num_probes=30
        )
        low, high = found.trace.interval()
        hits += low <= np.trace(matrix) <= high
    assert 0.917 < hits / 400 < 0.983


def test_errors_name_what_is_wrong():
    fisher: Any = "fisher"
    f, x, key = (lambda x: jnp.sum(x**2)), jnp.ones(4), jax.random.key(0)
    for call, message in (
        (
            lambda: measure.spectral_density(f, x, key=key, num_probes=2),
            "num_probes: got 2",
        ),
        (
            lambda: measure.spectral_density(f, x, key=key, num_steps=1),
            "num_steps: got 1",
        ),
        (lambda: measure.traces(f, x, key=key, num_probes=29), "wanted 30 or more"),
        (lambda: measure.extreme_eigenvalues(f, x, key=key, num=2), "num: got 2"),
        (
            lambda: measure.extreme_eigenvalues(f, x, key=key, num_smallest=-1),
            "num_smallest: got -1, wanted 0 or more",
        ),
        (
            lambda: measure.traces(f, {"w": x, "step": jnp.int32(3)}, key=key),
            r"leaf \['step'\] is int32, wanted floats",
        ),
        (
            lambda: measure.traces(lambda x: jnp.sum(x**4), x * jnp.nan, key=key),
            "not finite",
        ),
        (lambda: measure.traces(f, x, key=key, curvature=fisher), "wanted 'hessian'"),
        (
            lambda: measure.traces(f, x, key=key, curvature="gauss_newton"),
            "wants model_objective",
        ),
        (
            lambda: measure.dense_hessian(f, jnp.ones(50_890)),
            "a matrix of 50890 params takes 10.4",
        ),
        (
            lambda: measure.spectral_density(f, x, key=key).share_within(0.0),
            "threshold: got 0.0",
        ),
        (
            lambda: measure.spectral_density(
                lambda x: -f(x), x, key=key
            ).log_determinant(1.0),
            "positive definite",
        ),
    ):
        with pytest.raises(measure.MeasureError, match=message):
            call()
    far = np.geomspace(1e-7, 1.0, 300)
    f, _ = with_spectrum(far)
    with pytest.raises(
        measure.MeasureError, match="smallest eigenvalues: not converged"
    ):
        measure.extreme_eigenvalues(
            f, jnp.ones(300), key=key, max_products=40, tolerance=1e-12
        )
    # The other end is found: the small one is not looked for.
    ends = measure.extreme_eigenvalues(
        f, jnp.ones(300), key=key, num_smallest=0, max_products=200, tolerance=1e-3
    )
    np.testing.assert_allclose(ends.largest, [1.0], rtol=1e-3)
    assert ends.smallest.size == 0
