"""Corners that a review of the code found."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import entropy_optax as eo
from entropy_optax.samplers._noise import packed_signs


def test_float32_gradients_of_bfloat16_params_with_skipping():
    tx = eo.entropy_sgd(1.0, num_steps=2, skip_nonfinite=True)
    params = jnp.ones(3, jnp.bfloat16)
    traces = []

    @jax.jit
    def update(grads, state):
        traces.append(0)
        return tx.update(grads, state, params)

    state = tx.init(params)
    for _ in range(3):
        updates, state = update(jnp.ones(3, jnp.float32), state)
        assert jnp.result_type(updates) == jnp.bfloat16
    assert len(traces) == 1


def test_displacement_starts_again_in_each_cycle():
    tx = eo.entropy_sgd(
        1.0, num_steps=2, momentum=None, temperature=0.0, skip_nonfinite=True
    )
    update = jax.jit(tx.update)
    params = jnp.zeros(1)
    state = tx.init(params)
    for grad in (100.0, 100.0, jnp.nan):
        updates, state = update(jnp.array([grad]), state, params)
        params = optax.apply_updates(params, updates)
    assert state.displacement == 0.0


def test_an_outer_optimizer_that_keeps_the_params_can_be_donated():
    tx = eo.local_entropy(optax.contrib.mechanize(optax.sgd(0.1)), eo.sgld(0.1), 2, 0.1)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.ones(3)
    params, state = step(params, tx.init(params))
    params, state = step(params, state)
    assert eo.num_gradients(state) == 2


def test_a_carry_of_python_numbers_compiles_once():
    tx = eo.scale_by_local_entropy(eo.sgld(0.1), 2, 0.1, carry_init={"loss": 0.0})

    def grad_fn(params, i, carry):
        return params, {"loss": carry["loss"] + jnp.sum(params)}

    traces = []

    @jax.jit
    def step(params, state):
        traces.append(0)
        return tx.update(params, state, params, grad_fn=grad_fn)

    state = tx.init(jnp.ones(2))
    for _ in range(2):
        _, state = step(jnp.ones(2), state)
    assert len(traces) == 1


def test_complex_signs_have_unit_variance_in_both_parts():
    signs = packed_signs(jax.random.key(0), jnp.zeros(33, jnp.complex64))
    assert jnp.allclose(jnp.abs(signs.real), jnp.sqrt(0.5))
    assert jnp.allclose(jnp.abs(signs.imag), jnp.sqrt(0.5))
    assert not jnp.array_equal(signs.real, signs.imag)


@pytest.mark.parametrize(
    "arguments", [{"momentum": -1.0}, {"momentum": 1.5}, {"weight_decay": -1.0}]
)
def test_constants_out_of_range_are_named(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        eo.entropy_sgd(1.0, **arguments)


def test_a_scope_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="gamma must be a number or a schedule"):
        eo.entropy_sgd(1.0, gamma="wide")  # pyright: ignore[reportArgumentType] wrong on purpose
