"""What each optimizer can be told, and the defaults."""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

OptimizerName = Literal[
    "sgd",
    "adam",
    "sam",
    "asam",
    "lookahead",
    "ema",
    "schedule_free",
    "entropy_sgd",
    "entropy_adam",
    "parle",
    "filter_entropy",
    "filter_muon",
    "muon",
    "ivon",
    "averaging_alone",
    "reset_alone",
]

_help = lambda text: tyro.conf.arg(help=text)


@dataclasses.dataclass(frozen=True)
class SGDSettings:
    """SGD with Nesterov's momentum."""

    learning_rate: float = 0.03
    """Rate at the start of the schedule."""
    momentum: float = 0.9
    """Decay of the momentum buffer, per gradient."""
    weight_decay: float = 0.0
    """Factor of the parameters added to each gradient."""


@dataclasses.dataclass(frozen=True)
class AdamSettings:
    """Adam with decoupled weight decay (AdamW)."""

    learning_rate: float = 1e-3
    """Rate at the start of the schedule."""
    b1: float = 0.9
    """Decay of the first moment, per gradient."""
    b2: float = 0.999
    """Decay of the second moment, per gradient."""
    weight_decay: float = 0.0
    """Factor of the parameters, times the rate, taken off at each update."""


@dataclasses.dataclass(frozen=True)
class SAMSettings(SGDSettings):
    """SAM around SGD: two gradients per update, both on the same minibatch."""

    radius: float = 0.05
    """Length of the step uphill, rho."""


@dataclasses.dataclass(frozen=True)
class ASAMSettings(SAMSettings):
    """SAM whose ascent is measured in units of each weight."""

    radius: float = 0.5
    """Length of the step uphill in these units, rho."""
    eta: float = 0.01
    """Added to the size of each weight."""


@dataclasses.dataclass(frozen=True)
class LookaheadSettings(SGDSettings):
    """Lookahead around SGD; evaluated at the slow parameters."""

    sync_period: int = 5
    """Gradients between two moves of the slow parameters."""
    slow_step_size: float = 0.5
    """Share of the way to the fast parameters that the slow ones move."""
    constant_rate: bool = False
    """Keep the rate, whatever rate_schedule says."""


@dataclasses.dataclass(frozen=True)
class EMASettings(SGDSettings):
    """SGD, evaluated at the exponential moving average of its iterates."""

    average_decay: float = 0.99
    """Weight of the old average, per gradient."""
    constant_rate: bool = False
    """Keep the rate, whatever rate_schedule says: the average does its work."""


@dataclasses.dataclass(frozen=True)
class ScheduleFreeSettings:
    """Schedule-Free SGD: its own averaging in place of a falling rate."""

    learning_rate: float = 1.0
    """Rate after the warm-up; rate_schedule does not apply."""
    b1: float = 0.9
    """Interpolation between the average and the newest iterate."""
    weight_decay: float = 0.0
    """Factor of the parameters added to each gradient."""
    warmup: float = 0.05
    """Share of the run over which the rate rises from 0."""


@dataclasses.dataclass(frozen=True)
class EntropySGDSettings:
    """Entropy-SGD: inner steps of SGLD around x, then x steps towards their mean."""

    step_size: float = 0.1
    """Inner rate (eta') at the start of the schedule, which counts outer steps."""
    gamma: Annotated[
        float,
        _help(
            "Scope: strength of the pull back to x in the first outer step. "
            "The pull is felt where step_size * gamma is about 0.1 to 1."
        ),
    ] = 1.0
    gamma_growth: float = 1e-3
    """Scoping: gamma grows by this factor per outer step, gamma * (1 + growth)^t."""
    num_steps: int = 20
    """Gradients per outer step (L)."""
    temperature: float = 5e-9
    """Temperature of the Langevin noise; eps = 1e-4 in the paper is eps^2 / 2."""
    momentum: float = 0.9
    """Nesterov's momentum of the inner steps, reset at each outer step."""
    mean_decay: float = 0.75
    """Weight of the old mean in the running mean of the inner iterates."""
    plain_average: bool = False
    """Take the plain average of the inner iterates; mean_decay does not apply."""
    learning_rate: float = 1.0
    """Outer rate (eta): 1 moves x to the mean."""
    outer_momentum: float = 0.0
    """Momentum of the outer steps (Adam's b1); multiplies SGD's rate by 1 / (1 - m)."""
    outer: Literal["sgd", "adam"] = "sgd"
    """Outer optimizer; Adam makes it Entropy-Adam."""
    anneal: Literal["inner", "outer", "both"] = "inner"
    """Which of the two rates rate_schedule applies to."""
    weight_decay: float = 0.0
    """Factor of the parameters added to each inner gradient."""
    outer_weight_decay: float = 0.0
    """Factor of the parameters added to the outer direction x - mu."""
    noise: Literal["gaussian", "rademacher"] = "gaussian"
    """Normal noise, or random signs of the same mean, variance and skewness."""
    effective_rate: float | None = None
    """Rate of SGD with momentum 0.9 that moves as far per gradient; sets step_size."""
    pull: float | None = None
    """step_size * gamma at the start; sets gamma."""


@dataclasses.dataclass(frozen=True)
class ParleSettings(EntropySGDSettings):
    """Parle: replicas of Entropy-SGD, pulled to their mean once in num_steps gradients.

    Their number is `--replicas`; the tables count the gradients of all of them.
    """

    coupling: float = 0.1
    """Pull of each replica to the mean of all, per outer step, in the first one."""
    coupling_growth: float = 0.0
    """The coupling grows by this factor per outer step, coupling * (1 + growth)^t."""


@dataclasses.dataclass(frozen=True)
class FilterEntropySettings(SGDSettings):
    """Gradients at random perturbations of the weights, in the geometry of filters."""

    radius: float = 0.5
    """Size of the perturbation as a fraction of the weights' own."""
    radius_end: float = 1.0
    """The radius changes linearly over the run, to this multiple of it."""
    geometry: Literal["filter", "leaf", "none"] = "filter"
    """Whose size it is a fraction of; with none the radius is absolute."""
    antithetic: bool = False
    """Perturbations in pairs of opposite sign: successive ones, or within a batch."""
    perturbations: int = 1
    """Gradients, each at a perturbation of its own, that a step takes the mean of."""
    splits: int = 1
    """Parts of each minibatch, each at a perturbation of its own."""
    outer: Literal["sgd", "adamw", "muon"] = "sgd"
    """Optimizer; weight_decay is AdamW's and Muon's own, momentum Adam's b1."""
    average_decay: float = 0.0
    """Evaluate at the moving average of the iterates, if above 0."""
    num_steps: int = 1
    """Gradients per step (L): with 1 the heat equation, else Langevin dynamics."""
    temperature: float = 1.0
    """Temperature of that Langevin dynamics; it tends to the heat equation."""
    pull: float = 0.5
    """Its step size times its scope."""


@dataclasses.dataclass(frozen=True)
class IVONSettings:
    """Variational Gaussian training: the spread of the perturbations is learnt."""

    learning_rate: float = 0.1
    """Rate at the start of the schedule, of a gradient divided by the curvature."""
    b1: float = 0.9
    """Decay of the mean gradient, per gradient."""
    b2: float = 0.999
    """Decay of the curvature, per gradient."""
    weight_decay: float = 1e-3
    """Precision of the prior, per example."""
    ess: float = 1000.0
    """Effective sample size: the number of examples, or more for a cold posterior."""
    curvature: float = 0.5
    """Curvature at the start."""


def rate_field(group: Any) -> str:
    """Names the setting for how far an optimizer moves per gradient, as SGD's rate.

    Args:
      group: settings of an optimizer.

    Returns:
      `"effective_rate"` for Entropy-SGD and its controls, else `"learning_rate"`.
    """
    local = isinstance(group, EntropySGDSettings)
    return "effective_rate" if local else "learning_rate"


def progress(group: EntropySGDSettings) -> float:
    """How far an outer step moves x along a constant gradient, in terms of SGD.

    SGD with momentum 0.9 moves by 10 times its rate per gradient. The inner loop starts
    its momentum from zero, and mu lags behind x': with L = 20, momentum 0.9 and a mean
    decay of 0.75 x moves 0.52 times as far as SGD of the rate step_size.

    Args:
      group: the settings; the pull is left out.

    Returns:
      The factor from `step_size` to `effective_rate`.
    """
    buffer = iterate = mean = 0.0
    for k in range(group.num_steps):
        buffer = group.momentum * buffer + 1.0
        iterate += 1.0 + group.momentum * buffer
        decay = k / (k + 1) if group.plain_average else group.mean_decay
        mean = decay * mean + (1 - decay) * iterate
    outer = group.learning_rate
    if group.outer == "sgd":
        outer /= 1 - group.outer_momentum
    return outer * mean / (10.0 * group.num_steps)


def resolved(group: EntropySGDSettings) -> EntropySGDSettings:
    """Settings with `step_size` and `gamma` in place of what determines them.

    Args:
      group: the settings.

    Returns:
      The same with `effective_rate` and `pull` used up.
    """
    if group.effective_rate is not None:
        step_size = group.effective_rate / progress(group)
        group = dataclasses.replace(group, step_size=step_size, effective_rate=None)
    if group.pull is not None:
        gamma = group.pull / group.step_size
        group = dataclasses.replace(group, gamma=gamma, pull=None)
    return group
