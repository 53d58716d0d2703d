"""Gaussian perturbations of the outer iterate: the heat equation's inner chain."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from entropy_optax._arguments import (
    ScalarOrSchedule,
    at_step,
    check_scalar,
    like_leaf,
    map_unmasked,
    typed_key,
)
from entropy_optax.samplers._geometry import Geometry, scaled
from entropy_optax.samplers._noise import Noise, noise_sampler


class HeatState(NamedTuple):
    """State of :func:`heat`.

    Attributes:
      rng_key: typed PRNG key of the perturbations to come.
    """

    rng_key: jax.Array


def heat(
    radius: ScalarOrSchedule,
    *,
    antithetic: bool = False,
    noise: Noise = "gaussian",
    geometry: Geometry | None = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Move x' to Gaussian perturbations of x, whatever the gradients are.

    In the place of :func:`sgld`, with the plain mean of the gradients
    (``mean_of="gradients", mean_decay=lambda k: k / (k + 1)``), it makes
    :func:`local_entropy` descend the loss smoothed by the heat equation,

    .. math::
      f_r(x) = E\, f(x + r\, s\, \xi), \qquad
      \nabla f_r(x) = E\, \nabla f(x + r\, s\, \xi), \qquad \xi \sim N(0, I),

    which is the limit of the local entropy at high temperature with
    :math:`T / \gamma = r^2`. (Local entropy itself solves the viscous Hamilton-Jacobi
    equation; without viscosity, which is :func:`sgld` at temperature 0 with
    ``mean_decay=0``, the last iterate tends to the proximal point of f.)

    Inner gradient number 1 is taken at x itself and the others at :math:`x + r \sqrt{L
    / (L - 1)}\, s\, \xi`, so that all L together have the covariance :math:`r^2 s^2`:
    exact for losses up to the fourth degree, and of the order :math:`r^4 / L` beyond,
    with weights of 1 / L. It costs L gradients, and with L = 1 is the gradient at x.

    Args:
      radius: r, a number or a schedule of the outer step.
      antithetic: whether perturbations come in pairs of opposite sign, which cancels
        all odd orders of their error; it needs an odd ``num_steps``.
      noise: see :func:`add_langevin_noise`.
      geometry: None, or a function of x that gives the scales s, such as
        :func:`filter_geometry`.
      key: typed PRNG key or integer seed.

    Returns:
      A sampler for :func:`local_entropy`, whose ``update`` needs the extra arguments
      ``anchor``, ``outer_count``, ``inner_count``, ``num_steps`` and ``mean_of`` that
      it passes.

    Raises:
      ValueError: if a constant is negative or the noise is not known; in ``update`` if
        the extra arguments are missing, for antithetic pairs and an even ``num_steps``,
        or if the mean is that of the iterates, which no gradient moves.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> tx = eo.local_entropy(
      ...     optax.sgd(0.1), eo.heat(0.1, antithetic=True), num_steps=5, gamma=0.0,
      ...     mean_of="gradients", mean_decay=lambda k: k / (k + 1),
      ... )  # fmt: skip
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = tx.update(2 * params, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(5):
      ...     params, state = step(params, state)
      >>> print(params)  # by hand: (1 - 0.1 * 2) x
      [0.8 1.6]

    References:
      Chaudhari, Oberman, Osher, Soatto and Carlier, `Deep relaxation: partial
      differential equations for optimizing deep neural networks
      <https://arxiv.org/abs/1704.04932>`_, 2017.
    """
    check_scalar("radius", radius)
    draw = noise_sampler(noise)

    def init(params: optax.Params) -> optax.OptState:
        del params
        return HeatState(typed_key(key))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        anchor: optax.Params | None = None,
        outer_count: ArrayLike | None = None,
        inner_count: ArrayLike | None = None,
        num_steps: int | None = None,
        mean_of: str | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        assert isinstance(state, HeatState)
        for name, value in {"params": params, "anchor": anchor, "num_steps": num_steps,
                            "outer_count": outer_count, "inner_count": inner_count,
                            "mean_of": mean_of}.items():  # fmt: skip
            if value is None:
                raise ValueError(
                    f"{name}: heat needs it, got None. It is a sampler for "
                    "local_entropy, which passes it."
                )
        assert num_steps is not None
        assert outer_count is not None
        assert inner_count is not None
        if mean_of != "gradients":
            raise ValueError(
                f"mean_of must be 'gradients' with heat, got {mean_of!r}: its x' does "
                "not depend on them."
            )
        if antithetic and num_steps % 2 == 0:
            raise ValueError(
                "num_steps must be odd for antithetic pairs (one gradient at x, and "
                f"pairs), got {num_steps}."
            )
        spread = math.sqrt(num_steps / max(num_steps - 1, 1))
        size = at_step(radius, outer_count) * spread
        home = map_unmasked(lambda a, p: a - p, anchor, params)

        def perturb() -> tuple[Any, jax.Array]:
            rng_key, noise_key = jax.random.split(state.rng_key)
            xi = scaled(geometry, anchor, draw(noise_key, updates))
            moves = map_unmasked(
                lambda n, h: h.astype(n.dtype) + like_leaf(size, n) * n, xi, home
            )
            return moves, rng_key

        def reflect() -> tuple[Any, jax.Array]:
            moves = map_unmasked(lambda u, h: (2 * h).astype(u.dtype), updates, home)
            return moves, state.rng_key

        if not antithetic:
            moves, rng_key = perturb()
        else:
            # The move after gradient k leads to where gradient k + 1 is taken.
            second = jnp.asarray(inner_count) % 2 == 1
            moves, rng_key = jax.lax.cond(second, reflect, perturb)
        return moves, HeatState(rng_key)

    return optax.GradientTransformationExtraArgs(init, update)
