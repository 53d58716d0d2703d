"""Scopes of different size for different weights: the geometry of pull and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_optax._arguments import check_scalar, like_leaf, map_unmasked

Geometry = Callable[[optax.Params], Any]
"""From the outer iterate x to a tree of scales s that broadcast against its leaves."""


def leaf_geometry() -> Geometry:
    r"""Return the geometry in which each leaf has the scope of its own size.

    The scale of a leaf of n weights is its root mean square :math:`\|x_j\| / \sqrt n`,
    so that noise of standard deviation :math:`r s_j` has a norm of about r times the
    leaf's. A leaf of zeros, as a bias at the start, has the scale 0: its x' stays at x,
    so that :math:`x - \mu` would never move it. Average the gradients instead
    (``mean_of="gradients"`` of :func:`local_entropy`).

    Returns:
      A function from a tree of params to a tree of floats, one for each leaf, with axes
      of length 1 to broadcast against it, for the argument ``geometry`` of
      :func:`add_scope_pull`, :func:`add_langevin_noise`, :func:`sgld` and :func:`heat`.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> print(eo.leaf_geometry()({"w": jnp.array([3.0, 4.0, 0.0, 0.0])})["w"])
      [2.5]
    """
    return lambda params: map_unmasked(
        lambda leaf: _rms(leaf, range(leaf.ndim)), params
    )


def filter_geometry(vectors: float = 0.0) -> Geometry:
    r"""Return the geometry in which each filter has the scope of its own size.

    A filter holds the weights of one output channel, the last axis of a kernel in
    Flax's layout: a unit of a dense layer, a filter of a convolution, a unit of one of
    an LSTM's gates, a feature of an embedding. In the queries, keys and values of
    attention it is a unit of one head, along the last two axes. Its scale is its root
    mean square :math:`\|x_j\| / \sqrt{n_j}`. A network with ReLUs is then perturbed
    alike however its layers are scaled against each other, which noise of one size for
    all weights is not.

    Layers that ``nn.scan`` or ``nnx.vmap`` has stacked along a first axis are told from
    a convolution by nobody but you: ``lambda params: geometry(params) | {"layers":
    jax.vmap(geometry)(params["layers"])}`` gives each layer its own filters.

    Args:
      vectors: scale of biases and the scales of normalisation layers (leaves of that
        name, or of less than two dimensions), as a fraction of their own root mean
        square. The default leaves them alone. With a scale of 0 a weight's x' stays at
        x: average the gradients then (``mean_of="gradients"`` of
        :func:`local_entropy`), for :math:`x - \mu` is 0.

    Returns:
      A function from a tree of params to a tree of floats that broadcast against it.

    Raises:
      ValueError: if ``vectors`` is negative.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> kernel = jnp.array([[3.0, 1.0], [4.0, 1.0]])  # two inputs, two outputs
      >>> scales = eo.filter_geometry()({"kernel": kernel, "bias": jnp.ones(2)})
      >>> print(scales["kernel"].round(2), scales["bias"])
      [[3.54 1.  ]] [0.]

    References:
      Li et al., `Visualizing the loss landscape of neural nets
      <https://arxiv.org/abs/1712.09913>`_, NeurIPS 2018, section 4.
    """
    check_scalar("vectors", vectors)

    def scale(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        inputs = input_axes(leaf_names(path), leaf.ndim)
        if inputs is None:
            return like_leaf(vectors, leaf) * _rms(leaf, range(leaf.ndim))
        return _rms(leaf, inputs)

    masked = lambda node: isinstance(node, optax.MaskedNode)
    return lambda params: jax.tree_util.tree_map_with_path(
        scale, params, is_leaf=masked
    )


def leaf_names(path: Any) -> list[str]:
    """Return the names on the way to a leaf, without the attribute of nnx's Params."""
    if path[-1:] == (jax.tree_util.GetAttrKey("value"),):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def input_axes(names: list[str], ndim: int) -> tuple[int, ...] | None:
    """Return the axes that a filter runs along, None for a leaf without filters."""
    # The biases of attention have two axes, too.
    if ndim < 2 or names[-1] in ("bias", "scale"):
        return None
    # [features, heads, features of a head]; what they make goes to one head each.
    of_heads = names[-1] == "kernel" and {"query", "key", "value"} & {*names[-2:-1]}
    return tuple(range(ndim - (2 if of_heads and ndim == 3 else 1)))


def _rms(leaf: jax.Array, axes: Sequence[int]) -> jax.Array:
    size = math.prod(leaf.shape[a] for a in axes)
    # In float32 at least: in float16 the square of 1e-4 is 0, that of 256 infinite.
    wide = jnp.abs(leaf.astype(jnp.result_type(leaf, jnp.float32)))
    squares = jnp.sum(wide**2, axis=tuple(axes), keepdims=True)
    return jnp.sqrt(squares / max(size, 1)).astype(jnp.finfo(leaf.dtype).dtype)


def scaled(geometry: Geometry | None, anchor: Any, tree: Any, power: int = 1) -> Any:
    """Return a tree times a power of the scales at x, or as it is without a geometry.

    Args:
      geometry: None for one scale for all.
      anchor: x.
      tree: a tree like x, masked in the same places.
      power: 1 for noise, 2 for gradients.

    Returns:
      A tree like ``tree``.

    Raises:
      ValueError: if there is a geometry and no ``anchor``.
    """
    if geometry is None:
        return tree
    if anchor is None:
        raise ValueError(
            "anchor: a geometry is taken at it, got None. It belongs in the sampler of "
            "local_entropy, which passes params, anchor and gamma."
        )

    def times(leaf: jax.Array, s: Any) -> jax.Array:
        # One after another: in float16 the square of 1e-4 is 0, that of 256 infinite.
        for _ in range(power):
            leaf = leaf * jnp.asarray(s, leaf.dtype)
        return leaf

    return map_unmasked(times, tree, geometry(anchor))
