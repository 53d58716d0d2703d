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


def temporary_bytes(tx, remat, dtype):
    params = [jnp.ones((WIDTH, WIDTH), dtype) for _ in range(DEPTH)]
    state = TrainState.create(apply_fn=loss_fn, params=params, tx=tx)
    loss = jax.checkpoint(loss_fn) if remat else loss_fn
    step = jax.jit(linen_train_step(loss), donate_argnums=0)
    batches = jax.ShapeDtypeStruct((NUM_STEPS, BATCH, WIDTH), dtype)
    memory = step.lower(state, batches).compile().memory_analysis()
    if memory is None:
        pytest.skip("this backend does not count its memory")
    return memory.temp_size_in_bytes


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2), reason="XLA kept 5.3 copies in JAX 0.10.0"
)
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 4.0), ("bfloat16", 4.2)])
def test_copies_of_the_params(dtype, limit, remat):
    """Over an SGD step, in float32: x', mu and the inner momentum, and one spare.

    With bfloat16 params the spare are x' and its gradient in bfloat16, and what a CPU
    rounds in float32 comes on top: 4.05 copies were measured, and 4.17 with remat.
    """
    sgd = optax.sgd(0.1, momentum=0.9, nesterov=True)
    entropy_sgd = eo.entropy_sgd(
        1.0, num_steps=NUM_STEPS, opaque_mode=True, carry_init=linen_carry()
    )
    ours, theirs = (temporary_bytes(tx, remat, dtype) for tx in (entropy_sgd, sgd))
    copies = (ours - theirs) / (4 * DEPTH * WIDTH**2)
    # Three are live in the loop: fewer would mean that nothing was measured.
    assert 2 < copies <= limit, copies
