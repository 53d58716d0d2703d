"""Every error names the argument, what was given and what is wanted."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from toy import strict as strict

import entropy_optax as eo

PARAMS = {"w": jnp.ones(2)}


def raises(*words):
    """Expect a ValueError with all these words."""
    pattern = "".join(f"(?=.*{re.escape(str(word))})" for word in words)
    return pytest.raises(ValueError, match=f"(?s){pattern}")


MAKERS = {
    "scale_by_local_entropy": lambda num_steps=3, gamma=0.1, **settings: (
        eo.scale_by_local_entropy(eo.sgld(0.1), num_steps, gamma, **settings)
    ),
    "local_entropy": lambda num_steps=3, gamma=0.1, **settings: eo.local_entropy(
        optax.sgd(1.0), eo.sgld(0.1), num_steps, gamma, **settings
    ),
    "opaque local_entropy": lambda num_steps=3, gamma=0.1, **settings: eo.local_entropy(
        optax.sgd(1.0),
        eo.sgld(0.1),
        num_steps,
        gamma,
        opaque_mode=True,
        **settings,
    ),
    "entropy_sgd": lambda **settings: eo.entropy_sgd(1.0, **settings),
    "entropy_adam": lambda **settings: eo.entropy_adam(1.0, **settings),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("num_steps", 0, "at least 1"),
        ("num_steps", -2, "at least 1"),
        ("num_steps", 2.5, "int"),
        ("num_steps", "3", "int"),
        ("gamma", -0.1, "at least 0"),
        ("gamma", float("nan"), "at least 0"),
        ("mean_decay", -0.1, "[0, 1]"),
        ("mean_decay", 1.5, "[0, 1]"),
        ("mean_decay", float("nan"), "[0, 1]"),
    ],
)
def test_local_entropy_refuses(maker, name, value, wanted):
    with raises(name, value, wanted):
        MAKERS[maker](**{name: value})


@pytest.mark.parametrize("name", ["step_size", "temperature"])
@pytest.mark.parametrize("value", [-1e-3, float("nan")])
def test_samplers_refuse_negative_scalars(name, value):
    scalars: dict[str, Any] = {"step_size": 0.1, "temperature": 0.0} | {name: value}
    for make in (
        lambda: eo.sgld(**scalars),
        lambda: eo.add_langevin_noise(**scalars),
        lambda: eo.entropy_sgd(1.0, **scalars),
        lambda: eo.entropy_adam(1.0, **scalars),
    ):
        with raises(name, value, "at least 0"):
            make()


def test_an_array_that_is_negative_is_refused_too():
    with raises("gamma", "-2", "at least 0"):
        MAKERS["local_entropy"](gamma=jnp.float32(-2))


def test_traced_num_steps_is_refused_with_the_remedy():
    def build(num_steps):
        MAKERS["local_entropy"](num_steps=num_steps)
        return num_steps

    with raises("num_steps", "int", "static_args"):
        jax.jit(build)(3)


def test_injected_num_steps_is_refused_with_the_remedy():
    tx = optax.inject_hyperparams(eo.entropy_sgd)(1.0, num_steps=3)
    with raises("num_steps", "static_args"):
        jax.jit(tx.init)(PARAMS)


@pytest.mark.parametrize("make", [eo.sgld, eo.add_langevin_noise])
def test_unknown_noise_lists_the_known_ones(make):
    with raises("noise", "'cauchy'", "gaussian", "rademacher"):
        make(0.1, temperature=1.0, noise="cauchy")


@pytest.mark.parametrize("missing", ["params", "anchor", "gamma"])
def test_scope_pull_names_what_it_misses(missing):
    pull = eo.add_scope_pull()
    given = {"params": PARAMS, "anchor": PARAMS, "gamma": 0.1} | {missing: None}
    with raises(missing, "add_scope_pull", "None", "local_entropy"):
        pull.update(PARAMS, pull.init(PARAMS), **given)


@pytest.mark.parametrize("maker", ["scale_by_local_entropy", "local_entropy"])
def test_missing_params(maker):
    tx = MAKERS[maker]()
    with raises("params", maker, "None"):
        tx.update(PARAMS, tx.init(PARAMS), grad_fn=lambda p, i: p)


def scan_update(carry_init=None, num_steps=3, **kwargs):
    """Call update of the whole loop once, under jit as it is meant to be."""
    tx = MAKERS["scale_by_local_entropy"](num_steps=num_steps, carry_init=carry_init)
    kwargs.setdefault("grad_fn", lambda p, *rest: p)
    return jax.jit(lambda p: tx.update(p, tx.init(p), p, **kwargs))(PARAMS)


def test_missing_grad_fn_tells_the_two_ways_out():
    with raises("grad_fn", "None", "opaque_mode=False"):
        scan_update(grad_fn=None)


@pytest.mark.parametrize("shape", [(3,), (1, 4), (0,), ()])
def test_batches_with_a_wrong_leading_axis(shape):
    with raises("batches['x']", "num_steps - 1 = 2", shape):
        scan_update(batches={"ok": jnp.ones((2, 5)), "x": jnp.ones(shape)})


def test_batches_of_one_step_have_the_leading_axis_zero():
    with raises("batches", "num_steps - 1 = 0", (1,)):
        scan_update(num_steps=1, batches=jnp.ones(1))


def test_carry_without_carry_init():
    with raises("carry", "carry_init"):
        scan_update(carry=jnp.zeros(()))


@pytest.mark.parametrize(
    "carry",
    [
        jnp.zeros(2),  # structure
        {"mean": jnp.zeros(3)},  # shape
        {"mean": jnp.zeros(2, int)},  # dtype
        {"mean": jnp.zeros(2), "more": jnp.zeros(2)},
    ],
)
def test_carry_unlike_carry_init(carry):
    with raises("carry", "carry_init", "float32"):
        scan_update(
            carry_init={"mean": jnp.zeros(2)},
            carry=carry,
            grad_fn=lambda p, i, carry: (p, carry),
        )


def test_carry_init_needs_the_opaque_mode():
    with raises("carry_init", "opaque_mode=False", "7"):
        MAKERS["local_entropy"](carry_init=7)


@pytest.mark.parametrize(
    "read", [lambda s: eo.eval_params(s, PARAMS), eo.num_gradients]
)
def test_a_state_without_local_entropy(read):
    with raises("state", "local_entropy", "tuple"):
        read(optax.sgd(0.1, momentum=0.9).init(PARAMS))


def test_num_gradients_of_several_local_entropies():
    tx = optax.chain(MAKERS["local_entropy"](), MAKERS["local_entropy"]())
    with raises("state", "one local entropy", "got 2"):
        eo.num_gradients(tx.init(PARAMS))


@pytest.mark.parametrize(
    "schedule",
    [eo.exponential_scoping, eo.linear_scoping, eo.quadratic_scoping],
)
def test_scoping_refuses(schedule):
    with raises("gamma0", -1.0, "at least 0"):
        schedule(-1.0, 0.1)
    with raises("gamma1", -0.5, "at least 0"):
        schedule(1.0, -0.5)
    with raises("max_gamma", "gamma0 = 1", 0.5):
        schedule(1.0, 0.1, max_gamma=0.5)


def test_temperature_from_noise_refuses():
    with raises("eps", -1e-4, "at least 0"):
        eo.temperature_from_noise(-1e-4)
    with raises("convention", "paper", "released", "'lua'"):
        eo.temperature_from_noise(1e-4, "lua")  # pyright: ignore[reportArgumentType] the error itself is tested
