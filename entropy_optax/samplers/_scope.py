"""The pull of local entropy's scope towards the outer iterate."""

from __future__ import annotations

from typing import Any

import optax
from jax.typing import ArrayLike

from entropy_optax._arguments import like_leaf, map_unmasked
from entropy_optax.samplers._geometry import Geometry, scaled


def add_scope_pull(
    geometry: Geometry | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the gradient of the scope's quadratic, :math:`\gamma (x' - x)`.

    Turns the gradient of the loss at the inner iterate :math:`x'` into that of the
    energy of the modified Gibbs distribution,

    .. math::
      \nabla f(x') + \gamma (x' - x),

    with :math:`x` the outer iterate (``anchor``) and :math:`\gamma` the scope. Place it
    after the momentum, which is not to swallow the pull, and before the step size.

    With a geometry the scope is anisotropic, :math:`\tfrac{\gamma}{2} (x' - x)^T S^{-1}
    (x' - x)` with :math:`S = \mathrm{diag}(s^2)`, and the gradient preconditioned by S,

    .. math::
      S\, \nabla f(x') + \gamma (x' - x).

    Args:
      geometry: None for one scope for all weights, or a function of x that gives the
        scales s, such as :func:`filter_geometry`. The noise has to have the same.

    Returns:
      A stateless transformation. Its ``update`` needs ``params`` (:math:`x'`) and the
      extra arguments ``anchor`` (a tree like the params) and ``gamma`` (a scalar),
      which :func:`entropy_optax.local_entropy` passes to its sampler.

    Raises:
      ValueError: in ``update`` if one of them is missing.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> pull = eo.add_scope_pull()
      >>> energy_grads, _ = pull.update(
      ...     jnp.array([1.0]),
      ...     pull.init(jnp.array([3.0])),
      ...     jnp.array([3.0]),
      ...     anchor=jnp.array([2.0]),
      ...     gamma=0.5,
      ... )
      >>> print(energy_grads)
      [1.5]

    References:
      Chaudhari et al., `Entropy-SGD <https://arxiv.org/abs/1611.01838>`_, ICLR 2017,
      Algorithm 1, line 4.
    """

    def init(params: optax.Params) -> optax.OptState:
        del params
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        anchor: optax.Params | None = None,
        gamma: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        for name, value in {"params": params, "anchor": anchor, "gamma": gamma}.items():
            if value is None:
                raise ValueError(
                    f"{name}: add_scope_pull needs it, got None. It belongs in the "
                    "sampler of local_entropy, which passes params, anchor and gamma."
                )
        assert gamma is not None
        updates = scaled(geometry, anchor, updates, power=2)
        pulled = map_unmasked(
            lambda g, p, a: g + like_leaf(gamma, g) * (p - a).astype(g.dtype),
            updates,
            params,
            anchor,
        )
        return pulled, state

    return optax.GradientTransformationExtraArgs(init, update)
