"""Thermodynamic ladders: chains from the Gaussian to the loss's valley and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_optax.measure._bridge import Ladder
from entropy_optax.measure._chains import Chains
from entropy_optax.measure._runner import Runner, Stage
from entropy_optax.measure._target import Target


def choose_rungs(runner: Runner, target: Target, key: jax.Array) -> np.ndarray:
    """Places the rungs by chains of its own.

    The next rung is so far up that the log weight's standard deviation is
    `rung_width`. With rungs chosen by the chains that are recorded, 95 % intervals
    covered 89 % of 100 repeats on a quadratic with n = 10.

    Args:
      runner: of the chains.
      target: what they sample at s = 1.
      key: PRNG key.

    Returns:
      The rungs; the last is below 1 if `max_rungs` do not suffice.
    """
    settings = runner.settings
    key, start_key = jax.random.split(key)
    chains = runner.from_the_reference(target, start_key)
    s = [0.0]
    while s[-1] < 1 and len(s) <= settings.max_rungs:
        key, run_key = jax.random.split(key)
        chains, energy = runner.burn(target, chains, s[-1], run_key)
        width = settings.rung_width / max(float(energy.std()), 1e-12)
        # No sliver of a rung at the end.
        s.append(1.0 if s[-1] + 1.1 * width >= 1 else s[-1] + width)
    return np.array(s)


def walk(
    runner: Runner, target: Target, chains: Chains, s: Any, keys: Any, progress: Any
) -> list[Stage]:
    """Runs chains along rungs.

    Args:
      runner: of the chains.
      target: what they sample at s = 1.
      chains: where they start.
      s: the rungs, in the order of the way.
      keys: a PRNG key for each rung.
      progress: called with the share of the way.

    Returns:
      What was recorded, in this order.
    """
    stages = []
    for i, (rung, run_key) in enumerate(zip(s, keys, strict=True)):
        chains, stage = runner.run(target, chains, float(rung), run_key)
        stages.append(stage)
        progress((i + 1) / len(s))
    return stages


def run_ladder(
    runner: Runner, target: Target, key: jax.Array, progress: Any
) -> Ladder | None:
    """Runs chains up and down.

    Args:
      runner: of the chains.
      target: what they sample at s = 1.
      key: PRNG key.
      progress: called with the share of the way.

    Returns:
      The ladder, or None if `max_rungs` do not suffice.
    """
    rungs_key, up_key, down_key = jax.random.split(key, 3)
    s = choose_rungs(runner, target, rungs_key)
    progress(0.1)
    if s[-1] < 1:
        return None
    # Up from exact draws of the Gaussian, down from modes of the integrand.
    start, *up_keys = jax.random.split(up_key, len(s) + 1)
    chains = runner.from_the_reference(target, start)
    part = lambda share: progress(0.1 + 0.45 * share)
    up = walk(runner, target, chains, s, up_keys, part)
    start, *down_keys = jax.random.split(down_key, len(s) + 1)
    chains = runner.from_a_mode(target, start)
    part = lambda share: progress(0.55 + 0.45 * share)
    down = walk(runner, target, chains, s[::-1], down_keys, part)[::-1]
    energy = lambda stages: np.array([stage.energy for stage in stages])
    acceptance = min(stage.acceptance for stage in [*up, *down])
    precision = float(jnp.finfo(target.shift.dtype).eps)
    return Ladder(s, energy(up), energy(down), acceptance, precision)
