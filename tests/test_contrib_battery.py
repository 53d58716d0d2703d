"""The battery of Optax's contributed optimizers: four targets, 30,000 gradients.

Targets, budget and tolerance are those of ``optax/contrib/_common_test.py``; each row
has one setting for all targets.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropy_optax as eo

NUM_GRADIENTS, TOLERANCE, NUM_STEPS = 30_000, 3e-2, 5
ROWS = {
    "entropy_sgd": lambda **mode: eo.entropy_sgd(
        1.0, step_size=1e-3, num_steps=NUM_STEPS, **mode
    ),
    "entropy_adam": lambda **mode: eo.entropy_adam(
        1e-2, step_size=1e-3, num_steps=NUM_STEPS, **mode
    ),
}


def parabola():
    final = jnp.array([1.0, -1.0, 1.0])
    return jnp.array([-1.0, 10.0, 1.0]), final, lambda p: jnp.sum((p - final) ** 2)


def rosenbrock():
    def loss(p):
        return (1.0 - p[0]) ** 2 + 100.0 * (p[1] - p[0] ** 2) ** 2

    return jnp.zeros(2), jnp.ones(2), loss


def matrix_parabola():
    final = jnp.array([[3.0, -2.0], [1.0, 4.0]])
    return jnp.zeros((2, 2)), final, lambda p: jnp.sum((p - final) ** 2)


def mixed_tensors():
    final = jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]])

    def loss(p):
        return jnp.sum((p[0] - final[0]) ** 2) + jnp.sum((p[1] - final[1]) ** 2)

    return (jnp.zeros(3), jnp.zeros((2, 2))), final, loss


TRACES = []  # one entry for each time that a step is traced
TARGETS = [parabola, rosenbrock, matrix_parabola, mixed_tensors]


def make_step(tx, loss, opaque_mode, **extra_args):
    grad_fn = jax.grad(lambda params, i: loss(params))
    more = {"grad_fn": grad_fn} if opaque_mode else {}

    @jax.jit
    def step(params, state):
        TRACES.append(0)
        grads = grad_fn(params, 0)
        updates, state = tx.update(grads, state, params, **more, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("opaque_mode", [False, True], ids=["single", "opaque"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", ROWS)
def test_converges(row, target, opaque_mode):
    params, final, loss = target()
    tx = ROWS[row](opaque_mode=opaque_mode)
    step = make_step(tx, loss, opaque_mode)
    # A map that changes nothing, to see that the state can be mapped.
    state = optax.tree.map_params(tx, lambda v: v, tx.init(params))
    length = NUM_GRADIENTS // (NUM_STEPS if opaque_mode else 1)
    (params, state), _ = jax.lax.scan(
        lambda loop, _: (step(*loop), None), (params, state), length=length
    )
    assert eo.num_gradients(state) == NUM_GRADIENTS
    found = eo.eval_params(state, params)
    for leaf, wanted in zip(
        jax.tree.leaves(found), jax.tree.leaves(final), strict=True
    ):
        np.testing.assert_allclose(leaf, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("opaque_mode", [False, True], ids=["single", "opaque"])
@pytest.mark.parametrize("row", ROWS)
def test_unknown_extra_args_and_one_compilation(row, opaque_mode):
    params, _, loss = rosenbrock()
    tx = ROWS[row](opaque_mode=opaque_mode)
    step = make_step(tx, loss, opaque_mode, an_extra_argument_nobody_expects=1)
    state = tx.init(params)
    TRACES.clear()
    for _ in range(2):
        params, state = step(params, state)
    assert len(TRACES) == 1
