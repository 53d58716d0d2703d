"""Stochastic gradient Langevin dynamics: the inner chain of Entropy-SGD."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from entropy_optax._arguments import (
    ScalarOrSchedule,
    at_step,
    check_scalar,
    is_constant,
    like_leaf,
    typed_key,
)
from entropy_optax.samplers._geometry import Geometry, scaled
from entropy_optax.samplers._noise import Noise, noise_sampler
from entropy_optax.samplers._scope import add_scope_pull


class AddLangevinNoiseState(NamedTuple):
    """State of :func:`add_langevin_noise`.

    Attributes:
      count: steps done since the state was made; schedules follow it where no
        ``outer_count`` is passed.
      rng_key: typed PRNG key of the noise to come.
    """

    count: ArrayLike
    rng_key: jax.Array


class ScaleByStepSizeState(NamedTuple):
    """State of the step size of :func:`sgld`.

    Attributes:
      count: steps done since the state was made; a schedule follows it where no
        ``outer_count`` is passed.
    """

    count: ArrayLike


def add_langevin_noise(
    step_size: ScalarOrSchedule,
    temperature: ScalarOrSchedule,
    *,
    noise: Noise = "rademacher",
    geometry: Geometry | None = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Add the noise of one Langevin step.

    .. math::
      u \leftarrow u + \sqrt{2 \eta' T}\, \xi, \qquad
      E \xi = E \xi^3 = 0, \quad E \xi^2 = 1,

    with which steps of size :math:`\eta'` along minus the gradient of :math:`U` sample
    :math:`\exp(-U / T)` up to an error of order :math:`\eta'`: these three moments are
    all that it depends on, and random signs have them. Place it last, after the
    scaling by the step size. The paper's noise
    :math:`\sqrt{\eta'} \epsilon \xi` is the temperature :math:`T = \epsilon^2 / 2`:
    see :func:`entropy_optax.temperature_from_noise`.

    Args:
      step_size: :math:`\eta'`, the step size that the updates were scaled by.
      temperature: :math:`T`. A constant 0 draws nothing at all.
      noise: ``"rademacher"`` (random signs: of the same weak order 1 as Gaussians,
        which on a CPU can cost half a gradient more), ``"gaussian"`` or a function
        ``(key, shape, dtype) -> Array`` of mean 0 and variance 1.
      geometry: None, or a function of x that gives scales s, by which the noise is
        multiplied; see :func:`add_scope_pull`.
      key: typed PRNG key or integer seed. Give each noise in one optimizer, those of
        the branches of ``optax.partition`` too, a key of its own.

    Returns:
      A transformation. Schedules are evaluated at the extra argument ``outer_count``,
      which :func:`entropy_optax.local_entropy` passes; alone, at its own count.

    Raises:
      ValueError: if a constant is negative or the noise is not known; in ``update``
        with a geometry if there is no ``anchor``.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp
      >>> noise = eo.add_langevin_noise(0.5, temperature=1.0)
      >>> state = noise.init(jnp.zeros(10_000))
      >>> updates, state = noise.update(jnp.zeros(10_000), state)
      >>> print(f"{updates.std():.1f}")
      1.0

    References:
      Welling and Teh, `Bayesian learning via stochastic gradient Langevin dynamics
      <https://icml.cc/2011/papers/398_icmlpaper.pdf>`_, ICML 2011.
    """
    check_scalar("step_size", step_size)
    check_scalar("temperature", temperature)
    draw = noise_sampler(noise)

    def init(params: optax.Params) -> optax.OptState:
        del params
        return AddLangevinNoiseState(jnp.zeros([], jnp.int32), typed_key(key))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        anchor: optax.Params | None = None,
        outer_count: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra_args
        assert isinstance(state, AddLangevinNoiseState)
        count = state.count if outer_count is None else outer_count
        if is_constant(temperature) and temperature == 0.0:
            return updates, state
        std = jnp.sqrt(2 * at_step(step_size, count) * at_step(temperature, count))
        rng_key, noise_key = jax.random.split(state.rng_key)
        xi = scaled(geometry, anchor, draw(noise_key, updates))
        noisy = jax.tree.map(lambda u, n: u + like_leaf(std, u) * n, updates, xi)
        count = optax.safe_increment(state.count)
        return noisy, AddLangevinNoiseState(count, rng_key)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_step_size(
    step_size: ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that multiplies by minus the step size."""

    def init(params: optax.Params) -> optax.OptState:
        del params
        return ScaleByStepSizeState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        outer_count: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra_args
        assert isinstance(state, ScaleByStepSizeState)
        count = state.count if outer_count is None else outer_count
        scale = -at_step(step_size, count)
        scaled = jax.tree.map(lambda g: like_leaf(scale, g) * g, updates)
        return scaled, ScaleByStepSizeState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def sgld(
    step_size: ScalarOrSchedule,
    *,
    temperature: ScalarOrSchedule = 0.0,
    momentum: float | jax.Array | None = None,
    nesterov: bool = True,
    noise: Noise = "rademacher",
    geometry: Geometry | None = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""One step of stochastic gradient Langevin dynamics on the modified Gibbs energy.

    .. math::
      v &\leftarrow m v + \nabla f(x') \\
      x' &\leftarrow x' - \eta' (\nabla f(x') + m v + \gamma (x' - x))
         + \sqrt{2 \eta' T}\, \xi

    (Nesterov's momentum; without momentum the first line and :math:`m v` fall away).
    The pull of the scope and the noise stay outside the momentum buffer. A chain of
    ``optax.trace``, :func:`add_scope_pull`, the step size and
    :func:`add_langevin_noise`; weight decay, clipping or a preconditioner go before it:
    ``optax.chain(optax.add_decayed_weights(1e-3), eo.sgld(0.1))``.

    ============================ ==================================
    paper                        argument
    ============================ ==================================
    :math:`\eta'`                ``step_size``
    :math:`\epsilon`             ``temperature`` :math:`=\epsilon^2/2`
    ============================ ==================================

    Args:
      step_size: :math:`\eta'`, a number or a schedule of the outer count.
      temperature: :math:`T`, a number or a schedule of the outer count.
      momentum: :math:`m`, or None for none.
      nesterov: whether the momentum is Nesterov's.
      noise: see :func:`add_langevin_noise`.
      geometry: None, or a function of x that gives scales s for an anisotropic scope
        (:func:`leaf_geometry`, :func:`filter_geometry`). The step is then
        preconditioned: :math:`s^2` multiplies the gradient with its momentum, s the
        noise. Where s may be 0, as for biases, take ``mean_of="gradients"`` of
        :func:`local_entropy`, for x' stays at x there.
      key: typed PRNG key or integer seed. Give each noise in one optimizer, those of
        the branches of ``optax.partition`` too, a key of its own.

    Returns:
      A transformation whose ``update`` needs the extra arguments ``anchor`` and
      ``gamma``, as :func:`entropy_optax.local_entropy` passes them.

    Raises:
      ValueError: if a constant is negative or the noise is not known.

    Examples:
      >>> import entropy_optax as eo, jax.numpy as jnp, optax
      >>> sampler = eo.sgld(0.1)
      >>> x = jnp.array([1.0])
      >>> updates, _ = sampler.update(2 * x, sampler.init(x), x, anchor=x, gamma=1.0)
      >>> print(optax.apply_updates(x, updates))
      [0.8]

    References:
      Chaudhari et al., `Entropy-SGD <https://arxiv.org/abs/1611.01838>`_, ICLR 2017,
      Algorithm 1, lines 3 to 5.
    """
    check_scalar("step_size", step_size)
    if momentum is not None:
        check_scalar("momentum", momentum, maximum=1.0)
    trace = optax.identity() if momentum is None else optax.trace(momentum, nesterov)
    return optax.chain(
        trace,
        add_scope_pull(geometry),
        _scale_by_step_size(step_size),
        add_langevin_noise(
            step_size, temperature, noise=noise, geometry=geometry, key=key
        ),
    )
