"""A run of a small network in each framework, with BatchNorm and dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
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

NUM_STEPS, BATCH, FEATURES = 4, 16, 5
# carry_init -> optimizer
MakeTx = Callable[[Any], optax.GradientTransformation]


def random_batches(*leading: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(*leading, BATCH, FEATURES)).astype(np.float32)
    return inputs, np.sin(inputs[..., :3] * 2)


def entropy_sgd(opaque_mode: bool, num_steps: int = NUM_STEPS, **kwargs: Any) -> MakeTx:
    """Entropy-SGD with everything on."""
    settings: dict[str, Any] = {
        "gamma": eo.exponential_scoping(0.5, 0.2),
        "step_size": 0.1,
        "temperature": 1e-4,
        "momentum": 0.9,
        "outer_momentum": 0.5,
        "weight_decay": 1e-2,
        "noise": "rademacher",
        "key": 3,
        **kwargs,
    }
    return lambda carry: eo.entropy_sgd(
        0.5,
        num_steps=num_steps,
        opaque_mode=opaque_mode,
        carry_init=carry if opaque_mode else None,
        **settings,
    )


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(8, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.Dense(3, use_bias=False)(x)


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(FEATURES, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.out = nnx.Linear(8, 3, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def squared(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean((outputs - targets) ** 2)


def linen_loss(params: Any, batch_stats: Any, batch: Any, rng_key: Any) -> Any:
    outputs, updated = LinenModel().apply(
        {"params": params, "batch_stats": batch_stats},
        batch[0],
        train=True,
        rngs={"dropout": rng_key},
        mutable=["batch_stats"],
    )
    return squared(outputs, batch[1]), updated["batch_stats"]


def nnx_loss(model: NnxModel, batch: Any) -> jax.Array:
    return squared(model(batch[0]), batch[1])


linen_gradient = jax.jit(jax.value_and_grad(linen_loss, has_aux=True))
nnx_gradient = nnx.jit(nnx.value_and_grad(nnx_loss))
linen_init = jax.jit(lambda key, x: LinenModel().init(key, x, train=False))


class Linen:
    """A linen run; `gradient` is the naive way to the same gradients."""

    def __init__(self, make_tx: MakeTx):
        variables = linen_init(jax.random.key(0), random_batches()[0])
        self.initial_stats = variables["batch_stats"]
        self.tx = make_tx(linen_carry(self.initial_stats))
        self.state = TrainState.create(
            apply_fn=LinenModel().apply,
            params=variables["params"],
            tx=self.tx,
            batch_stats=self.initial_stats,
            rng_key=jax.random.key(7),
        )
        self.compiled = jax.jit(linen_train_step(linen_loss), donate_argnums=0)

    def step(self, batches: Any) -> float:
        self.state, metrics = self.compiled(self.state, batches)
        return float(metrics["loss"])

    def gradient(self, params: Any, batch: Any) -> tuple[float, Any]:
        key = jax.random.fold_in(self.state.rng_key, self.state.step)
        (loss, stats), grads = linen_gradient(
            params, self.state.batch_stats, batch, key
        )
        self.state = self.state.replace(step=self.state.step + 1, batch_stats=stats)
        return float(loss), grads

    @property
    def params(self) -> Any:
        return self.state.params

    @property
    def eval_params(self) -> Any:
        return self.state.eval_params

    @property
    def stats(self) -> Any:
        return self.state.batch_stats

    @property
    def opt_state(self) -> Any:
        return self.state.opt_state

    @property
    def count(self) -> int:
        return int(self.state.step)


class Nnx:
    """An nnx run; `gradient` is the naive way to the same gradients."""

    def __init__(self, make_tx: MakeTx):
        self.model = NnxModel(nnx.Rngs(0))
        self.tx = make_tx(nnx_carry(self.model))
        self.optimizer = nnx.Optimizer(self.model, self.tx, wrt=nnx.Param)
        self.compiled = nnx.jit(nnx_train_step(nnx_loss), donate_argnums=(0, 1))

    def step(self, batches: Any) -> float:
        return float(self.compiled(self.model, self.optimizer, batches)["loss"])

    def gradient(self, params: Any, batch: Any) -> tuple[float, Any]:
        nnx.update(self.model, params)
        loss, grads = nnx_gradient(self.model, batch)
        self.optimizer.step[...] += 1
        return float(loss), nnx.as_pure(grads)

    @property
    def params(self) -> Any:
        return nnx.as_pure(nnx.state(self.model, nnx.Param))

    @property
    def eval_params(self) -> Any:
        model = nnx_eval_model(self.model, self.optimizer)
        return nnx.as_pure(nnx.state(model, nnx.Param))

    @property
    def stats(self) -> Any:
        # Keys and counts of the dropout too, but a key has no numbers to compare.
        state = nnx.state(self.model, (nnx.BatchStat, nnx.RngCount))
        return nnx.as_pure(state)

    @property
    def opt_state(self) -> Any:
        return nnx.as_pure(self.optimizer.opt_state)

    @property
    def count(self) -> int:
        return int(self.optimizer.step[...])


def assert_close(one: Any, two: Any, atol: float = 2e-6) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def snapshot(tree: Any) -> Any:
    """Copy to the host what the next step may donate."""
    return jax.tree.map(np.array, tree)


def outer_steps(number: int, num_steps: int = NUM_STEPS) -> Iterator[Any]:
    inputs, targets = random_batches(number, num_steps)
    yield from zip(inputs, targets, strict=True)
