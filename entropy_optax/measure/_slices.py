"""The loss along lines and over planes through the params of a net."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy_optax.measure._checks import MeasureError, check_finite, check_params
from entropy_optax.measure._objective import Function, Params, as_pytree


def slice_loss(
    f: Function, params: Params, direction: Params, alphas: ArrayLike
) -> NDArray[Any]:
    r"""Computes :math:`f(w + \alpha d)` for each alpha.

    Rescaling: the curve is as wide as the direction is short, so that two nets are
    comparable only along directions in units of their own weights; see
    `filter_normalized_direction`.

    Args:
      f: the loss.
      params: w, a tree.
      direction: d, a tree like it.
      alphas: `[A]`, in units of d.

    Returns:
      Losses, `[A]`.

    Raises:
      MeasureError: if the direction is not like the params, or a loss not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda w: jnp.sum(w**2)
      >>> measure.slice_loss(f, jnp.zeros(2), jnp.ones(2), [-1.0, 0.0, 2.0])
      array([2., 0., 8.], dtype=float32)
    """
    _check_alike("direction", direction, params)
    alphas = _line("alphas", alphas)
    return _evaluate(f, params, (direction,), alphas[:, None])


def plane_loss(
    f: Function,
    params: Params,
    first: Params,
    second: Params,
    alphas: ArrayLike,
    betas: ArrayLike,
) -> NDArray[Any]:
    r"""Computes :math:`f(w + \alpha d_1 + \beta d_2)` over a grid.

    Rescaling: as `slice_loss`.

    Args:
      f: the loss.
      params: w, a tree.
      first: d1, a tree like it.
      second: d2, a tree like it.
      alphas: `[A]`, in units of d1.
      betas: `[B]`, in units of d2.

    Returns:
      Losses, `[A, B]`.

    Raises:
      MeasureError: if a direction is not like the params, or a loss not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda w: w[0] ** 2 + 3 * w[1]
      >>> d1, d2 = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> measure.plane_loss(f, jnp.zeros(2), d1, d2, [0.0, 2.0], [0.0, 1.0, 2.0])
      array([[ 0.,  3.,  6.],
             [ 4.,  7., 10.]], dtype=float32)
    """
    _check_alike("first", first, params)
    _check_alike("second", second, params)
    alphas, betas = _line("alphas", alphas), _line("betas", betas)
    points = np.stack(np.meshgrid(alphas, betas, indexing="ij"), axis=-1)
    losses = _evaluate(f, params, (first, second), points.reshape(-1, 2))
    return losses.reshape(len(alphas), len(betas))


def line_between(
    f: Function, start: Params, end: Params, alphas: ArrayLike
) -> NDArray[Any]:
    r"""Computes :math:`f((1 - \alpha) a + \alpha b)` between two solutions.

    A bump between them is a barrier on this line, not in the landscape: hidden units in
    another order are the same net and may lie behind one.

    Rescaling: the ends keep their losses, what is between them changes.

    Args:
      f: the loss.
      start: a, a tree.
      end: b, a tree like it.
      alphas: `[A]`, 0 for a and 1 for b.

    Returns:
      Losses, `[A]`.

    Raises:
      MeasureError: if b is not like a, or a loss not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda w: (w**2 - 1) ** 2
      >>> measure.line_between(f, -jnp.ones(()), jnp.ones(()), [0.0, 0.5, 1.0])
      array([0., 1., 0.], dtype=float32)
    """
    _check_alike("end", end, start)
    return slice_loss(f, start, jax.tree.map(jnp.subtract, end, start), alphas)


@jax.jit
def _losses(f: Any, params: Params, directions: Any, points: jax.Array) -> jax.Array:
    def loss(point: jax.Array) -> jax.Array:
        moved = params
        for weight, direction in zip(point, directions, strict=True):
            move = lambda p, d, w=weight: p + w.astype(p.dtype) * d
            moved = jax.tree.map(move, moved, direction)
        return f(moved)

    return jax.lax.map(loss, points)  # one after the other: memory of one evaluation


def _evaluate(
    f: Function, params: Params, directions: Any, points: ArrayLike
) -> NDArray[Any]:
    losses = np.asarray(_losses(as_pytree(f), params, directions, jnp.asarray(points)))
    check_finite("losses", losses)
    return losses


def _line(name: str, values: ArrayLike) -> NDArray[Any]:
    values = np.asarray(values, float)
    if values.ndim != 1 or not values.size:
        raise MeasureError(f"{name}: got shape {values.shape}, wanted [A], A above 0")
    return values


def _check_alike(name: str, tree: Params, params: Params) -> None:
    check_params(params)
    shapes = lambda t: [jnp.shape(leaf) for leaf in jax.tree.leaves(t)]
    same = jax.tree.structure(tree) == jax.tree.structure(params)
    if not same or shapes(tree) != shapes(params):
        raise MeasureError(
            f"{name}: got a tree with leaves of shapes {shapes(tree)}, wanted one like"
            f" the params, {shapes(params)}"
        )
