"""One dimension, where local entropy and the law of the inner chain are quadratures.

The chain x' <- x' - eta' U'(x') + sqrt(2 eta' T) xi with Gaussian xi has the density
N(y; x' - eta' U'(x'), 2 eta' T) of a transition to y. On a grid that is a matrix: from
it the law of each x'_k follows exactly, and with it the expectation of the optimizer's
own estimate, its discretisation error included.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _problems import enable_x64, ensemble, max_z, strict

import entropy_optax as eo

THRESHOLD = 4.5
MANY = 20_000


@pytest.fixture(autouse=True)
def _strict():
    with strict(leaks=False):
        yield


def double_well(x):
    """Two wells of unlike depth, at about -1 and 1, of bounded curvature."""
    return x**2 / 2 + 1.5 * jnp.exp(-2 * x**2) + 0.3 * x


def valleys(x):
    """As the paper's figure 2: sharp and deep at 300, wide and shallower at 600."""
    sharp = -2.5 * jnp.exp(-((x - 300) ** 2) / (2 * 5.0**2))
    return sharp - 1.8 * jnp.exp(-((x - 600) ** 2) / (2 * 100.0**2))


class Case(NamedTuple):
    """A loss with its grid, sampler settings and outer iterates to look from."""

    loss: Callable[[Any], Any]
    grid: np.ndarray
    gamma: float
    step_size: float
    temperature: float
    x: np.ndarray

    def gibbs_moment(self, power: int) -> np.ndarray:
        """<x'^power> under the modified Gibbs law, by quadrature."""
        pull = self.gamma / 2 * (self.grid - self.x[:, None]) ** 2
        energy = np.asarray(self.loss(self.grid)) + pull
        weight = np.exp(-(energy - energy.min(1, keepdims=True)) / self.temperature)
        return np.asarray(weight @ self.grid**power / weight.sum(1))

    def gibbs_mean(self) -> np.ndarray:
        return self.gibbs_moment(1)

    def chain_means(self, num_steps: int, step_size: float | None = None) -> np.ndarray:
        """E x'_k for k = 1 .. L, shape (L, number of x), exact but for the grid."""
        step_size = step_size or self.step_size
        slope = lambda x: np.asarray(jax.vmap(jax.grad(self.loss))(x))
        std = np.sqrt(2 * step_size * self.temperature)
        scale = (self.grid[1] - self.grid[0]) / (std * np.sqrt(2 * np.pi))
        law_around = lambda center: (
            scale * np.exp(-(((self.grid[:, None] - center) / std) ** 2) / 2)
        )
        loss_slope, first = slope(self.grid), self.x - step_size * slope(self.x)
        means = []
        for x, start in zip(self.x, first, strict=True):
            pull = self.gamma * (self.grid - x)
            density = law_around(self.grid - step_size * (loss_slope + pull))
            law = law_around(start)[:, 0]
            row = []
            for _ in range(num_steps):
                row.append(law @ self.grid / law.sum())
                law = density @ law
            assert abs(law.sum() - 1) < 1e-6  # the grid is fine and wide enough
            means.append(row)
        return np.array(means).T


def well(gamma: float, temperature: float, step_size: float = 0.04) -> Case:
    grid = np.linspace(-7.0, 7.0, 401)
    x = np.array([-1.2, -0.3, 0.4, 1.5])
    return Case(double_well, grid, gamma, step_size, temperature, x)


def valley(gamma: float) -> Case:
    grid = np.linspace(-500.0, 1500.0, 1001)
    return Case(valleys, grid, gamma, 10.0, 1.0, np.array([285.0, 315.0, 480.0, 660.0]))


WELLS = [(1.0, 0.5), (4.0, 0.5), (1.0, 2.0)]


@functools.cache
def transformation(
    gamma: float,
    step_size: float,
    temperature: float,
    num_steps: int,
    decay: float,
    noise: Any = "rademacher",
) -> optax.GradientTransformationExtraArgs:
    sampler = eo.sgld(step_size, temperature=temperature, noise=noise)
    return eo.scale_by_local_entropy(sampler, num_steps, gamma, mean_decay=decay)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _estimates(tx: Any, loss: Any, x: Any, size: int, key: Any) -> jax.Array:
    grad_fn = jax.grad(lambda x, _: jnp.sum(loss(x)))
    update = lambda state: tx.update(grad_fn(x, 0), state, x, grad_fn=grad_fn)[0]
    return jax.vmap(update)(ensemble(tx.init(x), key, size))


def estimate_z(case: Case, num_steps: int, decay: float, seed: int = 4) -> float:
    """Largest z of the optimizer's mean mu against the chain's exact one."""
    tx = transformation(*case[2:5], num_steps, decay)
    x = jnp.asarray(case.x)
    out = _estimates(tx, case.loss, x, MANY, jax.random.key(seed))
    mu = case.x - np.asarray(out, dtype=float)
    exact = _exact_mu(case.loss, case.gamma, case.temperature, num_steps, decay)
    return max_z(mu.mean(0), exact, mu.std(0, ddof=1) / np.sqrt(MANY))


@functools.cache
def _exact_mu(
    loss: Any, gamma: float, temperature: float, num_steps: int, decay: float
) -> np.ndarray:
    case = well(gamma, temperature) if loss is double_well else valley(gamma)
    with enable_x64():
        means = case.chain_means(num_steps)
    weights = (1 - decay) * decay ** np.arange(num_steps)[::-1]
    return decay**num_steps * case.x + weights @ means


@pytest.mark.parametrize(("gamma", "temperature"), WELLS[:2])
def test_double_well_finite_length(gamma, temperature):
    """Expectation of mu after L = 12 steps with mean_decay 0.75, at four x.

    Measured over 200 other seeds, both cases: 0 failures, the largest z 3.45.
    """
    assert estimate_z(well(gamma, temperature), 12, 0.75) < THRESHOLD


@pytest.mark.parametrize(("gamma", "temperature"), WELLS)
def test_double_well_error_is_of_first_order(gamma, temperature):
    """Half the step, half the distance of the settled chain from <x'>."""
    case = well(gamma, temperature)
    with enable_x64():
        exact = case.gibbs_mean()
        errors = [
            np.abs(case.chain_means(int(10 / step), step)[-1] - exact).max()
            for step in (0.08, 0.04, 0.02)
        ]
    assert errors[0] < 0.03
    ratios = np.array([errors[0] / errors[1], errors[1] / errors[2]])
    np.testing.assert_allclose(ratios, 2, rtol=0.2)


def gibbs_z(seed: int = 5) -> float:
    """Largest z of settled chains against <x'>, beyond the known error of the step."""
    case = well(4.0, 0.5)
    tx = transformation(*case[2:5], 300, 0.0)
    out = _estimates(tx, case.loss, jnp.asarray(case.x), MANY, jax.random.key(seed))
    x = case.x - np.asarray(out, dtype=float)
    with enable_x64():
        exact = case.gibbs_mean()
        bias = np.abs(case.chain_means(300)[-1] - exact)
    error = np.abs(x.mean(0) - exact)
    excess = np.maximum(error - bias, 0)
    return float(np.max(excess / (x.std(0, ddof=1) / np.sqrt(MANY))))


def test_double_well_long_chain():
    """<x'> of the modified Gibbs law, to the chain's O(eta') and the sampling error.

    Measured over 100 other seeds: 0 failures.
    """
    assert gibbs_z() < THRESHOLD


def law_z(noise: Any, seed: int = 7) -> tuple[float, float]:
    """Largest z of a fine chain's mean and of its variance against the Gibbs law's."""
    case = well(1.0, 0.5, step_size=0.005)
    tx = transformation(*case[2:5], 2000, 0.0, noise)
    out = _estimates(tx, case.loss, jnp.asarray(case.x), MANY, jax.random.key(seed))
    x = case.x - np.asarray(out, dtype=float)
    with enable_x64():
        mean, square = (case.gibbs_moment(power) for power in (1, 2))
    mean_z = max_z(x.mean(0), mean, x.std(0, ddof=1) / np.sqrt(MANY))
    away = (x - mean) ** 2
    error = away.std(0, ddof=1) / np.sqrt(MANY)
    return mean_z, max_z(away.mean(0), square - mean**2, error)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_double_well_law(noise):
    """Mean and variance, the step being so small that its own error does not show.

    Measured over 40 other seeds and both noises: 0 failures, the largest z 3.24.
    """
    mean_z, variance_z = law_z(noise)
    assert mean_z < THRESHOLD
    assert variance_z < THRESHOLD


@pytest.mark.parametrize("gamma", [1e-3, 5e-5])
def test_valleys_finite_length(gamma):
    """The paper's figure 2, L = 12: steps that leave the sharp valley.

    Measured over 200 other seeds, both cases: 0 failures, the largest z 3.13.
    """
    assert estimate_z(valley(gamma), 12, 0.75) < THRESHOLD


def local_entropy(case: Case, x: jax.Array) -> jax.Array:
    """F at temperature T, by the trapezoid rule on the case's grid."""
    energy = case.loss(case.grid) + case.gamma / 2 * (case.grid - x) ** 2
    log_sum = jax.scipy.special.logsumexp(-energy / case.temperature)
    return case.temperature * (log_sum + jnp.log(case.grid[1] - case.grid[0]))


@pytest.mark.parametrize("case", [*(well(*pair) for pair in WELLS), valley(1e-3)])
def test_gradient_of_local_entropy(case):
    """-grad F by automatic differentiation is gamma (x - <x'>)."""
    with enable_x64():
        F_grad = jax.vmap(jax.grad(functools.partial(local_entropy, case)))
        grads = F_grad(jnp.asarray(case.x))
        expected = case.gamma * (case.x - case.gibbs_mean())
    np.testing.assert_allclose(-grads, expected, rtol=1e-9, atol=1e-13)


def test_low_temperature_is_the_moreau_envelope():
    """F / -1 -> min f + gamma/2 (x - .)^2, with an error of order T log T."""
    case = well(4.0, 1.0)
    with enable_x64():
        pull = case.gamma / 2 * (case.grid - case.x[:, None]) ** 2
        energy = np.asarray(case.loss(case.grid)) + pull
        envelope = np.min(energy, axis=1)
        for temperature in (1e-1, 1e-2, 3e-3):
            cold = case._replace(temperature=temperature)
            F = jax.vmap(functools.partial(local_entropy, cold))(jnp.asarray(case.x))
            error = np.max(np.abs(-F - envelope))
            assert error < 2 * temperature * abs(np.log(temperature))


def test_figure_2_the_minimum_moves_to_the_wide_valley():
    """On the paper's grid of 1000 points, at its gamma of 1e-3 and 5e-5."""
    grid = np.linspace(0.0, 1000.0, 1000)
    with enable_x64():
        assert abs(grid[np.argmin(valleys(grid))] - 300) < 1
        for gamma, place in [(1.0, 300), (1e-3, 600), (5e-5, 600)]:
            # A finer grid where gamma is large.
            case = valley(gamma)._replace(grid=np.linspace(-1000.0, 2000.0, 6001))
            F = jax.vmap(functools.partial(local_entropy, case))(jnp.asarray(grid))
            assert abs(grid[np.argmin(-F)] - place) < 6


def escaped(gamma: float, seed: int, size: int = 100) -> float:
    """Share of runs of Entropy-SGD from the sharp minimum that end in the wide one."""
    tx = eo.entropy_sgd(
        1.0,
        gamma=gamma,
        num_steps=1000,
        step_size=10.0,
        temperature=1.0,
        momentum=None,
        mean_decay=0.99,
        noise="rademacher",
        opaque_mode=True,
    )
    grad_fn = jax.grad(lambda x, _: valleys(x))

    def outer(loop, _):
        x, state = loop
        updates, state = tx.update(grad_fn(x, 0), state, x, grad_fn=grad_fn)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.asarray(300.0)
    run = lambda state: jax.lax.scan(outer, (start, state), length=20)[0][0]
    members = ensemble(tx.init(start), jax.random.key(seed), size)
    x = jax.jit(jax.vmap(run))(members)
    return float(np.mean(np.abs(np.asarray(x) - 600) < 200))


def test_figure_2_entropy_sgd_leaves_the_sharp_valley():
    """From 300 about half of the runs end in the wide valley, and without it none.

    The others are still on their way: in the wide scope mu's own spread is about 100.
    Measured over 40 other seeds: a share of 0.45 to 0.67, and 0 at the narrow scope.
    """
    x = jnp.asarray(300.5)
    step = jax.jit(lambda x: x - 10.0 * jax.grad(valleys)(x))
    for _ in range(200):
        x = step(x)
    assert abs(float(x) - 300) < 0.5
    assert escaped(5e-3, seed=6) == 0.0
    assert escaped(5e-5, seed=6) > 0.3
