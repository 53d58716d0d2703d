"""docs/variants.md: its code blocks run, and equal the reference draw for draw."""

import functools
import pathlib
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
from _problems import MODES, Robust, langevin_draws, run, strict

import entropy_optax as eo
from entropy_optax import reference

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "variants.md"
NUM_OUTER, SIZE = 11, 6
# Settings at which every term moves x; those of the page are nearly inactive.
LOUD = {
    "num_steps": 5,
    "step_size": 0.1,
    "momentum": 0.8,
    "weight_decay": 0.02,
    "gamma0": 0.5,
    "gamma1": 0.1,
    "eps": 0.3,
}


@pytest.fixture(autouse=True)
def _strict():
    with strict(float64=True, leaks=False):
        yield


def page(counter: str = "dead", **settings: Any) -> dict[str, Any]:
    """The page's namespace, with some of its settings replaced."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    if counter == "alive":  # the page's own comment tells how
        blocks[3], swaps = re.subn(
            r"gamma0,  # (.*\)) if", r"eo.\1,  # if", blocks[3], flags=re.MULTILINE
        )
        assert swaps == 1
    namespace: dict[str, Any] = {}
    for index, block in enumerate(blocks):
        exec(block, namespace)
        if index == 0:
            namespace.update(settings)
    return namespace


@functools.cache
def draws(num_steps: int, key: int) -> np.ndarray:
    params = {"w": np.zeros((2, 3))}
    return langevin_draws(params, NUM_OUTER, num_steps, key=key)


def compare(variant: str, names: dict[str, Any], **differences: Any) -> float:
    """Run a variant; return the largest distance of x or x' from the reference."""
    params = {"w": np.linspace(-1.0, 1.0, SIZE).reshape(2, 3)}
    x, num_steps, mode = params["w"].ravel(), names["num_steps"], names["opaque_mode"]
    data = Robust.make(NUM_OUTER, num_steps, SIZE, seed=2)
    logged = Robust.make(1, 1, SIZE, seed=3)
    tx = names[variant]
    state = tx.init(params)
    if variant == "pytorch":
        first = logged.grad(x, 0, 0)
        state = names["seed_outer_buffer"](state, {"w": first.reshape(2, 3)})
        differences = {"outer_buffer": first, **differences}

    same = ("gamma0", "step_size", "momentum", "weight_decay")
    settings = {name: names[name] for name in same} | differences
    noise = draws(num_steps, names["key"])
    expected = reference.entropy_sgd(data.grad, x, noise, **settings)
    grad_fn = jax.grad(Robust.loss)
    actual = run(tx, params, grad_fn, data, opaque_mode=mode, state=state)
    assert int(eo.num_gradients(actual.state)) == NUM_OUTER * num_steps
    error = np.max(np.abs(actual.x - expected.x))
    if actual.inner is not None:
        inner = np.abs(actual.inner - expected.inner)[:, :-1]
        error = max(error, np.max(inner))
    return float(error)


def settings_of(variant: str, names: dict[str, Any]) -> dict[str, Any]:
    """The columns of the page's table, in the reference's terms."""
    return {
        "paper": {
            "learning_rate": 0.1,
            "outer_momentum": 0.9,
            "gamma1": names["gamma1"],
            "temperature": names["eps"] ** 2 / 2,
            "newest_weight": 0.75,
        },
        "lua": {
            "learning_rate": 1.0,
            "gamma0": names["gamma0"] * (1 + names["gamma1"]),
            "weight_decay": 0.0,
            "decoupled_weight_decay": names["weight_decay"],
            "gamma1": names["gamma1"],
            "temperature": names["eps"] ** 2,
            "newest_weight": 0.25,
        },
        "pytorch": {
            "learning_rate": 0.1,
            "outer_momentum": 0.9,
            "outer_weight_decay": names["weight_decay"],
            "gamma1": 0.0,
            "temperature": names["eps"] ** 2,
            "newest_weight": 0.25,
        },
    }[variant]


@pytest.mark.parametrize("opaque_mode", MODES)
@pytest.mark.parametrize("variant", ["paper", "lua", "pytorch"])
def test_variant_equals_the_reference(variant, opaque_mode):
    names = page(opaque_mode=opaque_mode, key=5, **LOUD)
    assert compare(variant, names, **settings_of(variant, names)) < 1e-12


@pytest.mark.parametrize("opaque_mode", MODES)
def test_pytorch_without_its_dead_counter(opaque_mode):
    names = page("alive", opaque_mode=opaque_mode, key=5, **LOUD)
    alive = {**settings_of("pytorch", names), "gamma1": LOUD["gamma1"]}
    assert compare("pytorch", names, **alive) < 1e-12


def test_the_page_as_it_is_written():
    names = page()
    assert compare("paper", names, **settings_of("paper", names)) < 1e-12


def test_every_difference_of_the_table_matters():
    """From column to column of the table the loud trajectories part."""
    names = page(**LOUD)
    data = Robust.make(NUM_OUTER, names["num_steps"], SIZE, seed=2)
    noise = np.random.default_rng(0).normal(size=(NUM_OUTER, names["num_steps"], SIZE))
    common = {k: names[k] for k in ("gamma0", "step_size", "momentum", "weight_decay")}
    base = {**common, **settings_of("pytorch", names), "outer_buffer": np.ones(SIZE)}
    x = np.linspace(-1.0, 1.0, SIZE)
    ends = [
        reference.entropy_sgd(data.grad, x, noise, **{**base, **change}).x[-1]
        for change in (
            {},
            {"gamma1": names["gamma1"]},
            {"gamma0": names["gamma0"] * (1 + names["gamma1"])},
            {"weight_decay": 0.0, "decoupled_weight_decay": names["weight_decay"]},
            {"outer_buffer": None},
            {"outer_weight_decay": 0.0},
            {"newest_weight": 0.75},
            {"temperature": names["eps"] ** 2 / 2},
            {"learning_rate": 1.0, "outer_momentum": 0.0},
        )
    ]
    gaps = [np.max(np.abs(a - b)) for i, a in enumerate(ends) for b in ends[:i]]
    assert min(gaps) > 1e-3


@pytest.mark.parametrize("opaque_mode", MODES)
def test_seed_goes_to_the_outer_buffer_alone(opaque_mode):
    names = page(opaque_mode=opaque_mode)
    params = {"w": np.ones((2, 3))}
    state = names["seed_outer_buffer"](names["pytorch"].init(params), params)
    traces = [
        np.asarray(trace["w"])
        for _, trace in optax.tree.get_all_with_path(state, "trace")
        if isinstance(trace, dict)
    ]
    assert [float(np.sum(trace)) for trace in traces] == (
        [6.0] if opaque_mode else [0.0, 6.0]
    )
