"""SGD on the loss smoothed in the geometry of the filters, ready-made."""

from __future__ import annotations

import jax
import optax

from entropy_optax._arguments import ScalarOrSchedule, check_scalar
from entropy_optax.samplers import filter_geometry
from entropy_optax.samplers._noise import Noise
from entropy_optax.transforms import random_weight_perturbation


def filter_entropy_sgd(
    learning_rate: ScalarOrSchedule,
    radius: ScalarOrSchedule = 0.5,
    *,
    momentum: float | jax.Array | None = 0.9,
    weight_decay: float | jax.Array = 0.0,
    vectors: float = 0.0,
    antithetic: bool = False,
    noise: Noise = "gaussian",
    num_replicas: int | None = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD on the loss averaged over a valley as wide as each filter's own weights are.

    Local entropy whose scope is measured in units of each filter's norm, in its limit
    of high temperature: the loss is smoothed by Gaussian noise of covariance

    .. math::
      S = r^2 \, \mathrm{diag}\big( \|x_j\|^2 / n_j \big)
      \quad \text{for filter } j \text{ of } n_j \text{ weights},

    and each step takes one gradient at one perturbation, as SGD takes one:

    .. math::
      g &= \nabla f(x + S^{1/2} \xi) + \lambda x, \qquad \xi \sim N(0, I) \\
      v &\leftarrow m v + g, \qquad x \leftarrow x - \eta\, (g + m v)

    It is ``random_weight_perturbation(optax.chain(optax.add_decayed_weights(...),
    optax.sgd(...)), radius, geometry=filter_geometry(vectors))``: compose these for any
    other optimizer, perturbations by the leaf, or several of them in a step. For a
    finite temperature put ``sgld(..., geometry=filter_geometry())`` with
    ``mean_of="gradients"`` into :func:`local_entropy`.

    A drop-in for ``optax.sgd(..., nesterov=True)`` at its price: one gradient per call.
    Between two calls the params are perturbed: evaluate, and keep, ``eval_params(state,
    params)``.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule of the number of calls.
      radius: r, the noise as a fraction of a filter's root mean square, a number or a
        schedule of the number of calls (wide first, for example:
        ``optax.linear_schedule(1.0, 0.3, 3000)``). 0 is SGD with that momentum.
      momentum: m, Nesterov's; None for none.
      weight_decay: :math:`\lambda`, of x.
      vectors: radius of biases and the scales of normalisation layers, as a fraction of
        the radius of kernels; the default leaves them alone.
      antithetic: see :func:`random_weight_perturbation`.
      noise: see :func:`random_weight_perturbation`.
      num_replicas: perturbations side by side, over a leading axis of the params; see
        :func:`random_weight_perturbation`. Under ``optax.inject_hyperparams`` name it
        in ``static_args``.
      key: typed PRNG key or integer seed; of its own in each branch of
        ``optax.partition``.

    Returns:
      The optimizer.

    Raises:
      ValueError: if an argument is out of its range.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> # was: optax.sgd(0.02, momentum=0.9, nesterov=True)
      >>> tx = eo.filter_entropy_sgd(0.02, radius=0.3)
      >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
      >>> inputs = jax.random.normal(jax.random.key(0), (64, 4))
      >>> loss = lambda p: jnp.mean((inputs @ p["kernel"] + p["bias"]) ** 2)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...     params, state = step(params, state)
      >>> bool(loss(eo.eval_params(state, params)) < 1e-6)
      True

    References:
      Li et al., `Efficient generalization improvement guided by random weight
      perturbation <https://arxiv.org/abs/2211.11489>`_, 2022 (filter-wise random weight
      perturbation, which this is, beside the loss at x). Chaudhari et al.,
      `Entropy-SGD: Biasing gradient descent into wide valleys
      <https://arxiv.org/abs/1611.01838>`_, ICLR 2017 (local entropy). Bisla et al.,
      `Low-pass filtering SGD <https://arxiv.org/abs/2201.08025>`_, AISTATS 2022
      (Gaussians of the filters' norms, a growing radius and several perturbations in a
      step). Kwon et al., `ASAM <https://arxiv.org/abs/2102.11600>`_, ICML 2021 (the
      worst case in such units, at two gradients in a step).
    """
    check_scalar("weight_decay", weight_decay)
    return random_weight_perturbation(
        optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.sgd(learning_rate, momentum=momentum, nesterov=True),
        ),
        radius,
        geometry=filter_geometry(vectors),
        antithetic=antithetic,
        noise=noise,
        num_replicas=num_replicas,
        key=key,
    )
