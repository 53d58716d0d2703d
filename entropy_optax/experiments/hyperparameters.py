"""What each optimizer can be told, and the defaults."""

import dataclasses
from typing import Annotated, Literal

import tyro

OptimizerName = Literal[
    "sgd",
    "adam",
    "sam",
    "lookahead",
    "ema",
    "schedule_free",
    "entropy_sgd",
    "entropy_adam",
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
class LookaheadSettings(SGDSettings):
    """Lookahead around SGD; evaluated at the slow parameters."""

    sync_period: int = 5
    """Gradients between two moves of the slow parameters."""
    slow_step_size: float = 0.5
    """Share of the way to the fast parameters that the slow ones move."""


@dataclasses.dataclass(frozen=True)
class EMASettings(SGDSettings):
    """SGD, evaluated at the exponential moving average of its iterates."""

    average_decay: float = 0.99
    """Weight of the old average, per gradient."""


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
    """Gradients per outer step (L). The other optimizers are stepped as often."""
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
