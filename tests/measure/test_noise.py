"""Noise curves on quadratics, where they are exact, and under rescaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_optax import measure

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIGMAS = np.array([0.0, 0.1, 0.5, 1.0])
KINDS = ("isotropic", "multiplicative", "filter")


def quadratic():
    """A loss of a kernel and a bias, its Hessian, params; not at the minimum."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8))
    hessian, linear = jnp.asarray(root @ root.T), jnp.asarray(rng.normal(size=8))
    params = {
        "bias": jnp.asarray(rng.normal(size=2)),
        "kernel": jnp.asarray(rng.normal(size=(3, 2))),
    }

    def f(params):
        x = jnp.concatenate([params["bias"], params["kernel"].ravel()])
        return x @ hessian @ x / 2 + linear @ x

    return f, np.asarray(hessian), params


def exact_scales(kind, params):
    bias, kernel = np.asarray(params["bias"]), np.asarray(params["kernel"])
    if kind == "isotropic":
        return np.ones(8)
    if kind == "multiplicative":
        return np.concatenate([bias, kernel.ravel()])
    rms = np.sqrt((kernel**2).mean(axis=0))  # of each column
    return np.concatenate([np.zeros(2), np.tile(rms, 3)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_mean_on_a_quadratic_is_exact(kind, seed):
    """Within 4.5 standard errors of f + sigma^2 / 2 tr(D H D)."""
    with jax.enable_x64(True):
        assert largest_z(kind, seed, 1000) < 4.5


def largest_z(kind, seed, num_samples):
    f, hessian, params = quadratic()
    curve = measure.noise_curve(
        f, params, SIGMAS, kind=kind, key=jax.random.key(seed), num_samples=num_samples
    )
    scales = exact_scales(kind, params)
    exact = float(f(params)) + SIGMAS**2 / 2 * np.sum(scales**2 * np.diag(hessian))
    assert curve.baseline == pytest.approx(float(f(params)), rel=1e-12)
    np.testing.assert_allclose(curve.samples[:, 0], curve.baseline, rtol=1e-12)
    z = (curve.values - exact)[1:] / curve.standard_errors[1:]
    return np.abs(z).max()


@pytest.mark.parametrize("kind", KINDS)
def test_failure_rate(kind):
    """Of 200 seeds about 5 % are beyond Student's 2 standard errors, at one sigma."""
    with jax.enable_x64(True):
        f, hessian, params = quadratic()
        half = 0.25**2 / 2
        scales = exact_scales(kind, params)
        exact = float(f(params)) + half * np.sum(scales**2 * np.diag(hessian))
        outside = 0
        for seed in range(200):
            curve = measure.noise_curve(
                f, params, [0.25], kind=kind, key=jax.random.key(seed), num_samples=100
            )
            outside += abs(curve.values[0] - exact) > 1.984 * curve.standard_errors[0]
    assert 2 <= outside <= 22  # 10 expected; 3.9 standard deviations to the right


def test_one_draw_serves_all_sigmas_and_nets():
    """Without curvature the samples are a line through the baseline."""
    f = lambda x: jnp.sum(x)
    run = lambda x: measure.noise_curve(
        f, x, [0.5, 1.0], kind="isotropic", key=jax.random.key(0)
    )
    curve, other = run(jnp.zeros(4)), run(jnp.ones(4))
    np.testing.assert_allclose(curve.samples[:, 1], 2 * curve.samples[:, 0], rtol=1e-5)
    np.testing.assert_allclose(other.samples, curve.samples + 4, rtol=1e-5)
    assert np.std(curve.samples[:, 0]) > 0.5
    assert curve.samples.shape == (30, 2)


def test_the_increase_is_paired_with_the_baseline():
    curve = measure.noise_curve(
        lambda x: jnp.sum(x**2),
        jnp.full(2, 3.0),
        [0.0, 0.5],
        kind="isotropic",
        key=jax.random.key(0),
    )
    assert curve.increase(0).value == pytest.approx(0, abs=1e-5)
    assert curve.increase(1).value == pytest.approx(curve.values[1] - 18, rel=1e-5)
    assert curve.increase(1).standard_error == pytest.approx(curve.standard_errors[1])


def test_an_error_rate_will_do():
    wrong = lambda x: jnp.mean((x < 0).astype(jnp.float32))
    curve = measure.noise_curve(
        wrong,
        jnp.ones(1000),
        [0.01, 1e6],
        kind="isotropic",
        key=jax.random.key(0),
        num_samples=100,
    )
    assert curve.values[0] == 0
    assert abs(curve.values[1] - 0.5) < 4.5 * curve.standard_errors[1]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rescaling_moves_isotropic_noise_only(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    inputs = jax.random.normal(keys[0], (20, 4))
    params = {
        "w1": jax.random.normal(keys[1], (4, 8)),
        "w2": jax.random.normal(keys[2], (8, 3)),
    }
    f = lambda p: jnp.mean((jax.nn.relu(inputs @ p["w1"]) @ p["w2"] - 1) ** 2)
    scaled = {"w1": 16 * params["w1"], "w2": params["w2"] / 16}
    for kind in KINDS:
        before, after = (
            measure.noise_curve(f, p, [0.3], kind=kind, key=jax.random.key(seed))
            for p in (params, scaled)
        )
        if kind == "isotropic":
            assert after.values[0] > 3 * before.values[0]
        else:
            np.testing.assert_allclose(after.samples, before.samples, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 29}, "num_samples: got 29, wanted 30 or more"),
        ({"sigmas": [-0.1]}, r"sigmas: got \[-0.1\], wanted \[S\] numbers of 0"),
        ({"sigmas": 0.1}, r"sigmas: got 0.1, wanted \[S\]"),
        ({"kind": "uniform"}, "kind: got 'uniform', wanted 'isotropic', 'multipl"),
        ({"f": lambda x: jnp.log(-jnp.sum(x**2))}, "f under noise: 30 of 30 are not"),
        ({"params": jnp.arange(3)}, "int32, wanted floats"),
    ],
)
def test_clear_errors(arguments, message):
    arguments = {
        "f": lambda x: jnp.sum(x**2),
        "params": jnp.ones(3),
        "sigmas": [0.1],
        "kind": "isotropic",
        "key": jax.random.key(0),
    } | arguments
    with pytest.raises(measure.MeasureError, match=message):
        measure.noise_curve(**arguments)
