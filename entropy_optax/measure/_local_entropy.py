"""The value of local entropy of any loss, with its error, or "not converged"."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from entropy_optax.measure._bridge import (
    Ladder,
    bonferroni,
    bridge_energies,
    check_ladder,
    failures,
    rounding,
)
from entropy_optax.measure._checks import MeasureError, check_finite
from entropy_optax.measure._curvature import Progress
from entropy_optax.measure._local_entropy_result import (
    LocalEntropyDiagnostics,
    LocalEntropyEstimate,
    not_converged,
)
from entropy_optax.measure._objective import Function, Params
from entropy_optax.measure._proximal import proximal_point
from entropy_optax.measure._runner import (
    MAX_UNSEEN,
    ChainSettings,
    Runner,
    check_settings,
    shares,
    unseen,
)
from entropy_optax.measure._target import (
    Target,
    energies_of_draws,
    log_volume,
    make_target,
)
from entropy_optax.measure._thermodynamic import run_ladder

MIN_EFFECTIVE = 100
Method = Literal["auto", "monte_carlo", "thermodynamic_integration"]


def local_entropy(
    f: Function,
    params: Params,
    *,
    gamma: float,
    temperature: float,
    key: jax.Array,
    method: Method = "auto",
    settings: ChainSettings | None = None,
    progress: Progress | None = None,
) -> LocalEntropyEstimate:
    r"""Estimates the normalised local entropy of a loss.

    .. math::
      \Phi(x; \beta, \gamma) = \log E_{\xi \sim N(0, I / (\beta \gamma))}
        \exp(-\beta f(x + \xi)), \qquad \beta = 1 / T,

    in nats. It is 0 for f = 0 in any dimension, so nets can be compared.
    :math:`F_\beta = \Phi + \frac{n}{2} \log \frac{2 \pi}{\beta \gamma}` is the log of
    the integral in the paper, and :math:`F = T F_\beta` local entropy at temperature T,
    in units of the loss.

    Two methods, the simpler first:

    1. Plain Monte Carlo, if its effective sample size is 100 or more **and** chains at
       s = 1, which started at modes, confirm it: the effective sample size by their
       weights is 100 or more as well (weights without variance show there first), the
       mean energies agree, and no chain stays below the energies of all draws (a valley
       into which none fell). The larger of both standard errors is given. The chains
       cost more than the draws. A loss that overflows at a draw has weight 0 there.
    2. Thermodynamic integration over s in :math:`e^{-s \beta f}`, :math:`d\Phi / ds =
       -\langle \beta f \rangle_s`. Chains climb an adaptive ladder of s from exact
       draws of the Gaussian, others descend it from modes; the stages are summed by
       Bennett's acceptance ratio, which has no error of discretisation. Refused unless
       both directions agree within 3 standard errors (in all and, allowing for their
       number, at each rung), chains mix (R-hat 1.25), rungs overlap and proposals are
       accepted.

    If x is many standard deviations from the maximiser of the integrand, the second
    method moves the Gaussian there, an exact change of variables.

    Args:
      f: the loss, of the whole data set: energies of minibatches are biased
        (:math:`\log E \exp`).
      params: x, a tree.
      gamma: the scope.
      temperature: T.
      key: PRNG key.
      method: "auto" is the order above; or one of the two alone.
      settings: how much work; see `ChainSettings`.
      progress: called with how much is done and how much there is, roughly.

    Returns:
      Phi with standard error, bracket and diagnostics. Where no method passes its gates
      `converged` is False and Phi is NaN.

    Raises:
      MeasureError: if energies are NaN, or infinite where chains start, or an argument
        is out of its range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(x**2)
      >>> out = measure.local_entropy(
      ...     f, jnp.zeros(2), gamma=1.0, temperature=1.0, key=jax.random.key(0)
      ... )
      >>> out.method, bool(abs(out.phi + jnp.log(2)) < 3 * out.standard_error)
      ('monte_carlo', True)

    References:
      Chaudhari et al., `Entropy-SGD <https://arxiv.org/abs/1611.01838>`_, ICLR 2017,
      section 3; Gelman and Meng, `Simulating normalizing constants
      <https://doi.org/10.1214/ss/1028905934>`_, 1998.
    """
    settings = check_settings(settings)
    if method not in ("auto", "monte_carlo", "thermodynamic_integration"):
        raise MeasureError(
            f"method: got {method!r}, wanted 'auto', 'monte_carlo' or"
            " 'thermodynamic_integration'"
        )
    report = shares(progress)
    target = make_target(f, params, gamma, temperature)
    runner = Runner(settings, target.shift)
    keys = jax.random.split(key, 3)
    tail = (temperature, log_volume(target.shift.size, gamma, temperature))

    seen = LocalEntropyDiagnostics()
    if method != "thermodynamic_integration":
        out = _monte_carlo(runner, target, keys[0], tail, report)
        if out.converged or method == "monte_carlo":
            report(1.0)
            return out
        seen = out.diagnostics
        if seen.overflow > 0:
            raise MeasureError(
                f"f: the loss is infinite at {100 * seen.overflow:.2g} % of Gaussian"
                " draws around params, where a ladder would start; wanted a larger"
                " gamma, a lower temperature, or params in float64"
            )
    target = _centred(runner, target, gamma)
    ladder = run_ladder(runner, target, keys[1], report)
    return _integrated(ladder, runner, seen, tail)


def _centred(runner: Runner, target: Target, gamma: float) -> Target:
    settings = runner.settings
    if settings.center == "params":
        return target
    point = proximal_point(target.f, target.params, gamma, newton_steps=0)
    runner.num_gradients += point.num_gradients
    shift = point.shift / float(target.sigma)
    if settings.center == "auto" and np.linalg.norm(shift) <= settings.far:
        return target
    return target._replace(shift=jnp.asarray(shift, target.shift.dtype))


def _monte_carlo(
    runner: Runner,
    target: Target,
    key: jax.Array,
    tail: tuple[float, float],
    report: Callable[[float], None],
) -> LocalEntropyEstimate:
    keys = jax.random.split(key, 3)
    count = runner.settings.num_samples
    draw_keys, parts = jax.random.split(keys[0], count), []
    for part in np.array_split(np.arange(count), max(1, count // 200)):
        size = runner.batch_size
        parts.append(energies_of_draws(target, draw_keys[part], batch_size=size))
        report(0.5 * (part[-1] + 1) / count)
    runner.num_gradients += count
    energy = np.concatenate([np.asarray(p, np.float64) for p in parts])
    # Where the loss overflows the weight is 0.
    blanked = np.where(energy == np.inf, 0.0, energy)
    check_finite("f: energies of Gaussian draws around params", blanked)
    phi = float(special.logsumexp(-energy) - np.log(count))
    weights = np.exp(-energy - phi)  # of mean 1
    effective = count / float(np.mean(weights**2))
    seen = LocalEntropyDiagnostics(
        effective_sample_size=effective,
        overflow=float(np.mean(energy == np.inf)),
        num_energies=runner.num_gradients,
    )
    if not effective >= MIN_EFFECTIVE:
        reason = f"effective sample size is {effective:.0f}, wanted {MIN_EFFECTIVE}"
        return not_converged(tail, seen._replace(reasons=(f"Monte Carlo: {reason}",)))
    chains = runner.from_a_mode(target, keys[1])
    _, stage = runner.run(target, chains, 1.0, keys[2])
    # The mean of the weights under their own density is that of their squares: chains
    # see the tail that the draws are too few for.
    log_second = special.logsumexp(-stage.energy - phi) - np.log(stage.energy.size)
    by_chains = count * float(np.exp(-log_second))
    mean = float(np.mean(weights * blanked))
    means = stage.energy.mean(0)
    variance = np.sum((weights * (blanked - mean)) ** 2) / count**2
    variance += means.var(ddof=1) / len(means)
    z = (mean - means.mean()) / max(variance, 1e-300) ** 0.5
    missed = unseen(stage, energy)
    reasons = failures(
        {
            f"Monte Carlo: draws and chains differ in energy by {z:.1f} standard"
            " errors": abs(z) > bonferroni(1, len(means)),
            f"Monte Carlo: by chains the effective sample size is {by_chains:.0f},"
            f" wanted {MIN_EFFECTIVE}": not by_chains >= MIN_EFFECTIVE,
            "Monte Carlo: a chain stays in a valley below the energies of all draws": (
                missed > MAX_UNSEEN
            ),
        }
    )
    seen = seen._replace(
        effective_sample_size=min(effective, by_chains),
        mean_energy_z=float(z),
        unseen=missed,
        acceptance=stage.acceptance,
        num_energies=runner.num_gradients,
        reasons=reasons,
    )
    if reasons:
        return not_converged(tail, seen)
    eps = float(np.finfo(target.shift.dtype).eps)
    weighted = float(np.mean(weights * np.abs(blanked)))
    spread = max(float(weights.var(ddof=1)), float(np.expm1(log_second)))
    error = np.hypot((spread / count) ** 0.5, rounding(eps, weighted))
    return LocalEntropyEstimate(
        phi,
        float(error),
        (-float(energy.mean()), -mean),
        "monte_carlo",
        True,
        int(seen.effective_sample_size),
        *tail,
        seen,
    )


def _integrated(
    ladder: Ladder | None,
    runner: Runner,
    seen: LocalEntropyDiagnostics,
    tail: tuple[float, float],
) -> LocalEntropyEstimate:
    cost = runner.num_gradients
    if ladder is None:
        reason = f"the ladder needs more than {runner.settings.max_rungs} rungs"
        seen = seen._replace(num_energies=cost, reasons=(*seen.reasons, reason))
        return not_converged(tail, seen)
    gates = check_ladder(ladder)
    both = np.concatenate([ladder.forward, ladder.backward], axis=-1)
    total = bridge_energies(ladder.s, both, ladder.precision)
    means, widths = both.mean(axis=(1, 2)), np.diff(ladder.s)
    bracket = (-float(widths @ means[:-1]), -float(widths @ means[1:]))
    seen = seen._replace(
        **gates._asdict()
        | {
            "num_rungs": len(ladder.s),
            "num_energies": cost,
            "reasons": (*seen.reasons, *gates.reasons),
        }
    )
    if gates.reasons:
        return not_converged(tail, seen)
    return LocalEntropyEstimate(
        total.value,
        total.standard_error,
        bracket,
        "thermodynamic_integration",
        True,
        total.num_samples,
        *tail,
        seen,
    )
