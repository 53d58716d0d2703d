"""Where the arrays of a training run lie when it has several devices."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from entropy_optax.experiments.checks import mesh_shape
from entropy_optax.experiments.settings import Settings, SettingsError, num_replicas

_REPLICATED = ("params", "opt_state", "model_state", "batch_stats")


def use_devices(settings: Settings) -> None:
    """Splits the CPU into as many devices as are asked for, if there is nothing else.

    To be called before JAX is used for the first time.

    Args:
      settings: of the experiment.

    Raises:
      SettingsError: if JAX has fewer devices all the same.
    """
    if settings.devices > 1:
        # It refuses where JAX runs already, on the devices that it has.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", settings.devices)
    if settings.devices > jax.device_count():
        raise SettingsError(
            f"--devices: got {settings.devices}, JAX has {jax.device_count()}"
            f" ({jax.default_backend()})"
        )


def make_mesh(settings: Settings, optimizer: str) -> Mesh | None:
    """Makes the mesh of a run, with the axes `replica` and `batch`.

    Args:
      settings: of the experiment.
      optimizer: its name.

    Returns:
      The mesh, None for one device.
    """
    if settings.devices == 1:
        return None
    along_replicas, _ = mesh_shape(settings, optimizer)
    return replica_mesh(jax.devices()[: settings.devices], along_replicas)


def replica_mesh(devices: Sequence[Any], along_replicas: int) -> Mesh:
    """Makes a mesh with the axes `replica` and `batch`.

    Args:
      devices: all of them.
      along_replicas: its length along the replicas.

    Returns:
      The mesh.
    """
    shaped = np.array(devices).reshape(along_replicas, -1)
    return Mesh(shaped, ("replica", "batch"), axis_types=(AxisType.Auto,) * 2)


def state_shardings(
    mesh: Mesh, settings: Settings, optimizer: str, arrays: dict[str, Any]
) -> dict[str, Any]:
    """Says where the state of several runs lies: each replica on its own devices.

    Args:
      mesh: from `make_mesh`.
      settings: of the experiment.
      optimizer: its name.
      arrays: the state, or its shapes, with a leading axis of runs.

    Returns:
      A tree of shardings.
    """
    replicated = num_replicas(settings, optimizer) is not None
    return replica_shardings(mesh, arrays, P(None, "replica") if replicated else P())


def replica_shardings(mesh: Mesh, arrays: dict[str, Any], spec: P) -> dict[str, Any]:
    """Says where a training's state lies, of which all but counts is the replicas'.

    Args:
      mesh: with the axis `replica`.
      arrays: the state, or its shapes, by field.
      spec: of the leaves that have the axis.

    Returns:
      A tree of shardings.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        own = path[0].key in _REPLICATED and leaf.ndim >= len(spec)
        return NamedSharding(mesh, spec if own else P())

    return jax.tree_util.tree_map_with_path(place, arrays)


def place_batches(mesh: Mesh | None, batches: Any, replicas: int | None) -> Any:
    """Shares minibatches out, within a compiled function.

    Args:
      mesh: from `make_mesh`.
      batches: arrays `[L, batch, ...]`, or `[replicas, L, batch, ...]`.
      replicas: how many there are, None for no such axis.

    Returns:
      The same arrays.
    """
    if mesh is None:
        return batches
    along = P(None, "batch")
    spec = along if replicas is None else P("replica", *along)
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec)),
        batches,
    )
