"""IVON, a rival of ours, against its formulas in NumPy and a quadratic's posterior."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_optax.experiments.ivon import ivon

H = np.array([0.5, 1.0, 4.0])


def drive(count, grad_fn, ess=50.0, rate=0.1, decay=0.1, b2=0.9, key=0):
    tx: Any = ivon(
        lambda count: rate / (1 + count),
        ess,
        decay,
        curvature=0.5,
        decays=(0.8, b2),
        key=jax.random.key(key),
    )
    params = jnp.array([1.0, -2.0, 0.5])
    state = tx.init(params)

    def step(loop, _):
        params, state = loop
        updates, state = tx.update(grad_fn(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state.mean, state.curvature)

    _, found = jax.jit(lambda: jax.lax.scan(step, (params, state), None, count))()
    return np.asarray(params), *map(np.asarray, found)


def test_formulas_of_the_paper_at_the_draws_it_made():
    start, draws, means, curvatures = drive(12, jnp.sin)
    m, h, momentum = start.astype(float), np.full(3, 0.5), np.zeros(3)
    at = start
    for t, (draw, mean, curvature) in enumerate(
        zip(draws, means, curvatures, strict=True), 1
    ):
        g = np.sin(at)
        momentum = 0.8 * momentum + 0.2 * g
        if t > 1:
            found = g * (at - m) * 50 * (h + 0.1)
            h = 0.9 * h + 0.1 * found + 0.5 * 0.1**2 * (h - found) ** 2 / (h + 0.1)
        m = m - 0.1 / t * (momentum / (1 - 0.8**t) + 0.1 * m) / (h + 0.1)
        np.testing.assert_allclose(mean, m, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(curvature, h, rtol=1e-3)
        assert np.abs(draw - mean).max() > 0.01
        at = draw


@pytest.mark.parametrize("ess", [20.0, 500.0])
def test_the_spread_is_that_of_a_quadratic_s_posterior(ess):
    """Curvature tends to the Hessian's diagonal, the draws to its Gaussian."""
    _, draws, means, curvatures = drive(
        40_000, lambda p: jnp.asarray(H, jnp.float32) * p, ess=ess, b2=0.999
    )
    np.testing.assert_allclose(curvatures[-10_000:].mean(axis=0), H, rtol=0.1)
    spread = (draws - means)[-10_000:].std(axis=0)
    np.testing.assert_allclose(spread, 1 / np.sqrt(ess * (H + 0.1)), rtol=0.1)
