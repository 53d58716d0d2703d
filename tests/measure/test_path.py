"""Differences of local entropy along a line, against closed forms and quadrature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_optax import measure

pytestmark = pytest.mark.usefixtures("quick_compilation")

LIMIT = 3.5
SEEDS = (1, 2, 3)
SMALL = measure.ChainSettings(num_chains=8, num_steps=16, num_burn=8)


H = np.geomspace(0.1, 10, 100)


def quadratic(x):
    return 0.5 * jnp.sum(jnp.asarray(H[: x.size], x.dtype) * x**2)


def tilted_double_well(x):
    return jnp.sum((x**2 - 1) ** 2) + 0.2 * jnp.sum(x)


def quadrature_along(f, a, b, t, settings):
    values = [
        measure.quadrature_local_entropy(f, (1 - s) * a + s * b, **settings).phi
        for s in t
    ]
    return np.array(values) - values[0]


@pytest.mark.parametrize(("seed", "beta"), [(1, 1.0), (2, 10.0), (3, 1000.0)])
def test_quadratics_of_dimension_100(seed, beta):
    """All points of the line, from a random a to a random b."""
    rng, gamma = np.random.default_rng(seed), 1.0
    a, b = rng.normal(size=(2, 100)) / 10
    line = measure.local_entropy_along_line(
        quadratic, jnp.asarray(a, "f4"), jnp.asarray(b, "f4"), gamma=gamma,
        temperature=1 / beta, key=jax.random.key(seed), num_points=5, settings=SMALL,
    )  # fmt: skip
    x = (1 - line.t)[:, None] * a + line.t[:, None] * b
    exact = -0.5 * beta * (x**2 @ (H / (1 + H / gamma)))
    assert line.converged
    z = (line.phi - exact + exact[0])[1:] / line.standard_error[1:]
    assert np.max(np.abs(z)) < LIMIT
    slope = -beta * (x * (H / (1 + H / gamma))) @ (b - a)
    assert np.max(np.abs((line.slope - slope) / line.slope_error)) < LIMIT


@pytest.mark.parametrize("seed", SEEDS)
def test_double_well(seed):
    """From one well over the barrier into the other, against quadrature."""
    a, b = np.array([-1.0]), np.array([1.0])
    settings: dict[str, Any] = {"gamma": 2.0, "temperature": 0.5}
    line = measure.local_entropy_along_line(
        tilted_double_well, jnp.asarray(a, "f4"), jnp.asarray(b, "f4"),
        key=jax.random.key(seed), **settings,
    )  # fmt: skip
    exact = quadrature_along(tilted_double_well, a, b, line.t, settings)
    assert line.converged
    assert np.max(np.abs(line.phi - exact)[1:] / line.standard_error[1:]) < LIMIT
    assert line.difference.value == line.phi[-1]
    assert line.difference.standard_error == line.standard_error[-1]
    low, high = line.difference.interval(0.999)
    assert low < exact[-1] < high


def test_the_same_ends_differ_by_nothing():
    x = jnp.ones(3)
    out = measure.local_entropy_along_line(
        tilted_double_well, x, x, gamma=1.0, temperature=1.0, key=jax.random.key(0),
        num_points=5, settings=SMALL,
    )  # fmt: skip
    assert out.converged
    assert np.all(out.phi == 0)


def test_agrees_with_the_difference_of_two_values():
    """Two instruments, one number, in nats."""
    f, (a, b) = quadratic, (jnp.zeros(100), jnp.full(100, 0.1))
    settings: dict[str, Any] = {"gamma": 1.0, "temperature": 0.2, "settings": SMALL}
    keys = jax.random.split(jax.random.key(1), 3)
    line = measure.local_entropy_along_line(f, a, b, key=keys[0], **settings)
    path = line.difference
    first = measure.local_entropy(f, a, key=keys[1], **settings)
    last = measure.local_entropy(f, b, key=keys[2], **settings)
    error = np.hypot(first.standard_error, last.standard_error)
    error = np.hypot(error, path.standard_error)
    assert abs(last.phi - first.phi - path.value) < LIMIT * error
    assert path.standard_error < first.standard_error  # what it is good for


def wave(x):
    """Two waves between the ends: a cubic rule through 5 points is wrong by 6.8."""
    return jnp.sum(jnp.cos(4 * jnp.pi * x) + x)


def test_too_few_points_are_refused():
    a, b = jnp.array([0.0]), jnp.array([1.1])
    settings: dict[str, Any] = {"gamma": 1e3, "temperature": 0.5}
    few, many = (
        measure.local_entropy_along_line(
            wave, a, b, key=jax.random.key(0), num_points=count, settings=SMALL,
            **settings,
        )
        for count in (5, 41)
    )  # fmt: skip
    exact = quadrature_along(wave, np.zeros(1), np.array([1.1]), [0, 1], settings)[-1]
    assert many.converged
    assert abs(many.difference.value - exact) < LIMIT * many.difference.standard_error
    assert not few.converged
    assert np.isnan(few.phi).all()
    assert np.isnan(few.slope).all()
    assert any("num_points: half as many" in reason for reason in few.reasons)


@pytest.mark.parametrize("width", [0.1, 0.15])
def test_a_symmetric_barrier_needs_points(width):
    """Its slope is odd, so that errors cancel at the end and not in the middle.

    At 9 points phi is wrong by 1.5 and 6.7 in the middle, and right at b.
    """
    f = lambda x: jnp.sum(jnp.exp(-0.5 * (x / width) ** 2))
    settings: dict[str, Any] = {"gamma": 1e4, "temperature": 0.1}
    a, b = np.array([-1.0]), np.array([1.0])
    few, many = (
        measure.local_entropy_along_line(
            f, jnp.asarray(a, "f4"), jnp.asarray(b, "f4"), key=jax.random.key(0),
            num_points=count, settings=SMALL, **settings,
        )
        for count in (9, 97)
    )  # fmt: skip
    assert not few.converged
    assert few.reasons[-1].startswith("num_points: half as many change Phi by")
    exact = quadrature_along(f, a, b, many.t[::12], settings)
    assert many.converged
    z = (many.phi[::12] - exact)[1:] / many.standard_error[::12][1:]
    assert np.max(np.abs(z)) < LIMIT


def test_frozen_chains_are_refused():
    """Both ways each well keeps its chains beyond the middle: hysteresis."""
    a, b = jnp.array([-1.0]), jnp.array([1.0])
    out = measure.local_entropy_along_line(
        tilted_double_well, a, b, gamma=0.1, temperature=0.01, key=jax.random.key(0),
        settings=SMALL,
    )  # fmt: skip
    assert not out.converged
    assert np.isnan(out.difference.value)


def equal_wells(x):
    """Two wells of one depth: their energies do not tell them apart, the pull does."""
    return 5 * (x[0] ** 2 - 1) ** 2 + 150 * jnp.sum(x[1:] ** 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_frozen_chains_in_wells_of_equal_energy(seed):
    """Both ways start alike, and agree: 1.2 ± .1, where 1.454 is right."""
    a = jnp.zeros(21).at[0].set(0.3)
    out = measure.local_entropy_along_line(
        equal_wells, a, a.at[0].set(0.5), gamma=1.0, temperature=0.08,
        key=jax.random.key(seed), num_points=5,
    )  # fmt: skip
    assert not out.converged
    assert any("R-hat" in reason for reason in out.reasons)


def test_errors():
    settings: dict[str, Any] = {
        "gamma": 1.0, "temperature": 1.0, "key": jax.random.key(0)
    }  # fmt: skip
    a, b = jnp.zeros(2), jnp.ones(2)
    line = lambda a, b, **changes: measure.local_entropy_along_line(
        tilted_double_well, a, b, **{**settings, **changes}
    )
    with pytest.raises(measure.MeasureError, match="params_b: its shapes differ"):
        line(a, jnp.ones(3))
    with pytest.raises(measure.MeasureError, match="num_points: got 6, wanted an odd"):
        line(a, b, num_points=6)
    with pytest.raises(measure.MeasureError, match="num_points: got 3, wanted 5"):
        line(a, b, num_points=3)
    with pytest.raises(measure.MeasureError, match="gamma: got 0"):
        line(a, b, gamma=0)
    with pytest.raises(measure.MeasureError, match=r"chains start: .* finite"):
        line(a * jnp.nan, b)
