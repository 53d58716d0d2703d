"""A train step for Flax nnx: L gradients on L stacked batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from entropy_optax._arguments import copy
from entropy_optax.training._batch_stats import reestimate_batch_stats
from entropy_optax.training._steps import num_batches, take_gradients
from entropy_optax.transforms._checks import check_replica_axis
from entropy_optax.transforms._evaluation import outer_params


def nnx_carry(
    model: nnx.Module, wrt: Any = nnx.Param, num_replicas: int | None = None
) -> dict[str, Any]:
    """Return ``carry_init`` for an nnx model: what the inner loop hands on.

    Args:
      model: the model, as it will be trained.
      wrt: the filter of the params, that of ``nnx.Optimizer``.
      num_replicas: of a model whose variables have a leading axis of replicas; it is
        left out, for :func:`entropy_optax.replicate` adds it.

    Returns:
      ``{"model_state": ..., "loss": sum of the losses, float32 of shape ()}``, where
      the model's state is all but the params: BatchNorm statistics, counts and keys of
      the ``nnx.Rngs`` in dropout layers. Arrays are copies.

    Examples:
      >>> import entropy_optax as eo
      >>> from entropy_optax.training import nnx_carry
      >>> from flax import nnx
      >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
      >>> tx = eo.entropy_sgd(1.0, opaque_mode=True, carry_init=nnx_carry(model))
    """
    _, _, state = nnx.split(model, wrt, ...)
    model_state = nnx.as_pure(state)
    if num_replicas is not None:
        check_replica_axis("model", model_state, num_replicas)
        model_state = jax.tree.map(lambda leaf: leaf[0], model_state)
    return {
        "model_state": copy(model_state),
        "loss": jnp.zeros([], jnp.float32),
    }


def nnx_train_step(
    loss_fn: Callable[[Any, Any], jax.Array], num_replicas: int | None = None
) -> Callable[[Any, Any, Any], dict[str, jax.Array]]:
    """Make a train step that takes L gradients on L stacked batches.

    With a local entropy of ``opaque_mode=True`` in the optimizer it is one outer step:
    the gradient at the params on the first batch, then one update which takes the other
    L - 1. With any other optimizer, local entropy of one gradient per call included, it
    is L ordinary updates in one ``lax.scan``. Batches, dropout masks and BatchNorm
    statistics are the same in both, and so are the params to rounding.

    Args:
      loss_fn: ``(model, batch) -> loss``, the model in train mode. It may change the
        state that the model already has, as BatchNorm and dropout do; it cannot add
        variables, as ``sow`` does.
      num_replicas: for an optimizer made by :func:`entropy_optax.replicate`: all
        variables of the model have this leading axis (``nnx.vmap`` makes such a model),
        and so have the batches, ``(num_replicas, L, ...)``.

    Returns:
      ``step(model, optimizer, batches) -> {"loss": mean of the L losses}`` for an
      ``nnx.Optimizer`` and a tree whose leaves have the leading axis L. Model and
      optimizer are changed in place; ``optimizer.step`` counts gradients. Put it into
      ``nnx.jit``. It raises a ``ValueError`` if the leading axes differ, or L is not
      ``num_steps`` of the whole inner loop, or the optimizer has such a loop and was
      built without ``carry_init``.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> from entropy_optax.training import nnx_carry, nnx_train_step
      >>> from flax import nnx
      >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
      >>> tx = eo.entropy_sgd(
      ...     1.0, num_steps=5, opaque_mode=True, carry_init=nnx_carry(model)
      ... )
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> batches = jnp.ones((5, 8, 3)), jnp.ones((5, 8, 1))  # L = 5, 8 examples each
      >>> step = nnx.jit(
      ...     nnx_train_step(lambda model, b: jnp.mean((model(b[0]) - b[1]) ** 2))
      ... )
      >>> for _ in range(20):
      ...     metrics = step(model, optimizer, batches)
      >>> int(optimizer.step[...]), bool(metrics["loss"] < 1e-3)
      (100, True)
    """

    def step(model: Any, optimizer: Any, batches: Any) -> dict[str, jax.Array]:
        length = num_batches(batches, num_replicas)
        # Split once: inside the loop there are only arrays, for a scan takes no module.
        graphdef, params, model_state = nnx.split(model, optimizer.wrt, ...)

        def loss_and_state(params: Any, model_state: Any, batch: Any) -> Any:
            merged = nnx.merge(graphdef, params, model_state)
            loss = loss_fn(merged, batch)
            _, _, model_state = nnx.split(merged, optimizer.wrt, ...)
            return loss, nnx.as_pure(model_state)

        params, model_state, opt_state, loss = take_gradients(
            optimizer.tx,
            jax.value_and_grad(loss_and_state, has_aux=True),
            nnx.as_pure(params),
            nnx.as_pure(model_state),
            nnx.as_pure(optimizer.opt_state),
            batches,
            state_name="model_state",
            carry_helper="nnx_carry(model)",
            num_replicas=num_replicas,
        )
        nnx.update(model, params, model_state)
        nnx.update(optimizer.opt_state, nnx.state(opt_state))
        optimizer.step[...] += length
        return {"loss": loss}

    return step


def nnx_eval_model(model: Any, optimizer: Any) -> Any:
    """Return a copy of the model at x, also in the middle of a cycle.

    Args:
      model: the model, at x' within a cycle of one gradient per call.
      optimizer: its ``nnx.Optimizer``.

    Returns:
      A model of the same kind, independent of the first. Its BatchNorm statistics are
      still those that followed x': see :func:`nnx_reestimate`. For an optimizer without
      local entropy the params are the model's own.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> from entropy_optax.training import nnx_eval_model, nnx_train_step
      >>> from flax import nnx
      >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, eo.entropy_sgd(1.0), wrt=nnx.Param)
      >>> step = nnx.jit(nnx_train_step(lambda model, b: jnp.mean(model(b) ** 2)))
      >>> x = model.kernel[...]
      >>> metrics = step(model, optimizer, jnp.ones((1, 8, 3)))
      >>> at_x = nnx_eval_model(model, optimizer)
      >>> bool((at_x.kernel[...] == x).all()), bool((model.kernel[...] == x).all())
      (True, False)
    """
    graphdef, params, rest = nnx.split(model, optimizer.wrt, ...)
    x = outer_params(nnx.as_pure(optimizer.opt_state), nnx.as_pure(params))
    return nnx.merge(graphdef, copy(x), copy(nnx.as_pure(rest)))


def nnx_reestimate(
    model: Any, batches: Any, forward: Callable[[Any, Any], Any]
) -> None:
    """Re-estimate a model's BatchNorm statistics at its params, in place.

    During the pass BatchNorm uses the batch's statistics and dropout is off; afterwards
    only the statistics have changed. In the middle of a cycle the params are x': take
    :func:`nnx_eval_model` first.

    Args:
      model: a model, in whichever mode.
      batches: tree of arrays of shape ``(number of batches, ...)``, or an iterable; see
        :func:`reestimate_batch_stats`.
      forward: ``(model, batch) -> anything``, one forward pass which leaves the modes
        of BatchNorm and dropout alone.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax.training import nnx_reestimate
      >>> from flax import nnx
      >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> batches = jnp.sin(jnp.arange(64.0)).reshape(4, 8, 2)  # 4 batches of 8
      >>> nnx_reestimate(model, batches, lambda model, batch: model(batch))
      >>> bool(jnp.allclose(model.mean[...], batches.mean(axis=(0, 1)), atol=1e-6))
      True
    """
    graphdef, stats, rest = nnx.split(model, nnx.BatchStat, ...)
    rest = nnx.as_pure(rest)

    def update_stats(stats: Any, batch: Any) -> Any:
        merged: Any = nnx.merge(graphdef, stats, rest)
        merged.set_attributes(
            use_running_average=False, deterministic=True, raise_if_not_found=False
        )
        forward(merged, batch)
        return nnx.as_pure(nnx.state(merged, nnx.BatchStat))

    nnx.update(model, reestimate_batch_stats(update_stats, nnx.as_pure(stats), batches))
