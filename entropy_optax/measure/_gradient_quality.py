"""How well the optimizer's short inner loop estimates the gradient of local entropy."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import entropy_optax as eo
from entropy_optax.measure._bridge import (
    MAX_R_HAT,
    bonferroni,
    difference_z,
    failures,
    r_hat,
)
from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_positive,
)
from entropy_optax.measure._estimate import Estimate, estimate, jackknife_error
from entropy_optax.measure._objective import Function, Params
from entropy_optax.measure._runner import (
    ChainSettings,
    Runner,
    Stage,
    check_settings,
)
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
      converged: whether the long chains agree with each other; if not, what rests on
        them is NaN.
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
      One row for each pair, and the cosine between grad f and -grad F; NaN where the
      long chains do not agree with each other.

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
    target = make_target(f, params, gamma, temperature)
    check_at_least("num_runs", num_runs, 8)
    for eta in step_size:
        check_positive("step_size", eta)
    for count in num_steps:
        check_at_least("num_steps", count, 1)
    if not len(step_size) or not len(num_steps):
        raise MeasureError("step_size, num_steps: wanted one or more of each")
    chain_key, key = jax.random.split(key)
    chains, reasons = _long_chains(
        target, (gamma * temperature) ** 0.5, chain_key, settings
    )
    if reasons:
        chains = chains * np.nan  # so that nobody takes it for a number
    truth = chains.mean(0)
    # The weight of the control variate has cost one degree of freedom.
    chains_error = float(np.sum(chains.var(0, ddof=2))) / len(chains)
    loss_gradient = np.asarray(_gradient(target.f, params), np.float64)
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
                _inner_loops(target.f, params, run_key, tx, num_runs), np.float64
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


@jax.jit
def _gradient(f: Any, params: Any) -> jax.Array:
    return ravel_pytree(jax.grad(f)(params))[0]


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
    target: Target, unit: float, key: jax.Array, settings: ChainSettings
) -> tuple[np.ndarray, tuple[str, ...]]:
    # Minus grad F by each chain, [2 C, n]; half start at modes, half around x. The unit
    # is sqrt(gamma T), for gamma sigma y and for the gradient by y alike.
    runner = Runner(settings, target.shift)
    keys = jax.random.split(key, 4)
    groups = [runner.from_the_reference(target, keys[0])]
    groups.append(runner.from_a_mode(target, keys[1]))
    for i, burn_key in enumerate(jax.random.split(keys[2], 2)):
        for k in jax.random.split(burn_key, 4):
            groups[i], _ = runner.burn(target, groups[i], 1.0, k)
    # What matters of y is how far it is along -grad F, of which this is a first guess.
    first = jnp.mean(jnp.concatenate([chains.y for chains in groups]), axis=0)
    runner.direction = first / jnp.maximum(jnp.linalg.norm(first), 1e-30)
    walks = []
    for chains, walk_key in zip(groups, jax.random.split(keys[3], 2), strict=True):
        walk: list[Stage] = []
        for k in jax.random.split(walk_key, LONG):
            chains, stage = runner.run(target, chains, 1.0, k)
            walk.append(stage)
        walks.append(walk)
    mean = lambda read: np.concatenate(
        [np.mean([read(stage) for stage in walk], axis=0) for walk in walks]
    ).astype(np.float64)
    z = -unit * mean(lambda stage: stage.position)
    g = unit * mean(lambda stage: stage.gradient)
    # Both have the mean -grad F: the weight of least total variance.
    gap = (z - g) - (z - g).mean(0)
    weight = np.sum((z - z.mean(0)) * gap) / (np.sum(gap**2) + 1e-300)
    # Wells of the same energy are told apart by the pull or by where they are.
    seen = lambda stage: np.stack([stage.energy, stage.total, stage.along])
    each = [np.concatenate([seen(stage) for stage in walk], axis=1) for walk in walks]
    all_of = np.concatenate(each, axis=2)  # [3, T, 2 C]
    count = settings.num_chains
    means = all_of.mean(1)
    apart = float(np.max(np.abs(difference_z(means[:, :count], means[:, count:]))))
    mixing = float(np.max(r_hat(all_of)))
    reasons = failures(
        {
            f"chains from x and from modes differ by {apart:.1f} standard errors": (
                apart > bonferroni(len(all_of), count)
            ),
            f"R-hat is {mixing:.2f}, wanted {MAX_R_HAT} or less": mixing > MAX_R_HAT,
        }
    )
    return z - weight * (z - g), reasons


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
    spread = jackknife_error(left)
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
