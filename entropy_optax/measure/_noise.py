"""How fast the loss or the error grows with random noise on the weights."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_finite,
    check_params,
)
from entropy_optax.measure._directions import Axes, filter_scales
from entropy_optax.measure._estimate import MIN_PROBES, Estimate, estimate
from entropy_optax.measure._objective import Function, Params, as_pytree

Kind = Literal["isotropic", "multiplicative", "filter"]


class NoiseCurve(NamedTuple):
    """What `noise_curve` returns.

    Attributes:
      sigmas: sizes of the noise, `[S]`.
      values: mean of f under noise, `[S]`.
      standard_errors: of these means, `[S]`.
      samples: f of each draw, `[num_samples, S]`; a row has one draw in all sizes.
      baseline: f without noise.
    """

    sigmas: NDArray[np.float64]
    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    samples: NDArray[np.float64]
    baseline: float

    def increase(self, index: int) -> Estimate:
        """The mean increase over no noise.

        Args:
          index: of sigma.

        Returns:
          Mean and standard error of f with noise minus f without.
        """
        return estimate(self.samples[:, index] - self.baseline)


def noise_curve(
    f: Function,
    params: Params,
    sigmas: ArrayLike,
    *,
    kind: Kind,
    key: jax.Array,
    num_samples: int = MIN_PROBES,
    axes: Axes | None = None,
) -> NoiseCurve:
    r"""Measures :math:`E\, f(w + \sigma D \xi)` for normal xi against sigma.

    On a quadratic it is :math:`f(w) + (\sigma^2/2) \operatorname{tr}(D H D)` exactly.
    The same draws serve all sigmas, so that the curve is smooth, and two nets of one
    shape measured with one key are compared in pairs. The standard errors of different
    sigmas are not independent for that reason.

    ================ ============================== ================================
    kind             D, per weight                  what rescaling does to it
    ================ ============================== ================================
    isotropic        1                              changes it at will (Dinh 2017)
    multiplicative   the weight itself              nothing
    filter           filter's root mean square; 0   nothing if whole layers are
                     for biases and norms           multiplied
    ================ ============================== ================================

    Rescaling is that of a ReLU net, (w1, w2) -> (a w1, w2 / a), bias of the first layer
    included, which leaves the function as it was.

    Args:
      f: of the params: a loss, or an error rate; it need not be differentiable.
      params: w, a tree.
      sigmas: sizes of the noise, `[S]`, 0 or more.
      kind: of noise, as in the table.
      key: a typed key.
      num_samples: draws, 30 or more.
      axes: exceptions for "filter"; see `filter_normalized_direction`.

    Returns:
      The curve with its standard errors.

    Raises:
      MeasureError: if there are too few samples, a sigma is negative, the kind not
        known, or a value not finite.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda w: 2 * jnp.sum(w**2)
      >>> curve = measure.noise_curve(
      ...     f, jnp.ones(3), [0.1, 0.5], kind="isotropic", key=jax.random.key(0)
      ... )
      >>> exact = 6 + 6 * curve.sigmas**2
      >>> bool(all(abs(curve.values - exact) < 3 * curve.standard_errors))
      True
    """
    check_params(params)
    check_at_least(
        "num_samples", num_samples, MIN_PROBES, "fewer give no standard error"
    )
    sizes = np.asarray(sigmas, np.float64)
    if sizes.ndim != 1 or not sizes.size or not np.all(sizes >= 0):
        raise MeasureError(f"sigmas: got {sigmas}, wanted [S] numbers of 0 or more")
    if kind == "isotropic":
        scales = jax.tree.map(jnp.ones_like, params)
    elif kind == "multiplicative":
        scales = params
    elif kind == "filter":
        scales = filter_scales(params, axes=axes)
    else:
        raise MeasureError(
            f"kind: got {kind!r}, wanted 'isotropic', 'multiplicative' or 'filter'"
        )
    keys = jax.random.split(key, num_samples)
    f = as_pytree(f)
    samples = np.asarray(_noisy(f, params, scales, jnp.asarray(sizes), keys))
    samples = samples.astype(np.float64)
    check_finite("f under noise", samples)
    errors = samples.std(axis=0, ddof=1) / num_samples**0.5
    baseline = float(_value(f, params))
    return NoiseCurve(sizes, samples.mean(axis=0), errors, samples, baseline)


@jax.jit
def _value(f: Any, params: Params) -> jax.Array:
    return f(params)


@jax.jit
def _noisy(
    f: Any, params: Params, scales: Params, sigmas: jax.Array, keys: jax.Array
) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        leaves, structure = jax.tree.flatten(scales)
        each = jax.random.split(key, len(leaves))
        noise = [
            leaf * jax.random.normal(k, leaf.shape, leaf.dtype)
            for leaf, k in zip(leaves, each, strict=True)
        ]
        noise = jax.tree.unflatten(structure, noise)
        moved = lambda s: jax.tree.map(
            lambda p, d: p + s.astype(p.dtype) * d, params, noise
        )
        return jax.lax.map(lambda s: f(moved(s)), sigmas)

    return jax.lax.map(one, keys)
