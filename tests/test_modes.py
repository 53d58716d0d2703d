"""The two modes take the same steps, whatever stands inside and outside."""

from __future__ import annotations

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
)
from toy import strict as strict

import entropy_optax as eo

SCOPING = eo.exponential_scoping(0.5, 0.5)


def noisy_sgld(**kwargs):
    return eo.sgld(0.1, temperature=1e-2, momentum=0.9, key=1, **kwargs)


# name: (outer optimizer, sampler, further arguments)
SAMPLERS = {
    "sgld": noisy_sgld(),
    "signs": noisy_sgld(noise="rademacher"),
    "plain momentum": eo.sgld(0.1, momentum=0.5, nesterov=False),
    "annealed": eo.sgld(0.1, temperature=optax.linear_schedule(1e-2, 0.0, 3)),
    "clip and decay": optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), noisy_sgld()
    ),
    "rms": optax.chain(
        optax.scale_by_rms(0.9), eo.add_scope_pull(), optax.scale(-0.05)
    ),
    "noisy_sgd": optax.chain(
        eo.add_scope_pull(), optax.noisy_sgd(0.1, eta=1e-2, key=2)
    ),
    "adam": optax.chain(eo.add_scope_pull(), optax.adam(0.05)),
}
OPTIMIZERS = {
    "nesterov": optax.sgd(0.5, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "muon": optax.contrib.muon(0.05),
    "clip and schedule": optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(optax.cosine_decay_schedule(1.0, 3))
    ),
}
SETTINGS = {
    "kept sampler": {"reset_sampler": False},
    "plain average": {"mean_decay": lambda k: k / (k + 1)},
    "times gamma": {"scale_by_gamma": True},
    "last iterate": {"mean_decay": 0.0},
}


def run_both(optimizer, sampler, num_steps=3, rtol=1e-5, **settings):
    """Return both runs, after a check that they went through the same x."""
    rows = make_rows(3, num_steps)
    opaque, single = (
        eo.local_entropy(
            optimizer, sampler, num_steps, SCOPING, opaque_mode=mode, **settings
        )
        for mode in (True, False)
    )
    a = run_opaque(opaque, make_params(), rows)
    b = run_single(single, make_params(), rows)
    ends = jax.tree.map(lambda h: h[num_steps - 1 :: num_steps], b.history)
    assert_close(ends, a.history, rtol=rtol, atol=1e-5)
    for name in ("outer_count", "num_gradients", "num_nonfinite"):
        assert optax.tree.get(a.state, name) == optax.tree.get(b.state, name)
    for name in ("gamma", "distance", "displacement"):
        values = (optax.tree.get(run.state, name) for run in (a, b))
        np.testing.assert_allclose(*values, rtol=1e-4, err_msg=name)
    return a, b


@pytest.mark.parametrize("name", SAMPLERS)
def test_modes_agree_for_every_sampler(name):
    run_both(optax.sgd(0.7), SAMPLERS[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_modes_agree_for_every_outer_optimizer(name):
    # Muon's Newton-Schulz iteration magnifies rounding.
    run_both(OPTIMIZERS[name], noisy_sgld(), rtol=1e-3 if name == "muon" else 1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_modes_agree_for_every_setting(name):
    run_both(optax.sgd(0.5), SAMPLERS["sgld"], **SETTINGS[name])


def test_modes_agree_with_one_inner_step():
    run_both(optax.sgd(0.5, 0.9), SAMPLERS["clip and decay"], num_steps=1)


@pytest.mark.parametrize("make", [eo.entropy_sgd, eo.entropy_adam])
def test_modes_agree_for_the_ready_made_optimizers(make):
    settings = {
        "gamma": SCOPING,
        "num_steps": 3,
        "temperature": 1e-2,
        "weight_decay": 0.1,
    }
    # The same key twice, in two objects: that one is used twice is checked.
    opaque = make(0.1, opaque_mode=True, key=jax.random.key(3), **settings)
    single = make(0.1, key=jax.random.key(3), **settings)
    a = run_opaque(opaque, make_params(), make_rows())
    b = run_single(single, make_params(), make_rows())
    assert_close(b.params, a.params, atol=1e-5)


def test_a_kept_sampler_differs_from_a_reset_one_from_the_second_step():
    sampler = eo.sgld(0.1, momentum=0.9)
    kept, reset = (
        run_opaque(
            eo.scale_by_local_entropy(sampler, 3, 0.5, reset_sampler=reset),
            make_params(),
            make_rows(),
        ).history["w"]
        for reset in (False, True)
    )
    np.testing.assert_allclose(kept[0], reset[0])
    assert jnp.min(jnp.abs(kept[1] - reset[1])) > 1e-3


def test_eval_params_is_x_at_every_call():
    params, rows = make_params(), make_rows(3, 3)
    tx = eo.local_entropy(optax.sgd(0.5), noisy_sgld(), 3, 0.5)
    assert_equal(eo.eval_params(tx.init(params), params), params)
    run = run_single(tx, params, rows)
    calls = [jax.tree.map(lambda h, i=i: h[i], run.history) for i in range(9)]
    evals = [jax.tree.map(lambda h, i=i: h[i], run.evals) for i in range(9)]
    x = params
    for call, (there, found) in enumerate(zip(calls, evals, strict=True)):
        if call % 3 == 2:
            x = there
        assert_equal(found, x)


def test_eval_params_of_the_whole_loop_is_the_params():
    params = make_params()
    state = eo.entropy_sgd(1.0, num_steps=3, opaque_mode=True).init(params)
    assert eo.eval_params(state, params) is params


def test_diagnostics_by_hand():
    """A scalar quadratic, Algorithm 1 written out in Python floats."""
    scope = lambda t: 0.1 * (t + 1)
    curvature, step, decay, rate = 2.0, 0.2, 0.6, 0.5
    x, distance, away = 1.5, 0.0, [0.0]
    for t in range(2):
        y = mu = x
        away = []
        for _ in range(3):
            y -= step * (curvature * y + scope(t) * (y - x))
            mu = decay * mu + (1 - decay) * y
            away.append(abs(y - x))
        distance = abs(x - mu)
        x -= rate * (x - mu)
    expected = {
        "outer_count": 2,
        "num_gradients": 6,
        "num_nonfinite": 0,
        "gamma": 0.2,
        "distance": distance,
        "displacement": sum(away) / 3,
    }

    settings = {"num_steps": 3, "gamma": scope, "mean_decay": decay}
    grads = lambda params, i: curvature * params
    opaque, single = (
        eo.local_entropy(optax.sgd(rate), eo.sgld(step), opaque_mode=mode, **settings)
        for mode in (True, False)
    )

    @jax.jit
    def run(params):
        p, state = params, opaque.init(params)
        q, single_state = params, single.init(params)
        for _ in range(2):
            moves, state = opaque.update(grads(p, 0), state, p, grad_fn=grads)
            p = p + moves
        for _ in range(6):
            moves, single_state = single.update(grads(q, 0), single_state, q)
            q = q + moves
        return (p, state), (q, single_state)

    for params, state in run(jnp.asarray(1.5)):
        np.testing.assert_allclose(params, x, rtol=1e-6)
        for name, value in expected.items():
            np.testing.assert_allclose(
                optax.tree.get(state, name), value, rtol=1e-5, err_msg=name
            )


def test_num_gradients_counts_calls():
    tx = eo.entropy_sgd(1.0, num_steps=3)
    run = run_single(tx, make_params(), make_rows(1, 5))
    assert eo.num_gradients(run.state) == 5
    assert optax.tree.get(run.state, "inner_count") == 2
    assert optax.tree.get(run.state, "outer_count") == 1


def opaque_update(tx, **kwargs):
    """Return one jitted update of the toy's params and the state after it."""
    params = make_params()
    row = make_rows(1, 3)[0]

    @jax.jit
    def update(params):
        grads = grad_fn(params, row[0])
        return tx.update(grads, tx.init(params), params, **kwargs)

    return update(params)


def test_grad_fn_by_index_gets_one_to_num_steps_minus_one():
    row = make_rows(1, 3)[0]
    table = row.at[0].set(jnp.nan)  # number 0 is the gradient given
    tx = eo.scale_by_local_entropy(noisy_sgld(), 3, 0.5)
    by_batch, _ = opaque_update(tx, grad_fn=grad_fn, batches=row[1:])
    by_index, _ = opaque_update(tx, grad_fn=lambda p, i: grad_fn(p, table[i]))
    assert_close(by_index, by_batch)


def test_grad_fn_with_carry_threads_it_through_indices():
    row = make_rows(1, 3)[0]
    tx = eo.scale_by_local_entropy(noisy_sgld(), 3, 0.5, carry_init=jnp.zeros(3, int))
    plain = eo.scale_by_local_entropy(noisy_sgld(), 3, 0.5)

    def with_carry(params, i, seen):
        return grad_fn(params, row[i]), seen.at[i].set(i)

    updates, state = opaque_update(tx, grad_fn=with_carry)
    wanted, _ = opaque_update(plain, grad_fn=grad_fn, batches=row[1:])
    assert_close(updates, wanted)
    np.testing.assert_array_equal(state.carry, [0, 1, 2])


def test_carry_starts_where_it_ended_or_where_it_is_told():
    tx = eo.scale_by_local_entropy(eo.sgld(0.1), 3, 0.5, carry_init=jnp.float32(10))

    def with_carry(params, batch, total):
        return grad_fn(params, batch), total + batch

    @jax.jit
    def two_steps(params, row):
        grads = grad_fn(params, row[0])
        kwargs = {"grad_fn": with_carry, "batches": row[1:]}
        _, first = tx.update(grads, tx.init(params), params, **kwargs)
        _, second = tx.update(grads, first, params, **kwargs)
        _, told = tx.update(grads, first, params, carry=jnp.float32(1), **kwargs)
        return [optax.tree.get(state, "carry") for state in (first, second, told)]

    carries = two_steps(make_params(), jnp.array([9.0, 1.0, 2.0]))
    np.testing.assert_allclose(carries, [13.0, 16.0, 4.0])


def scale_by_extra(name):
    """Return a transformation that multiplies by the extra argument of a name."""

    def update(updates, state, params=None, **extra_args):
        return jax.tree.map(lambda u: extra_args[name] * u, updates), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


@pytest.mark.parametrize("opaque", [True, False])
def test_extra_args_reach_the_sampler_and_what_comes_after(opaque):
    tx = eo.local_entropy(
        optax.chain(scale_by_extra("value"), optax.sgd(0.5)),
        optax.chain(scale_by_extra("boost"), eo.sgld(0.1)),
        3,
        0.5,
        opaque_mode=opaque,
    )
    run = run_opaque if opaque else run_single

    def moved(extra):
        value, boost = extra
        x = make_params()
        end = run(tx, x, make_rows(1, 3), value=value, boost=boost).params
        return end["w"] - x["w"]

    extras = jnp.array([(1.0, 1.0), (2.0, 1.0), (1.0, 3.0)])
    base, doubled, boosted = jax.jit(lambda e: jax.lax.map(moved, e))(extras)
    np.testing.assert_allclose(doubled, 2 * base, rtol=1e-5)
    assert jnp.linalg.norm(boosted) > 2 * jnp.linalg.norm(base)


def unroll_of(compute, unroll) -> int:
    """Return how many inner steps the body of the scan of L = 4 holds."""
    tx = eo.scale_by_local_entropy(eo.sgld(0.1), 4, 0.1, unroll=unroll)
    grad_fn = jax.grad(lambda p, i: jnp.sum(compute(p)))
    update = lambda p: tx.update(p, tx.init(p), p, grad_fn=grad_fn)[0]
    jaxpr = jax.make_jaxpr(update)(jnp.ones((3, 3, 1, 1)))
    (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    return int(scan.params["unroll"])


def test_unroll_auto_unrolls_convolutions_on_a_cpu(monkeypatch):
    """Found under jit and remat too; elsewhere, or where asked to, the loop stays."""
    images = jnp.ones((1, 8, 8, 1))

    @jax.checkpoint
    @jax.jit
    def convolve(kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert unroll_of(convolve, "auto") == 3
    assert unroll_of(convolve, False) == 1
    assert unroll_of(jnp.square, "auto") == 1
    # In a loop of the gradient's own a convolution stays, unrolled or not.
    body = lambda kernel, _: (kernel + jnp.sum(convolve(kernel)), None)
    looped = lambda kernel: jax.lax.scan(body, kernel, length=2)[0]
    assert unroll_of(looped, "auto") == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert unroll_of(convolve, "auto") == 1
