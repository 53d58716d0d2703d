"""Chains that sample what a Gaussian and a loss weigh together."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_optax.measure._target import Target, map_batches, potential

QUARTER = 0.5 * np.pi  # a rotation by it exchanges position and momentum


class Chains(NamedTuple):
    """States of C chains.

    Attributes:
      y: positions, `[C, n]`.
      energy: V there, `[C]`.
      gradient: of V, `[C, n]`.
      step_size: of the leapfrog steps, an angle.
    """

    y: jax.Array
    energy: jax.Array
    gradient: jax.Array
    step_size: jax.Array


class Record(NamedTuple):
    """What T steps of C chains went through.

    Attributes:
      energy: V after each step, `[T, C]`.
      square: |y|^2 / 2 after each step, `[T, C]`.
      along: y along a direction after each step, `[T, C]`.
      acceptance: mean over chains of the acceptance probability, `[T]`.
      position: sum of y over the steps without adaptation, `[C, n]`.
      gradient: the same of the gradient of V, `[C, n]`.
      num_gradients: per chain.
    """

    energy: jax.Array
    square: jax.Array
    along: jax.Array
    acceptance: jax.Array
    position: jax.Array
    gradient: jax.Array
    num_gradients: jax.Array


@partial(jax.jit, static_argnames="batch_size")
def start_chains(target: Target, y: jax.Array, *, batch_size: int) -> Chains:
    """Starts chains.

    Args:
      target: what they will sample.
      y: where, `[C, n]`.
      batch_size: energies at once.

    Returns:
      Their states, with the largest step size.
    """
    energy, gradient = _values_and_gradients(target, y, batch_size)
    return Chains(y, energy, gradient, jnp.asarray(QUARTER, y.dtype))


def _values_and_gradients(target: Target, y: jax.Array, batch_size: int) -> Any:
    return map_batches(jax.value_and_grad(partial(potential, target)), y, batch_size)


@partial(jax.jit, static_argnames=("batch_size", "max_leapfrogs"))
def run_chains(
    target: Target,
    chains: Chains,
    s: Any,
    heat: Any,
    adapt: jax.Array,
    num_steps: Any,
    direction: jax.Array,
    key: jax.Array,
    *,
    batch_size: int,
    max_leapfrogs: int,
) -> tuple[Chains, Record]:
    """Runs chains that leave `exp(-(s V(y) + |y|^2 / 2) / heat)` invariant.

    A step is a trajectory of Hamiltonian Monte Carlo whose leapfrogs solve the Gaussian
    part exactly (a rotation of position and momentum), so that neither the acceptance
    nor the step size depends on the number of flat directions; then one
    preconditioned Crank-Nicolson proposal of a random length, for the way between
    wells.

    Args:
      target: gives V.
      chains: the states.
      s: on the ladder, 0 to 1.
      heat: 1 to sample; near 0 the chains descend to a mode.
      adapt: rate of the step size's adaptation in each step, `[T]`; 0 in what is used.
      num_steps: how many of the T steps to do; what is not done is 0 in the record.
      direction: the component of y to record, `[n]`.
      key: PRNG key.
      batch_size: energies at once.
      max_leapfrogs: in a trajectory.

    Returns:
      The states and the record.

    References:
      Beskos, Pinski, Sanz-Serna and Stuart, `Hybrid Monte Carlo on Hilbert spaces
      <https://doi.org/10.1016/j.spa.2011.06.003>`_, 2011; Cotter, Roberts, Stuart and
      White, `MCMC methods for functions <https://doi.org/10.1214/13-STS421>`_, 2013.
    """
    s, heat = (jnp.asarray(value, chains.y.dtype) for value in (s, heat))
    values = lambda y: _values_and_gradients(target, y, batch_size)

    def trajectory(chains: Chains, key: jax.Array) -> Any:
        y, energy, gradient, h = chains
        key_p, key_t = jax.random.split(key)
        p = jnp.sqrt(heat) * jax.random.normal(key_p, y.shape, y.dtype)
        angle = jax.random.uniform(key_t, (), y.dtype, 0.3 * QUARTER, QUARTER)
        count = jnp.clip(jnp.ceil(angle / h), 1, max_leapfrogs).astype(jnp.int32)
        sin, cos = jnp.sin(h), jnp.cos(h)

        def leapfrog(_: Any, state: Any) -> Any:
            y, p, _, gradient = state
            p = p - 0.5 * h * s * gradient
            y, p = cos * y + sin * p, cos * p - sin * y
            energy, gradient = values(y)
            return y, p - 0.5 * h * s * gradient, energy, gradient

        new_y, new_p, new_energy, new_gradient = jax.lax.fori_loop(
            0, count, leapfrog, (y, p, energy, gradient)
        )
        # Differences of squares as products: float32 loses them in large dimensions.
        change = jnp.sum((new_y - y) * (new_y + y) + (new_p - p) * (new_p + p), axis=-1)
        change = s * (new_energy - energy) + 0.5 * change
        return (new_y, new_energy, new_gradient), change / heat, count

    def crank_nicolson(chains: Chains, key: jax.Array) -> Any:
        y = chains.y
        key_n, key_t = jax.random.split(key)
        noise = jnp.sqrt(heat) * jax.random.normal(key_n, y.shape, y.dtype)
        log_angle = jax.random.uniform(
            key_t, (len(y), 1), y.dtype, np.log(0.02), np.log(np.pi)
        )
        angle = jnp.exp(log_angle)
        new_y = jnp.cos(angle) * y + jnp.sin(angle) * noise
        new_energy, new_gradient = values(new_y)
        return (new_y, new_energy, new_gradient), s * (
            new_energy - chains.energy
        ) / heat

    def accept(chains: Chains, proposal: Any, change: Any, key: jax.Array) -> Any:
        chance = jnp.where(jnp.isfinite(change), jnp.exp(jnp.minimum(-change, 0)), 0)
        take = jax.random.uniform(key, change.shape, change.dtype) < chance
        old = (chains.y, chains.energy, chains.gradient)
        choose = lambda new, old: jnp.where(
            take.reshape(take.shape + (1,) * (new.ndim - 1)), new, old
        )
        y, energy, gradient = jax.tree.map(choose, proposal, old)
        return Chains(y, energy, gradient, chains.step_size), chance

    def step(chains: Chains, xs: Any) -> Any:
        rate, key = xs
        keys = jax.random.split(key, 4)
        proposal, change, count = trajectory(chains, keys[0])
        chains, chance = accept(chains, proposal, change, keys[1])
        acceptance = jnp.mean(chance)
        h = chains.step_size * jnp.exp(rate * (acceptance - 0.8))
        proposal, change = crank_nicolson(chains, keys[2])
        chains, _ = accept(chains, proposal, change, keys[3])
        chains = chains._replace(step_size=jnp.minimum(h, QUARTER).astype(h.dtype))
        return chains, acceptance, count + 1

    length, count = len(adapt), len(chains.y)
    keys = jax.random.split(key, length)
    adapt = adapt.astype(chains.y.dtype)
    blank = lambda *shape: jnp.zeros(shape, chains.y.dtype)
    zero = jnp.zeros_like(chains.y)
    spent = jnp.zeros((), jnp.int32)
    series = blank(length, count)
    record = Record(series, series, series, blank(length), zero, zero, spent)

    def body(i: jax.Array, loop: Any) -> Any:
        chains, record = loop
        chains, acceptance, spent = step(chains, (adapt[i], keys[i]))
        kept = (adapt[i] == 0).astype(adapt.dtype)
        return chains, Record(
            record.energy.at[i].set(chains.energy),
            record.square.at[i].set(0.5 * jnp.sum(chains.y**2, axis=-1)),
            record.along.at[i].set(chains.y @ direction),
            record.acceptance.at[i].set(acceptance),
            record.position + kept * chains.y,
            record.gradient + kept * chains.gradient,
            record.num_gradients + spent,
        )

    return jax.lax.fori_loop(0, num_steps, body, (chains, record))
