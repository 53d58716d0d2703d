"""Checks of what people hand to an instrument, with errors that name it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class MeasureError(ValueError):
    """What was handed to an instrument cannot be measured."""


class NotConverged(MeasureError):
    """A number was not found to the accuracy asked for within the work allowed."""


def check_params(params: Any) -> None:
    """Refuses trees without a Hessian.

    Args:
      params: a tree of arrays.

    Raises:
      MeasureError: if a leaf is not of real floating-point numbers of 32 bits or more,
        or none is there.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise MeasureError("params: got a tree without leaves")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise MeasureError(
                f"params: leaf {jax.tree_util.keystr(path) or '(the root)'} is {dtype},"
                " wanted floats: keep counters and indices out of what is measured"
            )
        if jnp.finfo(dtype).bits < 32:
            raise MeasureError(
                f"params: leaf {jax.tree_util.keystr(path) or '(the root)'} is {dtype},"
                " wanted float32 or float64: small noise and curvature are lost in"
                " less; cast with `jax.tree.map(lambda x: x.astype(jnp.float32),"
                " params)`"
            )


def check_finite(name: str, values: Any) -> None:
    """Refuses NaN and infinities.

    Args:
      name: what the values are.
      values: an array or a number.

    Raises:
      MeasureError: if one of them is not finite.
    """
    values = np.asarray(values)
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise MeasureError(
            f"{name}: {bad} of {values.size} are not finite; the params or the data"
            " hold NaN or infinities, or the loss overflows there"
        )


def check_at_least(name: str, value: float, least: float, why: str = "") -> None:
    """Refuses what is too small.

    Args:
      name: of the argument.
      value: what was given.
      least: what is wanted.
      why: the reason.

    Raises:
      MeasureError: if the value is below.
    """
    if not value >= least:  # NaN, too
        reason = f": {why}" if why else ""
        raise MeasureError(f"{name}: got {value}, wanted {least} or more{reason}")


def check_positive(name: str, value: float) -> None:
    """Refuses what is not above 0.

    Args:
      name: of the argument.
      value: what was given.

    Raises:
      MeasureError: if the value is 0, negative or NaN.
    """
    if not value > 0:
        raise MeasureError(f"{name}: got {value}, wanted a number above 0")
