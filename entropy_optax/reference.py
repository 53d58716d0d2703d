"""Algorithm 1 of Entropy-SGD as a NumPy loop in float64: the oracle of the tests.

Written to be read beside the paper, not to be fast. Every random draw and every
gradient comes from the caller, so that another implementation can be compared draw for
draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Trajectory(NamedTuple):
    """What the loop went through.

    Attributes:
      x: outer iterates x_0 .. x_T, shape (T + 1, n).
      mu: mu at the end of each outer step, shape (T, n).
      inner: inner iterates x'_1 .. x'_L of each outer step, shape (T, L, n).
      gamma: scope in force in each outer step, shape (T,).
      buffer: the outer momentum buffer at the end, shape (n,).
    """

    x: Array
    mu: Array
    inner: Array
    gamma: Array
    buffer: Array


def entropy_sgd(
    grad_fn: Callable[[Array, int, int], ArrayLike],
    x: ArrayLike,
    noise: ArrayLike,
    *,
    learning_rate: float,
    gamma0: float,
    gamma1: float = 0.0,
    step_size: float,
    temperature: float = 0.0,
    newest_weight: float = 0.25,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decoupled_weight_decay: float = 0.0,
    outer_momentum: float = 0.0,
    outer_weight_decay: float = 0.0,
    outer_buffer: ArrayLike | None = None,
    scale_by_gamma: bool = False,
) -> Trajectory:
    r"""Run Entropy-SGD.

    The three published variants are settings of it:

    ========================== ============== ============= ==================
    argument                   paper's text   released Lua  released PyTorch
    ========================== ============== ============= ==================
    ``newest_weight``          0.75           0.25          0.25
    ``temperature``            eps^2 / 2      eps^2         eps^2
    ``learning_rate``          1              1             0.1
    ``outer_momentum``         0.9 (at 0.1)   0             0.9
    ``weight_decay``           as given       0             as given
    ``decoupled_weight_decay`` 0              as given      0
    ``outer_weight_decay``     0              0             as given
    ``outer_buffer``           None           None          the first gradient
    ``gamma0``                 gamma0         grown once    gamma0
    ``gamma1``                 scoping        scoping       0: dead counter
    ========================== ============== ============= ==================

    Args:
      grad_fn: ``grad_fn(params, t, k)``, the gradient of the loss in outer step t on
        the minibatch of inner step k, both counted from 0; shape (n,).
      x: the first iterate, shape (n,).
      noise: standard normal draws, shape (T, L, n): T outer steps of L inner steps.
      learning_rate: eta, the outer rate.
      gamma0: the scope in the first outer step.
      gamma1: relative growth of the scope per outer step.
      step_size: eta', the inner rate.
      temperature: T, the noise of one inner step being sqrt(2 eta' T) xi.
      newest_weight: weight of the newest x' in mu (the paper's alpha).
      momentum: Nesterov's, of the inner loop; its buffer starts at 0 in each outer
        step.
      weight_decay: added to the gradient inside the inner loop, before the momentum.
      decoupled_weight_decay: the same beside the momentum, where the pull is.
      outer_momentum: Nesterov's, of the outer steps.
      outer_weight_decay: added to the outer direction, before the momentum.
      outer_buffer: first outer momentum buffer, shape (n,); None is 0.
      scale_by_gamma: whether the outer direction is gamma (x - mu), not x - mu.

    Returns:
      The trajectory.

    Examples:
      >>> import numpy as np
      >>> run = entropy_sgd(
      ...     lambda x, t, k: x,
      ...     [1.0],
      ...     np.zeros((1, 2, 1)),
      ...     learning_rate=1.0,
      ...     gamma0=1.0,
      ...     step_size=0.5,
      ...     newest_weight=1.0,
      ... )
      >>> print(run.inner[0, :, 0], run.x[:, 0])
      [0.5 0.5] [1.  0.5]

    References:
      Chaudhari et al., `Entropy-SGD <https://arxiv.org/abs/1611.01838>`_, ICLR 2017,
      Algorithm 1.
    """
    outer_x: Array = np.array(x, dtype=np.float64)
    xi: Array = np.asarray(noise, dtype=np.float64)
    num_outer, num_steps, _ = xi.shape
    buffer: Array = np.zeros_like(outer_x)
    if outer_buffer is not None:
        buffer = np.array(outer_buffer, dtype=np.float64)
    xs, mus, inner, gammas = [outer_x], [], np.zeros_like(xi), []

    for t in range(num_outer):
        gamma = gamma0 * (1 + gamma1) ** t
        inner_x = outer_x.copy()  # line 2: x', mu <- x
        mu = outer_x.copy()
        velocity = np.zeros_like(outer_x)
        for k in range(num_steps):  # line 3
            grad = np.asarray(grad_fn(inner_x, t, k)) + weight_decay * inner_x
            velocity = momentum * velocity + grad
            direction = grad + momentum * velocity
            direction = direction + decoupled_weight_decay * inner_x
            direction = direction - gamma * (outer_x - inner_x)  # line 4
            inner_x = inner_x - step_size * direction  # line 5
            inner_x = inner_x + np.sqrt(2 * step_size * temperature) * xi[t, k]
            mu = (1 - newest_weight) * mu + newest_weight * inner_x  # line 6
            inner[t, k] = inner_x

        outer = (gamma if scale_by_gamma else 1.0) * (outer_x - mu)
        outer = outer + outer_weight_decay * outer_x
        buffer = outer_momentum * buffer + outer
        outer_x = outer_x - learning_rate * (outer + outer_momentum * buffer)  # line 7
        xs.append(outer_x)
        mus.append(mu)
        gammas.append(gamma)

    return Trajectory(np.array(xs), np.array(mus), inner, np.array(gammas), buffer)
