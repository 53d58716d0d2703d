"""The paper's smoothness lemma as numbers: on quadratics, in one dimension, on a net.

All of it is of `G = -F / beta`, against the lemma as printed and against five bounds
that are true; see `entropy_optax.measure.smoothness_bounds`.
"""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from entropy_optax.experiments import smoothness_figures
from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.data import load
from entropy_optax.measure._curvature import hessian_vector_product
from entropy_optax.measure._lipschitz import lemma_counterexample, smoothness_1d
from entropy_optax.measure._objective import Function, objective
from entropy_optax.measure._smoothness import (
    Smoothness,
    lemma_bounds,
    lemma_margin,
    quadratic_smoothness,
    smoothness_bounds,
)
from entropy_optax.measure._smoothness_net import smoothness_at

# Random functions have smoothness 1, so gamma is in units of it.
GAMMAS = tuple(float(gamma) for gamma in np.geomspace(0.1, 100, 13))
TEMPERATURES = (0.001, 0.01, 0.1)
NUM_FUNCTIONS = 20
COUNTEREXAMPLE_TEMPERATURES = (1.0, 0.3, 0.1)
SEEDS = (1, 2, 3)

NUM_TRAIN = 500
NUM_HIDDEN = 32
RATE, BATCH_SIZE = 0.05, 100
NET_GAMMAS = (0.1, 1.0, 10.0, 100.0)
POINTS = (0, 3, 10, 30, 100, 300, 1000, 3000)  # gradients


def measure(out: pathlib.Path, console: Console) -> None:
    """Measures all of them; writes `smoothness.json` and its figures.

    Args:
      out: folder of the record and the figures.
      console: where progress goes.
    """
    content: dict[str, Any] = {"quadratics": quadratics()}
    console.print("quadratics done")
    content["one_dimension"] = one_dimension()
    console.print("one dimension done")
    content["counterexample"] = counterexample()
    console.print("counterexample done")
    content["net"] = [point for seed in SEEDS for point in net_path(seed, console)]
    content["net_settings"] = {
        "layers": [196, NUM_HIDDEN, 10],
        "activation": "tanh",
        "num_train": NUM_TRAIN,
        "learning_rate": RATE,
        "momentum": 0.9,
        "batch_size": BATCH_SIZE,
    }
    write_json(out / "smoothness.json", _rounded(content))
    smoothness_figures.draw(out)


def quadratics() -> list[dict[str, Any]]:
    """Exact constants of random quadratics in 50 dimensions over the unit ball.

    Returns:
      One row for each seed, kind of spectrum and gamma.
    """
    rows = []
    for seed, convex, gamma in itertools.product(SEEDS, (True, False), (1, 10, 100)):
        rng = np.random.default_rng(seed)
        eigenvalues = 10 ** rng.uniform(-2, np.log10(40), 50)
        if not convex:
            eigenvalues[:5] = -rng.uniform(0, 0.46, 5)
        found = quadratic_smoothness(eigenvalues, gamma)
        row: dict[str, Any] = {"seed": seed, "convex": convex, "gamma": gamma}
        row |= _against(found, gamma, found.lowest, found.highest, found.slope)
        row["lemma_margin"] = c = lemma_margin(eigenvalues, gamma)
        row["lemma"] = None
        if c > 0:
            row["lemma"] = lemma_bounds(found.slope, found.smoothness, gamma, c)
        rows.append(row)
    return rows


def fourier_series(seed: int, num_terms: int = 6) -> Callable[[jax.Array], jax.Array]:
    """A random function of period 2 pi whose largest |f''| is 1.

    Args:
      seed: of its coefficients.
      num_terms: frequencies 1 to this.

    Returns:
      A function of one variable.
    """
    rng = np.random.default_rng(seed)
    frequencies = np.arange(1, num_terms + 1)
    amplitudes = rng.normal(size=num_terms) / frequencies**2
    phases = rng.uniform(0, 2 * np.pi, num_terms)
    x = np.linspace(0, 2 * np.pi, 20_001)[:, None]
    bends = (amplitudes * frequencies**2 * np.cos(frequencies * x + phases)).sum(axis=1)
    amplitudes /= np.abs(bends).max()
    return lambda x: jnp.sum(amplitudes * jnp.cos(frequencies * x + phases))


def double_well(x: jax.Array) -> jax.Array:
    """Two minima at -1 and 1 and a barrier of 1/4 with curvature -1 between them.

    Args:
      x: a number.

    Returns:
      `(x² - 1)² / 4`.
    """
    return (x**2 - 1) ** 2 / 4


def one_dimension() -> list[dict[str, Any]]:
    """Random Fourier series over a period, and the double well over [-1.5, 1.5].

    Returns:
      One row for each function, gamma and temperature.
    """
    functions: dict[Any, Any] = {
        seed: fourier_series(seed) for seed in range(NUM_FUNCTIONS)
    }
    functions["double_well"] = double_well
    rows = []
    for (name, f), gamma, temperature in itertools.product(
        functions.items(), GAMMAS, TEMPERATURES
    ):
        well = name == "double_well"
        interval = (-1.5, 1.5) if well else (0.0, 2 * np.pi)
        found = smoothness_1d(f, interval, gamma, temperature=temperature)
        # Of the double well the curvature rises without bound.
        ends = (-1.0, np.inf) if well else (found.lowest, found.highest)
        bounds = smoothness_bounds(gamma, lowest=ends[0], highest=ends[1])
        rows.append(
            {
                "function": name,
                "gamma": gamma,
                "temperature": temperature,
                "constants": found,
                "bound": bounds.smoothness,
            }
        )
    return rows


def counterexample() -> list[dict[str, Any]]:
    """The function of which the lemma is false, at several temperatures.

    Returns:
      One row for each gamma and temperature.
    """
    rows = []
    gammas = sorted({*np.geomspace(0.5, 500, 25).tolist(), 1.0, 5.0, 20.0})
    for temperature, gamma in itertools.product(COUNTEREXAMPLE_TEMPERATURES, gammas):
        found = lemma_counterexample(gamma, temperature=temperature)
        row: dict[str, Any] = {"gamma": gamma, "temperature": temperature}
        row |= _against(found, gamma, found.lowest, found.highest, found.slope)
        rows.append(row | {"ratio": found.entropy_smoothness / found.smoothness})
    return rows


def net_path(seed: int, console: Console) -> list[dict[str, Any]]:
    """Slopes and curvatures of f and G at temperature 0, along a path of SGD.

    Args:
      seed: of the net, the minibatches and Lanczos.
      console: where progress goes.

    Returns:
      One row for each point of the path and gamma.
    """
    data = load("mnist-10k", num_train=NUM_TRAIN, pool=2).train
    images = jnp.asarray(data.images.reshape(NUM_TRAIN, -1))
    labels = jnp.asarray(data.labels)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        (w1, b1), (w2, b2) = params
        logits = jnp.tanh(batch[0] @ w1 + b1) @ w2 + b2
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return jnp.mean(losses)

    key = jax.random.key(seed)
    sizes = (images.shape[1], NUM_HIDDEN, 10)
    params: Any = [
        (jax.random.normal(jax.random.fold_in(key, i), (n, m)) / n**0.5, jnp.zeros(m))
        for i, (n, m) in enumerate(itertools.pairwise(sizes))
    ]
    f = objective(loss_fn, (images, labels), params)
    tx = optax.sgd(RATE, momentum=0.9, nesterov=True)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        grads = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    rng, state, rows = np.random.default_rng(seed), tx.init(params), []
    for gradients in range(max(POINTS) + 1):
        if gradients in POINTS:
            for gamma in NET_GAMMAS:
                found = smoothness_at(f, params, gamma, key=key)
                rows.append(
                    {
                        "seed": seed,
                        "gradients": gradients,
                        "gamma": gamma,
                        "loss": float(f(params)),
                        "constants": found.constants,
                        "distance": found.distance,
                        "residual": found.proximal_point.residual,
                        "eigenvalue_error": found.eigenvalue_error,
                        "entropy_eigenvalue_error": found.entropy_eigenvalue_error,
                        "shift_curvature": shift_curvature(f, params),
                    }
                )
            console.print(f"net, seed {seed}: {gradients} gradients")
        picked = rng.choice(NUM_TRAIN, BATCH_SIZE, replace=False)
        params, state = step(params, state, (images[picked], labels[picked]))
    return rows


def shift_curvature(f: Function, params: Any) -> float:
    """Norm of ∇²f times the direction that raises all logits alike.

    A softmax does not see that, so it is an eigenvector with eigenvalue 0 at any params
    of any classifier: the lemma's assumption, no eigenvalue near 0, never holds.

    Args:
      f: the loss.
      params: of `net_path`.

    Returns:
      The norm, 0 but for rounding.
    """
    (w1, b1), (w2, b2) = jax.tree.map(jnp.zeros_like, params)
    direction = [(w1, b1), (w2, b2 + len(b2) ** -0.5)]
    product = hessian_vector_product(f, params, direction)
    return float(optax.tree.norm(product))


def _against(
    found: Smoothness, gamma: float, lowest: float, highest: float, slope: float
) -> dict[str, Any]:
    bounds = smoothness_bounds(gamma, lowest=lowest, highest=highest, slope=slope)
    return {"constants": found, "bounds": bounds}


def _rounded(value: Any) -> Any:
    # Named tuples become dicts, numbers have five digits.
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _rounded(value._asdict())  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
