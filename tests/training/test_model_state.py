"""What the inner loop threads: fresh dropout masks, and state moved L times."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import entropy_optax as eo
from entropy_optax.training import (
    TrainState,
    linen_carry,
    linen_train_step,
    nnx_carry,
    nnx_eval_model,
    nnx_train_step,
)

NUM_STEPS, OUTER, WIDTH = 3, 2, 32


def make_tx(opaque_mode: bool, carry: Any) -> optax.GradientTransformation:
    return eo.entropy_sgd(
        1.0,
        num_steps=NUM_STEPS,
        temperature=0.0,
        opaque_mode=opaque_mode,
        carry_init=carry if opaque_mode else None,
    )


def linen_masks(opaque_mode: bool) -> np.ndarray:
    """Return the masks of all steps, written down where BatchNorm keeps statistics."""
    log = {
        "masks": jnp.zeros((OUTER * NUM_STEPS, WIDTH)),
        "count": jnp.zeros([], jnp.int32),
    }

    def loss_fn(params: Any, log: Any, batch: Any, rng_key: Any) -> Any:
        mask = jax.random.bernoulli(rng_key, 0.5, (WIDTH,)).astype(float)
        masks = log["masks"].at[log["count"]].set(mask)
        return jnp.sum(mask * params * batch), {
            "masks": masks,
            "count": log["count"] + 1,
        }

    state = TrainState.create(
        apply_fn=loss_fn,
        params=jnp.ones(WIDTH),
        tx=make_tx(opaque_mode, linen_carry(log)),
        batch_stats=log,
        rng_key=5,
    )
    step = jax.jit(linen_train_step(loss_fn))
    for _ in range(OUTER):
        state, _ = step(state, jnp.ones((NUM_STEPS, WIDTH)))
    assert int(state.batch_stats["count"]) == OUTER * NUM_STEPS
    return np.asarray(state.batch_stats["masks"])


class Masks(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(WIDTH))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.masks = nnx.Variable(jnp.zeros((OUTER * NUM_STEPS, WIDTH)))
        self.count = nnx.Variable(jnp.zeros([], jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        mask = jnp.sign(self.dropout(jnp.ones(WIDTH)))
        self.masks[...] = self.masks[...].at[self.count[...]].set(mask)
        self.count[...] += 1
        return jnp.sum(mask * self.scale[...] * x)


def nnx_masks(opaque_mode: bool) -> np.ndarray:
    model = Masks()
    tx = make_tx(opaque_mode, nnx_carry(model))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    step = nnx.jit(nnx_train_step(lambda model, batch: model(batch)))
    for _ in range(OUTER):
        step(model, optimizer, jnp.ones((NUM_STEPS, WIDTH)))
    assert int(model.count[...]) == OUTER * NUM_STEPS
    return np.asarray(model.masks[...])


@pytest.mark.parametrize("masks", [linen_masks, nnx_masks])
def test_dropout_masks_are_fresh_and_the_same_in_both_modes(masks: Any):
    whole, single = masks(True), masks(False)
    np.testing.assert_array_equal(whole, single)
    assert len(np.unique(whole, axis=0)) == OUTER * NUM_STEPS
    assert 0.3 < whole.mean() < 0.7


def test_a_train_state_holds_its_own_key_and_statistics():
    key, stats = jax.random.key(3), {"mean": jnp.zeros(2)}
    tx = optax.sgd(0.1)
    state = TrainState.create(
        apply_fn=print, params=jnp.ones(2), tx=tx, batch_stats=stats, rng_key=key
    )
    jax.jit(lambda state: state.replace(step=state.step + 1), donate_argnums=0)(state)
    assert state.batch_stats["mean"].is_deleted()
    assert not stats["mean"].is_deleted()
    assert int(jax.random.bits(key)) == int(jax.random.bits(jax.random.key(3)))
    assert linen_carry(stats)["batch_stats"]["mean"] is not stats["mean"]


def test_a_train_state_takes_an_integer_seed_and_no_statistics():
    state = TrainState.create(
        apply_fn=print, params=jnp.ones(2), tx=optax.sgd(0.1), rng_key=3
    )
    assert state.batch_stats == {}
    assert state.rng_key == jax.random.key(3)


def test_carry_from_shapes_alone():
    stats = {"mean": jax.ShapeDtypeStruct((2,), jnp.float32)}
    carry = linen_carry(stats)
    np.testing.assert_array_equal(carry["batch_stats"]["mean"], np.zeros(2))


class Two(nnx.Module):
    def __init__(self):
        self.trained = nnx.Param(jnp.ones(3))
        self.frozen = nnx.Variable(jnp.ones(3))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.sum(x * self.trained[...] * self.frozen[...])


def test_nnx_trains_what_the_optimizer_was_told_to():
    model = Two()
    wrt = nnx.PathContains("trained")
    tx = make_tx(True, nnx_carry(model, wrt))
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)
    step = nnx.jit(nnx_train_step(lambda model, batch: model(batch)))
    step(model, optimizer, jnp.ones((NUM_STEPS, 3)))
    assert (model.trained[...] < 1).all()
    np.testing.assert_array_equal(model.frozen[...], np.ones(3))


def test_an_ordinary_nnx_loop_changes_one_line():
    target = jnp.array([1.0, -2.0, 0.5])
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)

    def loss_fn(model: nnx.Linear) -> jax.Array:
        return jnp.mean((model(inputs)[:, 0] - inputs @ target) ** 2)

    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    tx = eo.entropy_sgd(1.0, num_steps=5)  # was: optax.sgd(0.1, momentum=0.9)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model: nnx.Linear, optimizer: nnx.Optimizer) -> jax.Array:
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    for _ in range(302):
        train_step(model, optimizer)
    at_x = nnx_eval_model(model, optimizer)
    np.testing.assert_allclose(at_x.kernel[:, 0], target, atol=1e-2)
    # Two gradients into a cycle the model is at x', and its copy at x.
    state = nnx.as_pure(optimizer.opt_state)
    assert int(optax.tree.get(state, "inner_count")) == 2
    assert not (at_x.kernel[...] == model.kernel[...]).all()
