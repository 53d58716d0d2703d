"""The mean loss over a fixed data set, in chunks: what all instruments measure.

A number that says "flat" is for one named data set, with dropout off and the statistics
of BatchNorm fixed: a function of the params and of nothing else.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_optax.measure._checks import MeasureError, check_finite, check_params

Params = Any
Function = Callable[[Params], jax.Array]
"""A loss of the params alone: an `Objective`, or any differentiable function."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("chunks", "rest"),
    meta_fields=("loss_fn", "predict", "criterion", "num_examples"),
)
@dataclasses.dataclass(frozen=True)
class Objective:
    """A mean loss over a data set, as a function of the params: `objective(params)`.

    Made by `objective` or `model_objective`. It is a pytree, so that the data are an
    argument of compiled functions and not a constant in them.

    Attributes:
      loss_fn: `(params, batch) -> mean loss over the batch`.
      predict: `(params, batch) -> outputs`, or None.
      criterion: `(outputs, batch) -> mean loss`, or None.
      num_examples: N, of the data set.
      chunks: the data as `[number of chunks, chunk, ...]`.
      rest: the last, shorter chunk, or None.
    """

    loss_fn: Callable[[Params, Any], jax.Array]
    predict: Callable[[Params, Any], Any] | None
    criterion: Callable[[Any, Any], jax.Array] | None
    num_examples: int
    chunks: Any
    rest: Any

    def __call__(self, params: Params) -> jax.Array:
        """Computes the mean loss over all examples.

        Args:
          params: a tree.

        Returns:
          The loss.
        """
        return self._mean(lambda batch: self.loss_fn(params, batch))

    def gauss_newton_vector_product(self, params: Params, vector: Params) -> Params:
        """Multiplies by the Gauss-Newton matrix, J' H J with H of the criterion.

        Args:
          params: where.
          vector: a tree like the params.

        Returns:
          A tree like the params.

        Raises:
          MeasureError: if the objective was not made by `model_objective`.
        """
        predict, criterion = self.predict, self.criterion
        if predict is None or criterion is None:
            raise MeasureError(
                "curvature: 'gauss_newton' wants model_objective(predict, criterion,"
                " data), got an objective of a loss alone"
            )

        def product(batch: Any) -> Params:
            outputs, pushed = jax.jvp(lambda p: predict(p, batch), (params,), (vector,))
            _, pull = jax.vjp(lambda p: predict(p, batch), params)
            gradient = jax.grad(lambda o: criterion(o, batch))
            return pull(jax.jvp(gradient, (outputs,), (pushed,))[1])[0]

        return self._mean(product)

    def _mean(self, function: Callable[[Any], Any]) -> Any:
        # Recomputing a chunk in the backward pass keeps the memory to one chunk.
        function = jax.checkpoint(function)
        first = jax.tree.map(lambda a: a[0], self.chunks)
        zero = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, first)
        )
        add = lambda total, batch: jax.tree.map(jnp.add, total, function(batch))
        total, _ = jax.lax.scan(
            lambda total, batch: (add(total, batch), None), zero, self.chunks
        )
        size = _length(first)
        total = jax.tree.map(lambda t: t * (size / self.num_examples), total)
        if self.rest is None:
            return total
        share = _length(self.rest) / self.num_examples
        return jax.tree.map(lambda t, r: t + share * r, total, function(self.rest))


def objective(
    loss_fn: Callable[[Params, Any], jax.Array],
    data: Any,
    params: Params,
    *,
    chunk_size: int = 500,
) -> Objective:
    """The mean of a loss over a data set, as a function of the params.

    Args:
      loss_fn: `(params, batch) -> loss`, the mean over the batch's leading axis; with
        dropout off and BatchNorm's statistics fixed.
      data: a tree of arrays with one leading axis of N examples.
      params: any, on which the loss is tried.
      chunk_size: examples per call of `loss_fn`; memory grows with it.

    Returns:
      The objective.

    Raises:
      MeasureError: if the loss of the first examples is not a mean (but a sum, say, or
        one with BatchNorm in training mode) or not finite, at the params or beside
        them; if params or data are not as above.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> loss_fn = lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      >>> data = {"x": jnp.eye(3), "y": jnp.ones(3)}
      >>> f = measure.objective(loss_fn, data, jnp.zeros(3), chunk_size=2)
      >>> float(f(jnp.zeros(3)))
      1.0
    """
    return _make(loss_fn, None, None, data, params, chunk_size)


def model_objective(
    predict: Callable[[Params, Any], Any],
    criterion: Callable[[Any, Any], jax.Array],
    data: Any,
    params: Params,
    *,
    chunk_size: int = 500,
) -> Objective:
    """As `objective`, for a loss in two parts: it has a Gauss-Newton matrix as well.

    Args:
      predict: `(params, batch) -> outputs`.
      criterion: `(outputs, batch) -> loss`, the mean over the batch's leading axis.
      data: a tree of arrays with one leading axis of N examples.
      params: any, on which the loss is tried.
      chunk_size: examples per call.

    Returns:
      The objective.

    Raises:
      MeasureError: as `objective`.
    """
    loss_fn = lambda params, batch: criterion(predict(params, batch), batch)
    return _make(loss_fn, predict, criterion, data, params, chunk_size)


def _make(
    loss_fn: Any, predict: Any, criterion: Any, data: Any, params: Any, chunk_size: int
) -> Objective:
    check_params(params)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(data)]
    lengths = sorted({shape[0] if shape else 0 for shape in shapes})
    if len(lengths) != 1 or lengths[0] < 2:
        raise MeasureError(
            f"data: leading axes are {lengths}, wanted one of 2 examples or more"
        )
    if chunk_size < 1:
        raise MeasureError(f"chunk_size: got {chunk_size}, wanted 1 or more")
    count = lengths[0]
    size = min(chunk_size, count)
    whole = count // size * size
    data = jax.tree.map(jnp.asarray, data)
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, size, *a.shape[1:]), data)
    rest = jax.tree.map(lambda a: a[whole:], data) if whole < count else None
    first = jax.tree.map(lambda a: a[: min(count, 64)], data)
    # Where all is fitted a sum is as small as a mean: a second try beside the params.
    beside = jax.tree.map(lambda p: p + 0.1 + 0.1 * jnp.abs(p), params)
    for at in (params, beside):
        _check_mean(loss_fn, first, at)
    return Objective(loss_fn, predict, criterion, count, chunks, rest)


def _check_mean(loss_fn: Any, batch: Any, params: Any) -> None:
    # A mean over a batch is the weighted mean of the means over its parts.
    count = _length(batch)
    cut = max(1, count // 3)
    part = lambda start, stop: jax.tree.map(lambda a: a[start:stop], batch)
    loss = jax.jit(loss_fn)
    whole = loss(params, batch)
    if jnp.shape(whole) != ():
        raise MeasureError(
            f"loss_fn: returned an array of shape {jnp.shape(whole)}, wanted a scalar"
        )
    check_finite("loss_fn", whole)
    parts = loss(params, part(0, cut)) * cut + loss(params, part(cut, count)) * (
        count - cut
    )
    if not np.isclose(float(whole), float(parts) / count, rtol=1e-3, atol=1e-6):
        raise MeasureError(
            f"loss_fn: not a mean over examples: on {count} it is {float(whole):.6g},"
            f" but the weighted mean of two parts is {float(parts) / count:.6g}; it"
            " must divide by the batch's size, with dropout and BatchNorm in"
            " evaluation mode"
        )


def as_pytree(f: Function) -> Any:
    """Lets any function be an argument of a compiled one.

    Args:
      f: the loss.

    Returns:
      The same as a callable pytree.
    """
    known = isinstance(f, Objective | jax.tree_util.Partial)
    return f if known else jax.tree_util.Partial(f)


def _length(batch: Any) -> int:
    return jax.tree.leaves(batch)[0].shape[0]
