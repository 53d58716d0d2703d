"""Problems with known answers, and the loops that run an optimizer on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import entropy_optax as eo

MODES = (True, False)  # opaque_mode


@contextlib.contextmanager
def strict(*, float64: bool = False, leaks: bool = True) -> Iterator[None]:
    """JAX at its strictest: reused keys, rank promotion and leaked tracers raise.

    Looking for leaks costs a third more compile time.
    """
    with contextlib.ExitStack() as stack:
        if leaks:
            stack.enter_context(jax.checking_leaks())
        stack.enter_context(jax.debug_key_reuse(True))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        if float64:
            stack.enter_context(enable_x64())
        yield


def enable_x64() -> contextlib.AbstractContextManager:
    """Float64 within a block; the public name moved in JAX 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax import experimental

    return getattr(experimental, "enable_x64")()  # noqa: B009


class Run(NamedTuple):
    """Outer iterates, shape (T + 1, n); inner ones or None, (T, L, n); last state."""

    x: np.ndarray
    inner: np.ndarray | None
    state: Any


def run(
    tx: optax.GradientTransformationExtraArgs,
    params: Any,
    grad_fn: Callable[[Any, Any], Any],
    batches: Any,
    *,
    opaque_mode: bool,
    state: Any = None,
) -> Run:
    """Run whole outer steps; the leaves of ``batches`` have the axes (T, L, ...)."""
    state = tx.init(params) if state is None else state

    def opaque(loop, batch):
        params, state = loop
        first = jax.tree.map(lambda leaf: leaf[0], batch)
        rest = jax.tree.map(lambda leaf: leaf[1:], batch)
        updates, state = tx.update(
            grad_fn(params, first), state, params, grad_fn=grad_fn, batches=rest
        )
        params = optax.apply_updates(params, updates)
        return (params, state), (ravel_pytree(params)[0], None)

    def one_gradient(loop, batch):
        def call(loop, data):
            params, state = loop
            updates, state = tx.update(grad_fn(params, data), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), ravel_pytree(params)[0]

        (params, state), inner = jax.lax.scan(call, loop, batch)
        return (params, state), (ravel_pytree(params)[0], inner)

    step = opaque if opaque_mode else one_gradient
    (_, state), (x, inner) = jax.jit(lambda *args: jax.lax.scan(step, *args))(
        (params, state), batches
    )
    x = np.concatenate([np.asarray(ravel_pytree(params)[0])[None], np.asarray(x)])
    return Run(x, None if inner is None else np.asarray(inner), state)


def langevin_draws(
    params: Any, num_outer: int, num_steps: int, *, key: Any, noise: str = "gaussian"
) -> np.ndarray:
    """The standardised draws of a sampler with this key, shape (T, L, n).

    Gaussian ones are drawn anew: each step splits the key, keeps the first half and
    draws from the second. Signs are those of ``add_langevin_noise`` alone. Neither
    takes the noise's scale from the package.
    """
    alone = eo.add_langevin_noise(0.5, 1.0, noise="rademacher", key=key)

    def gaussian(key, _):
        key, noise_key = jax.random.split(key)
        draws = optax.tree.random_like(noise_key, params, jax.random.normal)
        return key, ravel_pytree(draws)[0]

    def rademacher(state, _):
        draws, state = alone.update(optax.tree.zeros_like(params), state)
        return state, jnp.sign(ravel_pytree(draws)[0])

    body, first = {
        "gaussian": (gaussian, jax.random.key(key)),
        "rademacher": (rademacher, alone.init(params)),
    }[noise]
    count = num_outer * num_steps
    _, draws = jax.jit(lambda s: jax.lax.scan(body, s, length=count))(first)
    return np.asarray(draws).reshape(num_outer, num_steps, -1)


def ensemble(state: Any, key: Any, size: int) -> Any:
    """A state for ``jax.vmap``: every member with a key of its own."""
    member = lambda key: optax.tree.set(state, rng_key=key)
    return jax.vmap(member)(jax.random.split(key, size))


class Robust(NamedTuple):
    """Cauchy losses of linear models, one minibatch a row: smooth and nonconvex.

    f_b(x) = 1/2 sum_i log(1 + (a_i x - y_i)^2), with the residuals r its gradient is
    A' (r / (1 + r^2)). A has the shape (T, L, m, n) and y (T, L, m).
    """

    A: np.ndarray
    y: np.ndarray

    @classmethod
    def make(cls, num_outer: int, num_steps: int, size: int, seed: int) -> Robust:
        rng = np.random.default_rng(seed)
        A = rng.normal(size=(num_outer, num_steps, 4, size))
        return cls(A, rng.normal(size=A.shape[:-1]))

    def grad(self, x: np.ndarray, t: int, k: int) -> np.ndarray:
        """NumPy's gradient, in the form that the reference asks for."""
        residual = self.A[t, k] @ x - self.y[t, k]
        return self.A[t, k].T @ (residual / (1 + residual**2))

    @staticmethod
    def loss(params: Any, batch: Robust) -> jax.Array:
        """JAX's loss, on any tree whose leaves have n elements together."""
        residual = batch.A @ ravel_pytree(params)[0] - batch.y
        return 0.5 * jnp.sum(jnp.log1p(residual**2))


def max_z(sample: Any, mean: Any, error: Any) -> float:
    """The largest |z| of sample values against exact ones."""
    return float(np.max(np.abs((np.asarray(sample) - mean) / error)))
