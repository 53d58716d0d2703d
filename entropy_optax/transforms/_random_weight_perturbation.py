"""Gradients at random perturbations of the params, one per call, in any loop."""

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
    copy,
    like_leaf,
    map_unmasked,
    typed_key,
)
from entropy_optax.samplers._geometry import Geometry, scaled
from entropy_optax.samplers._noise import Noise, noise_sampler
from entropy_optax.transforms._checks import check_num_replicas, check_replica_axis
from entropy_optax.transforms._replicas import along_replicas, mean_of_replicas


class RandomWeightPerturbationState(NamedTuple):
    """State of :func:`random_weight_perturbation`.

    Attributes:
      num_gradients: calls so far: gradients spent, of each replica if there are any.
      anchor: the unperturbed params x, where to evaluate.
      rng_key: typed PRNG key that all perturbations are folded from.
      optimizer_state: state of the optimizer.
    """

    num_gradients: ArrayLike
    anchor: optax.Params
    rng_key: jax.Array
    optimizer_state: optax.OptState


def random_weight_perturbation(
    optimizer: optax.GradientTransformation,
    radius: ScalarOrSchedule,
    *,
    geometry: Geometry | None = None,
    antithetic: bool = False,
    noise: Noise = "gaussian",
    num_replicas: int | None = None,
    key: jax.Array | int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Give an optimizer the gradients of the loss smoothed by the heat equation.

    The optimizer moves x, and between two calls the params of the loop are a
    perturbation of it, at which the loop takes its next gradient:

    .. math::
      g_t = \nabla f(x_t + r\, s(x_t)\, \xi_t), \qquad \xi_t \sim N(0, I), \qquad
      E\, g_t = \nabla f_S(x_t), \quad f_S(x) = E\, f(x + S^{1/2} \xi),

    with :math:`S = r^2 \mathrm{diag}(s^2)`, which the optimizer takes for constant.
    This is the limit of the local entropy
    :math:`F_S(x) = T \log \int \exp(-(f(x') + \tfrac12 (x - x')^\top (S / T)^{-1} (x -
    x')) / T)\, dx'` as its temperature grows: :math:`-\nabla F_S \to \nabla f_S`. One
    gradient per step is an unbiased estimate given x, in any loop, at the price of one
    draw of noise and one copy of the params. The first gradient is taken where the loop
    starts. Evaluate and keep :func:`eval_params`, not the params: x lives in the state,
    so whoever restarts from other params must ``init`` anew. BatchNorm's statistics are
    those of perturbed networks: re-estimate them at x
    (:func:`entropy_optax.training.reestimate_batch_stats`).

    Several perturbations in a step are a matter of composition:

    - k of them in turn: ``random_weight_perturbation(optax.MultiSteps(optimizer, k),
      ...)``, the mean of k gradients for each step. Optax takes it for one without
      extra arguments; ``optax.GradientTransformationExtraArgs(steps.init,
      steps.update)`` of it hands them on;
    - k side by side, by ``jax.vmap``: with ``num_replicas=k`` params and gradients have
      a leading axis (:func:`replica_params` makes it), each replica has a perturbation
      of its own, and the optimizer sees the mean of the gradients. Give each replica
      the same batch, or 1 / k of it;
    - over devices: shard that axis over a mesh. Each device perturbs for itself; the
      gradients' mean is the one all-reduce of data parallel training.

    Weight decay, clipping and averages of the iterates belong into ``optimizer``, which
    sees x. With :func:`filter_geometry` the loss is smoothed alike however layers of
    ReLUs are scaled against each other. With ``nnx.Optimizer`` evaluate the model of
    :func:`entropy_optax.training.nnx_eval_model`.

    Args:
      optimizer: any transformation that moves x at each call or leaves it; its
        ``update`` is passed x. No :func:`local_entropy` of one gradient per call, whose
        params are not its x.
      radius: r, at least 0, a number or a schedule of the number of calls done. With a
        geometry it is relative to the weights: 0.5 is noise of half their size.
      geometry: None for noise of one size everywhere, or a function of x that gives
        the scales s: :func:`filter_geometry`, :func:`leaf_geometry`, or one's own.
      antithetic: whether perturbations come in pairs of opposite sign, which cancels
        all odd orders of their error in a mean over pairs: two successive calls after
        the first two (those of one step of ``optax.MultiSteps(optimizer, 2)``), or two
        neighbouring replicas. Where x moves between the two, the second gradient is
        biased by that move.
      noise: ``"gaussian"``, ``"rademacher"``, or a function ``(key, shape, dtype) ->
        Array`` of mean 0 and variance 1.
      num_replicas: k, perturbations side by side; None for none, and no leading axis.
      key: typed PRNG key or integer seed; of its own in each branch of
        ``optax.partition``.

    Returns:
      The optimizer, with the state :class:`RandomWeightPerturbationState`. Its
      ``update`` hands extra arguments on to ``optimizer``.

    Raises:
      ValueError: if a constant radius is negative, the noise not known, or
        ``num_replicas`` less than 1 or odd for antithetic pairs; in ``update`` if there
        are no params, or a leaf has not the leading axis.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> tx = eo.random_weight_perturbation(
      ...     optax.sgd(0.1), 0.1, geometry=eo.filter_geometry()
      ... )
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = tx.update(params, state, params)  # f = |x|^2 / 2
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(50):
      ...     params, state = step(params, state)
      >>> print(eo.eval_params(state, params)["bias"].round(3), 0.9**50)
      [0.005 0.005] 0.00515377520732012

    References:
      Li et al., `Efficient generalization improvement guided by random weight
      perturbation <https://arxiv.org/abs/2211.11489>`_, 2022. Bisla, Wang and
      Choromanska, `Low-pass filtering SGD for recovering flat optima in
      the deep learning optimization landscape <https://arxiv.org/abs/2201.08025>`_,
      AISTATS 2022 (Gaussians of the filters' norms, several in a step). Graves,
      `Practical variational inference for neural networks
      <https://papers.nips.cc/paper/4329>`_, NeurIPS 2011 (a Gaussian whose covariance
      is learnt; here it follows the weights).
    """
    check_scalar("radius", radius)
    draw = noise_sampler(noise)
    inner = optax.with_extra_args_support(optimizer)
    if num_replicas is not None:
        num_replicas = check_num_replicas(num_replicas)
        if antithetic and num_replicas % 2:
            raise ValueError(
                f"num_replicas must be even for antithetic pairs, got {num_replicas}."
            )

    def init(params: optax.Params) -> optax.OptState:
        if num_replicas is not None:
            check_replica_axis("params", params, num_replicas)
            params = mean_of_replicas(params)
        return RandomWeightPerturbationState(
            num_gradients=jnp.zeros([], jnp.int32),
            anchor=copy(params),
            rng_key=typed_key(key),
            optimizer_state=copy(inner.init(params)),
        )

    def perturbation(rng_key: Any, number: Any, size: Any, x: Any) -> Any:
        """Return perturbation number ``number`` of x; a pair's are 2 k and 2 k + 1."""
        pair = number // 2 if antithetic else number
        xi = scaled(geometry, x, draw(jax.random.fold_in(rng_key, pair), x))
        if antithetic:
            size = jnp.where(number % 2 == 0, size, -size)
        return map_unmasked(lambda n: like_leaf(size, n) * n, xi)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, RandomWeightPerturbationState)
        if params is None:
            raise ValueError("params: random_weight_perturbation needs them, got None.")
        if num_replicas is not None:
            check_replica_axis("grads", updates, num_replicas)
            check_replica_axis("params", params, num_replicas)
            updates = mean_of_replicas(updates)
        steps, optimizer_state = inner.update(
            updates, state.optimizer_state, state.anchor, **extra_args
        )
        x = optax.apply_updates(state.anchor, steps)
        count = optax.safe_increment(state.num_gradients)
        size = at_step(radius, count)

        def place(rng_key: Any, number: Any, params: Any) -> Any:
            # The caller adds the result to the params, so undo the way to them.
            return map_unmasked(
                lambda x, d, p: (x + d - p).astype(p.dtype),
                x,
                perturbation(rng_key, number, size, x),
                params,
            )

        if num_replicas is None:
            moves = place(state.rng_key, count, params)
        else:
            own_key = jax.random.fold_in(state.rng_key, count)
            replica = along_replicas(jnp.arange(num_replicas), params)
            moves = jax.vmap(place, (None, 0, 0))(own_key, replica, params)
        return moves, RandomWeightPerturbationState(
            num_gradients=count,
            anchor=x,
            rng_key=state.rng_key,
            optimizer_state=optimizer_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)
