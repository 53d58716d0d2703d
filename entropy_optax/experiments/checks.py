"""Checks of an experiment's settings that a type cannot make."""

import dataclasses
import math
from typing import Any

from entropy_optax.experiments.hyperparameters import FilterEntropySettings
from entropy_optax.experiments.settings import (
    GROUPS,
    Settings,
    SettingsError,
    gradients_per_update,
    num_replicas,
    num_splits,
)


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
    positive = ("num_gradients", "batch_size", "evaluate_every", "report_every")
    positive += ("replicas", "devices")
    for name in (*positive, "sequence_length", "pool"):
        if getattr(settings, name) < 1:
            raise SettingsError(
                f"{_flag(name)}: got {getattr(settings, name)}, wanted 1 or more"
            )
    for name in ("num_train", "features"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise SettingsError(f"{_flag(name)}: got {value}, wanted 1 or more")
    for name in ("num_gradients", "evaluate_every"):
        if getattr(settings, name) % settings.report_every:
            raise SettingsError(
                f"{_flag(name)}: got {getattr(settings, name)}, wanted a multiple of"
                f" --report-every {settings.report_every}"
            )
    for name in GROUPS:
        own_group = getattr(settings, name)
        if isinstance(own_group, FilterEntropySettings):
            check_filter_entropy(_flag(name), own_group)
    if settings.muon.outer != "muon" or settings.muon.radius:
        raise SettingsError("--muon: wanted outer muon and radius 0, it is a control")
    if not settings.ivon.ess > 0 or not settings.ivon.curvature > 0:
        raise SettingsError("--ivon: wanted ess and curvature above 0")
    for name in settings.optimizer:
        mesh_shape(settings, name)
        if "lstm" in settings.model:
            # A replica's texts would have gaps, and windows of text are no batch.
            if (num_replicas(settings, name) or 1) > 1:
                raise SettingsError(f"--optimizer: {name} is for images, with replicas")
            if settings.devices > 1:
                raise SettingsError("--devices: text has one, images may have more")
            if num_splits(settings, name):
                raise SettingsError(f"{_flag(name)}.splits: text cannot be split")
        splits = num_splits(settings, name) or 1
        if settings.batch_size % splits or (splits > 1 and settings.devices > 1):
            raise SettingsError(
                f"{_flag(name)}.splits: got {splits}, wanted a divisor of --batch-size"
                f" {settings.batch_size}, and one device"
            )
        per_update = gradients_per_update(settings, name)
        if per_update < 1:
            field = "sync-period" if name == "lookahead" else "num-steps"
            raise SettingsError(
                f"{_flag(name)}.{field}: got {per_update}, wanted 1 or more"
            )
        if settings.report_every % per_update:
            raise SettingsError(
                f"--report-every: got {settings.report_every}, wanted a multiple of the"
                f" {per_update} gradients of an update of {name}"
            )
    for group in GROUPS:
        for name, value in dataclasses.asdict(getattr(settings, group)).items():
            if isinstance(value, int | float):
                flag = f"--{group}.{name}".replace("_", "-")
                check_hyperparameter(flag, name, value)
        own: Any = getattr(settings, group)
        if getattr(own, "effective_rate", None) is not None and own.outer != "sgd":
            raise SettingsError(f"--{group}.effective-rate: wanted --{group}.outer sgd")
    if not settings.schedule_free.b1 > 0:  # Optax divides by it
        raise SettingsError("--schedule-free.b1: got 0, wanted a number in (0, 1)")
    for name in ("clip_norm", "clip_value"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise SettingsError(f"{_flag(name)}: got {value}, wanted more than 0")
    for name in ("label_noise", "dropout_rate"):
        if not 0 <= (getattr(settings, name) or 0) < 1:
            raise SettingsError(
                f"{_flag(name)}: got {getattr(settings, name)}, wanted a number in"
                " [0, 1)"
            )


def check_filter_entropy(flag: str, group: FilterEntropySettings) -> None:
    """Refuses forms of the method that do not exist, and would be another one.

    Args:
      flag: of the optimizer.
      group: its settings.

    Raises:
      SettingsError: naming the flag, what was given and what is wanted.
    """
    for name in ("splits", "perturbations"):
        if getattr(group, name) < 1:
            raise SettingsError(
                f"{flag}.{name}: got {getattr(group, name)}, wanted 1 or more"
            )
    if group.antithetic and group.splits > 1 and group.splits % 2:
        raise SettingsError(
            f"{flag}.splits: got {group.splits}, wanted an even number of"
            " antithetic parts"
        )
    if group.num_steps == 1:
        return
    if group.antithetic or group.splits > 1 or group.perturbations > 1:
        raise SettingsError(
            f"{flag}.num-steps: got {group.num_steps}, wanted 1 with"
            " antithetic, splits or perturbations: Langevin dynamics has none of these"
        )
    for name in ("radius", "radius_end", "temperature"):
        if not getattr(group, name) > 0:
            raise SettingsError(
                f"{flag}.{name.replace('_', '-')}: got 0, wanted more for Langevin"
                " dynamics"
            )


def mesh_shape(settings: Settings, optimizer: str) -> tuple[int, int]:
    """How the devices are shared out between replicas and the examples of a batch.

    Args:
      settings: of the experiment.
      optimizer: its name; only Parle has replicas.

    Returns:
      Length of the mesh along the replicas, and along each batch.

    Raises:
      SettingsError: if the batch does not divide by its length.
    """
    replicas = num_replicas(settings, optimizer) or 1
    along_replicas, along_batch = share_out(settings.devices, replicas)
    if settings.batch_size % along_batch:
        raise SettingsError(
            f"--batch-size: got {settings.batch_size}, wanted a multiple of"
            f" {along_batch}: {settings.devices} devices and {replicas} replicas of"
            f" {optimizer} are a mesh of {along_replicas} along the replicas and"
            f" {along_batch} along each batch"
        )
    return along_replicas, along_batch


def share_out(devices: int, replicas: int) -> tuple[int, int]:
    """Divides devices between replicas and the examples of a batch.

    Args:
      devices: their number.
      replicas: their number.

    Returns:
      Length along the replicas, the greatest that divides both, and along each batch.
    """
    along_replicas = math.gcd(replicas, devices)
    return along_replicas, devices // along_replicas


def check_hyperparameter(flag: str, name: str, value: float) -> None:
    """Checks the range of one hyperparameter, which its name implies.

    Args:
      flag: to be named in the error.
      name: of the field.
      value: of the field.

    Raises:
      SettingsError: naming the flag, what was given and what is wanted.
    """
    below_one = name.endswith(("momentum", "_decay")) and "weight" not in name
    below_one = below_one or name in ("b1", "b2", "warmup")
    if below_one and not 0 <= value < 1:
        raise SettingsError(f"{flag}: got {value}, wanted a number in [0, 1)")
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{flag}: got {value}, wanted a finite number, 0 or more")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
