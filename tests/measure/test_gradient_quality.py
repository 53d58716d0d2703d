"""The inner loop's bias and variance against its exact linear recursion."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_optax import measure

pytestmark = pytest.mark.usefixtures("quick_compilation")

LIMIT = 3.5
SMALL = measure.ChainSettings(num_chains=8, num_steps=16, num_burn=8)
H = np.array([0.2, 1.0, 3.0])
X = np.array([1.0, -2.0, 0.5])
SETTINGS: dict[str, Any] = {"gamma": 0.8, "temperature": 0.05}


def F(w):
    return 0.5 * jnp.sum(jnp.asarray(H, w.dtype) * w * w)


def double_well(x):
    return jnp.sum((x**2 - 1) ** 2) + 0.1 * jnp.sum(x)


def exact_moments(step_size, num_steps, mean_decay, *, gamma, temperature):
    """Mean and variance of gamma (x - mu_L), coordinate by coordinate.

    z = (x' - x, mu - x): x' moves by -eta' (h x' + gamma (x' - x)) and noise, then mu
    takes its share.
    """
    means, variances = [], []
    for h, x in zip(H, X, strict=True):
        mean, covariance = np.zeros(2), np.zeros((2, 2))
        a = mean_decay
        move = np.array([[1 - step_size * (h + gamma), 0], [0, 1]])
        average = np.array([[1, 0], [1 - a, a]])
        push = np.array([-step_size * h * x, 0])
        kick = np.diag([2 * step_size * temperature, 0])
        for _ in range(num_steps):
            mean = average @ (move @ mean + push)
            covariance = average @ (move @ covariance @ move.T + kick) @ average.T
        means.append(-gamma * mean[1])
        variances.append(gamma**2 * covariance[1, 1])
    return np.array(means), np.array(variances)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_quadratics(seed):
    """Bias, spread and cosines as functions of L and the step size."""
    out = measure.gradient_quality(
        F, jnp.asarray(X, jnp.float32), key=jax.random.key(seed), num_runs=400,
        step_size=[0.05, 0.3], num_steps=[1, 5, 40], settings=SMALL, **SETTINGS,
    )  # fmt: skip
    truth = measure.quadratic_local_entropy(np.diag(H), X, **SETTINGS).gradient
    assert out.converged
    assert np.linalg.norm(out.gradient - truth) < LIMIT * out.gradient_error
    assert [(row.step_size, row.num_steps) for row in out.rows] == [
        (eta, count) for eta in (0.05, 0.3) for count in (1, 5, 40)
    ]
    for row in out.rows:
        mean, variance = exact_moments(row.step_size, row.num_steps, 0.75, **SETTINGS)
        bias = np.linalg.norm(mean - truth)
        assert abs(row.bias - bias) < LIMIT * row.bias_error
        # The sum of sample variances of signs varies less than that of Gaussians.
        spread = np.sqrt(np.sum(variance))
        np.testing.assert_allclose(row.standard_deviation, spread, rtol=0.15)
        cosine = mean @ truth / np.linalg.norm(mean) / np.linalg.norm(truth)
        np.testing.assert_allclose(row.cosine_mean, cosine, atol=0.03)
        assert row.cosine.value <= row.cosine_mean + 0.01
    gradient = H * X
    np.testing.assert_allclose(
        out.cosine_loss,
        gradient @ truth / np.linalg.norm(gradient) / np.linalg.norm(truth),
        atol=0.02,
    )
    np.testing.assert_allclose(out.loss_gradient_norm, np.linalg.norm(gradient), 1e-6)
    # What it is for: the bias falls with L.
    assert out.rows[0].bias > out.rows[1].bias > out.rows[2].bias


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_long_chains_on_a_double_well(seed):
    f = double_well
    settings: dict[str, Any] = SETTINGS | {"gamma": 1.0, "temperature": 0.5}
    out = measure.gradient_quality(
        f, jnp.array([0.4]), key=jax.random.key(seed), num_runs=8, step_size=[0.01],
        num_steps=[1], settings=SMALL, **settings,
    )  # fmt: skip
    exact = measure.quadrature_local_entropy(f, [0.4], **settings)
    assert out.converged
    assert abs(out.gradient[0] - exact.gradient[0]) < LIMIT * out.gradient_error


def test_frozen_chains_of_which_all_find_the_deep_well():
    f = lambda x: 20 * jnp.sum((x**2 - 1) ** 2) - 2 * jnp.sum(x)
    out = measure.gradient_quality(
        f, jnp.array([0.0]), gamma=0.1, temperature=0.05, key=jax.random.key(0),
        num_runs=8, step_size=[1e-4], num_steps=[1], settings=SMALL,
    )  # fmt: skip
    exact = measure.quadrature_local_entropy(f, [0.0], gamma=0.1, temperature=0.05)
    assert out.converged
    assert abs(out.gradient[0] - exact.gradient[0]) < 1e-5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_frozen_chains_in_wells_of_equal_energy(seed):
    """By energy alone they agree, on -.47 ± .06, where -.678 is right."""
    f = lambda x: 5 * (x[0] ** 2 - 1) ** 2 + 150 * jnp.sum(x[1:] ** 2)
    first = lambda x: 5 * jnp.sum((x**2 - 1) ** 2)
    exact = measure.quadrature_local_entropy(first, [0.3], gamma=1.0, temperature=0.08)
    out = measure.gradient_quality(
        f, jnp.zeros(21).at[0].set(0.3), gamma=1.0, temperature=0.08, num_runs=8,
        key=jax.random.key(seed), step_size=[1e-4], num_steps=[1],
    )  # fmt: skip
    if out.converged:
        assert abs(out.gradient[0] - exact.gradient[0]) < LIMIT * out.gradient_error
        return
    assert any("R-hat" in reason for reason in out.reasons)
    assert np.isnan(out.gradient).all()
    assert np.isnan(out.gradient_error)
    assert np.isnan(out.rows[0].bias)


def test_errors():
    call = lambda **changes: measure.gradient_quality(
        F,
        jnp.asarray(X, jnp.float32),
        **{
            **SETTINGS, "key": jax.random.key(0), "step_size": [0.1],
            "num_steps": [2], "settings": SMALL, **changes,
        },
    )  # fmt: skip
    for message, changes in {
        "step_size: got 0": {"step_size": [0.0]},
        "num_steps: got 0, wanted 1": {"num_steps": [0]},
        "num_runs: got 2, wanted 8": {"num_runs": 2},
        "step_size, num_steps: wanted one or more": {"step_size": []},
        "gamma: got 0": {"gamma": 0},
        "the inner loop diverges": {"step_size": [1e10], "num_steps": [20]},
    }.items():
        with pytest.raises(measure.MeasureError, match=message):
            call(**changes)
