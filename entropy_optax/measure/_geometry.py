"""A loss in the coordinates of a geometry: every instrument in units of the filters."""

from typing import Any

import jax
import jax.numpy as jnp

from entropy_optax.measure._checks import check_params
from entropy_optax.measure._objective import Function, Params, as_pytree
from entropy_optax.samplers._geometry import Geometry


def in_geometry(f: Function, params: Params, geometry: Geometry) -> tuple[Any, Params]:
    r"""Write a loss in units of a geometry's scales, around a point.

    .. math::
      g(y) = f(x + s(x)\, y), \qquad y = 0 \text{ is } x

    with s elementwise and constant. Whatever is measured of g at 0 is measured of f in
    units of s: with :func:`entropy_optax.filter_geometry` in units of each filter's own
    weights, so that it does not depend on how layers of ReLUs are scaled against each
    other.

    - The Hessian of g is :math:`D H D` with :math:`D = \mathrm{diag}(s)`:
      `dense_spectrum(g, y)`, `spectral_density(g, y, key=...)`, `traces(...)`.
    - Its local entropy, `local_entropy(g, y, gamma=T / r**2, temperature=T)`, is the
      anisotropic one of f, with :math:`\exp(-\tfrac12 (x - x')^\top S^{-1} (x - x'))`,
      :math:`S = r^2 D^2`, as its Gaussian.

    Directions of scale 0, as biases have, are flat in g.

    Args:
      f: the loss, an `objective(...)` or any differentiable function of the params.
      params: x, a tree of arrays.
      geometry: from a tree like the params to scales that broadcast against it.

    Returns:
      g, a function of a tree like the params, and the zeros where it is x.

    Raises:
      MeasureError: if the params are no tree of finite floats.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda p: jnp.sum(p**2) / 2  # its Hessian is the identity
      >>> x = jnp.array([[3.0, 0.0], [3.0, 0.0]])  # two filters, one of zeros
      >>> g, y = measure.in_geometry(f, x, eo.filter_geometry())
      >>> print(measure.dense_spectrum(g, y).round(3))
      [0. 0. 9. 9.]
    """
    check_params(params)
    scales = jax.tree.map(
        lambda leaf, s: jnp.broadcast_to(jnp.asarray(s, leaf.dtype), leaf.shape),
        params,
        geometry(params),
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.tree_util.Partial(_at, as_pytree(f), params, scales), zeros


def _at(f: Function, x: Params, scales: Params, y: Params) -> jax.Array:
    return f(jax.tree.map(lambda x, s, y: x + s * y, x, scales, y))
