"""Differences of local entropy, by integrating its gradient along a line."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import interpolate

from entropy_optax.measure._bridge import (
    MAX_DIFFERENCE,
    MAX_R_HAT,
    MIN_ACCEPTANCE,
    bonferroni,
    difference_z,
    failures,
    r_hat,
    rounding,
)
from entropy_optax.measure._chains import Chains
from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_params,
)
from entropy_optax.measure._curvature import Progress
from entropy_optax.measure._line import LocalEntropyLine
from entropy_optax.measure._objective import Function, Params
from entropy_optax.measure._runner import (
    ChainSettings,
    Runner,
    Stage,
    check_settings,
    shares,
)
from entropy_optax.measure._target import Target, make_target


def local_entropy_along_line(
    f: Function,
    params_a: Params,
    params_b: Params,
    *,
    gamma: float,
    temperature: float,
    key: jax.Array,
    num_points: int = 9,
    settings: ChainSettings | None = None,
    progress: Progress | None = None,
) -> LocalEntropyLine:
    r"""Integrates the gradient of local entropy along a straight line.

    .. math::
      \frac{d\Phi}{dt} = -\beta \gamma\, (x_t - \langle x' \rangle_t) \cdot (b - a)
        = -\beta\, \langle \nabla f(x') \rangle_t \cdot (b - a),
      \qquad x_t = (1 - t) a + t b,

    the optimizer's own gradient. The two forms are combined with the weight of least
    variance. Chains walk from a to b, others from b to a, each from modes at its end;
    the slopes are integrated by a cubic spline. (n is the same at both ends, so this is
    the difference of F / T as well.) For how much wider and deeper b is than a read
    `line.difference`. The barrier between them does not enter it, but chains must
    follow across it: take more points if the answer is refused.

    Args:
      f: the loss, of the whole data set.
      params_a: one end.
      params_b: the other, a tree like it.
      gamma: the scope.
      temperature: T.
      key: PRNG key.
      num_points: on the line, odd, 5 or more.
      settings: how much work the chains do; see `ChainSettings`.
      progress: called with how much is done and how much there is.

    Returns:
      Phi along the line with cumulative errors; NaN unless both directions agree within
      3 standard errors, chains mix (R-hat 1.25 of energy and of the way along the
      line), both forms of the slope agree, and the points suffice: leaving out every
      second one must not matter anywhere on the line. (A barrier between two points, or
      waves in step with them, are not seen: take points closer than sqrt(T / gamma).)

    Raises:
      MeasureError: if the trees differ, energies are not finite, or an argument is out
        of its range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(x**2)
      >>> line = measure.local_entropy_along_line(
      ...     f,
      ...     jnp.zeros(2),
      ...     jnp.array([2.0, 0.0]),
      ...     gamma=1.0,
      ...     temperature=1.0,
      ...     key=jax.random.key(0),
      ...     num_points=5,
      ... )
      >>> bool(abs(line.difference.value + 1) < 3 * line.difference.standard_error)
      True
    """
    settings = check_settings(settings)
    check_at_least("num_points", num_points, 5)
    if num_points % 2 == 0:
        raise MeasureError(
            f"num_points: got {num_points}, wanted an odd number: the integral is"
            " compared with that over every second point"
        )
    a, b, unravel = _ends(params_a, params_b)
    t = np.linspace(0, 1, num_points)
    targets = [
        make_target(f, unravel(a + point * (b - a)), gamma, temperature) for point in t
    ]
    direction = (b - a) / targets[0].sigma
    runner = Runner(settings, a)
    runner.direction = direction
    report, keys = shares(progress), jax.random.split(key)
    forward = _walk(runner, targets, keys[0], lambda share: report(share / 2))
    backward = _walk(runner, targets[::-1], keys[1], lambda s: report(0.5 + s / 2))
    return _integrate(t, direction, forward, backward[::-1], runner.num_gradients)


def _ends(params_a: Params, params_b: Params) -> tuple[jax.Array, jax.Array, Any]:
    check_params(params_a)
    check_params(params_b)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    if shapes(params_a) != shapes(params_b):
        raise MeasureError("params_b: its shapes differ from those of params_a")
    a, unravel = ravel_pytree(params_a)
    return a, ravel_pytree(params_b)[0].astype(a.dtype), unravel


def _walk(runner: Runner, targets: list[Target], key: Any, report: Any) -> list[Stage]:
    start_key, *keys = jax.random.split(key, len(targets) + 1)
    chains = runner.from_a_mode(targets[0], start_key)
    stages, before = [], targets[0]
    for i, target in enumerate(targets):
        if i:
            chains = _moved(runner, chains, before, target)
        chains, stage = runner.run(target, chains, 1.0, keys[i])
        stages.append(stage)
        before = target
        report((i + 1) / len(targets))
    return stages


def _moved(runner: Runner, chains: Chains, before: Target, target: Target) -> Chains:
    # The same x', seen from another x.
    move = ravel_pytree(before.params)[0] - ravel_pytree(target.params)[0]
    step_size = chains.step_size
    chains = runner.start(target, chains.y + move / target.sigma)
    return chains._replace(step_size=step_size)


def _integrate(
    t: np.ndarray,
    direction: jax.Array,
    forward: list[Stage],
    backward: list[Stage],
    num_gradients: int,
) -> LocalEntropyLine:
    stack = lambda read: np.concatenate(
        [np.array([read(s) for s in way]) for way in (forward, backward)], axis=-1
    )
    energy = stack(lambda stage: stage.energy)  # [P, T, 2C]
    along = stack(lambda stage: stage.along)
    by_position = stack(lambda stage: stage.position @ direction).astype(float)
    by_gradient = stack(lambda stage: -stage.gradient @ direction).astype(float)
    # Their difference has mean 0: a control variate.
    gap = by_position - by_gradient
    centred = gap - gap.mean(1, keepdims=True)
    weight = np.sum(by_position * centred, 1) / (np.sum(centred**2, 1) + 1e-300)
    slopes = by_position - weight[:, None] * gap  # per chain, [P, 2C]

    count = slopes.shape[1]
    half = count // 2
    floor = rounding(float(jnp.finfo(direction.dtype).eps), np.abs(by_position).max())
    # The weight of the control variate has cost one degree of freedom.
    error = lambda v: np.hypot(v.std(-1, ddof=2) / count**0.5, floor)
    cumulative = _spline_weights(t, t) @ slopes
    sampling_error = error(cumulative)
    rule_error = _rule_error(t, slopes, cumulative, error)

    compare = lambda v: np.abs(difference_z(v[..., :half], v[..., half:]))
    whole = float(compare(cumulative[-1]))
    worst = float(np.max(compare(slopes)))
    forms = float(np.max(np.abs(gap.mean(1)) / (error(gap) + 1e-300)))
    mixing = float(np.max([r_hat(series) for series in (energy, along)]))
    acceptance = min(stage.acceptance for stage in [*forward, *backward])
    limit = bonferroni(len(t), half)
    reasons = failures(
        {
            f"forward and backward differ by {whole:.1f} standard errors": whole
            > MAX_DIFFERENCE,
            f"slopes at a point differ by {worst:.1f} standard errors": worst > limit,
            f"both forms of the slope differ by {forms:.1f} standard errors": forms
            > limit,
            f"R-hat is {mixing:.2f}, wanted {MAX_R_HAT} or less": mixing > MAX_R_HAT,
            f"acceptance is {acceptance:.2f}, wanted {MIN_ACCEPTANCE} or more": (
                acceptance < MIN_ACCEPTANCE
            ),
            f"num_points: half as many change Phi by {4 * rule_error.max():.2g}": (
                rule_error.max() > sampling_error.max()
            ),
        }
    )
    blank = np.nan if reasons else 0.0
    return LocalEntropyLine(
        t,
        cumulative.mean(1) + blank,
        np.hypot(sampling_error, rule_error) + blank,
        slopes.mean(1) + blank,
        error(slopes) + blank,
        rule_error,
        not reasons,
        count - 1,
        reasons,
        num_gradients,
    )


def _rule_error(
    t: np.ndarray, slopes: np.ndarray, cumulative: np.ndarray, error: Any
) -> np.ndarray:
    # How much every second point left out moves the integral, where that is not noise.
    # The even points, or the odd ones with the ends: waves hide from one of them.
    index, sizes = np.arange(len(t)), []
    for kept in (index[::2], np.unique([0, *index[1::2], len(t) - 1])):
        moved = cumulative - _spline_weights(t[kept], t) @ slopes[kept]
        size = np.abs(moved.mean(1))
        sizes.append(np.where(size > 3 * error(moved), size, 0.0))
    # A cubic rule gains a factor of 16; 4 is left for what is not smooth.
    return np.max(sizes, axis=0) / 4


def _spline_weights(t: np.ndarray, ends: np.ndarray) -> np.ndarray:
    # Integrals from 0 as linear functions of the values at t.
    spline = interpolate.make_interp_spline(t, np.eye(len(t)), k=min(3, len(t) - 1))
    return np.asarray(spline.antiderivative()(ends))
