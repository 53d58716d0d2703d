"""Networks trained by several optimizers until their training losses are the same.

Where a minimum of a lower loss is flatter for that reason alone (the Hessian of a
cross-entropy vanishes with it), flatness is compared at equal training loss.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_optax.experiments import methods
from entropy_optax.experiments.compiled import compile_step, draw
from entropy_optax.experiments.grid import with_fields
from entropy_optax.experiments.hyperparameters import rate_field
from entropy_optax.experiments.image_task import ImageTask
from entropy_optax.experiments.settings import Settings

NUM_TRAIN = 2000
TARGETS = (0.05, 0.01)
"""Nats; the mean over all training images, dropout off."""
CHUNK = 20
"""Gradients between two looks at the training loss: one epoch."""
PATIENCE = 5
"""A run is given up after so many times the gradients of the fastest beside it."""
SYSTEMS: dict[str, dict[str, Any]] = {
    "mlp_small": {"model": "mlp_small", "pool": 2, "num_gradients": 8000},
    "mnistfc_small": {"model": "mnistfc_small", "num_gradients": 4000},
    "lenet_small": {"model": "lenet_small", "num_gradients": 1600},
}
RATES = (0.025, 0.05, 0.1, 0.2)


class Contender(NamedTuple):
    """One of those compared.

    Attributes:
      label: for people.
      optimizer: its name.
      settings: all but the rate.
      rates: to choose from.
    """

    label: str
    optimizer: str
    settings: Settings
    rates: tuple[float, ...]


class Stops(NamedTuple):
    """Where runs first were at or below each training loss.

    Attributes:
      params: as vectors, `[runs, targets, n]`, NaN where a loss was not reached.
      gradients: spent until then, `[runs, targets]`, -1 where it was not reached.
      training_loss: in nats, `[runs, targets]`.
    """

    params: np.ndarray
    gradients: np.ndarray
    training_loss: np.ndarray


def base_settings(system: str) -> Settings:
    """What all contenders share.

    Args:
      system: the network's name.

    Returns:
      Settings with a rate that does not fall, for the time of the stop is not known.
    """
    values: dict[str, Any] = {"num_train": NUM_TRAIN, "batch_size": 100} | SYSTEMS[
        system
    ]
    return Settings(
        **values, report_every=CHUNK, evaluate_every=CHUNK, rate_schedule="constant"
    )


def contenders(system: str) -> list[Contender]:
    """SGD, Adam, SAM with three radii, Entropy-SGD with gamma swept and scoping on.

    Args:
      system: the network's name.

    Returns:
      All of them, each with four rates to choose from. Entropy-SGD has L = 20; gamma 0
      is averaging alone. With scoping gamma starts at a tenth and grows by 2 % in each
      outer step: it passes the value that it is named by after 116.
    """
    settings = base_settings(system)
    found = [
        Contender("SGD-Nesterov", "sgd", settings, RATES),
        Contender("Adam", "adam", settings, tuple(1e-3 * 2**k for k in range(4))),
    ]
    slow = system == "lenet_small"  # ten times the others' time: a part of the family
    for radius in (0.05,) if slow else (0.02, 0.05, 0.1):
        chosen = with_fields(settings, "sam", {"radius": radius})
        found.append(Contender(f"SAM, radius {radius:g}", "sam", chosen, RATES))
    pulls = [(0.0, False), (0.1, False), (0.3, False), (0.3, True)]
    if not slow:
        pulls.append((0.1, True))
    for pull, scoping in pulls:
        fields = {
            "pull": pull / 10 if scoping else pull,
            "gamma_growth": 0.02 if scoping else 0.0,
        }
        chosen = with_fields(settings, "entropy_sgd", fields)
        label = f"Entropy-SGD, step_size * gamma {pull:g}"
        label += ", scoping" if scoping else ""
        found.append(Contender(label, "entropy_sgd", chosen, RATES))
    return found


def train(
    task: ImageTask,
    contender: Contender,
    rates: Sequence[float],
    seeds: Sequence[int],
) -> Stops:
    """Trains runs together, each until the last target or the end of the budget.

    Args:
      task: network and data.
      contender: optimizer and settings.
      rates: one for each run.
      seeds: one for each run, of initialisation, order of the batches and noise.

    Returns:
      The points at which they were stopped.
    """
    name, settings, count = contender.optimizer, contender.settings, len(seeds)
    field = rate_field(getattr(settings, name))
    chosen = [with_fields(settings, name, {field: rate}) for rate in rates]
    split = [methods.split_settings(name, s)[0] for s in chosen]
    traced = jax.tree.map(lambda *leaves: jnp.stack(leaves), *split)
    method = methods.make_method(
        name, settings, split[0], key=jax.random.key(0), carry_init=None
    )
    step = compile_step(task, name, settings, count)
    arrays = step.init(traced, jnp.stack([jax.random.key(seed) for seed in seeds]))
    streams = [task.indices(seed) for seed in seeds]

    @jax.jit
    def look(arrays: Any, data: Any) -> tuple[jax.Array, jax.Array]:
        params = jax.vmap(method.eval_params)(arrays["opt_state"], arrays["params"])
        loss = lambda p: task.loss(p, {}, data, jnp.int32(0), jax.random.key(0))[0]
        vectors = jax.vmap(lambda p: ravel_pytree(p)[0])(params)
        return vectors, jax.lax.map(loss, params)

    vectors, _ = look(arrays, task.data)
    shape = (count, len(TARGETS))
    stops = Stops(
        np.full((*shape, vectors.shape[1]), np.nan, np.float32),
        np.full(shape, -1),
        np.full(shape, np.nan),
    )
    draws = CHUNK // methods.repeats(settings, name)
    for gradients in range(CHUNK, settings.num_gradients + 1, CHUNK):
        arrays, _ = step.advance(arrays, traced, task.data, draw(streams, draws))
        vectors, losses = jax.device_get(look(arrays, task.data))
        for run, target in zip(
            *np.nonzero((stops.gradients < 0) & (losses[:, None] <= TARGETS)),
            strict=True,
        ):
            stops.params[run, target] = vectors[run]
            stops.gradients[run, target] = gradients
            stops.training_loss[run, target] = losses[run]
        reached = stops.gradients[:, -1]
        if np.all((reached > 0) | ~np.isfinite(losses)):
            break
        if np.any(reached > 0) and gradients >= PATIENCE * reached[reached > 0].min():
            break
    return stops


def save(path: pathlib.Path, stops: Stops) -> None:
    """Keeps stopped runs, without pickle.

    Args:
      path: of an npz file.
      stops: the runs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("wb") as file:
        np.savez(file, **stops._asdict())
    path.with_suffix(".part").replace(path)


def restore(path: pathlib.Path) -> Stops:
    """Reads what `save` wrote.

    Args:
      path: of the file.

    Returns:
      The runs.
    """
    with np.load(path, allow_pickle=False) as arrays:
        return Stops(**{name: arrays[name] for name in Stops._fields})


def best_rate(
    task: ImageTask, contender: Contender, stops: Stops, rates: Sequence[float]
) -> tuple[float, list[dict[str, Any]]]:
    """Chooses a rate by the validation error at the lowest training loss.

    Args:
      task: network and data.
      contender: which one.
      stops: of its runs at all rates.
      rates: one for each run.

    Returns:
      The rate of the lowest mean error among those that all runs reached the loss with,
      and what was measured. If there is none, the next higher loss decides.

    Raises:
      RuntimeError: if no rate reaches any of the losses.
    """
    params, _ = task.init(jax.random.key(0))
    _, unravel = ravel_pytree(params)
    table = []
    for run, rate in enumerate(rates):
        for target, loss in enumerate(TARGETS):
            error = float("nan")
            if stops.gradients[run, target] > 0:
                variables = task.variables(unravel(stops.params[run, target]), {})
                error = task.score(variables, "validation").error
            gradients = int(stops.gradients[run, target])
            table.append(
                {
                    "rate": rate,
                    "target": loss,
                    "validation_error": error,
                    "gradients": gradients,
                }
            )
    for loss in reversed(TARGETS):
        errors = lambda rate, loss=loss: [
            row["validation_error"]
            for row in table
            if row["rate"] == rate and row["target"] == loss
        ]
        means = [np.mean(errors(rate)) for rate in contender.rates]
        if np.any(np.isfinite(means)):
            return contender.rates[int(np.nanargmin(means))], table
    raise RuntimeError(f"{contender.label}: no rate reaches {TARGETS[0]} nats")
