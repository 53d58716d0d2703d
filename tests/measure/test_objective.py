"""Means over data sets in chunks, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_optax import measure


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


def problem(count=23):
    generator = np.random.default_rng(0)
    data = {"x": generator.normal(size=(count, 4)), "y": generator.normal(size=count)}
    return data, {"w": jnp.asarray(generator.normal(size=4), jnp.float32)}


@pytest.mark.parametrize("chunk_size", [1, 4, 22, 23, 100])
def test_chunks_change_nothing(chunk_size):
    data, params = problem()
    f = measure.objective(loss_fn, data, params, chunk_size=chunk_size)
    data = jax.tree.map(jnp.asarray, data)
    np.testing.assert_allclose(f(params), loss_fn(params, data), rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        jax.jit(jax.grad(f))(params),
        jax.grad(loss_fn)(params, data),
    )
    vector = {"w": jnp.arange(4.0)}
    product = measure.hessian_vector_product(f, params, vector)["w"]
    exact = 2 * data["x"].T @ (data["x"] @ vector["w"]) / 23
    np.testing.assert_allclose(product, exact, rtol=1e-5)


def test_an_objective_is_an_argument_and_compiles_once():
    data, params = problem()
    count = 0

    def counted(params, batch):
        nonlocal count
        count += 1
        return loss_fn(params, batch)

    f = measure.objective(counted, data, params, chunk_size=10)
    value = jax.jit(lambda f, params: f(params))
    value(f, params)
    before = count
    other = jax.tree.map(lambda leaf: 2 * leaf, f)  # other data of the same shape
    assert not np.isclose(value(other, params), value(f, params))
    assert count == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_fn": lambda p, b: 5 * len(b["y"]) * loss_fn(p, b)}, "not a mean"),
        ({"loss_fn": lambda p, b: b["y"]}, "shape"),
        ({"loss_fn": lambda p, b: loss_fn(p, b) * jnp.nan}, "loss_fn: 1 of 1 are not"),
        ({"data": {"x": np.ones((3, 4)), "y": np.ones(2)}}, "leading axes are"),
        ({"data": {"x": np.ones((1, 4)), "y": np.ones(1)}}, "2 examples or more"),
        ({"chunk_size": 0}, "chunk_size: got 0"),
        ({"params": {"w": jnp.ones(4), "n": jnp.int32(1)}}, r"\['n'\] is int32"),
        ({"params": {}}, "without leaves"),
    ],
)
def test_errors_name_what_is_wrong(change, message):
    data, params = problem()
    given = {"loss_fn": loss_fn, "data": data, "params": params} | change
    with pytest.raises(measure.MeasureError, match=message):
        measure.objective(**given)


def test_a_sum_that_vanishes_at_the_params_is_refused():
    x = np.eye(4)
    data = {"x": x, "y": np.ones(4)}
    fitted = {"w": jnp.ones(4)}
    total = lambda p, b: jnp.sum((b["x"] @ p["w"] - b["y"]) ** 2)
    assert total(fitted, data) == 0.0
    with pytest.raises(measure.MeasureError, match="not a mean"):
        measure.objective(total, data, fitted)


def test_batch_norm_in_training_mode_is_refused():
    data, params = problem()

    def normalised(params, batch):
        x = batch["x"] @ params["w"]
        x = (x - x.mean()) / x.std()
        return jnp.mean((x - batch["y"]) ** 2)

    with pytest.raises(measure.MeasureError, match="evaluation mode"):
        measure.objective(normalised, data, params)


def test_estimates():
    samples = np.array([1.0, 2.0, 4.0])
    found = measure.estimate(samples)
    assert found.value == pytest.approx(7 / 3)
    assert found.standard_error == pytest.approx(np.std(samples, ddof=1) / 3**0.5)
    low, high = found.interval()
    assert (high - low) / 2 == pytest.approx(4.302653 * found.standard_error)
    assert measure.Estimate(1.0, 0.0, 0).interval() == (1.0, 1.0)
    assert str(measure.Estimate(1.23456, 0.0123, 9)) == "1.235 ± 0.012"
    with pytest.raises(measure.MeasureError, match="samples: got 1"):
        measure.estimate(samples[:1])
