"""What an experiment is: its settings, their checks, and presets of them."""

import dataclasses
import json
import pathlib
from typing import Annotated, Any, Literal, get_args

import tyro

from entropy_optax.experiments.hyperparameters import (
    AdamSettings,
    ASAMSettings,
    EMASettings,
    EntropySGDSettings,
    FilterEntropySettings,
    IVONSettings,
    LookaheadSettings,
    OptimizerName,
    ParleSettings,
    SAMSettings,
    ScheduleFreeSettings,
    SGDSettings,
)
from entropy_optax.experiments.names import ModelName

PRESETS = pathlib.Path(__file__).parent / "presets"

RateShape = Literal["cosine", "step", "constant"]

_help = lambda text: tyro.conf.arg(help=text)


class SettingsError(ValueError):
    """The settings of an experiment do not fit together."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines an experiment's numbers."""

    model: ModelName = "lenet"
    """The paper's networks and variants; mlp has 100 hidden units, mlp_small 32."""
    data: Annotated[
        str,
        _help(
            "Images: mnist-10k (shipped), mnist, cifar10, or a folder of idx files. "
            "Text: warpeace, warpeace-words, or a folder of train.txt, valid.txt and "
            "test.txt. All but the first lie in the folder $ENTROPY_OPTAX_DATA."
        ),
    ] = "mnist-10k"
    num_train: int | None = None
    """Keep only so many training images."""
    label_noise: float = 0.0
    """Share of the training labels that are made wrong."""
    pool: int = 1
    """Average blocks of so many by so many pixels."""
    optimizer: tuple[OptimizerName, ...] = ("sgd", "adam", "entropy_sgd")
    """Optimizers to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run for each: another initialisation, order of batches, dropout and noise."""
    together: bool = False
    """Train the seeds of one configuration together, for small networks."""
    num_gradients: Annotated[
        int,
        _help(
            "Gradient evaluations per run, the same for every optimizer (of each "
            "replica of Parle); a multiple of report_every. One is one minibatch "
            "forward and backward."
        ),
    ] = 640
    batch_size: int = 128
    """Examples per gradient, without replacement within an epoch; streams of text."""
    sequence_length: int = 50
    """Tokens of each stream per gradient, for text."""
    replicas: int = 3
    """Replicas of Parle, each of which takes num_gradients gradients."""
    devices: int = 1
    """Devices to train on; without an accelerator, so many parts of the CPU."""
    dropout_rate: float | None = None
    """Share of units dropped; None leaves the model's own."""
    features: int | None = None
    """Units of each layer of an LSTM; None leaves the model's own."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm, within the inner loop too."""
    clip_value: float | None = None
    """Entries of the gradients are clamped to this size, within the inner loop too."""
    rate_schedule: Annotated[
        RateShape,
        _help(
            "How the rate falls over a run: cosine (to 0), step (times "
            "step_factor after each share of the run in step_at) or constant."
        ),
    ] = "cosine"
    step_at: tuple[float, ...] = (0.6, 0.85)
    """Shares of the run after which a step schedule falls."""
    step_factor: float = 0.1
    """Factor of each fall of a step schedule."""
    report_every: Annotated[
        int,
        _help(
            "Gradients between two lines of metrics, taken in one compiled call; "
            "a multiple of num_steps."
        ),
    ] = 20
    evaluate_every: Annotated[
        int,
        _help(
            "Gradients between two measurements of the validation error; a "
            "multiple of report_every."
        ),
    ] = 80
    sgd: SGDSettings = SGDSettings()
    adam: AdamSettings = AdamSettings()
    sam: SAMSettings = SAMSettings()
    asam: ASAMSettings = ASAMSettings()
    lookahead: LookaheadSettings = LookaheadSettings()
    ema: EMASettings = EMASettings()
    schedule_free: ScheduleFreeSettings = ScheduleFreeSettings()
    entropy_sgd: EntropySGDSettings = EntropySGDSettings()
    entropy_adam: EntropySGDSettings = EntropySGDSettings(
        outer="adam",
        learning_rate=0.01,
        outer_momentum=0.5,
        num_steps=5,
        anneal="outer",
    )
    parle: ParleSettings = ParleSettings()
    filter_entropy: FilterEntropySettings = FilterEntropySettings()
    filter_muon: FilterEntropySettings = FilterEntropySettings(outer="muon")
    muon: FilterEntropySettings = FilterEntropySettings(outer="muon", radius=0.0)
    ivon: IVONSettings = IVONSettings()
    averaging_alone: EntropySGDSettings = EntropySGDSettings(gamma=0.0, temperature=0.0)
    """Control: Entropy-SGD without its pull and noise."""
    reset_alone: EntropySGDSettings = EntropySGDSettings(
        gamma=0.0, temperature=0.0, mean_decay=0.0
    )
    """Control: SGD whose momentum starts from zero every num_steps gradients."""


GROUPS: tuple[str, ...] = get_args(OptimizerName)
"""Fields of `Settings` that hold an optimizer's settings."""


def metric(settings: Settings) -> Literal["error", "loss"]:
    """What the best is chosen by.

    Args:
      settings: of the experiment.

    Returns:
      The validation error for images, the validation loss for text.
    """
    return "loss" if "lstm" in settings.model else "error"


def gradients_per_update(settings: Settings, optimizer: str) -> int:
    """How many gradients an optimizer takes between two of its updates.

    Args:
      settings: of the experiment.
      optimizer: its name.

    Returns:
      num_steps of local entropy, the perturbations of a step, 2 for SAM, the period of
      Lookahead, else 1.
    """
    group = getattr(settings, optimizer)
    if isinstance(group, EntropySGDSettings):
        return group.num_steps
    if isinstance(group, FilterEntropySettings):
        return group.num_steps * group.perturbations
    if isinstance(group, LookaheadSettings):
        return group.sync_period
    return 2 if isinstance(group, SAMSettings) else 1


def num_replicas(settings: Settings, optimizer: str) -> int | None:
    """How many replicas an optimizer trains, each on minibatches of its own.

    Args:
      settings: of the experiment.
      optimizer: its name.

    Returns:
      The number, None for all but Parle.
    """
    is_parle = isinstance(getattr(settings, optimizer), ParleSettings)
    return settings.replicas if is_parle else None


def num_splits(settings: Settings, optimizer: str) -> int | None:
    """In how many parts an optimizer splits each minibatch.

    Args:
      settings: of the experiment.
      optimizer: its name.

    Returns:
      The number, None where it takes the whole.
    """
    splits = getattr(getattr(settings, optimizer), "splits", 1)
    return splits if splits > 1 else None


def num_copies(settings: Settings, optimizer: str) -> int | None:
    """How many copies of the params an optimizer trains side by side.

    Args:
      settings: of the experiment.
      optimizer: its name.

    Returns:
      The replicas of Parle, or one for each part of a minibatch; None for one alone,
      without such an axis.
    """
    return num_replicas(settings, optimizer) or num_splits(settings, optimizer)


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
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            # Over the group's defaults, which differ between groups of one type.
            group: Any = fields[name].default
            from_dict(type(group), value)
            made[name] = dataclasses.replace(group, **value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)
