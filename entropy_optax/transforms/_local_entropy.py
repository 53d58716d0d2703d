"""Local entropy around an optimizer: both modes under one name."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from entropy_optax._arguments import ScalarOrSchedule
from entropy_optax.transforms._inner import MeanOf
from entropy_optax.transforms._one_gradient import one_gradient_per_call
from entropy_optax.transforms._scale_by_local_entropy import scale_by_local_entropy


def local_entropy(
    optimizer: optax.GradientTransformation,
    sampler: optax.GradientTransformation,
    num_steps: int,
    gamma: ScalarOrSchedule,
    *,
    opaque_mode: bool = False,
    mean_decay: ScalarOrSchedule = 0.75,
    mean_of: MeanOf = "iterates",
    scale_by_gamma: bool = False,
    reset_sampler: bool = True,
    carry_init: Any = None,
    accumulator_dtype: DTypeLike = jnp.float32,
    skip_nonfinite: bool = False,
    unroll: int | bool | Literal["auto"] = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer descend minus the local entropy instead of the loss.

    With ``opaque_mode=False`` (the default) each ``update`` call takes one gradient, at
    the params it is given, and any training loop works unchanged: within a cycle of
    ``num_steps`` calls the params are x', and at its end the new x of the outer
    optimizer. Evaluate at :func:`entropy_optax.eval_params`, which is x at any time. x'
    is then as precise as the params: keep those in float32.

    With ``opaque_mode=True`` it is
    ``optax.chain(scale_by_local_entropy(sampler, ...), optimizer)``: the whole inner
    loop in one ``update``, which needs ``grad_fn``. Both modes take the same steps on
    the same batches. BatchNorm statistics follow x' in both: re-estimate
    them at x.

    Put nothing before or after it in a chain with ``opaque_mode=False``: a clip before
    it would see every inner gradient (with ``opaque_mode=True`` the first alone), a
    scale after it every move of x'. They belong into the sampler and the optimizer.

    Args:
      optimizer: the outer optimizer; its schedules count outer steps.
      sampler: the inner chain, such as :func:`entropy_optax.sgld`.
      num_steps: L, inner steps and gradients per outer step.
      gamma: the scope, a number or a schedule of the number of outer steps done.
      opaque_mode: whether one ``update`` is a whole outer step.
      mean_decay: see :func:`scale_by_local_entropy`, as for all that follow.
      mean_of: ``"iterates"``, or ``"gradients"`` for their mean in place of x - mu.
      scale_by_gamma: whether to multiply x - mu by the scope.
      reset_sampler: whether each outer step begins with a fresh sampler state.
      carry_init: first carry for ``grad_fn``, in ``opaque_mode`` alone.
      accumulator_dtype: least precision of mu (and of x' in ``opaque_mode``).
      skip_nonfinite: whether gradients that are not finite are skipped.
      unroll: unrolling of the inner loop, in ``opaque_mode``.

    Returns:
      A transformation. Its diagnostics, the fields of :class:`ScaleByLocalEntropyState`
      or :class:`LocalEntropyState`, are read by ``optax.tree.get(state, "distance")``.

    Raises:
      ValueError: as :func:`scale_by_local_entropy`; or if ``carry_init`` is given with
        ``opaque_mode=False``, where the training loop itself keeps the model's state.

    Examples:
      >>> import entropy_optax as eo, jax, jax.numpy as jnp, optax
      >>> tx = eo.local_entropy(
      ...     optax.adam(0.1), eo.sgld(0.1, momentum=0.9), num_steps=5, gamma=0.1
      ... )
      >>> @jax.jit
      ... def step(params, state):
      ...     grads = jax.grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(1000):
      ...     params, state = step(params, state)
      >>> bool(jnp.max(jnp.abs(eo.eval_params(state, params))) < 1e-2)
      True

    References:
      Chaudhari et al., `Entropy-SGD: Biasing gradient descent into wide valleys
      <https://arxiv.org/abs/1611.01838>`_, ICLR 2017.
    """
    if opaque_mode:
        estimator = scale_by_local_entropy(
            sampler,
            num_steps,
            gamma,
            mean_decay=mean_decay,
            mean_of=mean_of,
            scale_by_gamma=scale_by_gamma,
            reset_sampler=reset_sampler,
            carry_init=carry_init,
            accumulator_dtype=accumulator_dtype,
            skip_nonfinite=skip_nonfinite,
            unroll=unroll,
        )
        return optax.chain(estimator, optimizer)
    if carry_init is not None:
        raise ValueError(
            "carry_init: with opaque_mode=False the training loop keeps the model's "
            f"state itself; got {carry_init!r}, wanted None."
        )
    return one_gradient_per_call(
        optimizer,
        sampler,
        num_steps,
        gamma,
        mean_decay=mean_decay,
        mean_of=mean_of,
        scale_by_gamma=scale_by_gamma,
        reset_sampler=reset_sampler,
        accumulator_dtype=accumulator_dtype,
        skip_nonfinite=skip_nonfinite,
    )
