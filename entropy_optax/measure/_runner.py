"""Chains that go from one target to the next, and how much work they do."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_optax.measure._chains import Chains, Record, run_chains, start_chains
from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_positive,
)
from entropy_optax.measure._curvature import Progress
from entropy_optax.measure._target import Target, far_draw, log_integrand_of_draws

COLD = 1e-6  # heat of a descent
MAX_UNSEEN = 0.5


class ChainSettings(NamedTuple):
    """How much work the chains do.

    One chain step costs about `(pi / 4) sqrt(1 + lambda / gamma) + 2` gradients, with
    lambda the largest curvature.

    Attributes:
      num_chains: chains in each of the two directions, 8 or more: the standard error
        comes from their spread.
      num_steps: steps recorded by each chain at each rung.
      num_burn: steps before them, in which the step size adapts; seven times as many
        before the way back.
      num_samples: draws of plain Monte Carlo, 100 or more.
      rung_width: standard deviation of the log weight from one rung to the next.
      max_rungs: a ladder that needs more is given up.
      max_leapfrogs: gradients of one trajectory at most.
      batch_size: energies computed at once; memory grows with it. None is 2e5 over the
        number of params, at least 1.
      center: where the reference Gaussian of a ladder is put: at the "params", at the
        "maximiser" of the integrand, or there if it is farther than `far`: "auto".
      far: a distance in standard deviations of the reference, over all n.
    """

    num_chains: int = 16
    num_steps: int = 24
    num_burn: int = 24
    num_samples: int = 2000
    rung_width: float = 1.0
    max_rungs: int = 300
    max_leapfrogs: int = 64
    batch_size: int | None = None
    center: Literal["auto", "params", "maximiser"] = "auto"
    far: float = 50.0


def check_settings(settings: ChainSettings | None) -> ChainSettings:
    """Refuses what cannot give a standard error.

    Args:
      settings: or None for the defaults.

    Returns:
      The settings.

    Raises:
      MeasureError: if one of them is too small or unknown.
    """
    settings = settings or ChainSettings()
    check_at_least("settings.num_chains", settings.num_chains, 8)
    check_at_least("settings.num_steps", settings.num_steps, 2)
    check_at_least("settings.num_burn", settings.num_burn, 2)
    check_at_least("settings.num_samples", settings.num_samples, 100)
    check_at_least("settings.max_rungs", settings.max_rungs, 1)
    check_at_least("settings.max_leapfrogs", settings.max_leapfrogs, 1)
    check_positive("settings.rung_width", settings.rung_width)
    if settings.center not in ("auto", "params", "maximiser"):
        raise MeasureError(
            f"settings.center: got {settings.center!r}, wanted 'auto', 'params' or"
            " 'maximiser'"
        )
    if settings.batch_size is not None:
        check_at_least("settings.batch_size", settings.batch_size, 1)
    return settings


def batch_size_for(settings: ChainSettings, size: int) -> int:
    """Chooses how many energies are computed at once.

    Args:
      settings: with its `batch_size`.
      size: number of params.

    Returns:
      The batch size.
    """
    return settings.batch_size or max(1, 200_000 // size)


class Stage(NamedTuple):
    """What chains did at one rung.

    Attributes:
      energy: V after each recorded step, `[T, C]`.
      total: `V + |y|^2 / 2`, minus the log of the density at s = 1, `[T, C]`.
      along: y along the runner's direction, `[T, C]`.
      acceptance: mean probability.
      position: mean of y, `[C, n]`.
      gradient: mean of the gradient of V, `[C, n]`.
    """

    energy: np.ndarray
    total: np.ndarray
    along: np.ndarray
    acceptance: float
    position: jax.Array
    gradient: jax.Array


def unseen(stage: Stage, energy: np.ndarray) -> float:
    """Looks for a valley that draws have missed.

    Args:
      stage: of chains at s = 1 that started at modes.
      energy: V of the draws.

    Returns:
      The share of its time that a chain spends below all of them, the largest of all
      chains: one in a valley below is enough to know that they missed it.
    """
    return float(np.max(np.mean(stage.energy < energy.min(), axis=0)))


class Runner:
    """Runs the same chains at one rung after another, and counts what they cost.

    Args:
      settings: of the chains.
      like: a vector of the shape and dtype of y.

    Attributes:
      direction: the component of y that is recorded, `[n]`; 0 at first.
      num_gradients: spent so far.
    """

    def __init__(self, settings: ChainSettings, like: jax.Array) -> None:
        size = like.size
        self.direction = jnp.zeros_like(like)
        self.settings = settings
        self.batch_size = batch_size_for(settings, size)
        self.num_gradients = 0
        burn = np.linspace(1.0, 0.2, settings.num_burn)  # fast first, then settle
        self.adapt = jnp.asarray([*burn, *np.zeros(settings.num_steps)])

    def start(self, target: Target, y: jax.Array) -> Chains:
        """Starts chains where the energies are finite.

        Args:
          target: what they will sample.
          y: `[C, n]`.

        Returns:
          Their states.
        """
        chains = start_chains(target, y, batch_size=self.batch_size)
        self.num_gradients += len(y)
        check_finite("f: energies where the chains start", chains.energy)
        return chains

    def burn(
        self, target: Target, chains: Chains, s: float, key: Any, heat: float = 1.0
    ) -> tuple[Chains, np.ndarray]:
        """Burns in alone.

        Args:
          target: what they sample.
          chains: the states.
          s: on the ladder.
          key: PRNG key.
          heat: see `run_chains`.

        Returns:
          The states and the energies without the first third, `[T, C]`.
        """
        count = self.settings.num_burn
        chains, record = self._run(target, chains, s, key, count, heat)
        return chains, np.asarray(record.energy, np.float64)[count // 3 : count]

    def run(
        self, target: Target, chains: Chains, s: float, key: Any
    ) -> tuple[Chains, Stage]:
        """Burns in and records.

        Args:
          target: what they sample.
          chains: the states.
          s: on the ladder.
          key: PRNG key.

        Returns:
          The states and the record.
        """
        chains, record = self._run(target, chains, s, key, len(self.adapt), 1.0)
        burn = self.settings.num_burn
        recorded = lambda values: np.asarray(values, np.float64)[burn:]
        return chains, Stage(
            recorded(record.energy),
            recorded(record.energy) + recorded(record.square),
            recorded(record.along),
            float(np.mean(record.acceptance[burn:])),
            record.position / self.settings.num_steps,
            record.gradient / self.settings.num_steps,
        )

    def _run(
        self, target: Target, chains: Chains, s: float, key: Any, count: int, heat: Any
    ) -> tuple[Chains, Record]:
        chains, record = run_chains(
            target,
            chains,
            s,
            heat,
            self.adapt,
            count,
            self.direction,
            key,
            batch_size=self.batch_size,
            max_leapfrogs=self.settings.max_leapfrogs,
        )
        self.num_gradients += int(record.num_gradients) * len(chains.y)
        return chains, record

    def from_the_reference(self, target: Target, key: jax.Array) -> Chains:
        """Starts chains at exact draws for s = 0.

        Args:
          target: what they will sample.
          key: PRNG key.

        Returns:
          Their states.
        """
        shape = (self.settings.num_chains, target.shift.size)
        return self.start(target, jax.random.normal(key, shape, target.shift.dtype))

    def from_a_mode(self, target: Target, key: jax.Array) -> Chains:
        """Starts chains at modes of the integrand, for the way back.

        Each descends from a draw one to four times as far out as the Gaussian around
        `params`, half of them from the best of eight times as many, the others from any
        at which the loss is finite, and is then burnt in: what it knows of the energies
        comes from below, what the chains from the reference know comes from above. A
        valley that neither the draws nor the descents meet stays unseen.

        Args:
          target: what they will sample.
          key: PRNG key.

        Returns:
          Their states.
        """
        keys = jax.random.split(key, 9)
        count = self.settings.num_chains
        draw_keys = jax.random.split(keys[0], 8 * count)
        scales = jnp.tile(jnp.linspace(1, 4, count, dtype=target.shift.dtype), 8)
        depth = log_integrand_of_draws(
            target, draw_keys, scales, batch_size=self.batch_size
        )
        self.num_gradients += len(scales)
        order = np.argsort(-np.nan_to_num(np.asarray(depth), nan=-np.inf))
        best, others = order[: count // 2], np.sort(order[count // 2 :])
        finite = others[np.isfinite(np.asarray(depth)[others])]
        # The draws go eight times from near to far: these are once all the way.
        pool = finite if finite.size else others  # of which `start` will complain
        any_of = np.linspace(0, min(count, pool.size) - 1, count - best.size)
        chosen = np.concatenate([best, pool[any_of.astype(int)]])
        far = jax.vmap(far_draw, in_axes=(None, 0, 0))
        chains = self.start(target, far(target, draw_keys[chosen], scales[chosen]))
        for k in (1, 2, 3):
            chains, _ = self.burn(target, chains, 1.0, keys[k], heat=COLD)
        for k in (4, 5, 6, 7):
            chains, _ = self.burn(target, chains, 1.0, keys[k])
        return chains


def shares(progress: Progress | None) -> Callable[[float], None]:
    """Makes a report of shares out of a report of counts.

    Args:
      progress: called with how much is done and how much there is, or None.

    Returns:
      A function of the share done, 0 to 1.
    """
    return lambda share: progress(round(100 * share), 100) if progress else None
