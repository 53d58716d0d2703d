"""Uniform stability: what one example of the training set does to where a run ends."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from entropy_optax.measure._checks import (
    MeasureError,
    check_at_least,
    check_params,
    check_positive,
)
from entropy_optax.measure._estimate import Estimate, estimate
from entropy_optax.measure._objective import Params


class TwinRuns(NamedTuple):
    """Pairs of runs whose training sets differ in one example; see `twin_runs`.

    Attributes:
      num_gradients: where it was looked, `[points]`.
      distance: ||w_S - w_S'||, `[pairs, points]`.
      path_length: sum of ||w_(t+1) - w_t|| so far of the run on S, `[pairs, points]`.
      training_loss: of the run on S, mean over S, `[pairs, points]`.
      held_out_mean: |f(w_S; z) - f(w_S'; z)|, mean over z of `held_out`, likewise.
      held_out_max: its largest over z, likewise.
      differing: the same at the example which S has and S' has not, likewise.
    """

    num_gradients: np.ndarray
    distance: np.ndarray
    path_length: np.ndarray
    training_loss: np.ndarray
    held_out_mean: np.ndarray
    held_out_max: np.ndarray
    differing: np.ndarray


def stability_bound(
    num_steps: float,
    gamma: float,
    *,
    lipschitz: float,
    smoothness: float,
    curvature: float,
) -> float:
    """The paper's bound on the stability of Entropy-SGD, relative to that of SGD.

    `eps_ESGD <~ (alpha / T)^((1 - 1 / (1 + c / gamma)) beta) eps_SGD`, section 4.4 of
    Chaudhari et al. (2017). It says: below SGD's as soon as T is above alpha; the more
    so the longer the run and the smaller gamma; equal to it as gamma grows. It rests on
    the smoothness lemma, whose assumption no network fulfils (see `lemma_margin`), and
    holds up to a constant. What twins do is another matter: see `twin_runs`.

    Args:
      num_steps: T, the number of steps.
      gamma: scope, may be infinite.
      lipschitz: alpha, largest norm of the loss's gradient.
      smoothness: beta, largest |eigenvalue| of its Hessian. It stands in an exponent
        and has the unit 1 / learning rate: the paper takes the rate as `1 / t`.
      curvature: c, of the lemma's assumption.

    Returns:
      The factor before `eps_SGD`.

    Raises:
      MeasureError: if an argument is not positive.

    Examples:
      >>> from entropy_optax import measure
      >>> constants = {"lipschitz": 1.0, "smoothness": 2.0, "curvature": 1.0}
      >>> measure.stability_bound(100, gamma=1.0, **constants)
      0.01
      >>> measure.stability_bound(100, gamma=float("inf"), **constants)
      1.0
    """
    for name, value in (
        *(("num_steps", num_steps), ("gamma", gamma), ("lipschitz", lipschitz)),
        *(("smoothness", smoothness), ("curvature", curvature)),
    ):
        check_positive(name, value)
    exponent = (1 - 1 / (1 + curvature / gamma)) * smoothness
    return float((lipschitz / num_steps) ** exponent)


def growth_exponent(num_steps: ArrayLike, distance: ArrayLike) -> Estimate:
    """Fits `distance ~ T^a` to each pair, by least squares on logarithms.

    Args:
      num_steps: T at each point, `[points]`, two or more.
      distance: of each pair, or anything else that grows, `[pairs, points]`.

    Returns:
      The mean of a over the pairs and its standard error: of the pairs, not of the
      power law.

    Raises:
      MeasureError: if a distance is 0, negative or not finite, the shapes do not fit or
        there are fewer than two points or pairs.

    Examples:
      >>> import numpy as np
      >>> from entropy_optax import measure
      >>> steps = np.array([10.0, 100.0, 1000.0])
      >>> str(measure.growth_exponent(steps, np.stack([steps**0.4, steps**0.6])))
      '0.5 ± 0.1'
    """
    steps = np.asarray(num_steps, float)
    distance = np.asarray(distance, float)
    if distance.ndim != 2 or distance.shape[1:] != steps.shape or len(steps) < 2:
        raise MeasureError(
            f"distance: shape {distance.shape} with {steps.size} points of num_steps,"
            " wanted [pairs, points] with two points or more"
        )
    bad = int(np.sum(~(np.isfinite(distance) & (distance > 0))))
    if bad:
        raise MeasureError(
            f"distance: {bad} of {distance.size} are 0, negative or not finite; fit"
            " where all twins have parted and none has diverged"
        )
    logs = np.log(steps) - np.log(steps).mean()
    return estimate(np.log(distance) @ logs / (logs @ logs))


def paired_distance(params: Params, twin: Params) -> jax.Array:
    """Euclidean distance of two trees.

    Args:
      params: a tree of arrays.
      twin: one like it.

    Returns:
      The norm of their difference, a scalar. Under `jax.vmap` one for each pair.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> one, other = {"a": jnp.zeros(2), "b": 1.0}, {"a": jnp.ones(2), "b": 0.0}
      >>> print(f"{measure.paired_distance(one, other):.4f}")
      1.7321
    """
    return optax.tree.norm(optax.tree.sub(params, twin))


def twin_runs(
    tx: optax.GradientTransformation,
    loss_fn: Callable[[Params, Any], jax.Array],
    init: Callable[[jax.Array], Params],
    data: Any,
    held_out: Any,
    *,
    num_pairs: int,
    report_at: Sequence[int],
    batch_size: int,
    key: jax.Array,
    eval_params: Callable[[Any, Params], Params] | None = None,
) -> TwinRuns:
    """Trains pairs whose training sets differ in one example, else all alike.

    The twins of a pair have the same first params, the same minibatches (uniform with
    replacement, as in Hardt, Recht and Singer 2016) and the same noise. Pair p takes
    the first N examples as S; in S' example p is replaced by example N + p. Compare at
    equal training loss as well as at equal T: whatever slows a run keeps twins near.

    Args:
      tx: the optimizer, one gradient per call.
      loss_fn: `(params, batch) -> loss`, a mean over the batch's leading axis.
      init: `key -> params`.
      data: a tree of arrays with one leading axis, of N + `num_pairs` examples.
      held_out: a tree like the data, of examples that are not among them.
      num_pairs: of runs, 2 or more.
      report_at: numbers of gradients at which to look, rising; the last ends the runs.
      batch_size: examples per gradient.
      key: PRNG key, of which each pair has a part of its own.
      eval_params: `(opt_state, params) -> params`, where to look: `eo.eval_params` for
        Entropy-SGD. None looks at the params themselves.

    Returns:
      The runs.

    Raises:
      MeasureError: if there are too few pairs or examples, or `report_at` does not
        rise from 1 or more.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from entropy_optax import measure
      >>> points = jax.random.normal(jax.random.key(0), (40, 2))
      >>> loss_fn = lambda w, batch: jnp.mean((w - batch) ** 2)
      >>> runs = measure.twin_runs(
      ...     optax.sgd(0.1),
      ...     loss_fn,
      ...     lambda key: jnp.zeros(2),
      ...     points[:30],
      ...     points[30:],
      ...     num_pairs=4,
      ...     report_at=[10, 40],
      ...     batch_size=5,
      ...     key=jax.random.key(1),
      ... )
      >>> runs.distance.shape
      (4, 2)
    """
    check_at_least("num_pairs", num_pairs, 2, "one pair says nothing of its error")
    steps = np.asarray(report_at, int)
    if not steps.size or steps[0] < 1 or np.any(np.diff(steps) <= 0):
        raise MeasureError(f"report_at: got {list(report_at)}, wanted rising from 1 on")
    num_examples = jax.tree.leaves(data)[0].shape[0] - num_pairs
    check_at_least(
        "data", num_examples, num_pairs, "examples beside one spare for each pair"
    )
    look_at = (lambda state, params: params) if eval_params is None else eval_params
    pairs, keys = jnp.arange(num_pairs), jax.random.split(key, num_pairs)
    data, held_out = jax.tree.map(jnp.asarray, (data, held_out))
    check_params(jax.eval_shape(init, key))

    def start(key: jax.Array) -> Any:
        params = init(key)
        state = tx.init(params)
        return params, state, jnp.zeros([])

    def advance(run: Any, key: jax.Array, pair: Any, is_twin: Any, ends: Any) -> Any:
        def body(t: jax.Array, run: Any) -> Any:
            params, state, path = run
            drawn = jax.random.fold_in(jax.random.fold_in(key, 1), t)
            picked = jax.random.randint(drawn, (batch_size,), 0, num_examples)
            swap = is_twin & (picked == pair)
            picked = jnp.where(swap, num_examples + pair, picked)
            batch = jax.tree.map(lambda leaf: leaf[picked], data)
            grads = jax.grad(loss_fn)(params, batch)
            updates, new = tx.update(grads, state, params)
            moved = optax.apply_updates(params, updates)
            step = paired_distance(look_at(new, moved), look_at(state, params))
            return moved, new, path + step

        return jax.lax.fori_loop(ends[0], ends[1], body, run)

    def losses(params: Params, examples: Any) -> jax.Array:
        batches = jax.tree.map(lambda leaf: leaf[:, None], examples)
        return jax.lax.map(lambda b: loss_fn(params, b), batches, batch_size=256)

    def look(run: Any, twin: Any, pair: jax.Array) -> Any:
        one, other = look_at(run[1], run[0]), look_at(twin[1], twin[0])
        own = jax.tree.map(lambda leaf: leaf[pair][None], data)
        training = jax.tree.map(lambda leaf: leaf[:num_examples], data)
        change = jnp.abs(losses(one, held_out) - losses(other, held_out))
        return (
            *(paired_distance(one, other), run[2], jnp.mean(losses(one, training))),
            *(jnp.mean(change), jnp.max(change)),
            jnp.abs(loss_fn(one, own) - loss_fn(other, own)),
        )

    over = jax.jit(jax.vmap(advance, (0, 0, 0, None, None)))
    runs = jax.jit(jax.vmap(start))(keys)
    twins, begin, found = runs, 0, []
    observe = jax.jit(jax.vmap(look))
    for end in steps.tolist():
        runs = over(runs, keys, pairs, False, (begin, end))
        twins = over(twins, keys, pairs, True, (begin, end))
        found.append(jax.device_get(observe(runs, twins, pairs)))
        begin = end
    columns = [np.stack(values, axis=1) for values in zip(*found, strict=True)]
    return TwinRuns(steps, *columns)
