"""Tempered sequential Monte Carlo, by blackjax: an independent check of the value."""

from functools import partial
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import adaptive_tempered, resampling
from scipy import special

from entropy_optax.measure._bridge import MIN_ACCEPTANCE, failures
from entropy_optax.measure._checks import check_at_least, check_finite
from entropy_optax.measure._curvature import Progress
from entropy_optax.measure._estimate import Estimate, jackknife_error
from entropy_optax.measure._local_entropy_result import (
    LocalEntropyDiagnostics,
    LocalEntropyEstimate,
    not_converged,
)
from entropy_optax.measure._objective import Function, Params
from entropy_optax.measure._runner import (
    MAX_UNSEEN,
    ChainSettings,
    Runner,
    check_settings,
    unseen,
)
from entropy_optax.measure._target import (
    Target,
    log_volume,
    make_target,
    map_batches,
    potential,
)

MAX_SPREAD = 1.0
MAX_TEMPERATURES = 5000
NUM_LEAPFROGS = 16
TARGET_ESS = 0.9


def tempered_smc_local_entropy(
    f: Function,
    params: Params,
    *,
    gamma: float,
    temperature: float,
    key: jax.Array,
    num_runs: int = 8,
    num_particles: int = 128,
    num_mcmc_steps: int = 5,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> LocalEntropyEstimate:
    r"""Estimates local entropy by blackjax's adaptive tempered SMC.

    Particles from N(0, I / (beta gamma)) are weighted, resampled and moved by
    Hamiltonian Monte Carlo through :math:`e^{-s \beta f}`, s from 0 to 1, in steps at
    which the effective sample size falls to 90 %. It shares the energy with
    `local_entropy` and one gate: chains from modes must not stay below all particles.
    Phi is the log of the mean of exp(Phi) over independent runs, its bias and standard
    error from the jackknife.

    Args:
      f: the loss, of the whole data set.
      params: x, a tree.
      gamma: the scope.
      temperature: T.
      key: PRNG key.
      num_runs: independent runs, 4 or more.
      num_particles: of each run.
      num_mcmc_steps: moves of 16 leapfrog steps at each s.
      batch_size: particles moved at once, to bound the memory; None is all.
      progress: called with runs done and their number.

    Returns:
      The estimate. Not converged if the runs' standard deviation is above 1, where the
      mean rests on the luckiest, moves are not accepted, a valley is seen that no
      particle is in, or the steps of s do not suffice.

    Raises:
      MeasureError: if energies are not finite, or an argument is out of its range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(x**2)
      >>> out = measure.tempered_smc_local_entropy(
      ...     f, jnp.zeros(2), gamma=1.0, temperature=1.0, key=jax.random.key(0)
      ... )
      >>> out.method, bool(abs(out.phi + jnp.log(2)) < 3 * out.standard_error)
      ('tempered_smc', True)

    References:
      Del Moral, Doucet and Jasra, `Sequential Monte Carlo samplers
      <https://doi.org/10.1111/j.1467-9868.2006.00553.x>`_, 2006.
    """
    target = make_target(f, params, gamma, temperature)
    check_at_least("num_runs", num_runs, 4)
    check_at_least("num_particles", num_particles, 16)
    check_at_least("num_mcmc_steps", num_mcmc_steps, 1)
    keys = jax.random.split(key, num_runs + 2)
    runner = Runner(check_settings(ChainSettings(batch_size=batch_size)), target.shift)
    chains = runner.from_a_mode(target, keys[0])
    _, stage = runner.run(target, chains, 1.0, keys[1])
    runs: list[_Run] = []
    for i, run_key in enumerate(keys[2:]):
        runs.append(
            _run(target, run_key, num_particles, num_mcmc_steps, batch_size or 0)
        )
        if progress:
            progress(i + 1, num_runs)
    values = np.array([run.value for run in runs])
    missed = unseen(stage, np.concatenate([run.energy for run in runs]))
    acceptance = min(run.acceptance for run in runs)
    spread = float(values.std(ddof=1))
    reasons = failures(
        {
            f"runs have a standard deviation of {spread:.2g}, wanted {MAX_SPREAD}": (
                not spread <= MAX_SPREAD
            ),
            f"acceptance is {acceptance:.2f}, wanted {MIN_ACCEPTANCE} or more": (
                not acceptance >= MIN_ACCEPTANCE
            ),
            "a chain stays in a valley below the energies of all particles": (
                missed > MAX_UNSEEN
            ),
            f"{MAX_TEMPERATURES} steps of s do not suffice": any(
                not run.finished for run in runs
            ),
        }
    )
    count = sum(run.num_temperatures for run in runs)
    each = 1 + num_mcmc_steps * NUM_LEAPFROGS
    seen = LocalEntropyDiagnostics(
        unseen=missed,
        acceptance=acceptance,
        num_rungs=max(run.num_temperatures for run in runs) + 1,
        num_energies=count * num_particles * each + runner.num_gradients,
        reasons=reasons,
    )
    tail = (temperature, log_volume(target.shift.size, gamma, temperature))
    if reasons:
        return not_converged(tail, seen)
    out = _log_mean(values)
    return LocalEntropyEstimate(
        *out[:2], (np.nan, np.nan), "tempered_smc", True, num_runs, *tail, seen
    )


def _log_mean(values: np.ndarray) -> Estimate:
    # The log of the mean of exponentials, by the jackknife.
    n = len(values)
    log_mean = lambda v: float(special.logsumexp(v) - np.log(len(v)))
    left = np.array([log_mean(np.delete(values, i)) for i in range(n)])
    value = n * log_mean(values) - (n - 1) * left.mean()
    return Estimate(float(value), jackknife_error(left), n)


class _Run(NamedTuple):
    value: float
    energy: np.ndarray  # of the particles at the end
    num_temperatures: int
    acceptance: float
    finished: bool


def _run(
    target: Target, key: jax.Array, num_particles: int, num_mcmc_steps: int, batch: int
) -> _Run:
    key, start_key = jax.random.split(key)
    like = target.shift
    y = jax.random.normal(start_key, (num_particles, *like.shape), like.dtype)
    state = adaptive_tempered.init(y)
    step_size = 0.2 / like.size**0.25
    total, count, acceptances = 0.0, 0, []
    while float(state.tempering_param) < 1 and count < MAX_TEMPERATURES:
        key, step_key = jax.random.split(key)
        state, increment, acceptance = _step(
            target, state, step_key, step_size, num_mcmc_steps, batch
        )
        check_finite("f: log weights of the particles", increment)
        total += float(increment)
        acceptances.append(float(acceptance))
        # The density stiffens from step to step: shrink fast, grow slowly.
        step_size *= float(np.clip(np.exp(2 * (acceptances[-1] - 0.85)), 0.4, 1.1))
        count += 1
    energy = np.asarray(_energies(target, state.particles, batch), np.float64)
    finished = float(state.tempering_param) >= 1
    return _Run(total, energy, count, min(acceptances), finished)


@partial(jax.jit, static_argnames="batch")
def _energies(target: Target, y: jax.Array, batch: int) -> jax.Array:
    return map_batches(partial(potential, target), y, batch or len(y))


@partial(jax.jit, static_argnames=("num_mcmc_steps", "batch"))
def _step(
    target: Target,
    state: Any,
    key: Any,
    step_size: Any,
    num_mcmc_steps: int,
    batch: int,
) -> Any:
    like = target.shift
    kernel = adaptive_tempered.build_kernel(
        lambda y: -0.5 * jnp.sum(y**2),
        lambda y: -potential(target, y),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        resampling.systematic,
        TARGET_ESS,
        batch_size=batch,
    )
    parameters = {
        "step_size": jnp.asarray([step_size], like.dtype),
        "inverse_mass_matrix": jnp.ones((1, *like.shape), like.dtype),
        "num_integration_steps": jnp.array([NUM_LEAPFROGS]),
    }
    state, info = kernel(key, state, num_mcmc_steps, parameters)
    acceptance = jnp.mean(info.update_info.acceptance_rate)
    return state, info.log_likelihood_increment, acceptance
