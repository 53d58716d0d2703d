"""A landscape of two variables with two valleys, and where optimizers end in it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from entropy_optax.measure._checks import MeasureError, check_at_least

SHARP = (-1.5, 0.0)
WIDE = (1.5, 0.0)


def two_valleys(x: jax.Array) -> jax.Array:
    r"""A loss of two variables with a sharp deep and a wide shallower valley.

    .. math::
      f(x) = 1 + \tfrac{1}{100} \|x\|^2 - \frac{1}{1 + \|x - s\|^2 / 0.15^2}
             - 0.8\, e^{-\|x - w\|^2 / (2 \cdot 0.8^2)}

    At s = (-1.5, 0) its value is near 0.02 and its curvature near 89, at w = (1.5, 0)
    they are near 0.22 and 1.3. The sharp valley has a long funnel, so that descent from
    anywhere often ends in it.

    Args:
      x: `[..., 2]`.

    Returns:
      Losses, `[...]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> measure.two_valleys(jnp.array([[-1.5, 0.0], [1.5, 0.0]])).round(2)
      Array([0.02, 0.22], dtype=float32)
    """
    from_sharp = jnp.sum((x - jnp.array(SHARP)) ** 2, axis=-1)
    from_wide = jnp.sum((x - jnp.array(WIDE)) ** 2, axis=-1)
    sharp = 1 / (1 + from_sharp / 0.15**2)
    wide = 0.8 * jnp.exp(-from_wide / (2 * 0.8**2))
    return 1 + 0.01 * jnp.sum(x**2, axis=-1) - sharp - wide


def descent_paths(
    f: Callable[[jax.Array], jax.Array],
    tx: optax.GradientTransformation,
    starts: jax.Array,
    *,
    num_gradients: int,
    key: jax.Array,
    gradient_noise: float | jax.Array = 0.0,
    record_every: int = 20,
) -> jax.Array:
    r"""Runs an optimizer from many starts at once, in one vmap.

    Each update gets one gradient, :math:`\nabla f(x) + \sigma \xi` with normal xi: the
    noise of minibatches on a loss of terms :math:`f(x) + \sigma \xi_i \cdot x`. So all
    optimizers which spend one gradient per update are compared at equal gradients. What
    moves the params within a cycle (Entropy-SGD of L inner steps, SAM of two gradients)
    is to be recorded at multiples of the cycle, where the params are its own iterate.

    Args:
      f: of one point `[n]`.
      tx: the optimizer, one gradient per update.
      starts: `[R, n]`.
      num_gradients: of each run, a multiple of `record_every`.
      key: a typed key: of the gradients' noise, and of the optimizer's own where its
        state has an `rng_key`. Run i has the same draws for all optimizers.
      gradient_noise: sigma.
      record_every: gradients between two points of the path.

    Returns:
      Paths, `[R, 1 + num_gradients / record_every, n]`, with the starts.

    Raises:
      MeasureError: if the number of gradients is no multiple.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from entropy_optax import measure
      >>> paths = measure.descent_paths(
      ...     measure.two_valleys,
      ...     optax.sgd(0.1),
      ...     jnp.array([[2.0, 1.0], [-1.6, 0.0]]),
      ...     num_gradients=200,
      ...     key=jax.random.key(0),
      ... )
      >>> paths.shape
      (2, 11, 2)
    """
    check_at_least("record_every", record_every, 1)
    if num_gradients < 1 or num_gradients % record_every:
        raise MeasureError(
            f"num_gradients: got {num_gradients}, wanted a multiple of record_every,"
            f" {record_every}"
        )

    def run(start: jax.Array, key: jax.Array) -> jax.Array:
        noise_key, own_key = jax.random.split(key)
        state = tx.init(start)
        if optax.tree.get_all_with_path(state, "rng_key"):
            state = optax.tree.set(state, rng_key=own_key)

        def update(carry: Any, k: jax.Array) -> tuple[Any, None]:
            x, state = carry
            drawn = jax.random.normal(k, x.shape, x.dtype)
            gradient = jax.grad(f)(x) + gradient_noise * drawn
            updates, state = tx.update(gradient, state, x)
            return (optax.apply_updates(x, updates), state), None

        def record(carry: Any, keys: jax.Array) -> tuple[Any, Any]:
            carry, _ = jax.lax.scan(update, carry, keys)
            return carry, carry[0]

        keys = jax.random.split(noise_key, num_gradients)
        keys = keys.reshape(-1, record_every)
        _, points = jax.lax.scan(record, (start, state), keys)
        return jnp.concatenate([start[None], points])

    return jax.jit(jax.vmap(run))(starts, jax.random.split(key, len(starts)))


def settle(
    f: Callable[[jax.Array], jax.Array],
    points: jax.Array,
    *,
    step_size: float = 0.01,
    num_steps: int = 3000,
) -> jax.Array:
    """Follows the gradient down, without noise, to the bottom of the valley.

    Args:
      f: of one point `[n]`.
      points: `[R, n]`.
      step_size: below 1 over the largest curvature.
      num_steps: of gradient descent.

    Returns:
      Bottoms, `[R, n]`: which valley the points are in.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> measure.settle(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros((1, 2))).round(4)
      Array([[1., 1.]], dtype=float32)
    """
    step = lambda x, _: (x - step_size * jax.grad(f)(x), None)
    run = lambda x: jax.lax.scan(step, x, length=num_steps)[0]
    return jax.jit(jax.vmap(run))(points)


class Share(NamedTuple):
    """A share of runs.

    Attributes:
      count: how many.
      total: of how many.
      low: lower end of Wilson's 95 % interval of the share.
      high: its upper end.
    """

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself, from 0 to 1."""
        return self.count / self.total


def valley_shares(
    points: ArrayLike, centres: Mapping[str, ArrayLike], *, radius: float = 0.3
) -> dict[str, Share]:
    """Counts how many points are near which centre.

    Args:
      points: `[R, n]`, for instance from `settle`.
      centres: names and places, `[n]` each, of the valleys.
      radius: how near, in the units of x.

    Returns:
      For each valley the share of points within the radius, and "elsewhere".

    Raises:
      MeasureError: if a point is near two centres.

    Examples:
      >>> from entropy_optax import measure
      >>> shares = measure.valley_shares(
      ...     [[0.1], [0.0], [5.0], [9.0]], {"here": [0.0], "there": [5.0]}
      ... )
      >>> {name: share.count for name, share in shares.items()}
      {'here': 2, 'there': 1, 'elsewhere': 1}
    """
    points = np.asarray(points)
    near = {
        name: np.linalg.norm(points - np.asarray(centre), axis=-1) < radius
        for name, centre in centres.items()
    }
    hits = np.sum(list(near.values()), axis=0)
    if np.any(hits > 1):
        raise MeasureError(
            f"radius: at {radius} a point is near two centres; wanted below half their"
            " distance"
        )
    near["elsewhere"] = hits == 0
    return {name: _share(where) for name, where in near.items()}


def _share(where: NDArray[np.bool_]) -> Share:
    count, total = int(where.sum()), len(where)
    ends = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    return Share(count, total, float(ends.low), float(ends.high))
