"""Limits in which local entropy is something well known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _problems import MODES, Robust, run, strict

import entropy_optax as eo

SIZE = 4
X = np.linspace(-1.0, 1.5, SIZE)
grad_fn = jax.grad(Robust.loss)


@pytest.fixture(autouse=True)
def _strict():
    with strict(float64=True, leaks=False):
        yield


def optax_iterates(tx: optax.GradientTransformation, data: Robust) -> np.ndarray:
    """Iterates of an ordinary optimizer, one minibatch a step, shape (T, L, n)."""

    def step(loop, batch):
        params, state = loop
        updates, state = tx.update(grad_fn(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), data)
    first = (jnp.asarray(X), tx.init(jnp.asarray(X)))
    _, iterates = jax.jit(lambda *args: jax.lax.scan(step, *args))(first, flat)
    return np.asarray(iterates).reshape(*data.y.shape[:2], SIZE)


def settled(loss_grad: Any, x: Any, num_steps: int, gamma: float, step: float) -> Any:
    """gamma (x - x'_L) of noiseless steps."""
    tx = eo.scale_by_local_entropy(
        eo.sgld(step), num_steps, gamma, mean_decay=0.0, scale_by_gamma=True
    )
    f = lambda x, _: loss_grad(x)
    update = jax.jit(lambda x: tx.update(f(x, 0), tx.init(x), x, grad_fn=f)[0])
    return np.asarray(update(jnp.asarray(x)))


@pytest.mark.parametrize("opaque_mode", MODES)
@pytest.mark.parametrize("mean_decay", [0.0, 0.75])
def test_one_noiseless_step_is_sgd(opaque_mode, mean_decay):
    """L = 1: the rate is eta' (weight of the newest x'), whatever the scope."""
    data = Robust.make(10, 1, SIZE, seed=0)
    tx = eo.entropy_sgd(
        1.0,
        gamma=123.0,
        num_steps=1,
        step_size=0.01,
        temperature=0.0,
        momentum=None,
        mean_decay=mean_decay,
        opaque_mode=opaque_mode,
    )
    actual = run(tx, X, grad_fn, data, opaque_mode=opaque_mode)
    expected = optax_iterates(optax.sgd(0.01 * (1 - mean_decay)), data)
    np.testing.assert_allclose(actual.x[1:], expected[:, 0], rtol=0, atol=1e-14)


def test_infinite_scope_is_the_gradient_of_the_loss():
    """gamma (x - <x'>) = grad f(x) + O(1 / gamma): ten times the scope, a tenth off."""
    loss_grad = lambda x: jnp.tanh(3 * x) + 0.5 * x**2
    exact = loss_grad(jnp.asarray(X))
    errors = [
        np.max(np.abs(settled(loss_grad, X, 30, gamma, 0.5 / gamma) - exact))
        for gamma in (1e3, 1e4, 1e5)
    ]
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.05)
    np.testing.assert_allclose(errors[1] / errors[2], 10, rtol=0.01)


def test_one_step_against_the_scope_is_the_gradient_of_the_loss():
    """At eta' = 1 / gamma a single noiseless step says so without a limit."""
    loss_grad = lambda x: jnp.tanh(3 * x)
    actual = settled(loss_grad, X, 1, 8.0, 1 / 8.0)
    np.testing.assert_allclose(actual, loss_grad(jnp.asarray(X)), atol=1e-14)


@pytest.mark.parametrize("opaque_mode", MODES)
def test_scoping_without_growth_is_a_constant_scope(opaque_mode):
    data = Robust.make(4, 3, SIZE, seed=0)
    build = lambda gamma: eo.entropy_sgd(
        0.5, gamma=gamma, num_steps=3, opaque_mode=opaque_mode, temperature=0.0
    )
    runs = [
        run(build(gamma), X, grad_fn, data, opaque_mode=opaque_mode).x
        for gamma in (0.7, eo.exponential_scoping(0.7, 0.0))
    ]
    np.testing.assert_allclose(runs[0], runs[1], rtol=0, atol=1e-14)


def test_temperature_zero_is_the_gradient_of_the_moreau_envelope():
    """gamma (x - prox(x)), with the proximal point found by Newton's method."""
    gamma, x, prox = 0.6, X, X.copy()
    f = lambda z: 4 * np.tanh(2 * z) + z  # of 2 log cosh 2z + z^2 / 2
    for _ in range(100):
        slope = 8 / np.cosh(2 * prox) ** 2 + 1
        prox = prox - 0.5 * (f(prox) + gamma * (prox - x)) / (slope + gamma)
    loss_grad = lambda z: 4 * jnp.tanh(2 * z) + z
    actual = settled(loss_grad, x, 400, gamma, 0.1)
    np.testing.assert_allclose(f(prox), gamma * (x - prox), atol=1e-12)
    np.testing.assert_allclose(actual, gamma * (x - prox), atol=1e-12)


def test_plain_average_of_the_iterates():
    """mean_decay = k / (k + 1) makes mu np.mean of x'_1 .. x'_L, L = 6.

    The weights are float32's, as JAX divides int32 counters in float32.
    """
    data = Robust.make(1, 6, SIZE, seed=0)
    sampler = eo.sgld(0.1, temperature=0.1, momentum=0.5, noise="rademacher")
    tx = eo.local_entropy(
        optax.sgd(1.0), sampler, 6, 0.5, mean_decay=lambda k: k / (k + 1)
    )
    iterates = run(tx, X, grad_fn, data, opaque_mode=False)
    assert iterates.inner is not None
    last = eo.local_entropy(optax.sgd(1.0), sampler, 6, 0.5, mean_decay=0.0)
    newest = run(last, X, grad_fn, data, opaque_mode=False)  # x'_6 itself
    mean = (iterates.inner[0, :5].sum(0) + newest.x[1]) / 6
    np.testing.assert_allclose(iterates.x[1], mean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("opaque_mode", MODES)
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_no_scope_and_no_noise_is_lookahead(opaque_mode, momentum):
    """gamma = T = 0, the newest x' alone: optax.lookahead around optax.sgd."""
    data = Robust.make(5, 4, SIZE, seed=0)
    tx = eo.entropy_sgd(
        0.3,
        gamma=0.0,
        num_steps=4,
        step_size=0.05,
        temperature=0.0,
        momentum=momentum,
        mean_decay=0.0,
        opaque_mode=opaque_mode,
    )
    actual = run(tx, X, grad_fn, data, opaque_mode=opaque_mode)

    fast = optax.sgd(0.05, momentum, nesterov=True)
    lookahead = optax.lookahead(fast, 4, 0.3, reset_state=True)
    params: Any = optax.LookaheadParams.init_synced(jnp.asarray(X))
    state = lookahead.init(params)
    step = jax.jit(lambda g, s, p: lookahead.update(g, s, p))
    for t in range(5):
        for k in range(4):
            batch = jax.tree.map(lambda leaf, t=t, k=k: leaf[t, k], data)
            updates, state = step(grad_fn(params.fast, batch), state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(actual.x[t + 1], params.slow, rtol=0, atol=1e-13)


def test_no_scope_and_no_noise_inside_is_sgd():
    """The inner iterates of the first cycle are those of optax.sgd."""
    data = Robust.make(1, 6, SIZE, seed=0)
    tx = eo.entropy_sgd(0.3, gamma=0.0, num_steps=6, step_size=0.05, temperature=0.0)
    actual = run(tx, X, grad_fn, data, opaque_mode=False)
    expected = optax_iterates(optax.sgd(0.05, 0.9, nesterov=True), data)
    assert actual.inner is not None
    np.testing.assert_allclose(
        actual.inner[:, :-1], expected[:, :-1], rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("opaque_mode", MODES)
def test_scaling_by_gamma_is_a_factor(opaque_mode):
    """scale_by_gamma at the scope 0.25 is a quarter of the rate, exactly."""
    data = Robust.make(3, 3, SIZE, seed=0)
    build = lambda rate, scale: eo.local_entropy(
        optax.sgd(rate),
        eo.sgld(0.1),
        3,
        0.25,
        scale_by_gamma=scale,
        opaque_mode=opaque_mode,
    )
    runs = [
        run(build(*args), X, grad_fn, data, opaque_mode=opaque_mode).x
        for args in ((1.0, True), (0.25, False))
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
