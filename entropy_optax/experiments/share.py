"""What the processes of a distributed run have in common: settings and shares."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from entropy_optax.experiments.names import ModelName

# What the processes read.
IMAGES, LABELS, SETTINGS = "images.npy", "labels.npy", "settings.json"


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """What determines a run's numbers, however many processes share it."""

    model: ModelName = "mlp_small"
    """Network."""
    data: str = "mnist-10k"
    """Images: mnist-10k (shipped), mnist, cifar10, or a folder of idx files."""
    replicas: int = 4
    """Replicas of Entropy-SGD."""
    batch_size: int = 32
    """Examples per gradient of one replica."""
    num_outer: int = 60
    """Outer steps, each of num_steps gradients of every replica."""
    num_steps: int = 20
    """Gradients per outer step (L)."""
    step_size: float = 0.02
    """Inner rate."""
    gamma: float = 0.1
    """Scope."""
    coupling: float = 0.1
    """Pull of each replica to the mean of all."""
    temperature: float = 1e-8
    """Of the Langevin noise."""
    seed: int = 0
    """Of initialisation, order of the batches, dropout and noise."""
    save_every: int = 10
    """Outer steps between two checkpoints."""


class Share(NamedTuple):
    """Which images stand where in the batches: a plan that no process count changes.

    Position j of the batches of replica a has images of its own, those whose number
    leaves the remainder `a * batch_size + j` when divided by the number of all
    positions, and takes them in a new order in each epoch. So a process reads the
    images of its own positions and no others.

    Attributes:
      num_images: in the training set.
      settings: of the run.
    """

    num_images: int
    settings: DistributedSettings

    @property
    def per_position(self) -> int:
        """Images of one position, which is gradients per epoch.

        Returns:
          Their number.
        """
        return self.num_images // (self.settings.replicas * self.settings.batch_size)

    def image(self, replica: int, gradient: int, position: int) -> int:
        """Names one image.

        Args:
          replica: its number.
          gradient: number of the replica's gradient.
          position: in the batch.

        Returns:
          The image's number in the training set.
        """
        epoch, turn = divmod(gradient, self.per_position)
        row = replica * self.settings.batch_size + position
        slot = _order(self.settings.seed, epoch, row, self.per_position)[turn]
        return int(slot) * self.settings.replicas * self.settings.batch_size + row


@functools.lru_cache(maxsize=2**16)
def _order(seed: int, epoch: int, row: int, size: int) -> np.ndarray:
    # Drawn once in an epoch, not for each of its gradients.
    return np.random.default_rng([seed, epoch, row]).permutation(size)
