"""Standardised noises: mean 0, variance 1 in every element."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Noise = (
    Literal["gaussian", "rademacher"]
    | Callable[[jax.Array, Sequence[int], Any], jax.Array]
)


def packed_signs(key: jax.Array, tree: Any) -> Any:
    """Draw random signs for a whole tree, 32 from each random word.

    A discretisation of weak order 1, which Langevin's by Euler is, needs the first
    three moments of its noise only, and signs have those of a Gaussian at a fraction of
    the cost (Kloeden and Platen 1992, section 14.1).

    Args:
      key: a typed PRNG key.
      tree: arrays of floating or complex dtypes.

    Returns:
      A tree like ``tree`` of independent elements, +1 or -1 with equal probability; for
      a complex dtype both parts are signs over the square root of 2.
    """
    leaves, treedef = jax.tree.flatten(tree)
    shapes = [_shape_of_words(leaf) for leaf in leaves]
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    words = jax.random.bits(key, (ends[-1] if ends else 0,), jnp.uint32)
    pieces = jnp.split(words, ends[:-1]) if ends else []
    signs = [
        _unpack(piece.reshape(shape), leaf)
        for piece, shape, leaf in zip(pieces, shapes, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, signs)


def _rows_and_columns(leaf: jax.Array) -> tuple[int, int]:
    """Return the shape of a leaf as a matrix; a vector is folded into 32 rows."""
    *leading, columns = leaf.shape or (1,)
    rows = math.prod(leading)
    return (rows, columns) if rows >= 32 else (32, -(-leaf.size // 32))


def _shape_of_words(leaf: jax.Array) -> tuple[int, ...]:
    rows, columns = _rows_and_columns(leaf)
    parts = 2 if jnp.iscomplexobj(leaf) else 1
    return parts, -(-rows // 32), 1, columns


def _unpack(words: jax.Array, leaf: jax.Array) -> jax.Array:
    # Words lie in the leaf's own columns and their bits go down the rows: the compiler
    # then reads words and leaf side by side in one vectorised loop.
    masks = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)[None, None, :, None]
    dtype = jnp.finfo(leaf.dtype).dtype
    signs = jnp.where((words & masks) != 0, 1, -1).astype(dtype)
    real, *imag = (part.reshape(-1)[: leaf.size].reshape(leaf.shape) for part in signs)
    return jax.lax.complex(real, imag[0]) / math.sqrt(2) if imag else real


_NOISES = {
    "gaussian": partial(optax.tree.random_like, sampler=jax.random.normal),
    "rademacher": packed_signs,
}


def noise_sampler(noise: Noise) -> Callable[[jax.Array, Any], Any]:
    """Return the function that draws a noise for a whole tree.

    Args:
      noise: its name, or a function ``(key, shape, dtype) -> Array`` with mean 0 and
        variance 1, such as those of ``jax.random``.

    Returns:
      A function ``(key, tree) -> tree``.

    Raises:
      ValueError: if the name is not known.
    """
    if isinstance(noise, str):
        if noise not in _NOISES:
            raise ValueError(
                f"noise must be one of {sorted(_NOISES)} or a function "
                f"(key, shape, dtype) -> Array, got {noise!r}."
            )
        return _NOISES[noise]
    return partial(optax.tree.random_like, sampler=noise)
