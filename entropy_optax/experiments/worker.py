"""One process of a distributed run: `python -m ...worker OUT ADDRESS COUNT INDEX`."""

import functools
import json
import os
import pathlib
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import entropy_optax as eo
from entropy_optax.experiments import meshes
from entropy_optax.experiments.checks import share_out
from entropy_optax.experiments.image_task import training_loss
from entropy_optax.experiments.models import MODELS
from entropy_optax.experiments.share import (
    IMAGES,
    LABELS,
    SETTINGS,
    DistributedSettings,
    Share,
)
from entropy_optax.training import TrainState, linen_carry, linen_train_step


class Reader:
    """Reads the batches of the positions that lie on this process's devices.

    Args:
      folder: of the arrays, which are mapped into memory: rows that are not asked for
        are not read.
      settings: of the run.
      mesh: with the axes `replica` and `batch`.
    """

    def __init__(self, folder: pathlib.Path, settings: DistributedSettings, mesh: Mesh):
        self.images = np.load(folder / IMAGES, "r", allow_pickle=False)
        self.labels = np.load(folder / LABELS, "r", allow_pickle=False)
        self.rows: set[int] = set()
        self._image = Share(len(self.labels), settings).image
        self._settings = settings
        self._sharding = NamedSharding(mesh, P("replica", None, "batch"))

    def batches(self, outer: int) -> tuple[jax.Array, jax.Array]:
        """Reads the batches of one outer step.

        Args:
          outer: its number.

        Returns:
          Images `[replicas, L, batch, ...]` and labels, each process holding its part.
        """
        s = self._settings
        leading = (s.replicas, s.num_steps, s.batch_size)

        @functools.cache
        def rows_at(*index: tuple[int, int, int]) -> np.ndarray:
            replicas, steps, positions = (range(*part) for part in index)
            rows = np.array(
                [
                    [
                        [self._image(a, outer * s.num_steps + k, j) for j in positions]
                        for k in steps
                    ]
                    for a in replicas
                ]
            )
            self.rows.update(rows.ravel().tolist())
            return rows

        def read(array: np.ndarray, index: Any) -> np.ndarray:
            # The same rows of the images and of their labels.
            parts = zip(index, leading, strict=False)
            return array[rows_at(*(part.indices(size) for part, size in parts))]

        return (
            jax.make_array_from_callback(
                (*leading, *self.images.shape[1:]),
                self._sharding,
                functools.partial(read, self.images),
            ),
            jax.make_array_from_callback(
                leading, self._sharding, functools.partial(read, self.labels)
            ),
        )


def main(out: pathlib.Path, address: str, count: int, index: int) -> None:
    """Trains from the newest checkpoint to the end.

    Args:
      out: folder of the run, the same for all processes.
      address: of process 0, `host:port`.
      count: number of processes.
      index: this one's.
    """
    threading.Thread(target=_leave_with_the_launcher, daemon=True).start()
    say = functools.partial(print, flush=True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, index)
    content = json.loads((out / SETTINGS).read_text())
    settings = DistributedSettings(**content["settings"])
    along, _ = share_out(jax.device_count(), settings.replicas)
    mesh = meshes.replica_mesh(jax.devices(), along)
    reader = Reader(out / "data", settings, mesh)
    model = MODELS[settings.model](num_classes=content["num_classes"])
    create, step = _functions(settings, model, reader.images.shape[1:])
    places = meshes.replica_shardings(mesh, jax.eval_shape(create), P("replica"))
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    with ocp.CheckpointManager(
        (out / "checkpoints").resolve(), options=options
    ) as manager:
        begin = manager.latest_step()
        if begin is None:
            begin, arrays = 0, jax.jit(create, out_shardings=places)()
        else:
            abstract = jax.tree.map(
                lambda leaf, place: leaf.update(sharding=place),
                jax.eval_shape(create),
                places,
            )
            arrays = manager.restore(begin, args=ocp.args.StandardRestore(abstract))
        say(f"process {index} of {count}: from outer step {begin}")
        step = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
        for outer in range(begin, settings.num_outer):
            arrays, loss = step(arrays, reader.batches(outer))
            done = outer + 1
            say(f"outer step {done}: loss {float(loss):.4f}")
            if done % settings.save_every == 0 and done < settings.num_outer:
                manager.save(done, args=ocp.args.StandardSave(arrays))
                manager.wait_until_finished()
    whole = multihost_utils.process_allgather(arrays["params"], tiled=True)
    numbers = f"read {len(reader.rows)} of {len(reader.labels)} images, numbers"
    say(f"{numbers} {min(reader.rows)} to {max(reader.rows)}, sum {sum(reader.rows)}")
    if index == 0:
        leaves = jax.tree.leaves(whole)
        names: Any = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        partial = out / "params.part.npz"
        np.savez(partial, **names)
        partial.rename(out / "params.npz")
    multihost_utils.sync_global_devices("written")
    jax.distributed.shutdown()


def _leave_with_the_launcher() -> None:
    # The pipe ends when the launcher does, however it was killed.
    os.read(0, 1)  # unbuffered: a lock of the interpreter would outlive it
    os._exit(1)


def _functions(
    settings: DistributedSettings, model: Any, shape: tuple[int, ...]
) -> tuple[Any, Any]:
    loss_fn = functools.partial(training_loss, model)
    keys = lambda: jax.random.split(jax.random.key(settings.seed), 3)
    variables = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, *shape)), train=False),
        jax.random.key(0),
    )
    tx = eo.parle(
        1.0,
        num_replicas=settings.replicas,
        coupling=settings.coupling,
        gamma=settings.gamma,
        num_steps=settings.num_steps,
        step_size=settings.step_size,
        temperature=settings.temperature,
        key=keys()[2],
        opaque_mode=True,
        carry_init=linen_carry(variables.get("batch_stats", {})),
    )
    train = linen_train_step(loss_fn, settings.replicas)
    fields = ("step", "params", "opt_state", "batch_stats", "rng_key")

    def create() -> dict[str, Any]:
        init_key, rng_key, _ = keys()
        made = model.init(init_key, jnp.zeros((1, *shape)), train=False)
        state = TrainState.create(
            apply_fn=model.apply,
            params=eo.replica_params(made["params"], settings.replicas),
            tx=tx,
            batch_stats=eo.replica_params(
                made.get("batch_stats", {}), settings.replicas
            ),
            rng_key=rng_key,
        )
        return {name: getattr(state, name) for name in fields}

    def step(arrays: dict[str, Any], batches: Any) -> Any:
        state, metrics = train(
            TrainState(apply_fn=model.apply, tx=tx, **arrays), batches
        )
        return {name: getattr(state, name) for name in fields}, metrics["loss"]

    return create, step


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
