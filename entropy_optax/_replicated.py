"""Replicated optimizers, ready-made: Parle, replicated SGD, elastic averaging."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import jax
import optax

from entropy_optax._alias import inner_chain
from entropy_optax._arguments import ScalarOrSchedule, check_scalar, is_constant
from entropy_optax.samplers._noise import Noise
from entropy_optax.transforms import add_replica_pull, local_entropy, replicate


def parle(
    learning_rate: ScalarOrSchedule,
    *,
    num_replicas: int = 3,
    coupling: ScalarOrSchedule = 0.1,
    gamma: ScalarOrSchedule = 0.01,
    num_steps: int = 25,
    step_size: ScalarOrSchedule = 0.1,
    temperature: ScalarOrSchedule = 0.0,
    momentum: float | jax.Array | None = 0.9,
    outer_momentum: float | jax.Array | None = None,
    weight_decay: float | jax.Array = 0.0,
    mean_decay: ScalarOrSchedule = 0.75,
    opaque_mode: bool = False,
    noise: Noise = "rademacher",
    key: jax.Array | int = 0,
    carry_init: Any = None,
    skip_nonfinite: bool = False,
    unroll: int | bool | Literal["auto"] = "auto",
) -> optax.GradientTransformationExtraArgs:
    r"""Parle: replicas of Entropy-SGD which meet once in L gradients.

    Each replica :math:`x_a` runs the inner loop of :func:`entropy_sgd` to its
    :math:`\mu_a`, then moves towards it and towards the centre :math:`\bar x`:

    .. math::
      x_a \leftarrow x_a - \eta \big( (x_a - \mu_a) + \rho\, (x_a - \bar x) \big)
      \quad \text{(Nesterov's momentum if asked)}

    That is gradient descent on :math:`\sum_a \big( -F(x_a) + \tfrac{\rho}{2} \|x_a -
    \bar x\|^2 \big)`, each term up to its own scale. One replica is
    :func:`entropy_sgd`; coupling 0 is so many of them that never meet; L = 1 with
    ``mean_decay=0`` and no momentum is :func:`elastic_averaging`. It is
    :func:`replicate` of :func:`local_entropy`; see there for the leading axis of all
    arguments and for many devices. Evaluate at :func:`center_params`.

    ======================== ============================================
    Parle's paper            argument
    ======================== ============================================
    :math:`n`                ``num_replicas``
    :math:`1 / \rho`         ``coupling``
    :math:`1 / \gamma`       ``gamma``
    :math:`\eta`             ``learning_rate``
    :math:`\eta'`            ``step_size``
    :math:`L`                ``num_steps``
    :math:`\alpha`           ``mean_decay``
    ======================== ============================================

    Args:
      learning_rate: outer rate, a number or a schedule of the outer step.
      num_replicas: n, the length of the leading axis.
      coupling: pull to the centre, a number or a schedule of the outer step such as
        :func:`exponential_scoping` or :func:`automatic_scoping`. The product with the
        learning rate has to stay below 1. The default is ours: the paper's grows.
      gamma: scope of each replica's local entropy, a number or such a schedule.
      num_steps: gradients of each replica per outer step.
      step_size: inner rate, a number or a schedule of the outer step.
      temperature: of the Langevin noise; Parle's paper has none.
      momentum: Nesterov's, of the inner steps; None for none.
      outer_momentum: Nesterov's, of the outer steps; None for none.
      weight_decay: added to each inner gradient, before the momentum.
      mean_decay: weight of the old mean, a number or a function of the inner step.
      opaque_mode: whether one update is a whole outer step, which needs ``grad_fn``.
      noise: see :func:`add_langevin_noise`.
      key: typed PRNG key or integer seed of the noise, of which each replica gets its
        own.
      carry_init: first carry for ``grad_fn`` in ``opaque_mode``, of one replica.
      skip_nonfinite: whether gradients that are not finite are skipped.
      unroll: see :func:`scale_by_local_entropy`.

    Returns:
      The optimizer. :func:`num_gradients` of its state are the gradients of each
      replica, an array of shape ``(num_replicas,)``.

    Raises:
      ValueError: if an argument is out of its range.

    Warns:
      UserWarning: if the constants ``step_size`` and ``gamma`` alone reach the bound of
        a stable inner loop, or ``learning_rate`` and ``coupling`` that of the pull.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> tx = eo.parle(1.0, num_replicas=3, num_steps=5)
      >>> params = eo.replica_params(jnp.array([1.0, 2.0]), 3)
      >>> state = tx.init(params)
      >>> loss = lambda params, target: jnp.sum((params - target) ** 2)
      >>> @jax.jit
      ... def step(params, state, targets):
      ...     grads = jax.vmap(jax.grad(loss))(params, targets)
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> targets = jnp.array([0.9, 1.0, 1.1])  # each replica has data of its own
      >>> for _ in range(500):
      ...     params, state = step(params, state, targets)
      >>> print(eo.center_params(state, params).round(2))
      [1. 1.]

    References:
      Chaudhari et al., `Parle: parallelizing stochastic gradient descent
      <https://arxiv.org/abs/1707.00424>`_, 2017.
    """
    pull = add_replica_pull(coupling)
    _warn_of(learning_rate, coupling, outer_momentum)
    sgd = optax.sgd(learning_rate, momentum=outer_momentum, nesterov=True)
    optimizer = local_entropy(
        optax.chain(pull, sgd),
        inner_chain(step_size, gamma, temperature, momentum, weight_decay, noise, key),
        num_steps,
        gamma,
        mean_decay=mean_decay,
        opaque_mode=opaque_mode,
        carry_init=carry_init,
        skip_nonfinite=skip_nonfinite,
        unroll=unroll,
    )
    return replicate(optimizer, num_replicas)


def replicated_sgd(
    learning_rate: ScalarOrSchedule,
    *,
    num_replicas: int = 3,
    coupling: ScalarOrSchedule,
    momentum: float | None = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Replicated SGD: SGD on the sum of the replicas' losses and their elastic energy.

    .. math::
      L(x_1, \dots, x_n) = \sum_a f(x_a) + \tfrac{\rho}{2} \sum_a \|x_a - \bar x\|^2

    The coupling is a part of the loss, so it goes through the momentum. It grows over
    the training until the replicas are one; :func:`automatic_scoping` finds its first
    value, where both sums weigh the same. The replicas need different starts for that.

    Args:
      learning_rate: a number or a schedule of the steps.
      num_replicas: n, the length of the leading axis of the params.
      coupling: :math:`\rho`, a number or a schedule of the steps.
      momentum: None for none.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: added to each gradient, before the momentum.

    Returns:
      The optimizer, one gradient of each replica per update.

    Raises:
      ValueError: if an argument is out of its range.

    Warns:
      UserWarning: if the constants ``learning_rate`` and ``coupling`` alone reach the
        bound of a stable pull.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> loss = lambda params: jnp.sum((params**2 - 1) ** 2)
      >>> params = jnp.array([[0.5], [2.0], [1.5]])  # three replicas of one weight
      >>> coupling = eo.automatic_scoping(
      ...     jax.vmap(loss)(params).mean(), eo.replica_distance(params), 200,
      ...     max_gamma=100.0,
      ... )  # fmt: skip
      >>> tx = eo.replicated_sgd(0.001, num_replicas=3, coupling=coupling)
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = tx.update(
      ...         jax.vmap(jax.grad(loss))(params), state, params
      ...     )
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...     params, state = step(params, state)
      >>> print(params.ravel().round(2))
      [1. 1. 1.]

    References:
      Pittorino et al., `Entropic gradient descent algorithms and wide flat minima
      <https://arxiv.org/abs/2006.07897>`_, ICLR 2021.
    """
    _check(momentum, weight_decay)
    _warn_of(learning_rate, coupling, momentum, nesterov)
    return replicate(
        optax.chain(
            optax.add_decayed_weights(weight_decay),
            add_replica_pull(coupling),
            optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
        ),
        num_replicas,
    )


def elastic_averaging(
    learning_rate: ScalarOrSchedule,
    *,
    num_replicas: int = 3,
    coupling: ScalarOrSchedule = 0.1,
    momentum: float | None = None,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Elastic averaging SGD: replicas that are pulled to their centre at every step.

    .. math::
      v_a &\leftarrow m v_a + \nabla f(x_a) \\
      x_a &\leftarrow x_a - \eta \big( \nabla f(x_a) + m v_a + \rho\, (x_a - \bar x)
        \big)

    (without momentum the first line and :math:`m v_a` fall away). Without momentum it
    is the case L = 1 of :func:`parle` with ``mean_decay=0``, where the inner step is
    the only one; unlike in :func:`replicated_sgd` the pull stays outside the momentum.
    The centre is the replicas' mean, not a variable that follows it as in the paper:
    with its moving rate :math:`\beta = 1` that is the mean of one step before.

    Args:
      learning_rate: a number or a schedule of the steps.
      num_replicas: n, the length of the leading axis of the params.
      coupling: :math:`\rho`, a number or a schedule of the steps. The paper's moving
        rate is :math:`\alpha = \eta \rho`.
      momentum: None for none.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: added to each gradient, before the momentum.

    Returns:
      The optimizer, one gradient of each replica per update.

    Raises:
      ValueError: if an argument is out of its range.

    Warns:
      UserWarning: if the constants ``learning_rate`` and ``coupling`` alone reach the
        bound of a stable pull.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp, optax
      >>> tx = eo.elastic_averaging(0.1, num_replicas=2, coupling=5.0)
      >>> params = jnp.array([[0.0], [4.0]])
      >>> updates, _ = tx.update(jnp.zeros((2, 1)), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates).ravel())
      [1. 3.]

    References:
      Zhang, Choromanska and LeCun, `Deep learning with elastic averaging SGD
      <https://arxiv.org/abs/1412.6651>`_, NeurIPS 2015.
    """
    _check(momentum, weight_decay)
    _warn_of(learning_rate, coupling)
    trace = optax.identity() if momentum is None else optax.trace(momentum, nesterov)
    return replicate(
        optax.chain(
            optax.add_decayed_weights(weight_decay),
            trace,
            add_replica_pull(coupling),
            optax.scale_by_learning_rate(learning_rate),
        ),
        num_replicas,
    )


def _check(momentum: float | None, weight_decay: float) -> None:
    check_scalar("weight_decay", weight_decay)
    if momentum is not None:
        check_scalar("momentum", momentum, maximum=1.0)


def _warn_of(
    learning_rate: ScalarOrSchedule,
    coupling: ScalarOrSchedule,
    momentum: Any = None,
    nesterov: bool = True,
) -> None:
    """Warn if constants let the pull alone drive the replicas apart."""
    # It is the momentum method on a quadratic with the curvature of the coupling.
    m = 0.0 if momentum is None else momentum
    if is_constant(learning_rate) and is_constant(coupling) and is_constant(m):
        bound = 2 * (1 + m) / (1 + 2 * m if nesterov else 1)
        if learning_rate * coupling >= bound:
            warnings.warn(
                f"learning_rate * coupling = {learning_rate * coupling:.3g} is not "
                f"below the bound {bound:.3g} of a stable pull: the replicas part. "
                "Lower one of them.",
                stacklevel=3,
            )
