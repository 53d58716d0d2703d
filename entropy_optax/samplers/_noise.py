"""Standardised noises: mean 0, variance 1 in every element."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
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
    words = _bits(key, ends[-1] if ends else 0, reread=True)
    pieces = jnp.split(words, ends[:-1]) if ends else []
    signs = [
        _unpack(piece.reshape(shape), leaf)
        for piece, shape, leaf in zip(pieces, shapes, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, signs)


def _normal(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Return ``jax.random.normal``, to rounding, from the words of `_bits`."""
    if dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    words = _bits(key, math.prod(shape)).reshape(shape)
    # 23 bits of mantissa make a float in [1, 2), and that one in the open (-1, 1).
    one = np.float32(1)
    floats = jax.lax.bitcast_convert_type(words >> 9 | one.view(np.uint32), dtype)
    lowest = np.nextafter(-one, one)
    uniform = jnp.maximum(lowest, (floats - one) * (one - lowest) + lowest)
    return np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)


def _bits(key: jax.Array, size: int, *, reread: bool = False) -> jax.Array:
    """Return ``jax.random.bits(key, (size,), jnp.uint32)``, faster on a CPU.

    There JAX keeps the rounds of Threefry in a loop, which reads and writes all words
    five times. Written out, they stay in the registers.

    Args:
      key: a typed PRNG key.
      size: number of words.
      reread: whether each word is read several times. XLA fuses the written-out rounds
        into their readers and would compute each word anew for each of its bits; it
        does not fuse through a loop.

    Returns:
      Random words, uint32 of shape ``(size,)``.
    """
    threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    partitionable = jax.threefry_partitionable.value
    written_out = threefry and partitionable and size < 2**32
    if not (jax.default_backend() == "cpu" and written_out):
        return jax.random.bits(key, (size,), jnp.uint32)
    key_data = jax.random.key_data(key)
    if not reread:
        return _threefry(key_data, jnp.arange(size, dtype=jnp.uint32))
    # Two halves, for XLA removes a loop of one turn.
    half = -(-size // 2)
    starts = jnp.array([0, half], dtype=jnp.uint32)
    counter = jnp.arange(half, dtype=jnp.uint32)
    words = jax.lax.map(lambda start: _threefry(key_data, start + counter), starts)
    return words.reshape(-1)[:size]


def _threefry(key_data: jax.Array, counter: jax.Array) -> jax.Array:
    """Return the two words of Threefry-2x32's block ``(0, counter)``, joined by xor.

    Source: Salmon et al., `Parallel random numbers: as easy as 1, 2, 3
    <https://doi.org/10.1145/2063384.2063405>`_, 2011. So JAX joins them.
    """
    first, second = key_data
    keys = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
    a, b = jnp.broadcast_to(first, counter.shape), counter + second
    for group in range(5):
        for rotation in (13, 15, 26, 6) if group % 2 == 0 else (17, 29, 16, 24):
            a = a + b
            b = (b << rotation | b >> (32 - rotation)) ^ a
        a = a + keys[(group + 1) % 3]
        b = b + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return a ^ b


def _rows_and_columns(leaf: jax.Array) -> tuple[int, int]:
    """Return the shape of a leaf as a matrix, of 32 rows if it has fewer of its own."""
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
    "gaussian": partial(optax.tree.random_like, sampler=_normal),
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
