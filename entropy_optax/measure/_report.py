"""One call that measures a trained model and writes figures and JSON."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from entropy_optax.measure import _report_figures
from entropy_optax.measure._checks import NotConverged, check_params, check_positive
from entropy_optax.measure._curvature import num_params
from entropy_optax.measure._density import SpectralDensity
from entropy_optax.measure._estimate import MIN_PROBES, Estimate
from entropy_optax.measure._local_entropy import local_entropy
from entropy_optax.measure._local_entropy_result import LocalEntropyEstimate
from entropy_optax.measure._noise import Kind, NoiseCurve, noise_curve
from entropy_optax.measure._objective import Function, Params, as_pytree
from entropy_optax.measure._runner import ChainSettings
from entropy_optax.measure._shares import Shares, share_near_zero
from entropy_optax.measure._sharpness import average_sharpness
from entropy_optax.measure._spectrum import (
    ExtremeEigenvalues,
    extreme_eigenvalues,
    spectral_density,
)

GAMMAS = (30.0, 100.0, 300.0, 1000.0)
NOISES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
NEAR_ZERO = (1e-4, 1e-3, 1e-2)
_CHAINS = ChainSettings(num_chains=8, num_steps=8, num_burn=6, num_samples=400)


class Report(NamedTuple):
    """What `report` found.

    Attributes:
      description: of the model and the examples, for people.
      num_params: n.
      loss: f at the params.
      error: the error rate there, None if no function for it was given.
      spectrum: density of the Hessian's eigenvalues.
      shares: of eigenvalues near zero.
      extremes: its ends with residuals, or why they could not be had.
      noise: loss under random noise by kind.
      noise_error: the error rate under noise of the first kind, or None.
      sharpness: mean increase of the loss under noise of a tenth of each weight.
      temperature: T of local entropy.
      local_entropies: of each gamma the normalised Phi, or a refusal.
    """

    description: str
    num_params: int
    loss: float
    error: float | None
    spectrum: SpectralDensity
    shares: Shares
    extremes: ExtremeEigenvalues | str
    noise: dict[str, NoiseCurve]
    noise_error: NoiseCurve | None
    sharpness: Estimate
    temperature: float
    local_entropies: dict[float, LocalEntropyEstimate]

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON has them.

        Returns:
          Lists, dicts and scalars; None for what is not finite.
        """
        ends = self.extremes
        curves = dict(self.noise)
        if self.noise_error is not None:
            curves["error"] = self.noise_error  # noise of the first kind
        content = {
            "description": self.description,
            "num_params": self.num_params,
            "loss": self.loss,
            "error": self.error,
            "spectrum": {
                "num_probes": len(self.spectrum.nodes),
                "num_steps": self.spectrum.num_steps,
                "trace": self.spectrum.trace(),
                "trace_of_square": self.spectrum.trace_of_square(),
                "shares_near_zero": {
                    name: getattr(self.shares, name)
                    for name in self.shares._fields
                    if name != "nodes"
                },
                "extremes": ends
                if isinstance(ends, str)
                else {
                    "largest": ends.largest,
                    "largest_residuals": ends.largest_residuals,
                    "smallest": ends.smallest,
                    "smallest_residuals": ends.smallest_residuals,
                },
            },
            "average_sharpness": self.sharpness,
            "noise": {
                kind: {
                    "sigmas": curve.sigmas,
                    "values": curve.values,
                    "standard_errors": curve.standard_errors,
                }
                for kind, curve in curves.items()
            },
            "local_entropy": [
                {
                    "gamma": gamma,
                    "temperature": self.temperature,
                    "phi": found.phi,
                    "standard_error": found.standard_error,
                    "method": found.method,
                    "reasons": found.diagnostics.reasons,
                }
                for gamma, found in self.local_entropies.items()
            ],
        }
        return _plain(content)

    def save(self, out: pathlib.Path | str) -> None:
        """Writes `report.json`, `spectrum.png`, `noise.png` and `local_entropy.png`.

        Args:
          out: a folder, made if missing.
        """
        out = pathlib.Path(out)
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        (out / "report.json").write_text(text + "\n")
        _report_figures.spectrum_figure({self.description: self.spectrum}).savefig(
            out / "spectrum.png", dpi=130
        )
        _report_figures.report_noise_figure(self.noise, self.noise_error).savefig(
            out / "noise.png", dpi=130
        )
        _report_figures.local_entropy_figure(
            self.loss, self.temperature, self.local_entropies
        ).savefig(out / "local_entropy.png", dpi=130)


def report(
    f: Function,
    params: Params,
    *,
    key: jax.Array,
    error: Function | None = None,
    gammas: Sequence[float] = GAMMAS,
    temperature: float = 0.01,
    num_probes: int = MIN_PROBES,
    num_steps: int = 12,
    long_steps: int = 200,
    chains: ChainSettings = _CHAINS,
    description: str = "the model",
    console: Console | None = None,
) -> Report:
    """Measures how wide the minimum of a trained model is.

    Args:
      f: the loss in evaluation mode, of fixed data: see `objective`.
      params: where.
      key: PRNG key.
      error: an error rate as a function of the params, if wanted.
      gammas: scopes of local entropy.
      temperature: of local entropy.
      num_probes: of the spectral density.
      num_steps: Lanczos steps of each.
      long_steps: Lanczos steps for the share near zero.
      chains: how much work local entropy is.
      description: of model and data, for the figures.
      console: shows a progress bar if given.

    Returns:
      All numbers; `save` writes them and their figures.

    Raises:
      MeasureError: if a number cannot be had at all: integer leaves in the params,
        values that are not finite, too few probes.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from entropy_optax import measure
      >>> f = lambda x: 0.5 * jnp.sum(jnp.array([3.0, -0.1, 1.0, 0.0]) * x**2)
      >>> found = measure.report(
      ...     f, jnp.ones(4), key=jax.random.key(0), gammas=[1.0], temperature=1.0
      ... )
      >>> print(found.extremes.largest.round(3), found.spectrum.trace())
      [3.] 3.9 ± ...
    """
    check_params(params)
    check_positive("temperature", temperature)
    for gamma in gammas:
        check_positive("gammas", gamma)
    keys = jax.random.split(key, 6)
    with Progress(console=console, disable=console is None) as bar:
        task = bar.add_task("", total=5 + len(gammas))

        def stage(name: str, number: int) -> Any:
            bar.update(task, description=name, completed=number)
            return lambda done, total: bar.update(task, completed=number + done / total)

        inner = stage("spectral density", 0)
        spectrum = spectral_density(
            f,
            params,
            key=keys[0],
            num_probes=num_probes,
            num_steps=num_steps,
            progress=inner,
        )
        stage("share near zero", 1)
        shares = share_near_zero(
            f, params, NEAR_ZERO, key=keys[5], num_steps=long_steps
        )
        stage("extreme eigenvalues", 2)
        extremes = _extremes(f, params, keys[1])
        stage("loss under noise", 3)
        kinds: tuple[Kind, ...] = ("filter", "multiplicative")
        if all(np.ndim(leaf) < 2 for leaf in jax.tree.leaves(params)):
            kinds = kinds[1:]  # there are no filters
        noise: dict[str, NoiseCurve] = {
            kind: noise_curve(f, params, NOISES, kind=kind, key=keys[2])
            for kind in kinds
        }
        noise_error = None
        if error is not None:
            noise_error = noise_curve(error, params, NOISES, kind=kinds[0], key=keys[2])
        stage("sharpness", 4)
        sharpness = average_sharpness(f, params, radius=0.1, key=keys[3])
        entropies = {}
        for number, gamma in enumerate(gammas):
            inner = stage(f"local entropy, gamma {gamma:g}", 5 + number)
            entropies[float(gamma)] = local_entropy(
                f,
                params,
                gamma=gamma,
                temperature=temperature,
                key=keys[4],
                settings=chains,
                progress=inner,
            )
        stage("done", 5 + len(gammas))
    value = lambda function: float(jax.jit(lambda g, p: g(p))(function, params))
    return Report(
        description,
        num_params(params),
        value(as_pytree(f)),
        None if error is None else value(as_pytree(error)),
        spectrum,
        shares,
        extremes,
        noise,
        noise_error,
        sharpness,
        temperature,
        entropies,
    )


def _extremes(f: Function, params: Params, key: jax.Array) -> Any:
    try:
        return extreme_eigenvalues(f, params, key=key, tolerance=1e-3, max_products=400)
    except NotConverged as error:
        return str(error)


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
