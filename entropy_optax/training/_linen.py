"""A train step for Flax linen: L gradients on L stacked batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

from entropy_optax._arguments import copy, typed_key
from entropy_optax.training._steps import num_batches, take_gradients
from entropy_optax.transforms._evaluation import outer_params
from entropy_optax.transforms._replicas import along_replicas

# (params, batch_stats, batch, rng_key) -> (loss, new_batch_stats)
LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]


class TrainState(train_state.TrainState):
    """Flax's ``TrainState`` with BatchNorm statistics and a PRNG key.

    Attributes:
      step: gradients spent so far, the unit of every comparison: a whole outer step of
        local entropy adds L, an ordinary update adds 1; with replicas, of each.
      apply_fn: usually ``model.apply``.
      params: the params, x' within a cycle of one gradient per call.
      tx: the optimizer.
      opt_state: its state.
      batch_stats: running statistics of BatchNorm, ``{}`` for a model without. They
        follow x': re-estimate them at ``eval_params`` before an evaluation.
      rng_key: typed PRNG key, never changed; gradient number n gets
        ``jax.random.fold_in(rng_key, n)``, of replica a of R ``n * R + a``.
    """

    batch_stats: Any
    rng_key: jax.Array

    @classmethod
    def create(
        cls,
        *,
        apply_fn: Callable[..., Any],
        params: Any,
        tx: optax.GradientTransformation,
        batch_stats: Any = None,
        rng_key: jax.Array | int = 0,
        **kwargs: Any,
    ) -> TrainState:
        """Make a state before the first gradient.

        Args:
          apply_fn: usually ``model.apply``.
          params: tree of parameters.
          tx: the optimizer.
          batch_stats: running statistics of BatchNorm; None or ``{}`` for none.
          rng_key: typed PRNG key or integer seed, of the dropout for instance.
          **kwargs: fields of a subclass.

        Returns:
          The state. It holds its own copies of ``batch_stats`` and ``rng_key``, and
          ``params`` itself, as Flax's does.
        """
        state = super().create(
            apply_fn=apply_fn,
            params=params,
            tx=tx,
            batch_stats=copy({} if batch_stats is None else batch_stats),
            rng_key=typed_key(rng_key),
            **kwargs,
        )
        # An array from the start: a Python int would cost a second compilation.
        return state.replace(step=jnp.zeros([], jnp.int32))

    @property
    def eval_params(self) -> Any:
        """Where to evaluate: x, also in the middle of a cycle.

        For an optimizer without local entropy these are the params.
        """
        return outer_params(self.opt_state, self.params)


def linen_carry(batch_stats: Any = None) -> dict[str, Any]:
    """Return ``carry_init`` for a linen model: what the inner loop hands on.

    Args:
      batch_stats: running statistics of BatchNorm, or their shapes and dtypes; None or
        ``{}`` for a model without.

    Returns:
      ``{"batch_stats": ..., "loss": sum of the losses, float32 of shape ()}``, with
      copies of the arrays, and zeros where only the shapes are known.
      :func:`linen_train_step` starts from the ``TrainState``'s statistics anyhow.

    Examples:
      >>> import entropy_optax as eo
      >>> from entropy_optax.training import linen_carry
      >>> tx = eo.entropy_sgd(1.0, opaque_mode=True, carry_init=linen_carry())
    """
    stats = {} if batch_stats is None else batch_stats
    stats = jax.tree.map(
        lambda leaf: (
            jnp.zeros(leaf.shape, leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else jnp.array(leaf, copy=True)
        ),
        stats,
    )
    return {"batch_stats": stats, "loss": jnp.zeros([], jnp.float32)}


def linen_train_step(
    loss_fn: LossFn, num_replicas: int | None = None
) -> Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]:
    """Make a train step that takes L gradients on L stacked batches.

    With a local entropy of ``opaque_mode=True`` in the optimizer it is one outer step:
    the gradient at the params on the first batch, then one update which takes the other
    L - 1. With any other optimizer, local entropy of one gradient per call included, it
    is L ordinary updates in one ``lax.scan``. Batches, dropout keys and BatchNorm
    statistics are the same in both, and so are the params to rounding.

    Args:
      loss_fn: ``(params, batch_stats, batch, rng_key) -> (loss, new_batch_stats)``, the
        model in train mode; ``rng_key`` is a typed key, different for every gradient.
      num_replicas: for an optimizer made by :func:`entropy_optax.replicate`: params
        and ``batch_stats`` of the state have this leading axis, and so have the
        batches, ``(num_replicas, L, ...)``. ``loss_fn`` is that of one replica.

    Returns:
      ``step(state, batches) -> (state, {"loss": mean of the L losses})`` for a
      :class:`TrainState` and a tree whose leaves have the leading axis L. Put it into
      ``jax.jit(step, donate_argnums=0)``. It raises a ``ValueError`` if the leading
      axes differ, or L is not ``num_steps`` of the whole inner loop, or the optimizer
      has such a loop and was built without ``carry_init``.

    Examples:
      >>> import entropy_optax as eo, flax.linen as nn, jax, jax.numpy as jnp
      >>> from entropy_optax.training import TrainState, linen_carry, linen_train_step
      >>> model = nn.Dense(1)
      >>> batches = jnp.ones((5, 8, 3)), jnp.ones((5, 8, 1))  # L = 5, 8 examples each
      >>> def loss_fn(params, batch_stats, batch, rng_key):
      ...     inputs, targets = batch
      ...     outputs = model.apply({"params": params}, inputs)
      ...     return jnp.mean((outputs - targets) ** 2), batch_stats
      >>> tx = eo.entropy_sgd(
      ...     1.0, num_steps=5, opaque_mode=True, carry_init=linen_carry()
      ... )
      >>> params = jax.jit(model.init)(jax.random.key(0), batches[0][0])["params"]
      >>> state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
      >>> step = jax.jit(linen_train_step(loss_fn), donate_argnums=0)
      >>> for _ in range(20):
      ...     state, metrics = step(state, batches)
      >>> int(state.step), bool(metrics["loss"] < 1e-3)
      (100, True)
    """

    def value_and_grad(params: Any, batch_stats: Any, data: Any) -> Any:
        batch, rng_key = data
        return jax.value_and_grad(loss_fn, has_aux=True)(
            params, batch_stats, batch, rng_key
        )

    def step(state: Any, batches: Any) -> tuple[Any, dict[str, jax.Array]]:
        length = num_batches(batches, num_replicas)
        # A key for each gradient by its number: how they are grouped does not matter.
        numbers = state.step + jnp.arange(length, dtype=jnp.int32)
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        if num_replicas is not None:
            replica = jnp.arange(num_replicas, dtype=jnp.int32)[:, None]
            numbers = numbers[None] * num_replicas + replica
            numbers = along_replicas(numbers, batches)
            fold = jax.vmap(fold, (None, 0))
        keys = fold(state.rng_key, numbers)
        params, batch_stats, opt_state, loss = take_gradients(
            state.tx,
            value_and_grad,
            state.params,
            state.batch_stats,
            state.opt_state,
            (batches, keys),
            state_name="batch_stats",
            carry_helper="linen_carry(batch_stats)",
            num_replicas=num_replicas,
        )
        new = state.replace(
            step=state.step + length,
            params=params,
            opt_state=opt_state,
            batch_stats=batch_stats,
        )
        return new, {"loss": loss}

    return step
