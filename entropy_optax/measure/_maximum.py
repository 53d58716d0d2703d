"""The search for the highest loss in a box or a ball around the params."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray
from scipy import optimize

from entropy_optax.measure._checks import check_at_least, check_finite, check_params
from entropy_optax.measure._objective import Function, Params, as_pytree

Norm = Literal["l2", "linf"]


class Sharpness(NamedTuple):
    """The highest loss found near the params.

    Attributes:
      value: the sharpness, in the units of the function that returns it.
      loss: f at the params.
      highest: the largest f found: a lower bound of the maximum.
      restarts: the largest of each restart, `[num_restarts]`; where they disagree the
        search is hard, and more restarts may find more.
      point: where, a tree like the params.
    """

    value: float
    loss: float
    highest: float
    restarts: NDArray[np.float64]
    point: Params


def maximum(
    f: Function,
    params: Params,
    scales: Params,
    radius: float,
    *,
    key: jax.Array,
    norm: Norm,
    num_restarts: int,
    num_steps: int,
    solver: Literal["ascent", "lbfgs"] = "ascent",
) -> Sharpness:
    """Searches the largest `f(w + scales * u)` with `||u|| <= radius`.

    Args:
      f: the loss.
      params: w, a tree.
      scales: a tree like it.
      radius: of u.
      key: of the restarts.
      norm: of u.
      num_restarts: starts: u = 0, and others at random.
      num_steps: gradients of each start.
      solver: normalised gradient ascent, or SciPy's L-BFGS-B for a box.

    Returns:
      What was found; its value is the increase.

    Raises:
      MeasureError: if there are too few restarts or steps, or a loss is not finite.
    """
    check_params(params)
    why = "at a minimum the start at the params itself has no gradient"
    check_at_least("num_restarts", num_restarts, 2, why)
    check_at_least("num_steps", num_steps, 1)
    f = as_pytree(f)
    vector, unravel = ravel_pytree(params)
    scale = ravel_pytree(scales)[0]
    starts = _starts(key, norm, num_restarts, vector) * radius
    loss = float(_loss(f, params, scales, jnp.zeros_like(vector)))
    check_finite("f(params)", loss)
    if solver == "lbfgs":
        points, highest = _lbfgs(f, params, scales, radius, starts, num_steps)
    else:
        points, highest = _ascend(
            f, params, scales, radius, starts, norm=norm, num_steps=num_steps
        )
    restarts = np.maximum(np.asarray(highest, np.float64), loss)
    check_finite("f near the params", restarts)
    best = int(restarts.argmax())
    found = float(restarts[best])
    return Sharpness(
        found - loss, loss, found, restarts, unravel(vector + scale * points[best])
    )


def _starts(key: jax.Array, norm: Norm, count: int, like: jax.Array) -> jax.Array:
    shape = (count, like.size)
    if norm == "linf":
        u = jax.random.uniform(key, shape, like.dtype, -1, 1)
    else:
        u = jax.random.normal(key, shape, like.dtype)
        u = u / jnp.linalg.norm(u, axis=1, keepdims=True)
    return u.at[0].set(0)


@jax.jit
def _loss(f: Any, params: Params, scales: Params, u: jax.Array) -> jax.Array:
    vector, unravel = ravel_pytree(params)
    return f(unravel(vector + ravel_pytree(scales)[0] * u))


@partial(jax.jit, static_argnames=("norm", "num_steps"))
def _ascend(
    f: Any,
    params: Params,
    scales: Params,
    radius: jax.Array,
    starts: jax.Array,
    *,
    norm: Norm,
    num_steps: int,
) -> tuple[jax.Array, jax.Array]:
    loss = lambda u: _loss(f, params, scales, u)
    tiny = jnp.finfo(starts.dtype).tiny

    def ahead(u: jax.Array, gradient: jax.Array, step: jax.Array) -> jax.Array:
        if norm == "linf":
            return jnp.clip(u + step * jnp.sign(gradient), -radius, radius)
        # Scaled first: the square of a small gradient underflows.
        gradient = gradient / jnp.maximum(jnp.max(jnp.abs(gradient)), tiny)
        u = u + step * gradient / jnp.maximum(jnp.linalg.norm(gradient), tiny)
        return u * jnp.minimum(1, radius / jnp.maximum(jnp.linalg.norm(u), tiny))

    def body(carry: Any, k: jax.Array) -> tuple[Any, None]:
        u, best, highest = carry
        value, gradient = jax.value_and_grad(loss)(u)
        best = jnp.where(value > highest, u, best)
        # From one end of the box to the other at first, nowhere at last.
        step = 2 * radius * (1 - k / num_steps)
        u = ahead(u, gradient, step.astype(u.dtype))
        return (u, best, jnp.maximum(highest, value)), None

    def run(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = start, start, loss(start)
        (u, best, highest), _ = jax.lax.scan(body, carry, jnp.arange(num_steps))
        value = loss(u)
        return jnp.where(value > highest, u, best), jnp.maximum(highest, value)

    return jax.lax.map(run, starts)


_value_and_grad = jax.jit(jax.value_and_grad(_loss, argnums=3))


def _lbfgs(
    f: Any,
    params: Params,
    scales: Params,
    radius: float,
    starts: jax.Array,
    num_steps: int,
) -> tuple[jax.Array, list[float]]:
    def negative(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        u = jnp.asarray(x * radius, starts.dtype)
        value, gradient = _value_and_grad(f, params, scales, u)
        return -float(value), -radius * np.asarray(gradient, np.float64)

    points, highest = [], []
    for start in np.asarray(starts, np.float64):
        found = optimize.minimize(
            negative,
            start / radius,
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(-1, 1),
            options={"maxiter": num_steps},
        )
        points.append(found.x * radius)
        highest.append(-float(found.fun))
    return jnp.asarray(np.array(points), starts.dtype), highest
