"""Both drivers against the NumPy float64 loop, draw for draw."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from _problems import MODES, Robust, langevin_draws, run, strict

import entropy_optax as eo
from entropy_optax import reference

NUM_OUTER, NUM_STEPS, SIZE = 12, 5, 7
LOUD: dict[str, Any] = {
    "learning_rate": 0.3,
    "gamma0": 0.4,
    "gamma1": 0.1,
    "step_size": 0.1,
    "temperature": 0.05,
    "newest_weight": 0.35,
    "momentum": 0.8,
    "weight_decay": 0.02,
    "outer_momentum": 0.5,
    "outer_weight_decay": 0.03,
    "scale_by_gamma": True,
}


@pytest.fixture(autouse=True)
def _strict():
    with strict(float64=True):
        yield


def start() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=SIZE)
    return {"b": x[:1].reshape(()), "w": x[1:].reshape(2, 3)}


def transformation(*, opaque_mode: bool, noise: Any, key: Any, **settings: Any):
    s = settings
    return eo.local_entropy(
        optax.chain(
            optax.add_decayed_weights(s["outer_weight_decay"]),
            optax.sgd(s["learning_rate"], s["outer_momentum"], nesterov=True),
        ),
        optax.chain(
            optax.add_decayed_weights(s["weight_decay"]),
            eo.sgld(
                s["step_size"],
                temperature=s["temperature"],
                momentum=s["momentum"],
                noise=noise,
                key=key,
            ),
        ),
        NUM_STEPS,
        eo.exponential_scoping(s["gamma0"], s["gamma1"]),
        opaque_mode=opaque_mode,
        mean_decay=1 - s["newest_weight"],
        scale_by_gamma=s["scale_by_gamma"],
    )


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("opaque_mode", MODES)
def test_equals_the_reference_draw_for_draw(opaque_mode, noise):
    """Momentum, decay, scoping, noise, inside and outside: x, x', mu, gamma agree.

    On one repeated minibatch or with one repeated draw the reference goes elsewhere.
    """
    params, data = start(), Robust.make(NUM_OUTER, NUM_STEPS, SIZE, seed=1)
    x = np.concatenate([np.ravel(leaf) for leaf in params.values()])
    draws = langevin_draws(params, NUM_OUTER, NUM_STEPS, noise=noise, key=3)
    expected = reference.entropy_sgd(data.grad, x, draws, **LOUD)
    tx = transformation(opaque_mode=opaque_mode, noise=noise, key=3, **LOUD)
    actual = run(tx, params, jax.grad(Robust.loss), data, opaque_mode=opaque_mode)

    np.testing.assert_allclose(actual.x, expected.x, rtol=0, atol=1e-12)
    one_batch = lambda x, t, k: data.grad(x, t, 0)
    stale = reference.entropy_sgd(one_batch, x, draws, **LOUD)
    replayed = np.broadcast_to(draws[:1], draws.shape)
    same_noise = reference.entropy_sgd(data.grad, x, replayed, **LOUD)
    assert np.max(np.abs(actual.x - stale.x)) > 1e-2
    assert np.max(np.abs(actual.x - same_noise.x)) > 1e-2

    if actual.inner is not None:  # the last one of a cycle is the new x
        np.testing.assert_allclose(
            actual.inner[:, :-1], expected.inner[:, :-1], rtol=0, atol=1e-12
        )
    get = lambda name: float(optax.tree.get(actual.state, name))
    away = np.linalg.norm(expected.inner[-1] - expected.x[-2], axis=-1)
    np.testing.assert_allclose(get("gamma"), expected.gamma[-1], rtol=1e-12)
    np.testing.assert_allclose(get("displacement"), away.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        get("distance"), np.linalg.norm(expected.x[-2] - expected.mu[-1]), rtol=1e-12
    )


@pytest.mark.parametrize("name", [name for name in LOUD if name != "gamma0"])
def test_every_setting_matters(name):
    """Otherwise the agreement above would prove nothing about the setting."""
    data = Robust.make(NUM_OUTER, NUM_STEPS, SIZE, seed=1)
    noise = np.random.default_rng(0).normal(size=(NUM_OUTER, NUM_STEPS, SIZE))
    x = np.ones(SIZE)
    changed = {**LOUD, name: False if name == "scale_by_gamma" else 1.01 * LOUD[name]}
    before = reference.entropy_sgd(data.grad, x, noise, **LOUD)
    after = reference.entropy_sgd(data.grad, x, noise, **changed)
    assert np.max(np.abs(before.x - after.x)) > 1e-6


def test_reference_by_hand():
    """Two inner steps of f(x) = x^2/2 from 1, each number worked out on paper.

    Step 1: g = 1, v = 1, d = 1 + m = 1.5, x' = 1 - .75 + .5 = .75 (noise 1 times
    sqrt(2 * .5 * .25) = .5), mu = (1 + .75)/2 = .875. Step 2: g = .75, v = .5 + .75 =
    1.25, d = .75 + .625 - 2 (1 - .75) = .875, x' = .75 - .4375 - .5 = -.1875, mu =
    (.875 - .1875)/2 = .34375. Outer: x = 1 - .5 (1 + .5) (2 * .65625) = .015625.
    """
    out = reference.entropy_sgd(
        lambda x, t, k: x,
        [1.0],
        [[[1.0], [-1.0]]],
        learning_rate=0.5,
        gamma0=2.0,
        step_size=0.5,
        temperature=0.25,
        newest_weight=0.5,
        momentum=0.5,
        outer_momentum=0.5,
        scale_by_gamma=True,
    )
    assert out.inner[0, :, 0].tolist() == [0.75, -0.1875]
    assert out.mu[0, 0] == 0.34375
    assert out.x[1, 0] == 0.015625
