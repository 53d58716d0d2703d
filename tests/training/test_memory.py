"""Temporary memory of an outer step, by XLA's own count."""

import jax
import jax.numpy as jnp
import optax
import pytest

import entropy_optax as eo
from entropy_optax.training import TrainState, linen_carry, linen_train_step

WIDTH, DEPTH, BATCH, NUM_STEPS = 256, 4, 8, 10


def loss_fn(params, batch_stats, batch, rng_key):
    del rng_key
    for kernel in params:
        batch = jnp.tanh(batch @ kernel)
    return jnp.mean(batch**2), batch_stats


def temporary_bytes(tx, remat):
    params = [jnp.ones((WIDTH, WIDTH)) for _ in range(DEPTH)]
    state = TrainState.create(apply_fn=loss_fn, params=params, tx=tx)
    loss = jax.checkpoint(loss_fn) if remat else loss_fn
    step = jax.jit(linen_train_step(loss), donate_argnums=0)
    batches = jax.ShapeDtypeStruct((NUM_STEPS, BATCH, WIDTH), jnp.float32)
    memory = step.lower(state, batches).compile().memory_analysis()
    if memory is None:
        pytest.skip("this backend does not count its memory")
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("remat", [False, True])
def test_at_most_four_copies_of_the_params(remat):
    """Over an SGD step: x', mu and the inner momentum, and one spare."""
    sgd = temporary_bytes(optax.sgd(0.1, momentum=0.9, nesterov=True), remat)
    entropy_sgd = eo.entropy_sgd(
        1.0, num_steps=NUM_STEPS, opaque_mode=True, carry_init=linen_carry()
    )
    ours = temporary_bytes(entropy_sgd, remat)
    copies = (ours - sgd) / (4 * DEPTH * WIDTH**2)
    # Three are live in the loop: fewer would mean that nothing was measured.
    assert 2 < copies <= 4, copies
