"""BatchNorm statistics at the params where the model is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from entropy_optax.training._steps import num_batches


def reestimate_batch_stats(
    update_stats: Callable[[Any, Any], Any], batch_stats: Any, batches: Any
) -> Any:
    r"""Return the average of the batches' own statistics at fixed params.

    In training the running statistics follow :math:`x'`, and an exponential average
    remembers the last few batches only. For evaluation at :math:`x` pass over training
    data once more, at :math:`x`, with dropout off.

    A running statistic moves as :math:`r \leftarrow m r + (1 - m) b`, where :math:`b`
    is the batch's, so its momentum and the batch's statistic can be read off from two
    starting points, whatever the model is made of:

    .. math::
      m = \frac{u(R, B_1) - u(0, B_1)}{R}, \qquad
      \bar b = \frac{1}{(1 - m)\, n} \sum_{i=1}^n u(0, B_i).

    The variance is the average of the variances within batches, as in PyTorch's
    ``update_bn`` (stochastic weight averaging): it leaves out the spread of the means
    between batches, and batches weigh the same whatever their size.

    Args:
      update_stats: :math:`u`, ``(batch_stats, batch) -> new_batch_stats``: a forward
        pass with BatchNorm in train mode and dropout off, at the params that are
        evaluated: ``eval_params`` (:math:`x`), not :math:`x'`.
      batch_stats: tree of running statistics. Only structure, shapes and dtypes matter,
        but leaves which ``update_stats`` does not change (m = 1), and integers, are
        returned as they are.
      batches: a tree of arrays with a leading axis, the number n of batches, looped
        over by ``lax.scan``; or an iterator or a data loader (an iterable that is no
        pytree) of single batches. A list of batches is a tree: hand in
        ``iter(batches)``.

    Returns:
      A tree like ``batch_stats``.

    Raises:
      ValueError: if there is no batch, or the leading axes differ.

    Examples:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from entropy_optax.training import reestimate_batch_stats
      >>> model = nn.BatchNorm(use_running_average=False, momentum=0.9)
      >>> batches = jnp.sin(jnp.arange(64.0)).reshape(4, 8, 2)  # 4 batches of 8
      >>> variables = jax.jit(model.init)(jax.random.key(0), batches[0])
      >>> def update_stats(batch_stats, batch):
      ...     at_x = {"params": variables["params"], "batch_stats": batch_stats}
      ...     return model.apply(at_x, batch, mutable="batch_stats")[1]["batch_stats"]
      >>> stats = reestimate_batch_stats(
      ...     update_stats, variables["batch_stats"], batches
      ... )
      >>> bool(jnp.allclose(stats["mean"], batches.mean(axis=(0, 1)), atol=1e-6))
      True
      >>> within = batches.var(axis=1).mean(axis=0)
      >>> bool(jnp.allclose(stats["var"], within, atol=1e-6))
      True

    References:
      Izmailov et al., `Averaging Weights Leads to Wider Optima and Better
      Generalization <https://arxiv.org/abs/1803.05407>`_, UAI 2018, section 3.2.
    """
    zero = jax.tree.map(lambda r: jnp.zeros(jnp.shape(r), _dtype(r)), batch_stats)
    far = jax.tree.map(lambda r: jnp.full_like(r, _far(r)), zero)
    update = jax.jit(update_stats)
    if _is_iterable(batches):
        first, total, count = _sum_of_iterable(update, zero, batches)
    else:
        first, total, count = _sum_of_stacked(update, zero, batches)
    from_zero, from_far = update(zero, first), update(far, first)

    def average(old: Any, start: Any, low: Any, high: Any, total: Any) -> Any:
        old = jnp.asarray(old)
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return jnp.array(old, copy=True)
        momentum = (high - low) / start
        fixed = momentum == 1
        share = jnp.where(fixed, 1, 1 - momentum).astype(total.dtype)
        return jnp.where(fixed, old, (total / count / share).astype(old.dtype))

    return jax.tree.map(average, batch_stats, far, from_zero, from_far, total)


def _dtype(leaf: Any) -> Any:
    return jnp.asarray(leaf).dtype


def _far(leaf: jax.Array) -> float:
    # A power of two far above any statistic: R m is then exact and the batch's share
    # vanishes in its rounding, so that m comes out as the dtype holds it, and 1 - m
    # does not suffer from a batch statistic much larger than 1.
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return 0
    return 2.0 ** (jnp.finfo(leaf.dtype).maxexp // 2)


def _is_iterable(batches: Any) -> bool:
    is_leaf = jax.tree_util.all_leaves([batches])
    return is_leaf and not hasattr(batches, "shape") and isinstance(batches, Iterable)


def _accumulate(total: Any, stats: Any) -> Any:
    # Sum in float32 at least, for a long sum in bfloat16 would stand still.
    return jax.tree.map(lambda t, s: t + s.astype(t.dtype), total, stats)


def _nothing(zero: Any) -> Any:
    def start(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(jnp.result_type(leaf, jnp.float32))

    return jax.tree.map(start, zero)


def _sum_of_stacked(
    update: Callable[[Any, Any], Any], zero: Any, batches: Any
) -> tuple[Any, Any, int]:
    count = num_batches(batches)

    def body(total: Any, batch: Any) -> tuple[Any, None]:
        return _accumulate(total, update(zero, batch)), None

    total, _ = jax.lax.scan(body, _nothing(zero), batches)
    return jax.tree.map(lambda leaf: leaf[0], batches), total, count


def _sum_of_iterable(
    update: Callable[[Any, Any], Any], zero: Any, batches: Any
) -> tuple[Any, Any, int]:
    first, total, count = None, _nothing(zero), 0
    for batch in batches:
        first = batch if count == 0 else first
        total = _accumulate(total, update(zero, batch))
        count += 1
    if count == 0:
        raise ValueError("batches must hold at least one batch, got none.")
    return first, total, count
