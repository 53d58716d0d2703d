"""Local entropy inside Optax's wrappers, and Optax's wrappers inside it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import (
    assert_close,
    assert_equal,
    grad_fn,
    make_params,
    make_rows,
    run_opaque,
    run_single,
    single_step,
)
from toy import strict as strict

import entropy_optax as eo

MODES = pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "single"])
TREE = {
    "train": {"a": jnp.array([1.0, -1.0]), "b": jnp.array([[0.5]])},
    "freeze": jnp.array([2.0, 3.0]),
}
LABELS = {"train": "train", "freeze": "freeze"}
MASK = {"train": True, "freeze": False}


def runner(opaque):
    return run_opaque if opaque else run_single


def sampler():
    return eo.sgld(0.1, temperature=1e-2, momentum=0.9)


def make(opaque=False, inner=None, outer=None, **settings):
    return eo.local_entropy(
        outer or optax.sgd(0.5, momentum=0.5),
        inner or sampler(),
        3,
        0.5,
        opaque_mode=opaque,
        **settings,
    )


@MODES
def test_none_leaves_stay_none(opaque):
    run = runner(opaque)(make(opaque), {**make_params(), "no": None}, make_rows())
    alone = runner(opaque)(make(opaque), make_params(), make_rows())
    assert run.params["no"] is None
    np.testing.assert_allclose(run.params["w"], alone.params["w"], rtol=1e-6)
    x: Any = eo.eval_params(run.state, run.params)
    assert x["no"] is None


@MODES
@pytest.mark.parametrize("kind", ["partition", "masked"])
def test_a_part_of_the_tree_frozen_inside_the_sampler(opaque, kind):
    """The trained part moves as if it were alone, the frozen one not at all."""
    # Without noise: a further leaf changes the split of the keys.
    chain = eo.sgld(0.1, momentum=0.9)
    if kind == "partition":
        inner = optax.partition({"train": chain, "freeze": optax.set_to_zero()}, LABELS)
    else:
        inner = optax.chain(
            optax.masked(chain, MASK),
            optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, MASK)),
        )
    rows = make_rows(2, 3)
    run = runner(opaque)(make(opaque, inner), TREE, rows)
    alone = runner(opaque)(make(opaque, chain), TREE["train"], rows)
    assert_close(run.params["train"], alone.params)
    assert_equal(run.params["freeze"], TREE["freeze"])


@MODES
def test_masked_transformation_inside_the_sampler_chain(opaque):
    """Weight decay on a part of the tree, by the mask of Optax's own."""
    inner = lambda decay: optax.chain(decay, eo.sgld(0.1))
    masked = optax.add_decayed_weights(0.3, mask=MASK)
    a = runner(opaque)(make(opaque, inner(masked)), TREE, make_rows(1, 3))
    b = runner(opaque)(
        make(opaque, inner(optax.add_decayed_weights(0.3))), TREE, make_rows(1, 3)
    )
    assert_close(a.params["train"], b.params["train"])
    assert jnp.min(jnp.abs(a.params["freeze"] - b.params["freeze"])) > 1e-3


def test_masked_around_one_gradient_per_call():
    """Unmasked updates pass through as they are; x is the params' own there."""
    tx = optax.chain(
        optax.masked(make(), MASK),
        optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, MASK)),
    )
    rows = make_rows(1, 5)
    run = run_single(tx, TREE, rows)
    alone = run_single(make(), TREE["train"], rows)
    assert_close(run.params["train"], alone.params)
    assert_close(run.evals["train"], alone.evals)
    assert_equal(run.params["freeze"], TREE["freeze"])
    x: Any = eo.eval_params(run.state, run.params)
    assert_equal(x["freeze"], TREE["freeze"])
    assert eo.num_gradients(run.state) == 5


def test_partition_around_one_gradient_per_call_beside_another_optimizer():
    tx = optax.partition({"train": make(), "freeze": optax.sgd(0.1)}, LABELS)
    rows = make_rows(1, 5)
    run = run_single(tx, TREE, rows)
    assert_close(run.params["train"], run_single(make(), TREE["train"], rows).params)
    p = TREE["freeze"]
    for row in rows[0]:
        p = p - 0.1 * (p - row - jnp.sin(p))
    np.testing.assert_allclose(run.params["freeze"], p, rtol=1e-5)


def test_partition_with_a_local_entropy_for_each_part():
    tx = optax.partition({"train": make(), "freeze": make(inner=eo.sgld(0.05))}, LABELS)
    run = run_single(tx, TREE, make_rows(1, 4))
    assert_close(run.evals["freeze"][1], TREE["freeze"])
    assert_close(jax.tree.map(lambda e: e[1], run.evals), TREE)
    assert_equal(
        jax.tree.map(lambda e: e[3], run.evals),
        jax.tree.map(lambda h: h[2], run.history),
    )


def test_multi_steps_around_one_gradient_per_call():
    """Two half batches for each inner gradient are one batch of their mean."""
    rows = make_rows(1, 4)[0]
    # MultiSteps itself reads the old key and the new one, to choose between them.
    halves = jnp.stack([rows - 0.3, rows + 0.3], axis=1)
    with jax.debug_key_reuse(False):
        run = run_single(optax.MultiSteps(make(), 2), make_params(), halves)
    whole = run_single(make(), make_params(), rows)
    assert_close(run.params, whole.params, atol=1e-5)
    assert eo.num_gradients(run.state) == 4
    assert_close(jax.tree.map(lambda e: e[1::2], run.evals), whole.evals, atol=1e-5)


def test_multi_steps_around_the_whole_loop():
    """The loop runs once for two gradients, with the second call's batches."""
    rows = make_rows(4, 3)
    with jax.debug_key_reuse(False):  # as above
        multi = run_opaque(optax.MultiSteps(make(True), 2), make_params(), rows)
    means = rows[1::2].at[:, 0].set((rows[0::2, 0] + rows[1::2, 0]) / 2)
    whole = run_opaque(make(True), make_params(), means)
    assert_close(multi.params, whole.params, atol=1e-5)
    assert eo.num_gradients(multi.state) == 6


HYPERPARAMETERS = {
    "learning_rate": 0.5,
    "gamma": 0.5,
    "step_size": 0.1,
    "temperature": 1e-2,
}


@MODES
def test_inject_hyperparams_changes_what_the_state_says(opaque):
    """Each scalar, set in the state, acts as if it had been given at construction."""
    factory = optax.inject_hyperparams(eo.entropy_sgd, static_args=("num_steps",))
    fixed = {"num_steps": 3, "opaque_mode": opaque}
    tx = factory(**HYPERPARAMETERS, **fixed)
    run, rows, x = runner(opaque), make_rows(1, 3), make_params()

    def injected(names, factors):
        state: Any = tx.init(x)
        for name, factor in zip(names, factors, strict=True):
            state.hyperparams[name] = factor * state.hyperparams[name]
        return run(tx, x, rows, state).params["w"]

    names = list(HYPERPARAMETERS)
    factors = jnp.stack([jnp.where(jnp.arange(4) == i, 2.0, 1.0) for i in range(-1, 4)])
    ends = jax.jit(lambda f: jax.lax.map(lambda row: injected(names, row), f))(factors)
    plain = run(eo.entropy_sgd(**HYPERPARAMETERS, **fixed), x, rows).params["w"]
    np.testing.assert_allclose(ends[0], plain, rtol=1e-5, atol=1e-6)
    for end, name in zip(ends[1:], names, strict=True):
        assert jnp.max(jnp.abs(end - plain)) > 1e-4, name
    hotter = HYPERPARAMETERS | {"temperature": 2e-2}
    end = run(eo.entropy_sgd(**hotter, **fixed), x, rows).params["w"]
    np.testing.assert_allclose(ends[4], end, rtol=1e-5, atol=1e-6)


def test_inject_hyperparams_of_a_schedule_counts_the_calls():
    """Its schedules count update calls; the library's own count outer steps."""
    factory = optax.inject_hyperparams(
        eo.entropy_sgd, static_args=("num_steps", "mean_decay")
    )
    tx = factory(
        1.0,
        gamma=lambda count: 1.0 * count,
        num_steps=2,
        temperature=0.0,
        mean_decay=lambda k: k / (k + 1),
    )
    run = run_single(tx, make_params(), make_rows(1, 4))
    assert run.state.hyperparams["gamma"] == 3.0
    assert run.state.inner_state.gamma == 3.0


@pytest.mark.parametrize("key", [7, "typed"])
def test_inject_hyperparams_takes_a_key(key):
    make_key = lambda: jax.random.key(7) if key == "typed" else key
    factory = optax.inject_hyperparams(eo.entropy_sgd, static_args=("num_steps",))
    settings: dict[str, Any] = {"num_steps": 2, "temperature": 1e-2}
    tx = factory(1.0, key=make_key(), **settings)
    run = run_single(tx, make_params(), make_rows(1, 2))
    plain = eo.entropy_sgd(1.0, key=make_key(), **settings)
    wanted = run_single(plain, make_params(), make_rows(1, 2))
    assert_close(run.params, wanted.params)


@MODES
def test_apply_if_finite_leaves_out_a_bad_call(opaque):
    rows = make_rows(3, 3)
    bad = rows.at[1, 0].set(jnp.inf)
    guarded = optax.apply_if_finite(make(opaque), max_consecutive_errors=2)
    run = runner(opaque)(guarded, make_params(), bad)
    good = jnp.delete(rows, 1, 0) if opaque else jnp.delete(rows.ravel(), 3)
    wanted = runner(opaque)(make(opaque), make_params(), good)
    assert_close(run.params, wanted.params)
    assert eo.num_gradients(run.state) == eo.num_gradients(wanted.state)
    assert run.state.total_notfinite == 1


@MODES
def test_named_chain(opaque):
    tx = optax.named_chain(
        ("clip", optax.clip_by_global_norm(100.0)),
        ("entropy", make(opaque)),
    )
    run = runner(opaque)(tx, make_params(), make_rows(1, 3))
    wanted = runner(opaque)(make(opaque), make_params(), make_rows(1, 3))
    assert_close(run.params, wanted.params)
    assert eo.num_gradients(run.state) == 3


@MODES
def test_with_extra_args_support_keeps_it_as_it_is(opaque):
    tx = make(opaque)
    assert optax.with_extra_args_support(tx) is tx


def test_flatten_around_one_gradient_per_call():
    # Without noise, which is drawn leaf by leaf.
    tx = make(inner=eo.sgld(0.1, momentum=0.9))
    flat = optax.flatten(tx)

    @jax.jit
    def both(params):
        a, b = (params, flat.init(params)), (params, tx.init(params))
        for row in make_rows(1, 4)[0]:
            a, b = single_step(flat, *a, row), single_step(tx, *b, row)
        return a[0], b[0]

    assert_close(*both(TREE))


@MODES
@pytest.mark.parametrize("reset", [True, False])
def test_map_params_reaches_all_that_has_the_shape_of_the_params(opaque, reset):
    tx = make(opaque, reset_sampler=reset)
    state = tx.init(TREE)
    names = {
        "train": {"a": "train a", "b": "train b"},
        "freeze": "freeze",
    }
    marked = optax.tree.map_params(
        tx,
        lambda leaf, name: name,
        state,
        names,
        transform_non_params=lambda leaf: None,
    )
    found = sorted(jax.tree.leaves(marked))
    # Outer momentum; the sampler's if kept; x and mu between the calls.
    copies = 1 + (not (opaque and reset)) + 2 * (not opaque)
    assert found == sorted(["train a", "train b", "freeze"] * copies)
    same = optax.tree.map_params(tx, lambda leaf: leaf, state)
    assert jax.tree.structure(same) == jax.tree.structure(state)


def test_tree_get_and_set_of_diagnostics_and_keys():
    state = make().init(TREE)
    assert optax.tree.get(state, "num_gradients") == 0
    key = jax.random.key(11)
    changed = optax.tree.set(state, rng_key=key)
    assert_equal(optax.tree.get(changed, "rng_key"), key)
    opaque = optax.tree.set(make(True).init(TREE), rng_key=jax.random.key(11))
    assert_equal(optax.tree.get(opaque, "rng_key"), key)


@MODES
def test_users_own_noise_is_fresh_in_every_outer_step(opaque):
    """optax.add_noise in a sampler which is reset: its key is not."""
    inner = optax.chain(optax.set_to_zero(), optax.add_noise(eta=1.0, gamma=0.0, key=3))
    tx = eo.local_entropy(
        optax.sgd(1.0), inner, 2, 0.0, mean_decay=0.0, opaque_mode=opaque
    )
    run = runner(opaque)(tx, {"w": jnp.zeros(50)}, make_rows(3, 2))
    x = run.history["w"] if opaque else run.history["w"][1::2]
    steps = jnp.diff(x, axis=0, prepend=jnp.zeros((1, 50)))
    correlation = jnp.corrcoef(steps) - jnp.eye(3)
    assert jnp.max(jnp.abs(correlation)) < 5 / jnp.sqrt(50)


class Countdown(NamedTuple):
    """A state with a Python number in it, as some users' own have."""

    left: Any


@MODES
def test_a_sampler_whose_first_state_holds_python_numbers(opaque):
    own = optax.GradientTransformation(
        lambda params: Countdown(3),
        lambda updates, state, params=None: (
            jax.tree.map(lambda u: -0.1 * u * (state.left > 1), updates),
            Countdown(state.left - 1),
        ),
    )
    run = runner(opaque)(make(opaque, own), make_params(), make_rows(2, 3))
    assert jnp.all(jnp.isfinite(run.params["w"]))


@MODES
def test_an_outer_optimizer_that_keeps_the_params_allows_donation(opaque):
    tx = make(opaque, outer=optax.contrib.schedule_free_sgd(0.1))
    params = make_params()
    state = tx.init(params)
    mine = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
    assert params["w"].unsafe_buffer_pointer() not in mine


def test_gradients_of_another_dtype_are_cast():
    """A float32 gradient of bfloat16 params, as mixed precision gives."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_params())
    tx = make(True)

    @jax.jit
    def update(params):
        wide = lambda p, i: jax.tree.map(
            lambda g: g.astype(jnp.float32), grad_fn(p, jnp.float32(0))
        )
        return tx.update(wide(params, 0), tx.init(params), params, grad_fn=wide)[0]

    assert update(params)["w"].dtype == jnp.bfloat16
