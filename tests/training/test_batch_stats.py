"""Re-estimated BatchNorm statistics against NumPy's averages."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from entropy_optax.training import nnx_reestimate, reestimate_batch_stats

BATCHES = np.random.default_rng(0).normal(3.0, 2.0, (5, 16, 4)).astype(np.float32)
MEAN = BATCHES.mean(axis=(0, 1), dtype=np.float64)
WITHIN = BATCHES.var(axis=1, dtype=np.float64).mean(axis=0)


def moving_average(momentum: float) -> Any:
    """BatchNorm's rule for means, without the network."""
    return lambda stats, batch: jax.tree.map(
        lambda r: momentum * r + (1 - momentum) * batch.mean(axis=0), stats
    )


def linen_batch_norm(momentum: float) -> Any:
    model = nn.BatchNorm(use_running_average=False, momentum=momentum)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}

    def update_stats(batch_stats: Any, batch: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, batch, mutable="batch_stats")[1]["batch_stats"]

    return update_stats


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9, 0.99])
def test_averages_the_batches_statistics_whatever_the_momentum(momentum: float):
    update_stats = linen_batch_norm(momentum)
    results = []
    for start in (0.0, 1e3):
        stats = {"mean": jnp.full(4, start), "var": jnp.full(4, start)}
        results.append(reestimate_batch_stats(update_stats, stats, BATCHES))
    np.testing.assert_allclose(results[0]["mean"], MEAN, rtol=1e-5)
    np.testing.assert_allclose(results[0]["var"], WITHIN, rtol=1e-5)
    # The statistics of training have no part in it, to the last bit.
    jax.tree.map(np.testing.assert_array_equal, results[0], results[1])


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_is_exact_for_statistics_far_from_one(scale: float):
    stats = reestimate_batch_stats(
        moving_average(0.99), jnp.zeros(4), jnp.asarray(scale * BATCHES)
    )
    np.testing.assert_allclose(stats, scale * MEAN, rtol=2e-5)


def test_a_momentum_of_its_own_for_each_leaf():
    def update_stats(stats: Any, batch: Any) -> Any:
        return {
            "slow": moving_average(0.99)(stats["slow"], batch),
            "fast": moving_average(0.5)(stats["fast"], batch),
            "fixed": stats["fixed"],
            "count": stats["count"] + 1,
        }

    stats = {
        "slow": jnp.ones(4),
        "fast": jnp.ones(4),
        "fixed": jnp.array([1.0, -2.0]),
        "count": jnp.array(7),
    }
    result = reestimate_batch_stats(update_stats, stats, BATCHES)
    np.testing.assert_allclose(result["slow"], MEAN, rtol=1e-5)
    np.testing.assert_allclose(result["fast"], MEAN, rtol=1e-5)
    np.testing.assert_array_equal(result["fixed"], stats["fixed"])
    assert int(result["count"]) == 7


def test_sums_low_precision_in_float32():
    ones = jnp.ones((1000, 2, 4), jnp.bfloat16)
    stats = jnp.zeros(4, jnp.bfloat16)
    result = reestimate_batch_stats(moving_average(0.5), stats, ones)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, stats + 1)


def test_no_statistics():
    assert reestimate_batch_stats(lambda stats, batch: stats, {}, BATCHES) == {}


def test_takes_an_iterable_and_jits_without_leaks():
    stats = {"mean": jnp.zeros(4)}
    update_stats = moving_average(0.9)
    iterated = reestimate_batch_stats(update_stats, stats, iter(BATCHES))
    with jax.checking_leaks():
        stacked = jax.jit(
            lambda batches: reestimate_batch_stats(update_stats, stats, batches)
        )(BATCHES)
    np.testing.assert_allclose(iterated["mean"], MEAN, rtol=1e-5)
    np.testing.assert_allclose(stacked["mean"], MEAN, rtol=1e-5)


@pytest.mark.parametrize("batches", [iter(()), np.zeros((0, 16, 4)), ()])
def test_no_batches_raise(batches: Any):
    with pytest.raises(ValueError, match="batches must"):
        reestimate_batch_stats(moving_average(0.9), jnp.zeros(4), batches)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.dropout(x))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_nnx_changes_the_statistics_alone(training: bool, compiled: bool):
    def reestimate(model: Net, batches: Any) -> None:
        nnx_reestimate(model, batches, lambda model, batch: model(batch))

    model = Net()
    model.train() if training else model.eval()
    modes = model.norm.use_running_average, model.dropout.deterministic
    rest = nnx.as_pure(nnx.state(model, nnx.Not((nnx.BatchStat, nnx.RngKey))))
    (nnx.jit(reestimate) if compiled else reestimate)(model, BATCHES)
    # With the dropout on, these would be far off.
    np.testing.assert_allclose(model.norm.mean[...], MEAN, rtol=1e-5)
    np.testing.assert_allclose(model.norm.var[...], WITHIN, rtol=1e-5)
    assert (model.norm.use_running_average, model.dropout.deterministic) == modes
    after = nnx.as_pure(nnx.state(model, nnx.Not((nnx.BatchStat, nnx.RngKey))))
    jax.tree.map(np.testing.assert_array_equal, rest, after)


def test_nnx_model_without_batch_norm_is_left_alone():
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    before = np.array(model.kernel[...])
    nnx_reestimate(model, BATCHES, lambda model, batch: model(batch))
    np.testing.assert_array_equal(model.kernel[...], before)
