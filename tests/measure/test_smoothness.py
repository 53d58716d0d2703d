"""Smoothness of local entropy: exact answers, true bounds, a lemma that is not."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entropy_optax.measure import MeasureError
from entropy_optax.measure._lipschitz import (
    lemma_counterexample,
    smoothed_1d,
    smoothness_1d,
)
from entropy_optax.measure._smoothness import (
    lemma_bounds,
    lemma_margin,
    quadratic_smoothness,
    smoothness_bounds,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

# No deadline: the machine may be busy. Derandomised: what passes once passes always.
FEW = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
DOUBLE_WELL = lambda x: (x**2 - 1) ** 2 / 4


def within(found, bounds, rtol=1e-9):
    """Whether constants of G keep all five bounds, but for rounding."""
    slack = rtol * (1 + abs(bounds.scope))
    assert found.entropy_slope <= bounds.slope + slack
    assert found.entropy_highest <= bounds.scope + slack
    assert found.entropy_highest <= bounds.highest + slack
    assert found.entropy_lowest >= bounds.lowest - slack
    assert found.entropy_smoothness <= bounds.smoothness + slack


# Quadratics.


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_quadratics_are_those_of_dense_matrices(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(6, 6))
    hessian, gamma, radius = (a + a.T) / 4, 3.0, 1.7
    eigenvalues, vectors = np.linalg.eigh(hessian)
    smoothed = gamma * hessian @ np.linalg.inv(hessian + gamma * np.eye(6))
    found = quadratic_smoothness(eigenvalues, gamma, radius)
    low, high = np.linalg.eigvalsh(smoothed)[[0, -1]]
    assert (found.entropy_lowest, found.entropy_highest) == pytest.approx((low, high))
    assert (found.lowest, found.highest) == pytest.approx(eigenvalues[[0, -1]])
    # Slopes: nowhere on the sphere more, somewhere as much.
    x = rng.normal(size=(6, 1000))
    x = np.concatenate([x, vectors], axis=1)
    x *= radius / np.linalg.norm(x, axis=0)
    for matrix, slope in ((hessian, found.slope), (smoothed, found.entropy_slope)):
        assert np.linalg.norm(matrix @ x, axis=0).max() == pytest.approx(slope)


@pytest.mark.parametrize("temperature", [1e-4, 1.0, 10.0])
@pytest.mark.parametrize("eigenvalue", [-1.5, 0.0, 0.3, 40.0])
def test_quadrature_of_a_quadratic(eigenvalue, temperature):
    """Value, slope and curvature, at any temperature."""
    gamma, x = 2.0, np.array([-1.0, 0.3, 2.0])
    found = smoothed_1d(
        lambda x: eigenvalue / 2 * x**2, x, gamma, temperature=temperature
    )
    curvature = gamma * eigenvalue / (gamma + eigenvalue)
    log_det = np.log(2 * np.pi * temperature / (gamma + eigenvalue))
    value = curvature / 2 * x**2 - temperature / 2 * log_det
    np.testing.assert_allclose(found.value, value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.slope, curvature * x, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.curvature, curvature, rtol=1e-8, atol=1e-8)


def test_derivatives_are_those_of_the_value():
    """By central differences, for a function that is no quadratic."""
    h = 1e-3
    for temperature in (0.0, 0.1):
        at = lambda x, t=temperature: smoothed_1d(DOUBLE_WELL, x, 3.0, temperature=t)
        x = np.linspace(-1.4, 1.4, 9)
        middle, left, right = at(x), at(x - h), at(x + h)
        slope = (right.value - left.value) / (2 * h)
        bend = (right.slope - left.slope) / (2 * h)
        np.testing.assert_allclose(middle.slope, slope, atol=1e-5)
        np.testing.assert_allclose(middle.curvature, bend, atol=1e-5)


def test_limits_of_gamma_and_temperature():
    x = np.linspace(-1.4, 1.4, 9)
    narrow = smoothed_1d(DOUBLE_WELL, x, 1e5, temperature=0.1)
    np.testing.assert_allclose(narrow.slope, x**3 - x, atol=1e-3)
    np.testing.assert_allclose(narrow.curvature, 3 * x**2 - 1, atol=2e-3)
    envelope = smoothed_1d(DOUBLE_WELL, x, 3.0, temperature=0.0)
    cold = smoothed_1d(DOUBLE_WELL, x, 3.0, temperature=1e-4)
    np.testing.assert_allclose(cold.slope, envelope.slope, atol=1e-3)
    np.testing.assert_allclose(cold.curvature, envelope.curvature, atol=1e-3)


# The five bounds.


@FEW
@given(
    st.lists(st.floats(-0.99, 50), min_size=1, max_size=8),
    st.floats(1, 1e4),
    st.floats(0.1, 10),
)
def test_bounds_hold_on_quadratics_and_are_sharp(eigenvalues, gamma, radius):
    found = quadratic_smoothness(eigenvalues, gamma, radius)
    bounds = smoothness_bounds(gamma, lowest=found.lowest, highest=found.highest)
    within(found, bounds)
    assert found.entropy_lowest == pytest.approx(bounds.lowest)
    assert found.entropy_highest == pytest.approx(bounds.highest)


@FEW
@given(
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.lists(st.floats(0, 6.3), min_size=4, max_size=4),
    st.floats(0.3, 30),
    st.sampled_from([0.03, 0.3, 3.0]),
)
def test_bounds_hold_on_random_functions(amplitudes, phases, gamma, temperature):
    """Periodic, so that one period knows of the whole line."""
    a, phi, w = np.array(amplitudes), np.array(phases), np.arange(1, 5)
    f = lambda x: jnp.sum(a / w * jnp.cos(w * x + phi))
    found = smoothness_1d(
        f, (0.0, 2 * np.pi), gamma, temperature=temperature, num_points=201
    )
    # Between two points f may be a little steeper: by less than h²/8 times a bound on
    # its next derivatives but one.
    h = 2 * np.pi / 200
    slack = h**2 / 8 * (np.abs(a) * w**3).sum()
    bounds = smoothness_bounds(
        gamma,
        lowest=found.lowest - slack,
        highest=found.highest + slack,
        slope=found.slope + slack,
    )
    within(found, bounds)


@FEW
@given(st.floats(0.5, 20), st.sampled_from([0.01, 0.1, 1.0]))
def test_bounds_hold_on_the_double_well(gamma, temperature):
    """Its curvature is -1 or more, without an upper end."""
    found = smoothness_1d(
        DOUBLE_WELL, (-1.5, 1.5), gamma, temperature=temperature, num_points=101
    )
    within(found, smoothness_bounds(gamma, lowest=-1.0, highest=np.inf))


@FEW
@given(st.floats(0.05, 5), st.floats(0.2, 20), st.sampled_from([0.0, 0.1, 2.0]))
def test_bounds_hold_on_strongly_convex_functions(mu, gamma, temperature):
    """(v), and with it both halves of the lemma."""
    f = lambda x: mu / 2 * x**2 + 2 * jnp.log(jnp.cosh(x))
    found = smoothness_1d(
        f, (-3.0, 3.0), gamma, temperature=temperature, num_points=101
    )
    within(found, smoothness_bounds(gamma, lowest=mu, highest=mu + 2))
    c = lemma_margin([mu, mu + 2], gamma)
    assert c == mu
    slope, smoothness = lemma_bounds(found.slope, mu + 2, gamma, c)
    assert found.entropy_smoothness <= smoothness
    if temperature == 0:
        assert found.entropy_slope <= slope + 1e-9


def test_bounds_can_fail_to_hold_where_they_should():
    """A band that is too narrow is noticed: the checks above can fail."""
    found = lemma_counterexample(20.0)
    with pytest.raises(AssertionError):
        within(found, smoothness_bounds(20.0, lowest=-6.0, highest=9.0))
    with pytest.raises(AssertionError):
        within(found, smoothness_bounds(20.0, lowest=-9.0, highest=7.0))


def test_bounds_at_the_ends():
    bounds = smoothness_bounds(4.0, lowest=-np.inf, highest=np.inf)
    assert bounds == (np.inf, 4.0, 4.0, -np.inf)
    assert smoothness_bounds(4.0, lowest=-4.0, highest=0.0).lowest == -np.inf
    assert smoothness_bounds(np.inf, lowest=-1.0, highest=2.0)[2:] == (2.0, -1.0)
    assert smoothness_bounds(4.0, lowest=4.0, highest=4.0).lowest == 2.0  # (v)


# The lemma as printed.


@pytest.mark.parametrize(("gamma", "ratio"), [(20, 1.09), (5, 0.53), (1, 0.01)])
def test_counterexample_to_the_lemma(gamma, ratio):
    """At temperature 1, smoothness 9: where the lemma promises less than 1."""
    found = lemma_counterexample(gamma)
    assert found.smoothness == pytest.approx(9)
    assert found.entropy_smoothness / 9 == pytest.approx(ratio, abs=0.005)
    # The bounds that are true hold, and the lemma's assumption does not.
    within(found, smoothness_bounds(gamma, lowest=-9, highest=9, slope=3))
    assert lemma_margin([found.lowest, 0.0, found.highest], gamma) <= 0


def test_counterexample_at_other_temperatures():
    """The colder the worse, up to 20 / (20 - 9); and the slope's half fails too."""
    cold = lemma_counterexample(20.0, temperature=0.0)
    assert cold.entropy_smoothness / 9 == pytest.approx(20 / 11)
    assert cold.entropy_lowest == pytest.approx(
        smoothness_bounds(20.0, lowest=-9, highest=9).lowest
    )
    ratios = [
        lemma_counterexample(20.0, temperature=t).entropy_smoothness / 9
        for t in (1.0, 0.3, 0.1)
    ]
    assert sorted(ratios) == ratios
    tilted = lemma_counterexample(20.0, slope=100.0)
    assert tilted.entropy_slope > 0.99 * tilted.slope
    flat = lemma_counterexample(20.0)
    # Its grid does not meet the same points.
    assert tilted.entropy_smoothness == pytest.approx(flat.entropy_smoothness, rel=1e-3)


def test_margin_by_hand():
    for c, eigenvalues in ((0.5, [0.5, 3]), (-1, [-1, 3]), (2, [-6, 3]), (0, [0, -9])):
        assert lemma_margin(eigenvalues, 2.0) == c
        inside = lambda c, e=eigenvalues: any(-4 - c <= v <= c for v in e)
        if c > 0:
            assert inside(c + 1e-9)
            assert not inside(c - 1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smoothness_bounds(0, lowest=0, highest=1), "gamma: got 0, wanted a"),
        (lambda: smoothness_bounds(1, lowest=2, highest=1), "lowest: got 2 above"),
        (lambda: smoothness_bounds(1, lowest=-3, highest=-2), "highest: got -2 with"),
        (lambda: lemma_margin([], 1.0), "eigenvalues: got none"),
        (lambda: lemma_margin([np.nan], 1.0), "eigenvalues: 1 of 1 are not finite"),
        (lambda: lemma_bounds(1, 1, 1, 0), "c: got 0, wanted above 0: without a gap"),
        (lambda: quadratic_smoothness([], 1.0), "eigenvalues: got none"),
        (lambda: quadratic_smoothness([-2.0], 1.0), "wanted above -gamma, -1, or"),
        (lambda: quadratic_smoothness([1.0], 1.0, 0.0), "radius: got 0.0, wanted a"),
        (lambda: smoothed_1d(DOUBLE_WELL, [0.0], -1.0), "gamma: got -1.0"),
        (
            lambda: smoothed_1d(DOUBLE_WELL, [0.0], 1.0, temperature=-1.0),
            "temperature: got -1.0, wanted 0 or more",
        ),
        (lambda: smoothed_1d(DOUBLE_WELL, [np.inf], 1.0), "points: 1 of 1 are not"),
        (lambda: smoothed_1d(lambda x: x * np.nan, [0.0], 1.0), "f: .* not finite"),
        (lambda: smoothed_1d(lambda x: -(x**2), [0.0], 1.0), "the integral diverges"),
        (
            lambda: smoothed_1d(DOUBLE_WELL, [0.0, 1.0], 1.0, temperature=1e-12),
            "temperature: at 1e-12 the integral wants",
        ),
        (
            lambda: smoothed_1d(DOUBLE_WELL, [0.0], 0.5, temperature=0.0),
            "gamma: got 0.5, wanted above",
        ),
        (lambda: smoothness_1d(DOUBLE_WELL, (1.0, 1.0), 1.0), "interval: got"),
        (
            lambda: smoothness_1d(DOUBLE_WELL, (0.0, 1.0), 1.0, num_points=1),
            "num_points: got 1, wanted 2",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(MeasureError) as caught:
        call()
    assert re.search(message, str(caught.value).replace("\n", " "))
