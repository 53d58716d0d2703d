"""How well the optimizer's short inner loop estimates the gradient of local entropy."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import entropy_optax as eo
from entropy_optax.measure._bridge import MAX_R_HAT, bonferroni, difference_z, r_hat
from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_params,
    check_positive,
)
from entropy_optax.measure._estimate import Estimate, estimate
from entropy_optax.measure._objective import Function, Params, as_pytree
from entropy_optax.measure._runner import ChainSettings, Runner, check_settings
from entropy_optax.measure._target import Target, make_target

LONG = 8  # times as many steps as at a rung of a ladder


class InnerLoopQuality(NamedTuple):
    """The estimate of one inner loop.

    Attributes:
      step_size: eta'.
      num_steps: L.
      bias: norm of the mean error; the square is unbiased, and 0 where it is below.
      bias_error: standard error of it.
      standard_deviation: root of the total variance of one run's estimate.
      cosine_mean: between the runs' mean and the long chains' gradient.
      cosine: mean over runs of that of a single run.
    """

    step_size: float
    num_steps: int
    bias: float
    bias_error: float
    standard_deviation: float
    cosine_mean: float
    cosine: Estimate


class GradientQuality(NamedTuple):
    """Inner loops against long chains.

    Attributes:
      gradient: of -F, by long chains, `[n]`.
      gradient_error: root of its total squared standard error.
      gradient_norm: of -F.
      loss_gradient_norm: of f.
      cosine_loss: between grad f and -grad F.
      rows: one for each step size and each L.
      converged: whether the long chains agree with each other.
      reasons: why not.
    """

    gradient: np.ndarray
    gradient_error: float
    gradient_norm: float
    loss_gradient_norm: float
    cosine_loss: float
    rows: tuple[InnerLoopQuality, ...]
    converged: bool
    reasons: tuple[str, ...]


def gradient_quality(
    f: Function,
    params: Params,
    *,
    gamma: float,
    temperature: float,
    key: jax.Array,
    step_size: Sequence[float],
    num_steps: Sequence[int] = (5, 20, 100),
    mean_decay: Any = 0.75,
    num_runs: int = 64,
    settings: ChainSettings | None = None,
) -> GradientQuality:
    r"""Measures bias and variance of the optimizer's estimate of minus grad F.

    The estimate is :math:`\gamma (x - \mu_L)` of `entropy_optax.scale_by_local_entropy`
    with the sampler `entropy_optax.sgld`, in independent runs, each with the gradient
    of the whole loss: what L, the step size and the temperature's noise do, minibatches
    apart. The truth is :math:`\gamma (x - \langle x' \rangle) = \langle \nabla f
    \rangle` by long chains without error of discretisation.

    Args:
      f: the loss, of the whole data set.
      params: x.
      gamma: the scope.
      temperature: T.
      key: PRNG key.
      step_size: eta', one or more.
      num_steps: L, one or more.
      mean_decay: weight of the old mean, as in the optimizer.
      num_runs: for each pair, 8 or more.
      settings: of the long chains; `num_steps` there is multiplied by 8.

    Returns:
      One row for each pair, and the cosine between grad f and -grad F.

    Raises:
      MeasureError: if a run diverges, energies are not finite, or an argument is out of
        its range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(x**2)
      >>> out = measure.gradient_quality(
      ...     f,
      ...     jnp.ones(3),
      ...     gamma=1.0,
      ...     temperature=1e-4,
      ...     key=jax.random.key(0),
      ...     step_size=[0.1],
      ...     num_steps=[2, 50],
      ... )
      >>> [round(row.bias, 1) for row in out.rows]  # -grad F is (0.5, 0.5, 0.5)
      [0.8, 0.0]
    """
    settings = check_settings(settings)
    check_params(params)
    check_positive("gamma", gamma)
    check_positive("temperature", temperature)
    check_at_least("num_runs", num_runs, 8)
    for eta in step_size:
        check_positive("step_size", eta)
    for count in num_steps:
        check_at_least("num_steps", count, 1)
    if not len(step_size) or not len(num_steps):
        raise MeasureError("step_size, num_steps: wanted one or more of each")
    f = as_pytree(f)
    chain_key, key = jax.random.split(key)
    chains, reasons = _long_chains(f, params, gamma, temperature, chain_key, settings)
    truth, chains_error = chains.mean(0), _squared_error(chains)
    loss_gradient = np.asarray(ravel_pytree(jax.grad(f)(params))[0], np.float64)
    rows = []
    for eta in step_size:
        for count in num_steps:
            key, run_key = jax.random.split(key)
            tx = eo.scale_by_local_entropy(
                eo.sgld(eta, temperature=temperature),
                count,
                gamma,
                mean_decay=mean_decay,
                scale_by_gamma=True,
            )
            runs = np.asarray(
                _inner_loops(f, params, run_key, tx, num_runs), np.float64
            )
            check_finite(
                f"step_size: at {eta} and gamma {gamma} the inner loop diverges;"
                " estimates",
                runs,
            )
            rows.append(_row(eta, count, runs, truth, chains_error))
    return GradientQuality(
        truth,
        chains_error**0.5,
        float(np.linalg.norm(truth)),
        float(np.linalg.norm(loss_gradient)),
        _cosine(loss_gradient, truth),
        tuple(rows),
        not reasons,
        reasons,
    )


@partial(jax.jit, static_argnames=("tx", "num_runs"))
def _inner_loops(f: Any, params: Any, key: Any, tx: Any, num_runs: int) -> jax.Array:
    grad_fn = lambda x, _: jax.grad(f)(x)

    def estimate_of(key: jax.Array) -> jax.Array:
        state = optax.tree.set(tx.init(params), rng_key=key)
        first = grad_fn(params, 0)
        out, _ = tx.update(first, state, params, grad_fn=grad_fn)
        return ravel_pytree(out)[0]

    size = max(1, min(num_runs, 200_000 // ravel_pytree(params)[0].size))
    return jax.lax.map(estimate_of, jax.random.split(key, num_runs), batch_size=size)


def _long_chains(
    f: Any, params: Any, gamma: float, T: float, key: Any, settings: ChainSettings
) -> tuple[np.ndarray, tuple[str, ...]]:
    # Minus grad F by each chain, [2 C, n]; half start at modes, half around x.
    target = make_target(f, params, gamma, T)
    runner = Runner(settings, target.shift.size)
    keys = jax.random.split(key, 4)
    groups = [
        _long_run(runner, target, chains, keys[i])
        for i, chains in enumerate(
            (
                runner.from_the_reference(target, keys[2]),
                runner.from_a_mode(target, keys[3]),
            )
        )
    ]
    z = np.concatenate([group[0] for group in groups]) * -((gamma * T) ** 0.5)
    g = np.concatenate([group[1] for group in groups]) * (gamma * T) ** 0.5
    energy = np.concatenate([group[2] for group in groups], axis=1)
    # Both have the mean -grad F: the weight of least total variance.
    gap = (z - g) - (z - g).mean(0)
    weight = np.sum((z - z.mean(0)) * gap) / (np.sum(gap**2) + 1e-300)
    apart = float(difference_z(groups[0][2].mean(0), groups[1][2].mean(0)))
    mixing = float(r_hat(energy))
    tests = {
        f"chains from x and from modes differ in energy by {apart:.1f} standard"
        " errors": abs(apart) > bonferroni(1, settings.num_chains),
        f"R-hat is {mixing:.2f}, wanted {MAX_R_HAT} or less": mixing > MAX_R_HAT,
    }
    reasons = tuple(reason for reason, failed in tests.items() if failed)
    return z - weight * (z - g), reasons


def _long_run(runner: Runner, target: Target, chains: Any, key: Any) -> Any:
    # Means of y and of the gradient by chain, [C, n], and energies, [T, C].
    stages = []
    burn_key, *keys = jax.random.split(key, 1 + LONG)
    for k in jax.random.split(burn_key, 4):
        chains, _ = runner.burn(target, chains, 1.0, k)
    for k in keys:
        chains, stage = runner.run(target, chains, 1.0, k)
        stages.append(stage)
    mean = lambda parts: np.asarray(sum(parts) / LONG, np.float64)
    return (
        mean([stage.position for stage in stages]),
        mean([stage.gradient for stage in stages]),
        np.concatenate([stage.energy for stage in stages]),
    )


def _squared_error(samples: np.ndarray) -> float:
    return float(np.sum(samples.var(0, ddof=1)) / len(samples))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-300))


def _row(
    step_size: float, num_steps: int, runs: np.ndarray, truth: np.ndarray, error: float
) -> InnerLoopQuality:
    # |mean - truth|^2 is too large by the squared errors of both.
    def squared_bias(runs: np.ndarray) -> float:
        away = runs.mean(0) - truth
        return float(away @ away) - _squared_error(runs) - error

    n = len(runs)
    square = squared_bias(runs)
    left = np.array([squared_bias(np.delete(runs, i, 0)) for i in range(n)])
    spread = (n - 1) / n**0.5 * float(left.std())  # the jackknife
    spread = float(np.hypot(spread, 2 * error**0.5 * max(square, 0) ** 0.5))
    bias = max(square, 0.0) ** 0.5
    # d sqrt(b) = db / (2 sqrt(b)), and at most sqrt(db) where b is near 0.
    bias_error = min(spread / (2 * bias + 1e-300), spread**0.5)
    return InnerLoopQuality(
        step_size,
        num_steps,
        bias,
        bias_error,
        float(np.sum(runs.var(0, ddof=1))) ** 0.5,
        _cosine(runs.mean(0), truth),
        estimate(np.array([_cosine(run, truth) for run in runs])),
    )
