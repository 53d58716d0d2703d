"""How high the loss can rise near a minimum: two sharpnesses from the literature."""

from typing import Literal

import jax
import jax.numpy as jnp

from entropy_optax.measure._checks import MeasureError, check_params, check_positive
from entropy_optax.measure._estimate import MIN_PROBES, Estimate
from entropy_optax.measure._maximum import Sharpness, maximum
from entropy_optax.measure._noise import noise_curve
from entropy_optax.measure._objective import Function, Params


def epsilon_sharpness(
    f: Function,
    params: Params,
    *,
    epsilon: float = 1e-3,
    key: jax.Array,
    num_restarts: int = 4,
    num_steps: int = 50,
    solver: Literal["ascent", "lbfgs"] = "ascent",
) -> Sharpness:
    r"""The relative increase of the loss over a small box, in per cent.

    .. math::
      100\, \frac{\max_{|\delta_i| \le \epsilon (|w_i| + 1)} f(w + \delta) - f(w)}
                 {1 + f(w)}

    Rescaling changes it: the 1 in the box is a length, so (w1, w2) -> (a w1, w2 / a)
    makes the same ReLU net as sharp as one likes (Dinh et al. 2017). So does adding a
    constant to f. Use it for nets of one architecture, trained alike; or
    `adaptive_sharpness`.

    Args:
      f: the loss, differentiable.
      params: w, a tree.
      epsilon: size of the box, without unit; Keskar et al. take 1e-3 and 5e-4.
      key: a typed key, of the restarts.
      num_restarts: starts: one at w, the others uniform in the box.
      num_steps: gradients of each start.
      solver: "ascent" by signs of the gradient with a step that shrinks to 0, or
        "lbfgs", SciPy's L-BFGS-B, as in the paper; in float64 on the host.

    Returns:
      The sharpness in per cent; a lower bound, for the search may miss the maximum.

    Raises:
      MeasureError: if an argument is out of range, or a loss not finite.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda w: jnp.sum(w**2)
      >>> found = measure.epsilon_sharpness(
      ...     f, jnp.zeros(3), epsilon=0.1, key=jax.random.key(0)
      ... )
      >>> print(f"{found.value:.4f} %")  # 3 times 0.1 squared
      3.0000 %

    References:
      Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, `On large-batch training for deep
      learning <https://arxiv.org/abs/1609.04836>`_, ICLR 2017, metric 2.1.
    """
    check_positive("epsilon", epsilon)
    if solver not in {"ascent", "lbfgs"}:
        raise MeasureError(f"solver: got {solver!r}, wanted 'ascent' or 'lbfgs'")
    check_params(params)
    scales = jax.tree.map(lambda w: jnp.abs(w) + 1, params)
    found = maximum(
        f,
        params,
        scales,
        epsilon,
        key=key,
        norm="linf",
        num_restarts=num_restarts,
        num_steps=num_steps,
        solver=solver,
    )
    return found._replace(value=100 * found.value / (1 + found.loss))


def adaptive_sharpness(
    f: Function,
    params: Params,
    *,
    radius: float,
    key: jax.Array,
    norm: Literal["l2", "linf"] = "linf",
    num_restarts: int = 4,
    num_steps: int = 50,
) -> Sharpness:
    r"""The increase of the loss over a neighbourhood in units of the weights.

    .. math:: \max_{\| \delta \oslash |w| \|_p \le \rho} f(w + \delta) - f(w)

    Weights of 0 do not move. Rescaling does nothing to it: where weights of a ReLU net
    are multiplied by a and others divided by it, so are the moves that are allowed, one
    weight or a whole layer at a time (Kwon et al. 2021). It does not predict
    generalisation across architectures or recipes (Andriushchenko et al. 2023).

    Args:
      f: the loss, differentiable.
      params: w, a tree.
      radius: rho, without unit for "linf"; for "l2" it grows as the root of the
        number of weights that move by a given share.
      key: a typed key, of the restarts.
      norm: p, 2 or infinity.
      num_restarts: starts: one at w, the others at random.
      num_steps: gradients of each start.

    Returns:
      The increase, in units of f; a lower bound, for the search may miss the maximum.

    Raises:
      MeasureError: if an argument is out of range, or a loss not finite.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda w: 3 * w[0] + 4 * w[1]
      >>> found = measure.adaptive_sharpness(
      ...     f, jnp.array([1.0, -2.0]), radius=0.1, key=jax.random.key(0)
      ... )
      >>> print(round(found.value, 4))  # 0.1 (3 * 1 + 4 * 2)
      1.1

    References:
      Kwon, Kim, Park, Choi, `ASAM <https://arxiv.org/abs/2102.11600>`_, ICML 2021;
      Andriushchenko, Croce, Müller, Hein, Flammarion, `A modern look at the
      relationship between sharpness and generalization
      <https://arxiv.org/abs/2302.07011>`_, ICML 2023.
    """
    check_positive("radius", radius)
    if norm not in {"l2", "linf"}:
        raise MeasureError(f"norm: got {norm!r}, wanted 'l2' or 'linf'")
    check_params(params)
    scales = jax.tree.map(jnp.abs, params)
    return maximum(
        f,
        params,
        scales,
        radius,
        key=key,
        norm=norm,
        num_restarts=num_restarts,
        num_steps=num_steps,
    )


def average_sharpness(
    f: Function,
    params: Params,
    *,
    radius: float,
    key: jax.Array,
    num_samples: int = MIN_PROBES,
) -> Estimate:
    r"""The mean increase of the loss under noise in units of the weights.

    :math:`E f(w + \rho |w| \xi) - f(w)` for normal xi: the average case of
    `adaptive_sharpness`, and one point of a multiplicative `noise_curve`. On a
    quadratic it is :math:`(\rho^2/2) \sum_i H_{ii} w_i^2`.

    Rescaling does nothing to it.

    Args:
      f: the loss.
      params: w, a tree.
      radius: rho, without unit.
      key: a typed key.
      num_samples: draws, 30 or more.

    Returns:
      The mean increase, in units of f, with its standard error.

    Raises:
      MeasureError: if there are too few samples, or an argument is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda w: 3 * w[0] ** 2
      >>> found = measure.average_sharpness(
      ...     f, jnp.array([2.0, 5.0]), radius=0.1, key=jax.random.key(0)
      ... )
      >>> abs(found.value - 0.12) < 3 * found.standard_error  # 3 * 0.1**2 * 2**2
      True
    """
    check_positive("radius", radius)
    curve = noise_curve(
        f,
        params,
        [radius],
        kind="multiplicative",
        key=key,
        num_samples=num_samples,
    )
    return curve.increase(0)
