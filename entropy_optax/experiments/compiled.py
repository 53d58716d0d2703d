"""The compiled step of a training run, or of several together."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import entropy_optax as eo
from entropy_optax.experiments import meshes, methods
from entropy_optax.experiments.hyperparameters import EntropySGDSettings
from entropy_optax.experiments.methods import repeats
from entropy_optax.experiments.settings import (
    Settings,
    num_copies,
    num_replicas,
    num_splits,
)
from entropy_optax.experiments.tasks import Task
from entropy_optax.training import TrainState, linen_carry, linen_train_step


class Step(NamedTuple):
    """Compiled functions over a leading axis of runs that are trained together.

    Attributes:
      init: `(traced, keys) -> arrays`, the state before the first gradient.
      advance: `(arrays, traced, data, indices) -> (arrays, losses)`, `report_every`
        gradients; it donates the arrays.
      place: puts the task's data on every device of a mesh, once for all calls.
    """

    init: Callable[..., dict[str, Any]]
    advance: Callable[..., tuple[dict[str, Any], jax.Array]]
    place: Callable[[Any], Any]


def draw(streams: Sequence[Iterator[np.ndarray]], count: int) -> np.ndarray:
    """Takes the next minibatches of several runs.

    Args:
      streams: the indices of each run.
      count: minibatches of each.

    Returns:
      Indices, `[runs, count, ...]`.
    """
    return np.stack([np.stack([next(s) for _ in range(count)]) for s in streams])


def num_draws(settings: Settings, optimizer: str, gradients: int) -> int:
    """How many minibatches so many gradients (of each replica) are taken on.

    Args:
      settings: of the experiment.
      optimizer: its name.
      gradients: their number.

    Returns:
      The number of minibatches, of all replicas together.
    """
    replicas = num_replicas(settings, optimizer) or 1
    return replicas * gradients // repeats(settings, optimizer)


def compile_step(task: Task, optimizer: str, settings: Settings, count: int) -> Step:
    """Compiles the training of several runs, under `jax.vmap` if there are two or more.

    Args:
      task: the network and its data.
      optimizer: its name.
      settings: static ones count, traced ones are arguments.
      count: number of runs.

    Returns:
      The functions.
    """
    start, advance = _functions(task, optimizer, settings)
    over = jax.vmap if count > 1 else _over_one
    init = over(start)
    traced, _ = methods.split_settings(optimizer, settings)
    traced = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), traced)
    keys = jnp.stack([jax.random.key(0)] * count)
    draws = num_draws(settings, optimizer, settings.report_every)
    one = draw([task.indices(0)], draws)[0]
    indices = jax.ShapeDtypeStruct((count, *one.shape), one.dtype)
    arrays = jax.eval_shape(init, traced, keys)
    mesh = meshes.make_mesh(settings, optimizer)
    places, place = None, lambda data: data
    if mesh is not None:
        place = lambda data: jax.device_put(data, NamedSharding(mesh, P()))
        places = meshes.state_shardings(mesh, settings, optimizer, arrays)
        arrays = jax.tree.map(
            lambda leaf, place: leaf.update(sharding=place), arrays, places
        )
    init = jax.jit(init, out_shardings=places)
    mapped = over(advance, in_axes=(0, 0, None, 0))
    mapped = jax.jit(mapped, donate_argnums=0, out_shardings=(places, None))
    lowered = mapped.lower(arrays, traced, place(task.data), indices)
    return Step(init, lowered.compile(), place)


def state_bytes(task: Task, optimizer: str, settings: Settings) -> int:
    """Size of a checkpoint of one run.

    Args:
      task: the network and its data.
      optimizer: its name.
      settings: of the experiment.

    Returns:
      Bytes of the training's state and of the best point so far.
    """
    init, _ = _functions(task, optimizer, settings)
    traced, _ = methods.split_settings(optimizer, settings)
    arrays = jax.eval_shape(init, traced, jax.random.key(0))
    best = arrays["params"], arrays["model_state"]  # with replicas their centre: less
    size = lambda leaf: math.prod(leaf.shape) * leaf.dtype.itemsize
    return sum(map(size, jax.tree.leaves((arrays, best))))


def _functions(task: Task, optimizer: str, settings: Settings) -> tuple[Any, Any]:
    _, model_state = jax.eval_shape(task.init, jax.random.key(0))
    group = getattr(settings, optimizer)
    # Minibatches that are gathered at once: an outer step's, or a few.
    local = isinstance(group, EntropySGDSettings)
    length = group.num_steps if local else math.gcd(settings.report_every, 20)
    repeat = repeats(settings, optimizer)
    replicas = num_replicas(settings, optimizer)
    splits = num_splits(settings, optimizer)
    copies = num_copies(settings, optimizer)
    mesh = meshes.make_mesh(settings, optimizer)

    def tx(traced: Any, key: Any = None) -> optax.GradientTransformationExtraArgs:
        # The key of the noise lives in the optimizer's state: only `init` reads it.
        key = jax.random.key(0) if key is None else key
        carry = linen_carry(model_state)
        return methods.make_method(
            optimizer, settings, traced, key=key, carry_init=carry
        ).tx

    def init(traced: Any, key: jax.Array) -> dict[str, Any]:
        init_key, noise_key, dropout_key = jax.random.split(key, 3)
        params, state = task.init(init_key)
        if copies is not None:
            params = eo.replica_params(params, copies)
            state = eo.replica_params(state, copies)
        state = TrainState.create(
            apply_fn=lambda: None,
            params=params,
            tx=tx(traced, noise_key),
            batch_stats=state,
            rng_key=dropout_key,
        )
        # Copies: no buffer may be donated twice.
        return jax.tree.map(jnp.copy, _arrays(state))

    def advance(arrays: Any, traced: Any, data: Any, indices: Any) -> Any:
        key = arrays["rng_key"]

        def loss_fn(params: Any, state: Any, batch: Any, _: Any) -> Any:
            batch, number = batch
            drop = jax.random.fold_in(key, number)
            return task.loss(params, state, batch, number, drop)

        step = linen_train_step(loss_fn, copies)
        # Gradients of one minibatch have one number, and one dropout mask.
        count = settings.report_every * (replicas or 1)
        done = arrays["step"] * (replicas or 1)
        numbers = (done + jnp.arange(count)) // repeat
        indices = jnp.repeat(indices, repeat, axis=0)
        each = (length,) if replicas is None else (replicas, length)
        groups = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *each, *leaf.shape[1:]), (indices, numbers)
        )
        gather = jax.vmap(task.gather, (None, 0))
        if replicas is not None:
            gather = jax.vmap(gather, (None, 0))

        def body(arrays: Any, group: Any) -> Any:
            picked, numbers = group
            batches = meshes.place_batches(mesh, gather(data, picked), replicas)
            if splits is not None:
                batches, numbers = _split(batches, numbers, splits)
            state = TrainState(
                apply_fn=lambda: None,
                tx=tx(traced),
                batch_stats=arrays["model_state"],
                **{name: arrays[name] for name in _FIELDS},
            )
            state, metrics = step(state, (batches, numbers))
            return _arrays(state), metrics["loss"]

        arrays, losses = jax.lax.scan(body, arrays, groups)
        return arrays, jnp.mean(losses)

    return init, advance


def _split(batches: Any, numbers: jax.Array, splits: int) -> tuple[Any, jax.Array]:
    """Returns minibatches `[L, B, ...]` as `[splits, L, B / splits, ...]`."""

    def parts(leaf: jax.Array) -> jax.Array:
        leaf = leaf.reshape(leaf.shape[0], splits, -1, *leaf.shape[2:])
        return jnp.moveaxis(leaf, 1, 0)

    return jax.tree.map(parts, batches), jnp.tile(numbers, (splits, 1))


_FIELDS = ("step", "params", "opt_state", "rng_key")


def _arrays(state: Any) -> dict[str, Any]:
    # The optimizer is made of traced numbers and must not leave the compiled function.
    arrays = {name: getattr(state, name) for name in _FIELDS}
    return arrays | {"model_state": state.batch_stats}


def member(tree: Any, i: int) -> Any:
    """Picks one run of several.

    Args:
      tree: arrays with a leading axis of runs.
      i: which one.

    Returns:
      The tree without the axis.
    """
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _over_one(function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    # As jax.vmap over an axis of length 1, without batched operations.
    def mapped(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        given = [
            arg if axis is None else member(arg, 0)
            for arg, axis in zip(args, axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*given))

    return mapped
