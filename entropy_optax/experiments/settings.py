"""What an experiment is: its settings, their checks, and presets of them."""

import dataclasses
import json
import pathlib
from typing import Annotated, Any, Literal

import tyro

PRESETS = pathlib.Path(__file__).parent / "presets"

ModelName = Literal["mnistfc", "lenet"]
OptimizerName = Literal["sgd", "adam", "entropy_sgd"]
RateShape = Literal["cosine", "step", "constant"]


_help = lambda text: tyro.conf.arg(help=text)


class SettingsError(ValueError):
    """The settings of an experiment do not fit together."""


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
    learning_rate: float = 1.0
    """Outer rate (eta), not scheduled: 1 moves x to the mean."""
    outer_momentum: float = 0.0
    """Nesterov's momentum of the outer steps; multiplies their rate by 1 / (1 - m)."""
    weight_decay: float = 0.0
    """Factor of the parameters added to each inner gradient."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines an experiment's numbers."""

    model: ModelName = "lenet"
    """The paper's fully connected net (1,863,690 parameters) or its LeNet (131,220)."""
    data: Annotated[
        str,
        _help(
            "mnist-10k (shipped), mnist, or the name of a folder of idx "
            "files in the folder that the environment variable "
            "ENTROPY_OPTAX_DATA names."
        ),
    ] = "mnist-10k"
    optimizer: tuple[OptimizerName, ...] = ("sgd", "adam", "entropy_sgd")
    """Optimizers to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run for each: another initialisation, order of batches, dropout and noise."""
    num_gradients: Annotated[
        int,
        _help(
            "Gradient evaluations per run, the same for every optimizer; a "
            "multiple of entropy_sgd.num_steps. One is one minibatch "
            "forward and backward."
        ),
    ] = 640
    batch_size: int = 128
    """Examples per gradient, drawn without replacement within an epoch."""
    rate_schedule: Annotated[
        RateShape,
        _help(
            "How the rate falls over a run: cosine (to 0), step (a tenth "
            "after 60 % and again after 85 %) or constant."
        ),
    ] = "cosine"
    evaluate_every: Annotated[
        int,
        _help(
            "Gradients between two measurements of the validation error; a "
            "multiple of entropy_sgd.num_steps."
        ),
    ] = 80
    sgd: SGDSettings = SGDSettings()
    adam: AdamSettings = AdamSettings()
    entropy_sgd: EntropySGDSettings = EntropySGDSettings()


def check(settings: Settings) -> None:
    """Checks what a type cannot say.

    Args:
      settings: the settings of an experiment.

    Raises:
      SettingsError: naming the flag, what was given and what is wanted.
    """
    if not settings.optimizer:
        raise SettingsError("--optimizer: got none, at least one is needed")
    for name in ("optimizer", "seeds"):
        values = getattr(settings, name)
        if len(set(values)) != len(values):
            raise SettingsError(f"--{name}: got {values}, each may stand there once")
    if not settings.seeds:
        raise SettingsError("--seeds: got none, at least one is needed")
    if min(settings.seeds) < 0:
        raise SettingsError(f"--seeds: got {min(settings.seeds)}, wanted 0 or more")
    for name in ("num_gradients", "batch_size", "evaluate_every"):
        if getattr(settings, name) < 1:
            raise SettingsError(
                f"{_flag(name)}: got {getattr(settings, name)}, wanted 1 or more"
            )
    num_steps = settings.entropy_sgd.num_steps
    if num_steps < 1:
        raise SettingsError(
            f"--entropy-sgd.num-steps: got {num_steps}, wanted 1 or more"
        )
    for name in ("num_gradients", "evaluate_every"):
        if getattr(settings, name) % num_steps:
            raise SettingsError(
                f"{_flag(name)}: got {getattr(settings, name)}, wanted a multiple of"
                f" --entropy-sgd.num-steps {num_steps}"
            )
    for group in ("sgd", "adam", "entropy_sgd"):
        for name, value in dataclasses.asdict(getattr(settings, group)).items():
            _check_hyperparameter(f"--{group}.{name}".replace("_", "-"), name, value)


def load_preset(name: str) -> dict[str, Any]:
    """Reads a preset.

    Args:
      name: name of a file in `presets/`, without its ending.

    Returns:
      The preset's JSON object: `description`, `settings` and `sources`.

    Raises:
      SettingsError: if there is no such preset.
    """
    path = PRESETS / f"{name}.json"
    if name not in preset_names():
        raise SettingsError(
            f"--preset: got {name!r}, wanted one of {', '.join(preset_names())}"
        )
    return json.loads(path.read_text())


def preset_names() -> list[str]:
    """Names that `load_preset` takes.

    Returns:
      The names, sorted.
    """
    return sorted(
        path.stem for path in PRESETS.glob("*.json") if not path.stem.endswith("_grid")
    )


def from_dict(cls: Any, values: dict[str, Any]) -> Any:
    """Makes a settings object from JSON, over the defaults.

    Args:
      cls: `Settings` or a subclass.
      values: some of its fields; groups as objects, tuples as lists.

    Returns:
      An instance of `cls`.

    Raises:
      SettingsError: if a field does not exist.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise SettingsError(f"settings: unknown field {', '.join(unknown)}")
    groups = {
        "sgd": SGDSettings,
        "adam": AdamSettings,
        "entropy_sgd": EntropySGDSettings,
    }
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name in groups and cls not in groups.values():
            made[name] = from_dict(groups[name], value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)


def _check_hyperparameter(flag: str, name: str, value: float) -> None:
    below_one = name.endswith("momentum") or name in ("b1", "b2", "mean_decay")
    if below_one and not 0 <= value < 1:
        raise SettingsError(f"{flag}: got {value}, wanted a number in [0, 1)")
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{flag}: got {value}, wanted a finite number, 0 or more")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
