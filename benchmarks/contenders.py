"""What is timed: ways to spend gradients on a problem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from problems import NUM_STEPS, Problem

import entropy_optax as eo
from entropy_optax.training import TrainState, linen_carry, linen_train_step

RATE = 1e-3


class Contender(NamedTuple):
    """A way to spend gradients.

    Attributes:
      run: spends ``num_gradients``, and returns when they are done.
      num_gradients: gradients per run.
      temporary_bytes: XLA's own count of temporary memory, per compiled call.
      state_bytes: of the optimizer's state between two calls, without the model's own
        (BatchNorm's statistics), which the inner loop hands on.
    """

    run: Callable[[], None]
    num_gradients: int
    temporary_bytes: int
    state_bytes: int


def entropy_sgd(opaque_mode: bool, carry_init: Any = None, **kwargs: Any):
    """Return Entropy-SGD with L = 20, momentum, noise and scoping on."""
    return eo.entropy_sgd(
        1.0,
        gamma=eo.exponential_scoping(1e-4, 1e-3),
        step_size=RATE,
        momentum=0.9,
        opaque_mode=opaque_mode,
        carry_init=carry_init,
        **{"num_steps": NUM_STEPS, "temperature": 5e-9, **kwargs},
    )


def sgd() -> optax.GradientTransformation:
    """Return the yardstick: SGD with Nesterov's momentum."""
    return optax.sgd(RATE, momentum=0.9, nesterov=True)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def one_per_call(
    problem: Problem,
    tx: Any,
    *,
    num_gradients: int = 1,
    calls: int = 1,
    start: Callable[[Any], Any] = lambda params: params,
    at: Callable[[Any], Any] = lambda params: params,
) -> Contender:
    """One jitted update on one batch per call: SGD, and all that looks like it.

    Args:
      problem: what to train.
      tx: the optimizer.
      num_gradients: what each call spends, more than 1 for SAM.
      calls: calls per run, over the problem's batches in turn.
      start: makes what is trained from the params, Lookahead's pair of them say.
      at: where to take the gradient, from what is trained.

    Returns:
      The contender.
    """
    batches = [
        jax.tree.map(lambda leaf, i=i: leaf[i], problem.batches)
        for i in range(NUM_STEPS)
    ]

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, batch_stats, opt_state, rng_key, batch, number):
        key = jax.random.fold_in(rng_key, number)

        def value_and_grad(params):
            return jax.value_and_grad(problem.loss_fn, has_aux=True)(
                params, batch_stats, batch, key
            )

        (loss, new_stats), grads = value_and_grad(at(params))
        extra: dict[str, Any] = {}
        if num_gradients > 1:
            extra["grad_fn"] = lambda params, i: value_and_grad(params)[1]
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), new_stats, opt_state, loss

    tx = optax.with_extra_args_support(tx)
    params, batch_stats = jax.tree.map(
        jnp.copy, (start(problem.params), problem.batch_stats)
    )
    opt_state = jax.jit(tx.init)(params)
    rng_key = jax.random.key(2)
    number = jnp.zeros([], jnp.int32)
    compiled = step.lower(
        params, batch_stats, opt_state, rng_key, batches[0], number
    ).compile()
    loop = [params, batch_stats, opt_state]
    done = 0

    def run():
        nonlocal loop, done
        for _ in range(calls):
            number = jnp.asarray(done, jnp.int32)
            *loop, loss = compiled(*loop, rng_key, batches[done % NUM_STEPS], number)
            done += 1
        jax.block_until_ready((loop, loss))

    return Contender(
        run,
        calls * num_gradients,
        compiled.memory_analysis().temp_size_in_bytes,
        _bytes(opt_state),
    )


def outer_step(problem: Problem, **kwargs: Any) -> tuple[Callable, TrainState]:
    """Return the Flax helper's step, not yet jitted, and its first state."""
    carry = linen_carry(problem.batch_stats)
    state = TrainState.create(
        apply_fn=None,  # pyright: ignore[reportArgumentType]  # the loss calls the model
        params=jax.tree.map(jnp.copy, problem.params),
        tx=entropy_sgd(True, carry, **kwargs),
        batch_stats=problem.batch_stats,
        rng_key=2,
    )
    return linen_train_step(problem.loss_fn), state


def whole_outer_step(
    problem: Problem, *, outer_steps: int = 1, one_scan: bool = False, **kwargs: Any
) -> Contender:
    """Outer steps of NUM_STEPS gradients: one in a call, or all in one `lax.scan`."""
    step, state = outer_step(problem, **kwargs)

    def scanned(state, batches):
        once = lambda state, _: step(state, batches)
        state, metrics = jax.lax.scan(once, state, length=outer_steps)
        return state, jax.tree.map(lambda leaf: leaf[-1], metrics)

    jitted = jax.jit(scanned if one_scan else step, donate_argnums=0)
    compiled = jitted.lower(state, problem.batches).compile()
    kept = optax.tree.set(state.opt_state, carry=None)
    state_bytes = _bytes(kept)

    def run():
        nonlocal state
        for _ in range(1 if one_scan else outer_steps):
            state, metrics = compiled(state, problem.batches)
        jax.block_until_ready((state, metrics))

    return Contender(
        run,
        outer_steps * NUM_STEPS,
        compiled.memory_analysis().temp_size_in_bytes,
        state_bytes,
    )


def compilation(problem: Problem, num_steps: int, **kwargs: Any) -> Callable[[], Any]:
    """Return a function which traces and compiles an outer step of L = num_steps."""

    def compile_anew():
        batches = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[:1], (num_steps, *leaf.shape[1:])),
            problem.batches,
        )
        step, state = outer_step(problem, num_steps=num_steps, **kwargs)
        return jax.jit(step, donate_argnums=0).lower(state, batches).compile()

    return compile_anew
