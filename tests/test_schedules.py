"""Scoping, temperature, who counts what, and the warning about unstable constants."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _problems import MODES, enable_x64, run, strict

import entropy_optax as eo

LARGEST = float(np.finfo(np.float32).max)
SCOPINGS: list[tuple[Any, Any]] = [
    (eo.exponential_scoping, lambda t, g0, g1, most: min(g0 * (1 + g1) ** t, most)),
    (eo.linear_scoping, lambda t, g0, g1, most: min(g0 * (1 + g1 * t), most)),
    (eo.quadratic_scoping, lambda t, g0, g1, most: min(g0 * (1 + g1 * t) ** 2, most)),
    (
        eo.bounded_exponential_scoping,
        lambda t, g0, g1, most: most - (most - g0) * (1 + g1) ** -float(t),
    ),
]


@pytest.fixture(autouse=True)
def _strict():
    with strict(leaks=False):
        yield


@pytest.mark.parametrize(("scoping", "formula"), SCOPINGS)
def test_values_are_the_formula(scoping, formula):
    """In both precisions; a value is as exact as its largest term, the limit."""
    counts = np.arange(0, 2000, 97, dtype=np.int32)
    for gamma0, gamma1 in [(1e-4, 1e-3), (0.03, 0.2), (2.0, 0.0)]:
        schedule = jax.vmap(scoping(gamma0, gamma1, 5.0))
        expected = [formula(float(t), gamma0, gamma1, 5.0) for t in counts]
        np.testing.assert_allclose(schedule(counts), expected, atol=2e-6, rtol=2e-6)
        with enable_x64():
            exact = schedule(counts)
        np.testing.assert_allclose(exact, expected, atol=1e-12, rtol=1e-12)


CONSTANTS = [(1e-4, 1e-3), (1e-30, 1e30), (1e30, 1e9), (0.0, 1.0)]
COUNTS = np.array([0, 1, 97_983, 10**5, 10**6, 2**31 - 1], dtype=np.int32)


@pytest.mark.parametrize("float64", [False, True])
@pytest.mark.parametrize("scoping", [scoping for scoping, _ in SCOPINGS])
def test_never_overflows_and_never_falls(scoping, float64):
    """Up to the last count there is, eagerly and under jit, and for wild constants."""
    unlimited = LARGEST if scoping is eo.bounded_exponential_scoping else None
    limits = [limit for g0, _ in CONSTANTS for limit in (max(1.0, g0), unlimited)]
    schedules = [
        scoping(*constants, limit)
        for constants, limit in zip(
            np.repeat(CONSTANTS, 2, axis=0), limits, strict=True
        )
    ]
    table = jax.vmap(lambda t: jnp.stack([schedule(t) for schedule in schedules]))
    with strict(float64=float64, leaks=False):
        values = np.asarray(jax.jit(table)(COUNTS), dtype=float)
        eager = np.asarray(table(COUNTS), dtype=float)
    most = np.array([LARGEST if limit is None else limit for limit in limits])
    assert np.all(np.isfinite(values))
    assert np.all(values <= most.astype(np.float32))
    assert np.all(np.diff(values, axis=0) >= 0)
    np.testing.assert_allclose(values / most, eager / most, atol=1e-6)
    np.testing.assert_allclose(values[-1, :6:2], most[:6:2], rtol=1e-6)


@pytest.mark.parametrize("scoping", [scoping for scoping, _ in SCOPINGS[:3]])
def test_first_scope_is_gamma0(scoping):
    for gamma0, gamma1 in CONSTANTS:
        np.testing.assert_allclose(scoping(gamma0, gamma1)(0), gamma0, rtol=1e-6)


@pytest.mark.parametrize("scoping", [scoping for scoping, _ in SCOPINGS])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((-0.1, 0.1, 1.0), r"gamma0 must be at least 0, got -0\.1"),
        ((0.1, -0.1, 1.0), r"gamma1 must be at least 0, got -0\.1"),
        ((0.1, float("nan"), 1.0), "gamma1 must be at least 0, got nan"),
        ((0.5, 0.1, 0.25), r"max_gamma must be at least gamma0 = 0\.5, got 0\.25"),
        ((0.5, 0.1, float("nan")), r"max_gamma must be at least gamma0 = 0\.5"),
    ],
)
def test_scoping_errors(scoping, args, message):
    with pytest.raises(ValueError, match=message):
        scoping(*args)


def test_temperature_from_noise():
    """The noise of one inner step, sqrt(2 eta' T), is each convention's own."""
    eps, step_size = 0.3, 0.1
    std = lambda T: np.sqrt(2 * step_size * T)
    paper = eo.temperature_from_noise(eps)
    released = eo.temperature_from_noise(eps, "released")
    np.testing.assert_allclose(std(paper), eps * np.sqrt(step_size))
    np.testing.assert_allclose(std(released), eps * np.sqrt(2 * step_size))
    assert eo.temperature_from_noise(eps, "paper") == paper


def test_temperature_from_noise_errors():
    with pytest.raises(ValueError, match=r"eps must be at least 0, got -1\.0"):
        eo.temperature_from_noise(-1.0)
    wrong: Any = "lua"
    with pytest.raises(ValueError, match="'paper' or 'released', got 'lua'"):
        eo.temperature_from_noise(0.1, wrong)


def scalar_run(opaque_mode: bool, num_outer: int, num_steps: int, **settings: Any):
    """x in R from 1 with f(x) = 0, so that what moves is pull and noise alone."""
    defaults: dict[str, Any] = {"gamma": 0.0, "step_size": 0.5, "temperature": 0.0}
    rate = settings.pop("learning_rate", 1.0)
    slope = settings.pop("slope", 0.0)
    tx = eo.entropy_sgd(
        rate,
        **{**defaults, **settings},
        num_steps=num_steps,
        momentum=None,
        mean_decay=0.0,
        opaque_mode=opaque_mode,
    )
    grad_fn = lambda x, _: jnp.full_like(x, slope)
    data = np.zeros((num_outer, num_steps))
    return run(tx, jnp.ones(1), grad_fn, data, opaque_mode=opaque_mode)


@pytest.mark.parametrize("opaque_mode", MODES)
def test_scoping_moves_with_the_outer_count(opaque_mode):
    """gamma in force after t steps is gamma_{t-1}, and it is the one that acts.

    With a constant gradient s and L = 2: x'_2 - x = -eta' s (2 - eta' gamma).
    """
    scoping = eo.linear_scoping(0.2, 1.0)
    out = scalar_run(opaque_mode, 4, 2, gamma=scoping, slope=1.0)
    gammas = np.array([0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(
        np.diff(out.x[:, 0]), -0.5 * (2 - 0.5 * gammas), rtol=1e-5
    )
    np.testing.assert_allclose(optax.tree.get(out.state, "gamma"), 0.8, rtol=1e-6)
    assert int(optax.tree.get(out.state, "outer_count")) == 4


@pytest.mark.parametrize("opaque_mode", MODES)
def test_step_size_schedule_counts_outer_steps(opaque_mode):
    out = scalar_run(opaque_mode, 3, 4, step_size=lambda t: 0.1 * (1 + t), slope=1.0)
    np.testing.assert_allclose(np.diff(out.x[:, 0]), [-0.4, -0.8, -1.2], rtol=1e-5)


@pytest.mark.parametrize("opaque_mode", MODES)
def test_temperature_schedule_counts_outer_steps(opaque_mode):
    """With draws of 1 the move is L sqrt(2 eta' T_t), and T_t = (1 + t)^2 here."""
    out = scalar_run(
        opaque_mode,
        3,
        4,
        temperature=lambda t: (1.0 + t) ** 2,
        noise=lambda key, shape, dtype: jnp.ones(shape, dtype),
    )
    np.testing.assert_allclose(np.diff(out.x[:, 0]), [4.0, 8.0, 12.0], rtol=1e-6)


@pytest.mark.parametrize("opaque_mode", MODES)
def test_learning_rate_schedule_counts_outer_steps(opaque_mode):
    out = scalar_run(
        opaque_mode, 3, 4, learning_rate=lambda t: 0.5 / (1 + t), slope=1.0
    )
    np.testing.assert_allclose(np.diff(out.x[:, 0]), -1 / np.arange(1, 4), rtol=1e-5)


def nesterov_bound(momentum: float) -> float:
    return 2 * (1 + momentum) / (1 + 2 * momentum)


@pytest.mark.parametrize("make", [eo.entropy_sgd, eo.entropy_adam])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.5, 0.9])
def test_warns_once_at_construction_and_from_the_bound_on(make, momentum):
    bound = nesterov_bound(momentum or 0.0)
    for factor, count in [(0.999, 0), (1.0, 1), (1.001, 1), (3.0, 1)]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make(0.1, gamma=factor * bound, step_size=1.0, momentum=momentum)
        assert len(caught) == count
        for warning in caught:
            assert warning.category is UserWarning
            assert "step_size * gamma" in str(warning.message)
            assert warning.filename == __file__


def test_no_warning_in_update():
    with pytest.warns(UserWarning, match="step_size"):
        tx = eo.entropy_sgd(0.1, gamma=2.0, step_size=1.0, temperature=0.0)
    x = jnp.ones(2)
    jax.jit(tx.update)(x, tx.init(x), x)  # warnings are errors in this suite


@pytest.mark.parametrize("name", ["gamma", "step_size"])
def test_no_warning_with_a_schedule(name):
    """Whether it is unstable is then a question of time."""
    constants: dict[str, Any] = {"gamma": 50.0, "step_size": 1.0}
    constants[name] = optax.constant_schedule(constants[name])
    eo.entropy_sgd(0.1, **constants)  # warnings are errors in this suite


def spectral_radius(sampler: Any, curvature: float, gamma: float) -> float:
    """Of one inner step (x', v) -> (x', v) on h x'^2 / 2, around x = 0."""

    def step(z):
        state = optax.tree.set(sampler.init(z[:1]), trace=z[1:])
        updates, state = sampler.update(
            curvature * z[:1], state, z[:1], anchor=jnp.zeros(1), gamma=gamma
        )
        return jnp.concatenate([z[:1] + updates, optax.tree.get(state, "trace")])

    matrix = np.stack([np.asarray(step(column)) for column in np.eye(2)], axis=-1)
    return float(np.max(np.abs(np.linalg.eigvals(matrix))))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_where_the_inner_loop_turns_unstable(momentum):
    """The exact line is eta' (gamma + h (1 + 2m) / (1 + m)) = 2, the pull outside.

    So the pull alone (h = 0) diverges from eta' gamma = 2 on, whatever the momentum.
    """
    step_size, growth = 0.1, (1 + 2 * momentum) / (1 + momentum)
    with enable_x64():
        sampler = eo.sgld(step_size, momentum=momentum)
        for share in (0.0, 0.3, 0.9, 1.0):  # of the bound, taken by the pull
            for factor, stable in [(0.99, True), (1.01, False)]:
                gamma = factor * share * 2 / step_size
                curvature = factor * (1 - share) * 2 / step_size / growth
                radius = spectral_radius(sampler, curvature, gamma)
                assert (radius < 1) is stable


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_bound_of_the_warning(momentum):
    """eta' (gamma + h) < 2 (1 + m) / (1 + 2m) is always stable.

    It is exact for curvature without pull, and for a pull inside the momentum.
    """
    step_size, bound = 0.1, nesterov_bound(momentum)
    inside = optax.chain(
        eo.add_scope_pull(), optax.sgd(step_size, momentum, nesterov=True)
    )
    with enable_x64():
        outside = eo.sgld(step_size, momentum=momentum)
        for share in (0.0, 0.3, 0.6, 1.0):
            gamma, curvature = np.array([share, 1 - share]) * bound / step_size
            below = 0.99 * curvature + 1e-6, 0.99 * gamma
            assert spectral_radius(outside, *below) < 1
            assert spectral_radius(inside, *below) < 1
            assert spectral_radius(inside, 1.01 * curvature, 1.01 * gamma) > 1
        assert spectral_radius(outside, 1.01 * bound / step_size, 0.0) > 1
