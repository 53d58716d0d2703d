"""Standardised noises: mean 0, variance 1 in every element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

Noise = (
    Literal["gaussian", "rademacher"]
    | Callable[[jax.Array, Sequence[int], Any], jax.Array]
)


def packed_signs(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Draw random signs, 32 from each random word.

    A discretisation of weak order 1, which Langevin's by Euler is, needs the first
    three moments of its noise only, and signs have those of a Gaussian at a fraction of
    the cost (Kloeden and Platen 1992, section 14.1).

    Args:
      key: a typed PRNG key.
      shape: the shape to draw.
      dtype: the dtype of the result.

    Returns:
      Independent elements, +1 or -1 with equal probability; for a complex dtype both
      parts are signs over the square root of 2.
    """
    if jnp.issubdtype(dtype, jnp.complexfloating):
        real, imag = (
            packed_signs(part, shape, jnp.finfo(dtype).dtype)
            for part in jax.random.split(key)
        )
        return jax.lax.complex(real, imag) / math.sqrt(2)
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    shifts = jnp.arange(32, dtype=jnp.uint32)
    bits = (words[:, None] >> shifts[None, :]) & jnp.uint32(1)
    return 2 * bits.reshape(-1)[:size].reshape(shape).astype(dtype) - 1


_NOISES = {"gaussian": jax.random.normal, "rademacher": packed_signs}


def noise_sampler(noise: Noise) -> Callable[..., jax.Array]:
    """Return the function that draws a noise.

    Args:
      noise: its name, or a function ``(key, shape, dtype) -> Array`` with mean 0 and
        variance 1, such as those of ``jax.random``.

    Returns:
      A function ``(key, shape, dtype) -> Array``.

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
    return noise
