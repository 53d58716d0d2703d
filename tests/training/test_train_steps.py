"""One battery for the train steps of both frameworks: a framework is a row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from frameworks import (
    NUM_STEPS,
    Linen,
    MakeTx,
    Nnx,
    assert_close,
    entropy_sgd,
    outer_steps,
    snapshot,
)

import entropy_optax as eo


@pytest.fixture(params=[Linen, Nnx])
def framework(request: pytest.FixtureRequest) -> Any:
    return request.param


def counting(make_tx: MakeTx, traces: list[int]) -> MakeTx:
    """Note each time that the optimizer is traced."""

    def make(carry: Any) -> optax.GradientTransformation:
        tx = make_tx(carry)

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            traces.append(1)
            return tx.update(updates, state, params, **extra)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return make


@pytest.mark.parametrize("num_steps", [1, NUM_STEPS])
def test_both_modes_agree_compile_once_and_donate(framework: Any, num_steps: int):
    runs = []
    for opaque_mode in (True, False):
        traces: list[int] = []
        run = framework(counting(entropy_sgd(opaque_mode, num_steps), traces))
        old, losses, traced = jax.tree.leaves(run.params), [], []
        for batches in outer_steps(4, num_steps):
            losses.append(run.step(batches))
            traced.append(len(traces))
        assert traced[0] == traced[-1]
        assert all(leaf.is_deleted() for leaf in old)
        # What the optimizer was built from is its own, and serves a second run.
        assert jax.tree.leaves(run.tx.init(run.params))
        spent = int(eo.num_gradients(run.opt_state))
        assert (spent, run.count) == (4 * num_steps, 4 * num_steps)
        runs.append((losses, run.params, run.eval_params, run.stats))
    assert_close(*runs)


@pytest.mark.parametrize("opaque_mode", [True, False])
def test_equals_a_hand_written_loop(framework: Any, opaque_mode: bool):
    make_tx = entropy_sgd(opaque_mode, temperature=0.0)
    helper, naive = framework(make_tx), framework(make_tx)
    x, tree_map = naive.params, jax.tree.map
    velocity = tree_map(jnp.zeros_like, x)
    for t, (inputs, targets) in enumerate(outer_steps(2)):
        loss = helper.step((inputs, targets))
        gamma, losses = 0.5 * 1.2**t, []
        position, mean, momentum = x, x, tree_map(jnp.zeros_like, x)
        for batch in zip(inputs, targets, strict=True):
            value, grads = naive.gradient(position, batch)
            losses.append(value)
            grads = tree_map(lambda g, p: g + 1e-2 * p, grads, position)
            momentum = tree_map(lambda m, g: 0.9 * m + g, momentum, grads)
            position = tree_map(
                lambda p, g, m, a: p - 0.1 * (g + 0.9 * m + gamma * (p - a)),  # noqa: B023 - used in this round only
                position,
                grads,
                momentum,
                x,
            )
            mean = tree_map(lambda mu, p: 0.75 * mu + 0.25 * p, mean, position)
        direction = tree_map(lambda a, mu: a - mu, x, mean)
        velocity = tree_map(lambda v, d: 0.5 * v + d, velocity, direction)
        x = tree_map(lambda a, d, v: a - 0.5 * (d + 0.5 * v), x, direction, velocity)
        np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
        assert_close(helper.params, x)
        # Among these are the statistics of BatchNorm after exactly L moves.
        assert_close(helper.stats, naive.stats)
        assert helper.count == naive.count


def test_sgd_equals_an_ordinary_loop(framework: Any):
    tx = optax.sgd(0.1, momentum=0.9)
    helper, naive = framework(lambda _: tx), framework(lambda _: tx)
    params, opt_state = naive.params, tx.init(naive.params)
    for inputs, targets in outer_steps(2):
        loss, losses = helper.step((inputs, targets)), []
        for batch in zip(inputs, targets, strict=True):
            value, grads = naive.gradient(params, batch)
            losses.append(value)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    assert_close(helper.params, params)
    assert_close(helper.eval_params, params)
    assert_close(helper.stats, naive.stats)


def test_evaluates_at_x_within_a_cycle_however_the_batches_are_grouped(framework: Any):
    make_tx = entropy_sgd(False, temperature=0.0)
    whole, halves = framework(make_tx), framework(make_tx)
    x = snapshot(halves.params)
    (inputs, targets) = next(outer_steps(1))
    halves.step((inputs[:2], targets[:2]))
    assert_close(halves.eval_params, x, atol=0)
    gap = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), halves.params, x)
    assert max(jax.tree.leaves(gap)) > 1e-2
    halves.step((inputs[2:], targets[2:]))
    whole.step((inputs, targets))
    assert_close(halves.params, whole.params)
    assert_close(halves.eval_params, halves.params, atol=0)
    assert_close(halves.stats, whole.stats)


def test_finds_the_loop_inside_other_transformations(framework: Any):
    def make_tx(carry: Any) -> optax.GradientTransformation:
        inner = entropy_sgd(True, temperature=0.0)(carry)
        return optax.apply_if_finite(
            optax.named_chain(("loop", inner), ("clip", optax.clip(1e6))), 3
        )

    run = framework(make_tx)
    with jax.checking_leaks():
        run.step(next(outer_steps(1)))
    assert int(eo.num_gradients(run.opt_state)) == NUM_STEPS
    carry = optax.tree.get(run.opt_state, "carry")
    assert float(carry["loss"]) > 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ((np.ones((4, 8, 5)), np.ones((3, 8, 3))), r"batches must.*\(3, 8, 3\)"),
        ((np.ones((4, 8, 5)), np.ones(())), "batches must.*leading axis"),
        ((np.ones((0, 8, 5)), np.ones((0, 8, 3))), "batches must.*L >= 1"),
        ((), "batches must be a tree"),
    ],
)
def test_batches_without_a_common_axis_raise(
    framework: Any, batches: Any, message: str
):
    with pytest.raises(ValueError, match=message):
        framework(lambda _: optax.sgd(0.1)).step(batches)


def test_another_number_of_batches_than_num_steps_raises(framework: Any):
    run = framework(entropy_sgd(True))
    with pytest.raises(ValueError, match=r"(?s)batches.*axis 3; it must be num_steps"):
        run.step(next(outer_steps(1, 3)))


def test_missing_carry_init_raises(framework: Any):
    run = framework(lambda _: entropy_sgd(True)(None))
    with pytest.raises(ValueError, match=r"carry_init=(linen|nnx)_carry\("):
        run.step(next(outer_steps(1)))


def test_foreign_carry_init_raises(framework: Any):
    run = framework(lambda _: entropy_sgd(True)({"loss": jnp.zeros(())}))
    with pytest.raises(ValueError, match="carry must be like carry_init"):
        run.step(next(outer_steps(1)))


def test_two_inner_loops_raise(framework: Any):
    run = framework(
        lambda carry: optax.chain(entropy_sgd(True)(carry), entropy_sgd(True)(carry))
    )
    with pytest.raises(ValueError, match=r"at most one local entropy.*got 2"):
        run.step(next(outer_steps(1)))
