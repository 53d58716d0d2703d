"""Networks trained by several optimizers until their training losses are the same.

Where a minimum of a lower loss is flatter for that reason alone (the Hessian of a
cross-entropy vanishes with it), flatness is compared at equal training loss.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from entropy_optax import measure
from entropy_optax.experiments import methods
from entropy_optax.experiments.compiled import compile_step, draw
from entropy_optax.experiments.grid import with_fields
from entropy_optax.experiments.hyperparameters import rate_field
from entropy_optax.experiments.image_task import ImageTask
from entropy_optax.experiments.settings import Settings, gradients_per_update
from entropy_optax.experiments.stops import Stops, shortened

NUM_TRAIN = 2000
TARGETS = (0.05, 0.01)
"""Nats; the mean over the images looked at, dropout off."""
PATIENCE = 5
"""A run is given up after so many times the gradients of the fastest beside it."""
SYSTEMS: dict[str, dict[str, Any]] = {
    "mlp_small": {"model": "mlp_small", "pool": 2, "num_gradients": 8000},
    "mnistfc_small": {"model": "mnistfc_small", "num_gradients": 4000},
    "lenet_small": {"model": "lenet_small", "num_gradients": 1600},
}
SLOW = ("lenet_small",)
"""Ten times the others' time: a part of the contenders, and less work for each."""
NUM_IMAGES = {"mlp_small": 500, "mnistfc_small": 500, "lenet_small": 100}
"""The first training images: loss and flatness are of the same ones."""
RATES = (0.025, 0.05, 0.1, 0.2)
"""The first to be tried; others follow by factors of 2 until the best is inside."""
MAX_RATES = 8


class Contender(NamedTuple):
    """One of those compared.

    Attributes:
      label: for people.
      optimizer: its name.
      settings: all but the rate.
      rates: to choose from at first.
    """

    label: str
    optimizer: str
    settings: Settings
    rates: tuple[float, ...]


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
        **values, report_every=20, evaluate_every=20, rate_schedule="constant"
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
    slow = system in SLOW
    for radius in (0.05,) if slow else (0.02, 0.05, 0.1):
        chosen = with_fields(settings, "sam", {"radius": radius})
        found.append(Contender(f"SAM, radius {radius:g}", "sam", chosen, RATES))
    pulls = [(0.3, False), (0.3, True)]
    if not slow:
        pulls = [(0.0, False), (0.1, False), *pulls, (0.1, True)]
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
    loss: measure.Objective,
) -> Stops:
    """Trains runs together, each until the last target or the end of the budget.

    Args:
      task: network and data.
      contender: optimizer and settings.
      rates: one for each run.
      seeds: one for each run, of initialisation, order of the batches and noise.
      loss: the training loss, that flatness is measured of.

    Returns:
      The points at which they were stopped.
    """
    name, settings, count = contender.optimizer, contender.settings, len(seeds)
    # A look after each update: of Entropy-SGD an outer step, of SAM two gradients.
    chunk = gradients_per_update(settings, name)
    settings = dataclasses.replace(settings, report_every=chunk, evaluate_every=chunk)
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

    unravel = ravel_pytree(task.init(jax.random.key(0))[0])[1]
    loss_of = jax.jit(lambda loss, vector: loss(unravel(vector)))

    @jax.jit
    def look(arrays: Any, loss: Any) -> tuple[jax.Array, jax.Array]:
        params = jax.vmap(method.eval_params)(arrays["opt_state"], arrays["params"])
        vectors = jax.vmap(lambda p: ravel_pytree(p)[0])(params)
        return vectors, jax.lax.map(lambda v: loss(unravel(v)), vectors)

    loss_at = lambda vector: float(loss_of(loss, vector))
    vectors, _ = look(arrays, loss)
    before = np.asarray(vectors)
    shape = (count, len(TARGETS))
    stops = Stops(
        np.full((*shape, vectors.shape[1]), np.nan, np.float32),
        np.full(shape, -1),
        np.full(shape, np.nan),
    )
    draws = chunk // methods.repeats(settings, name)
    for gradients in range(chunk, settings.num_gradients + 1, chunk):
        arrays, _ = step.advance(arrays, traced, task.data, draw(streams, draws))
        vectors, losses = jax.device_get(look(arrays, loss))
        for run, target in zip(
            *np.nonzero((stops.gradients < 0) & (losses[:, None] <= TARGETS)),
            strict=True,
        ):
            vector = shortened(before[run], vectors[run], loss_at, TARGETS[target])
            stops.params[run, target] = vector
            stops.gradients[run, target] = gradients
            stops.training_loss[run, target] = loss_at(vector)
        before = vectors
        reached = stops.gradients[:, -1]
        if np.all((reached > 0) | ~np.isfinite(losses)):
            break
        if np.any(reached > 0) and gradients >= PATIENCE * reached[reached > 0].min():
            break
    return stops


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
    tried = sorted(set(rates))
    for loss in reversed(TARGETS):
        errors = lambda rate, loss=loss: [
            row["validation_error"]
            for row in table
            if row["rate"] == rate and row["target"] == loss
        ]
        means = [np.mean(errors(rate)) for rate in tried]
        if np.any(np.isfinite(means)):
            return tried[int(np.nanargmin(means))], table
    raise RuntimeError(f"{contender.label}: no rate reaches {TARGETS[0]} nats")
