"""Directions and noise in units of a net's own filters."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_optax.measure._checks import MeasureError, check_params
from entropy_optax.measure._objective import Params
from entropy_optax.samplers._geometry import input_axes, leaf_names

Axes = Mapping[str, int | None]
"""Which axis counts the filters, by a part of a leaf's name; None leaves it alone."""


def filter_normalized_direction(
    key: jax.Array, params: Params, *, axes: Axes | None = None
) -> Params:
    r"""Draws a random direction whose filters are as long as the net's.

    Of a normal draw g each filter becomes
    :math:`d_i = g_i \, \|w_i\| / \|g_i\|` (Li et al. 2018). A filter is what makes one
    output: in Flax's kernels the slice at one index of the last axis, in the queries,
    keys and values of attention at one of the last two, as
    :func:`entropy_optax.filter_geometry` has it. Leaves of fewer than two axes, which
    are biases and the scales of norms, get zeros.

    Rescaling: multiplying a whole layer's weights by a multiplies its part of d by a,
    so that the slice of a ReLU net is the same function of alpha before and after
    (w1, w2) -> (a w1, w2 / a), in which Dinh et al. (2017) move any other width. With a
    factor of its own for each hidden unit the second layer's filters change their
    shape, and the slice with them.

    Args:
      key: a typed key.
      params: a tree of arrays.
      axes: exceptions, such as `{"embedding": 0, "head": None}`: for each leaf with
        that in its path, the axis that counts the filters, or None for zeros. The last
        that matches holds.

    Returns:
      A tree like the params.

    Raises:
      MeasureError: if the params are not floats, no leaf has a filter, or a name
        matches no leaf.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
      >>> d = measure.filter_normalized_direction(jax.random.key(0), params)
      >>> jnp.linalg.norm(d["kernel"], axis=0).round(4), d["bias"]
      (Array([5., 2.], dtype=float32), Array([0., 0.], dtype=float32))

    References:
      Li, Xu, Taylor, Studer, Goldstein, `Visualizing the loss landscape of neural nets
      <https://arxiv.org/abs/1712.09913>`_, NeurIPS 2018.
    """
    which = _inputs(params, axes)
    leaves, structure = jax.tree.flatten(params)
    out = []
    for leaf, inputs, one in zip(
        leaves, which, jax.random.split(key, len(leaves)), strict=True
    ):
        if inputs is None:
            out.append(jnp.zeros_like(leaf))
        else:
            drawn = jax.random.normal(one, leaf.shape, leaf.dtype)
            out.append(drawn * (_norms(leaf, inputs) / _norms(drawn, inputs)))
    return jax.tree.unflatten(structure, out)


def filter_scales(params: Params, *, axes: Axes | None = None) -> Params:
    r"""The root mean square weight of each filter, as the scale of a noise.

    Noise of :math:`\sigma \, \|w_i\| / \sqrt{n_i}` per weight moves a filter of n_i
    weights by about sigma times its length.

    Rescaling: it is multiplied by a where a whole layer is.

    Args:
      params: a tree of arrays.
      axes: as for `filter_normalized_direction`.

    Returns:
      A tree like the params; zeros where there are no filters.

    Raises:
      MeasureError: as `filter_normalized_direction`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> measure.filter_scales({"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])})
      {'kernel': Array([[3.535534 , 1.4142135],
             [3.535534 , 1.4142135]], dtype=float32)}
    """
    which = _inputs(params, axes)
    leaves, structure = jax.tree.flatten(params)
    out = []
    for leaf, inputs in zip(leaves, which, strict=True):
        if inputs is None:
            out.append(jnp.zeros_like(leaf))
        else:
            count = math.prod(leaf.shape[i] for i in inputs)
            per_weight = _norms(leaf, inputs) / count**0.5
            out.append(jnp.broadcast_to(per_weight, leaf.shape))
    return jax.tree.unflatten(structure, out)


def _norms(leaf: jax.Array, inputs: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(leaf**2, axis=inputs, keepdims=True))


def _inputs(params: Params, axes: Axes | None) -> list[tuple[int, ...] | None]:
    # The axes that each leaf's filters run along, None for a leaf without any.
    check_params(params)
    names, found = set(axes or {}), []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = leaf_names(path)
        inputs = input_axes(parts, leaf.ndim)
        for name, axis in (axes or {}).items():
            if name not in parts:
                continue
            names.discard(name)
            if axis is not None and not -leaf.ndim <= axis < leaf.ndim:
                raise MeasureError(
                    f"axes: {axis} for {jax.tree_util.keystr(path)}, which has"
                    f" {leaf.ndim} axes, wanted one of these or None"
                )
            inputs = None
            if axis is not None:
                inputs = tuple(i for i in range(leaf.ndim) if i != axis % leaf.ndim)
        found.append(inputs)
    if names:
        raise MeasureError(
            f"axes: no leaf has {sorted(names)} in its path; the leaves are"
            f" {[jax.tree_util.keystr(p) for p, _ in _leaves(params)]}"
        )
    if all(inputs is None for inputs in found):
        raise MeasureError(
            "params: no leaf has filters: none has two axes or more, or `axes` leaves"
            " all of them alone"
        )
    return found


def _leaves(params: Params) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(params)
