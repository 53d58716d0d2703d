"""The axis of replicas: how to make it, and the centre where to evaluate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from entropy_optax.transforms._checks import check_num_replicas, check_replica_axis
from entropy_optax.transforms._evaluation import outer_params
from entropy_optax.transforms._inner import norm
from entropy_optax.transforms._replica_pull import from_center
from entropy_optax.transforms._replicas import mean_of_replicas


def replica_params(params: optax.Params, num_replicas: int) -> optax.Params:
    """Return params with a leading axis of replicas, all of them equal.

    Noise and batches of their own part them. For replicas from different starts take
    ``jax.vmap(init)(jax.random.split(key, num_replicas))`` instead.

    Args:
      params: a tree of arrays.
      num_replicas: n, at least 1.

    Returns:
      A tree of arrays of shape ``(num_replicas, ...)``, which shares no buffer with
      ``params``.

    Raises:
      ValueError: if ``num_replicas`` is less than 1.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> eo.replica_params({"w": jnp.ones(2)}, 3)["w"].shape
      (3, 2)
    """
    num_replicas = check_num_replicas(num_replicas)
    return jax.tree.map(
        lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], num_replicas, axis=0), params
    )


def center_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""Return the centre of the replicas, where to evaluate.

    The mean :math:`\bar x` of the replicas' outer iterates, computed in float32 at
    least. BatchNorm's statistics have to be re-estimated there.

    Args:
      state: the state of :func:`replicate`. Where it holds a local entropy of one
        gradient per call, x of each replica is taken, as by :func:`eval_params`.
      params: the params of the training loop, with the leading axis.

    Returns:
      A tree like ``params`` without the leading axis.

    Raises:
      ValueError: if a leaf has not the leading axis of the others.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> tx = eo.parle(1.0, num_replicas=2)
      >>> params = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> print(eo.center_params(tx.init(params), params))
      [2. 3.]
    """
    _num_replicas(params)
    return mean_of_replicas(outer_params(state, params))


def replica_distance(params: optax.Params) -> jax.Array:
    r"""Return how far the replicas are from their centre.

    .. math::
      d = \Big( \frac{1}{n} \sum_a \|x_a - \bar x\|^2 \Big)^{1/2}

    Args:
      params: a tree of arrays with a leading axis of replicas.

    Returns:
      A float of shape ``()``, 0 of a tree without leaves.

    Raises:
      ValueError: if a leaf has not the leading axis of the others.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> print(eo.replica_distance(jnp.array([[1.0, 0.0], [1.0, 4.0]])))
      2.0
    """
    num_replicas = _num_replicas(params)
    return norm(jax.tree.map(jax.vmap(from_center), params)) / num_replicas**0.5


def _num_replicas(params: optax.Params) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    number = next((shape[0] for shape in shapes if shape), 1)
    check_replica_axis("params", params, number)
    return number
