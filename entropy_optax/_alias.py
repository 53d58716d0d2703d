"""Entropy-SGD and Entropy-Adam, ready-made."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import jax
import optax

from entropy_optax._arguments import ScalarOrSchedule, check_scalar, is_constant
from entropy_optax.samplers import sgld
from entropy_optax.samplers._noise import Noise
from entropy_optax.transforms import local_entropy


def entropy_sgd(
    learning_rate: ScalarOrSchedule,
    *,
    gamma: ScalarOrSchedule = 0.03,
    num_steps: int = 20,
    step_size: ScalarOrSchedule = 0.1,
    temperature: ScalarOrSchedule = 5e-9,
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
    r"""Entropy-SGD: SGD on minus the local entropy of the loss.

    Each outer step runs L inner steps from :math:`x' = \mu = x`, then moves :math:`x`:

    .. math::
      g &= \nabla f(x') + \lambda x', \quad v \leftarrow m v + g \\
      x' &\leftarrow x' - \eta' (g + m v + \gamma (x' - x)) + \sqrt{2 \eta' T}\, \xi \\
      \mu &\leftarrow \alpha \mu + (1 - \alpha) x' \\
      x &\leftarrow x - \eta\, (x - \mu) \quad \text{(Nesterov's momentum if asked)}

    It is ``local_entropy(optax.sgd(...), optax.chain(optax.add_decayed_weights(...),
    sgld(...)), ...)``: compose these for anything else. A learning rate of 1 without
    outer momentum moves x to mu. A drop-in for ``optax.sgd`` in a loop of one gradient
    per call; evaluate at ``eval_params(state, params)``.

    Clipping or a preconditioner belongs into the sampler, and what shall act on the
    outer step into the optimizer: with ``opaque_mode=False`` whatever follows in a
    chain would act on the moves of x' too. Under ``optax.inject_hyperparams`` name
    ``num_steps`` and every schedule or function in ``static_args``: the wrapper would
    evaluate them at its own count, that of the calls.

    ======================== ============================================
    symbol                   argument
    ======================== ============================================
    :math:`\eta`             ``learning_rate``
    :math:`\eta'`            ``step_size``
    :math:`L`                ``num_steps``
    :math:`\gamma`           ``gamma``
    :math:`T`                ``temperature``
    :math:`m`                ``momentum``
    :math:`\lambda`          ``weight_decay``
    :math:`\alpha`           ``mean_decay``
    ======================== ============================================

    Args:
      learning_rate: outer rate, a number or a schedule of the outer step.
      gamma: scope, a number or a schedule of the outer step such as
        :func:`entropy_optax.exponential_scoping`. The default is the paper's for
        CIFAR-10.
      num_steps: gradients per outer step.
      step_size: inner rate, a number or a schedule of the outer step.
      temperature: of the Langevin noise; the default is the paper's
        :math:`\epsilon = 10^{-4}`.
      momentum: Nesterov's, of the inner steps; None for none.
      outer_momentum: Nesterov's, of the outer steps; None for none. It multiplies the
        effective rate by 1 / (1 - outer_momentum): with 0.9 use a rate near 0.1.
      weight_decay: added to each inner gradient, before the momentum.
      mean_decay: weight of the old mean, a number or a function of the inner step.
      opaque_mode: whether one update is a whole outer step, which needs ``grad_fn``;
        see :func:`entropy_optax.local_entropy`.
      noise: ``"rademacher"`` (random signs), ``"gaussian"``, or a function; see
        :func:`entropy_optax.add_langevin_noise`.
      key: typed PRNG key or integer seed of the noise.
      carry_init: first carry for ``grad_fn`` in ``opaque_mode``.
      skip_nonfinite: whether gradients that are not finite are skipped.
      unroll: unrolling of the inner loop in ``opaque_mode``; see
        :func:`entropy_optax.scale_by_local_entropy`.

    Returns:
      The optimizer.

    Raises:
      ValueError: if an argument is out of its range.

    Warns:
      UserWarning: if the constants ``step_size`` and ``gamma`` alone reach the bound of
        a stable inner loop.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> tx = eo.entropy_sgd(1.0, gamma=0.1, num_steps=5)  # was: optax.sgd(0.1)
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     grads = jax.grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(100):
      ...     params, state = step(params, state)
      >>> bool(jnp.max(jnp.abs(eo.eval_params(state, params))) < 1e-2)
      True

    References:
      Chaudhari et al., `Entropy-SGD: Biasing gradient descent into wide valleys
      <https://arxiv.org/abs/1611.01838>`_, ICLR 2017.
    """
    return local_entropy(
        optax.sgd(learning_rate, momentum=outer_momentum, nesterov=True),
        inner_chain(step_size, gamma, temperature, momentum, weight_decay, noise, key),
        num_steps,
        gamma,
        mean_decay=mean_decay,
        opaque_mode=opaque_mode,
        carry_init=carry_init,
        skip_nonfinite=skip_nonfinite,
        unroll=unroll,
    )


def entropy_adam(
    learning_rate: ScalarOrSchedule,
    *,
    gamma: ScalarOrSchedule = 0.03,
    num_steps: int = 5,
    step_size: ScalarOrSchedule = 0.1,
    temperature: ScalarOrSchedule = 5e-9,
    momentum: float | jax.Array | None = 0.9,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    weight_decay: float | jax.Array = 0.0,
    mean_decay: ScalarOrSchedule = 0.75,
    opaque_mode: bool = False,
    noise: Noise = "rademacher",
    key: jax.Array | int = 0,
    carry_init: Any = None,
    skip_nonfinite: bool = False,
    unroll: int | bool | Literal["auto"] = "auto",
) -> optax.GradientTransformationExtraArgs:
    r"""Entropy-Adam: Adam on minus the local entropy of the loss.

    The inner loop is that of :func:`entropy_sgd`; the outer step is Adam's, with
    :math:`x - \mu` in the gradient's place. As Adam normalises, the scale of
    :math:`x - \mu` does not matter, and the learning rate is Adam's own. The paper
    trains its LSTMs with it.

    Args:
      learning_rate: outer rate, a number or a schedule of the outer step.
      gamma: scope, a number or a schedule of the outer step.
      num_steps: gradients per outer step.
      step_size: inner rate, a number or a schedule of the outer step.
      temperature: of the Langevin noise.
      momentum: Nesterov's, of the inner steps; None for none.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      weight_decay: added to each inner gradient, before the momentum.
      mean_decay: weight of the old mean, a number or a function of the inner step.
      opaque_mode: whether one update is a whole outer step, which needs ``grad_fn``.
      noise: ``"rademacher"`` (random signs), ``"gaussian"``, or a function; see
        :func:`entropy_optax.add_langevin_noise`.
      key: typed PRNG key or integer seed of the noise.
      carry_init: first carry for ``grad_fn`` in ``opaque_mode``.
      skip_nonfinite: whether gradients that are not finite are skipped.
      unroll: unrolling of the inner loop in ``opaque_mode``; see
        :func:`entropy_optax.scale_by_local_entropy`.

    Returns:
      The optimizer.

    Raises:
      ValueError: if an argument is out of its range.

    Warns:
      UserWarning: if the constants ``step_size`` and ``gamma`` alone reach the bound of
        a stable inner loop.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> tx = eo.entropy_adam(0.1)  # was: optax.adam(0.1)
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     grads = jax.grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(1000):
      ...     params, state = step(params, state)
      >>> bool(jnp.max(jnp.abs(eo.eval_params(state, params))) < 1e-2)
      True

    References:
      Chaudhari et al., `Entropy-SGD: Biasing gradient descent into wide valleys
      <https://arxiv.org/abs/1611.01838>`_, ICLR 2017, section 5.4.
    """
    return local_entropy(
        optax.adam(learning_rate, b1=b1, b2=b2),
        inner_chain(step_size, gamma, temperature, momentum, weight_decay, noise, key),
        num_steps,
        gamma,
        mean_decay=mean_decay,
        opaque_mode=opaque_mode,
        carry_init=carry_init,
        skip_nonfinite=skip_nonfinite,
        unroll=unroll,
    )


def inner_chain(
    step_size: ScalarOrSchedule,
    gamma: ScalarOrSchedule,
    temperature: ScalarOrSchedule,
    momentum: float | jax.Array | None,
    weight_decay: float | jax.Array,
    noise: Noise,
    key: jax.Array | int,
) -> optax.GradientTransformationExtraArgs:
    """Return the inner chain, with a warning if its constants are too large.

    With Nesterov's momentum m an inner step along curvature h is stable if
    eta' (gamma + h) < 2 (1 + m) / (1 + 2 m); the pull alone, which stays outside the
    momentum, is stable up to eta' gamma = 2.
    """
    check_scalar("weight_decay", weight_decay)
    sampler = sgld(
        step_size, temperature=temperature, momentum=momentum, noise=noise, key=key
    )
    decay = 0.0 if momentum is None else momentum
    if is_constant(step_size) and is_constant(gamma) and is_constant(decay):
        bound = 2 * (1 + decay) / (1 + 2 * decay)
        if step_size * gamma >= bound:
            warnings.warn(
                f"step_size * gamma = {step_size * gamma:.3g} leaves no room below the "
                f"bound {bound:.3g} of a stable inner loop: x' diverges on any loss "
                "but a nearly flat one. Lower step_size or gamma.",
                stacklevel=3,
            )
    return optax.chain(optax.add_decayed_weights(weight_decay), sampler)
