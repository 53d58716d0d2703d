"""The Hessian spectra of the paper's Figures 1 and 3, and one that is exact.

The networks are those of the paper as far as its text tells: trained by Adam, then the
spectrum of the training loss's Hessian by stochastic Lanczos quadrature.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from entropy_optax import measure
from entropy_optax.experiments.comparison import write_json
from entropy_optax.experiments.compiled import compile_step, draw, member
from entropy_optax.experiments.evaluate import Score
from entropy_optax.experiments.hyperparameters import AdamSettings
from entropy_optax.experiments.memo import Memo
from entropy_optax.experiments.methods import split_settings
from entropy_optax.experiments.objectives import Objectives, objectives
from entropy_optax.experiments.settings import Settings
from entropy_optax.experiments.tasks import Task, make_task

THRESHOLDS = (1e-5, 1e-4, 1e-3)
SYSTEMS: dict[str, dict[str, Any]] = {
    "mlp_small": {"model": "mlp_small", "pool": 2, "num_gradients": 2000},
    "lenet_small": {"model": "lenet_small", "num_gradients": 1000},
    "mnistfc_small": {"model": "mnistfc_small", "num_gradients": 2000},
    "char_lstm_small": {
        "model": "char_lstm_small",
        "data": "warpeace",
        "num_gradients": 2000,
        "adam": AdamSettings(learning_rate=5e-3),
    },
}
PAPER: dict[str, dict[str, float | int]] = {
    "lenet_small": {
        "num_params": 47_658,
        "test_error": 2.4,
        "near_zero_0.0001": 0.94,
        "largest": 40.0,
        "smallest": -0.46,
    },
    "mnistfc_small": {"num_params": 50_890},
    "char_lstm_small": {"num_params": 32_640, "near_zero_1e-05": 0.95},
}
"""Chaudhari et al. (2017), Figures 1 and 3 and their captions."""
NUM_EXAMPLES = {"lenet_small": 500, "char_lstm_small": 500}
"""Examples of the loss; 2,000 images where it does not say otherwise."""
NUM_PROBES, NUM_STEPS = 30, 40
TOLERANCES = {"char_lstm_small": 0.01}
"""Of the extreme eigenvalues, relative; 0.001 where it does not say otherwise. What an
LSTM has below 0 is so little that float32 resolves no more of it."""
LONG = 1000
"""Lanczos steps for the share near zero."""
EXACT = ("mlp_small",)
"""Small enough for all eigenvalues, in float64."""


def settings_of(system: str) -> Settings:
    """How a network is trained.

    Args:
      system: its name.

    Returns:
      The settings.
    """
    values: dict[str, Any] = {"batch_size": 100} | SYSTEMS[system]
    return Settings(**values, report_every=20, evaluate_every=20)


def run(out: pathlib.Path, console: Console) -> None:
    """Trains, measures and writes the record; resumable.

    Args:
      out: folder of the records.
      console: where progress goes.
    """
    memo = Memo(
        out / "spectra.part",
        [SYSTEMS, NUM_EXAMPLES, NUM_PROBES, NUM_STEPS, THRESHOLDS, TOLERANCES, LONG],
    )
    rows = {}
    for system in SYSTEMS:
        network = functools.cache(functools.partial(_network, system))
        found = memo(system, functools.partial(_measured, system, network, console))
        shares = memo(f"{system}, shares", functools.partial(_shares, network))
        rows[system] = found | shares
        shown = {k: v for k, v in rows[system].items() if not isinstance(v, list)}
        console.print(f"{system}: {shown}", highlight=False)
    content = {
        "num_probes": NUM_PROBES,
        "num_steps": NUM_STEPS,
        "long": LONG,
        "paper": PAPER,
        "settings": {system: settings_of(system) for system in SYSTEMS},
        "rows": rows,
    }
    write_json(out / "spectra.json", content)
    memo.remove()


def trained(task: Task, settings: Settings, seed: int) -> tuple[Any, Any]:
    """Trains one network by Adam.

    Args:
      task: network and data.
      settings: of the run.
      seed: of the run.

    Returns:
      Params and model state.
    """
    step = compile_step(task, "adam", settings, 1)
    traced, _ = split_settings("adam", settings)
    traced = jax.tree.map(lambda leaf: leaf[None], traced)
    arrays = step.init(traced, jax.random.key(seed)[None])
    streams = [task.indices(seed)]
    for _ in range(0, settings.num_gradients, settings.report_every):
        indices = draw(streams, settings.report_every)
        arrays, _ = step.advance(arrays, traced, task.data, indices)
    arrays = member(arrays, 0)
    return arrays["params"], arrays["model_state"]


class _Network(NamedTuple):
    params: Any
    test: Score
    found: Objectives


def _network(system: str) -> _Network:
    settings = settings_of(system)
    task = make_task(settings)
    params, state = trained(task, settings, 0)
    test = task.score(task.variables(params, state), "test")
    # None has BatchNorm; an LSTM's hidden state starts from zeros.
    found = objectives(task, params, {}, NUM_EXAMPLES.get(system, 2000))
    return _Network(params, test, found)


def _measured(
    system: str, network: Callable[[], _Network], console: Console
) -> dict[str, Any]:
    params, test, found = network()
    keys = jax.random.split(jax.random.key(1), 2)

    def progress(done: int, total: int) -> None:
        console.print(f"{system}: {done} of {total} probes")

    density = measure.spectral_density(
        found.loss,
        params,
        key=keys[0],
        num_probes=NUM_PROBES,
        num_steps=NUM_STEPS,
        progress=progress,
    )
    row = {
        "examples": found.description,
        "num_params": density.num_params,
        "test_error": test.error,
        "test_loss": test.loss,
        "training_loss": float(found.loss(params)),
        **_ends(found.loss, params, keys[1], TOLERANCES.get(system, 0.001)),
        # What short runs say of it, for comparison with the long one.
        **{f"short_{t:g}": _pair(density.share_within(t)) for t in THRESHOLDS},
        "trace": _pair(density.trace()),
        "trace_of_square": _pair(density.trace_of_square()),
        "nodes": _rounded(density.nodes),
        "weights": _rounded(density.weights),
    }
    if system in EXACT:
        row |= _exact(found, params)
    return row


def _shares(network: Callable[[], _Network]) -> dict[str, Any]:
    params, _, found = network()
    shares = measure.share_near_zero(
        found.loss, params, THRESHOLDS, key=jax.random.key(2), num_steps=LONG
    )
    rows = zip(
        shares.values, shares.standard_errors, shares.lower, shares.upper, strict=True
    )
    return {
        f"share_{t:g}": list(map(float, row))
        for t, row in zip(THRESHOLDS, rows, strict=True)
    }


def _ends(
    f: measure.Objective, params: Any, key: jax.Array, tolerance: float
) -> dict[str, Any]:
    ends = measure.extreme_eigenvalues(f, params, key=key, tolerance=tolerance)
    return {
        "largest": float(ends.largest[0]),
        "largest_residual": float(ends.largest_residuals[0]),
        "smallest": float(ends.smallest[0]),
        "smallest_residual": float(ends.smallest_residuals[0]),
    }


def _exact(found: Objectives, params: Any) -> dict[str, Any]:
    # float32 cannot resolve 1e-5 beside 40.
    with jax.enable_x64(True):
        double = lambda a: jnp.asarray(np.asarray(a, np.float64))
        wide = lambda a: double(a) if jnp.issubdtype(a.dtype, jnp.floating) else a
        f = jax.tree.map(wide, found.loss)
        spectrum = measure.dense_spectrum(
            f, jax.tree.map(double, params), block_size=50
        )
    shares = {
        f"exact_share_{t:g}": float(np.mean(np.abs(spectrum) <= t)) for t in THRESHOLDS
    }
    return shares | {
        "exact_largest": float(spectrum[-1]),
        "exact_smallest": float(spectrum[0]),
        "exact_trace": float(spectrum.sum()),
        "exact_eigenvalues": _rounded(spectrum),
    }


def _pair(found: measure.Estimate) -> list[float]:
    return [found.value, found.standard_error]


def _rounded(values: np.ndarray) -> list[Any]:
    # Four digits are more than a picture shows.
    return np.vectorize(lambda x: float(f"{x:.4g}"))(values).tolist()
