"""Local entropy as a gradient estimator: a whole inner loop in one update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from entropy_optax._arguments import (
    ScalarOrSchedule,
    at_step,
    check_num_steps,
    check_scalar,
    copy,
    like_leaf,
)
from entropy_optax.transforms._checks import (
    check_batches,
    check_mean_of,
    checked_carry,
    safe_add,
)
from entropy_optax.transforms._inner import (
    Cycle,
    InnerState,
    MeanOf,
    convolves,
    direction_of,
    first_mean,
    init_sampler,
    inner_step,
    is_finite,
    norm,
    promote,
    sampler_keys,
    with_keys,
)


class ScaleByLocalEntropyState(NamedTuple):
    """State of :func:`scale_by_local_entropy`.

    Attributes:
      outer_count: outer steps done; the schedules of scope and temperature follow it.
      num_gradients: gradients spent so far, the unit of every comparison.
      num_nonfinite: gradients skipped so far because they were not finite.
      gamma: scope in force in the last step.
      distance: ||x - mu|| in the last step, or the norm of the mean gradient.
      displacement: mean of ||x' - x|| over the inner steps of the last step.
      sampler_state: the sampler's PRNG keys, or its whole state if it is not reset.
      carry: the last carry that ``grad_fn`` returned, or None.
    """

    outer_count: ArrayLike
    num_gradients: jax.Array
    num_nonfinite: ArrayLike
    gamma: jax.Array
    distance: jax.Array
    displacement: jax.Array
    sampler_state: optax.OptState
    carry: Any


def scale_by_local_entropy(
    sampler: optax.GradientTransformation,
    num_steps: int,
    gamma: ScalarOrSchedule,
    *,
    mean_decay: ScalarOrSchedule = 0.75,
    mean_of: MeanOf = "iterates",
    scale_by_gamma: bool = False,
    reset_sampler: bool = True,
    carry_init: Any = None,
    accumulator_dtype: DTypeLike = jnp.float32,
    skip_nonfinite: bool = False,
    unroll: int | bool | Literal["auto"] = "auto",
) -> optax.GradientTransformationExtraArgs:
    r"""Replace the gradient by that of minus the local entropy, up to the scope.

    .. math::
      F(x, \gamma) = \log \int \exp\left(-f(x')
        - \tfrac{\gamma}{2} \|x - x'\|^2\right) dx',
      \qquad -\nabla F = \gamma (x - \langle x' \rangle).

    The mean under the modified Gibbs distribution is estimated by ``num_steps`` steps
    of the sampler, started at :math:`x`, as a running mean of its iterates:

    .. math::
      x'_{k+1} = \text{sampler}(\nabla f(x'_k);\, x, \gamma), \qquad
      \mu_{k+1} = \alpha_k \mu_k + (1 - \alpha_k) x'_{k+1}, \qquad
      \mu_0 = x'_0 = x.

    The output is :math:`x - \mu_L`, with the sign of a gradient, so that any chain
    follows. (The paper drops the factor :math:`\gamma` too: with a growing scope it
    would undo the learning rate's decay.) The loop is one ``lax.scan``; call ``update``
    inside ``jax.jit``, for outside it compiles at each call.

    ``update(grads, state, params, *, grad_fn, batches=None, carry=None,
    **extra_args)``: ``grads``, the gradient at ``params``, serves as inner gradient
    number 1 (as in ``optax.contrib.sam``), so a step costs L gradients, not L + 1. The
    others come from ``grad_fn``, in one of these forms (it gets params of the params'
    own dtype, and its gradients are cast to the dtype of ``grads``):

    * ``grad_fn(params, batch)`` with ``batches``, a tree whose leaves have the leading
      axis ``num_steps - 1``;
    * ``grad_fn(params, i)`` without ``batches``, i = 1 .. ``num_steps - 1``;
    * ``grad_fn(params, batch_or_i, carry) -> (grads, carry)`` if ``carry_init`` was
      given: for BatchNorm statistics, dropout keys, losses. The loop starts from the
      argument ``carry`` (by default the carry it ended with) and leaves the last one in
      the state.

    ============================== ==========================================
    paper                          argument
    ============================== ==========================================
    :math:`L`                      ``num_steps``
    :math:`\gamma`                 ``gamma``
    :math:`1 - \alpha`             ``mean_decay``
    :math:`\eta'`, :math:`\epsilon` in the sampler: :func:`entropy_optax.sgld`
    ============================== ==========================================

    Args:
      sampler: the inner chain, any Optax transformation. It gets the extra arguments
        ``anchor`` (:math:`x`), ``gamma`` and ``outer_count``. A schedule of Optax's own
        inside it counts inner steps, from 0 in each outer step if the sampler is reset.
      num_steps: L, inner steps and gradients per outer step.
      gamma: the scope, a number or a schedule of the number of outer steps done.
      mean_decay: weight of the old mean, a number or a function of the inner step
        k = 0 .. L - 1; ``lambda k: k / (k + 1)`` is the plain average.
      mean_of: ``"iterates"``, or ``"gradients"``: then the output is the running mean
        of the inner gradients. Under the modified Gibbs distribution :math:`\gamma (x -
        \langle x' \rangle) = \langle \nabla f(x') \rangle`, so it estimates the
        gradient itself, not up to the scope. The first has the weight 1 until others
        come; skipped, it counts as zero.
      scale_by_gamma: whether to multiply the output by the scope in force.
      reset_sampler: whether each outer step begins with a fresh sampler state. PRNG
        keys are never reset.
      carry_init: a first carry for ``grad_fn``; fixes structure, shapes and dtypes.
      accumulator_dtype: least precision of x' and mu. In bfloat16 they could not hold
        the small difference x - mu.
      skip_nonfinite: whether an inner gradient with a NaN or an infinity leaves x', mu,
        the sampler and the carry as they were, and is only counted. (The carry of the
        first gradient is the caller's to judge.)
      unroll: as in ``jax.lax.scan``. ``"auto"`` keeps the loop rolled, but unrolls it
        whole where the gradient holds one of XLA's convolutions and the backend is a
        CPU, which runs those several times slower in a loop (a loop inside ``grad_fn``
        stays one). Compile time then grows with L; False keeps the loop. The
        convolution of :mod:`entropy_optax.experiments.convolution` needs no unrolling.

    Returns:
      A transformation with the state :class:`ScaleByLocalEntropyState`.

    Raises:
      ValueError: if ``num_steps`` is below 1, ``gamma`` negative or ``mean_decay``
        outside [0, 1]; in ``update`` if ``params`` or ``grad_fn`` is missing,
        ``batches`` has the wrong leading axis or the carry the wrong structure.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> tx = optax.chain(
      ...     eo.scale_by_local_entropy(
      ...         eo.sgld(0.1, momentum=0.9), num_steps=5, gamma=0.1
      ...     ),
      ...     optax.sgd(1.0),
      ... )
      >>> grad_fn = jax.grad(lambda params, i: jnp.sum(params**2))
      >>> @jax.jit
      ... def step(params, state):
      ...     grads = grad_fn(params, 0)
      ...     updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
      ...     return optax.apply_updates(params, updates), state
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(20):
      ...     params, state = step(params, state)
      >>> bool(jnp.max(jnp.abs(params)) < 1e-3), int(eo.num_gradients(state))
      (True, 100)

    References:
      Chaudhari et al., `Entropy-SGD: Biasing gradient descent into wide valleys
      <https://arxiv.org/abs/1611.01838>`_, ICLR 2017, Algorithm 1.
    """
    num_steps = check_num_steps(num_steps)
    check_scalar("gamma", gamma)
    check_scalar("mean_decay", mean_decay, maximum=1.0)
    check_mean_of(mean_of, scale_by_gamma)
    inner_chain = optax.with_extra_args_support(sampler)
    step = partial(inner_step, inner_chain, mean_decay, mean_of, skip_nonfinite)

    def kept(sampler_state: optax.OptState) -> optax.OptState:
        return sampler_keys(sampler_state) if reset_sampler else sampler_state

    def init(params: optax.Params) -> optax.OptState:
        return ScaleByLocalEntropyState(
            outer_count=jnp.zeros([], jnp.int32),
            num_gradients=jnp.zeros([], jnp.int32),
            num_nonfinite=jnp.zeros([], jnp.int32),
            gamma=jnp.zeros([], jnp.result_type(float)),
            distance=jnp.zeros([], jnp.result_type(float)),
            displacement=jnp.zeros([], jnp.result_type(float)),
            sampler_state=kept(
                init_sampler(inner_chain, promote(params, accumulator_dtype))
            ),
            carry=copy(carry_init),
        )

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[..., Any] | None = None,
        batches: Any = None,
        carry: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, ScaleByLocalEntropyState)
        if params is None:
            raise ValueError("params: scale_by_local_entropy needs them, got None.")
        if grad_fn is None:
            raise ValueError(
                "grad_fn: scale_by_local_entropy calls it num_steps - 1 times, got "
                "None. Pass update(..., grad_fn=...), or use "
                "local_entropy(opaque_mode=False) for one gradient per call."
            )
        check_batches(batches, num_steps - 1)
        carry = checked_carry(carry, state.carry)

        position = anchor = promote(params, accumulator_dtype)
        sampler_state = state.sampler_state
        if reset_sampler:
            sampler_state = with_keys(
                init_sampler(inner_chain, position), sampler_state
            )
        scope = at_step(gamma, state.outer_count)
        cycle = Cycle(anchor, scope, state.outer_count, num_steps, extra_args)
        inner = InnerState(
            mean=first_mean(position, mean_of),
            sampler_state=sampler_state,
            displacement=jnp.zeros_like(state.displacement),
            num_nonfinite=state.num_nonfinite,
        )

        def advance(grads, position, inner, k):
            grads = optax.tree.cast_like(grads, position)
            moves, inner = step(cycle, grads, position, inner, k)
            return optax.apply_updates(position, moves), inner

        # The move first, then the gradient at its end: whatever reads x' in the body
        # reads the new one, so that the compiler overwrites the old one in place. With
        # the gradient first it copies x', for a layer's move could overtake the
        # gradients of the layers below.
        def body(loop, xs):
            grads, position, inner, carry = loop
            k, batch = xs
            position, inner = advance(grads, position, inner, k - 1)
            at = optax.tree.cast_like(position, params)
            data = k if batches is None else batch
            out = grad_fn(at, data) if carry_init is None else grad_fn(at, data, carry)
            grads, new_carry = (out, None) if carry_init is None else out
            # The first gradient's dtype: bfloat16 stays so in the loop's memory.
            grads = optax.tree.cast_like(grads, updates)
            if carry_init is not None and skip_nonfinite:
                keep = is_finite(grads)
                new_carry = jax.lax.cond(keep, lambda: new_carry, lambda: carry)
            return (grads, position, inner, new_carry), None

        grads = updates
        if num_steps > 1:
            loop = (grads, position, inner, carry)
            xs = (jnp.arange(1, num_steps), batches)
            if unroll == "auto":
                # XLA:CPU's convolutions are several times slower in a rolled loop.
                unrolled = jax.default_backend() == "cpu" and convolves(body, loop, xs)
            else:
                unrolled = unroll
            loop, _ = jax.lax.scan(body, loop, xs, unroll=unrolled)
            grads, position, inner, carry = loop
        position, inner = advance(grads, position, inner, num_steps - 1)

        direction = direction_of(anchor, inner.mean, mean_of)
        new_state = ScaleByLocalEntropyState(
            outer_count=optax.safe_increment(state.outer_count),
            num_gradients=safe_add(state.num_gradients, num_steps),
            num_nonfinite=inner.num_nonfinite,
            gamma=scope,
            distance=norm(direction),
            displacement=inner.displacement,
            sampler_state=kept(inner.sampler_state),
            carry=carry,
        )
        if scale_by_gamma:
            direction = jax.tree.map(lambda d: like_leaf(scope, d) * d, direction)
        return optax.tree.cast_like(direction, params), new_state

    return optax.GradientTransformationExtraArgs(init, update)
