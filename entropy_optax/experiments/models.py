"""The networks for images of the Entropy-SGD paper, in Flax linen.

All are called as `model.apply(variables, images, train=bool, rngs=..., mutable=...)`.
In training they need a `"dropout"` key; with BatchNorm they update `"batch_stats"`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_optax.experiments.convolution import conv_general_dilated, max_pool


class MnistFC(nn.Module):
    """Fully connected 784-1024-1024-10 with ReLU and dropout.

    Attributes:
      num_classes: number of outputs.
      features: width of each hidden layer, in units.
      dropout_rate: share of hidden units dropped in training (0.15 in the paper).
      batch_norm: whether BatchNorm follows each ReLU, as in the released code since
        May 2017; its first release and the paper's text have none.
      torch_init: whether weights and biases start as Torch's, which the paper used:
        uniform below 1 / sqrt(fan-in), a third of the variance of Flax's weights.
    """

    num_classes: int = 10
    features: tuple[int, ...] = (1024, 1024)
    dropout_rate: float = 0.15
    batch_norm: bool = False
    torch_init: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits.

        Args:
          images: `[batch, height, width, channels]`, scaled to about [-1, 1].
          train: whether to use the batch's statistics and to drop units.

        Returns:
          Logits, `[batch, num_classes]`.
        """
        x = images.reshape(images.shape[0], -1)
        for features in self.features:
            x = nn.relu(self._dense(features, x.shape[-1])(x))
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return self._dense(self.num_classes, x.shape[-1])(x)

    def _dense(self, features: int, fan_in: int) -> nn.Dense:
        if not self.torch_init:
            return nn.Dense(features)

        def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / fan_in**0.5

        return nn.Dense(features, kernel_init=uniform, bias_init=uniform)


class LeNet(nn.Module):
    """Two 5x5 convolutions (20, 50) and a hidden layer of 500 units.

    Each convolution is followed by BatchNorm, ReLU, max pooling (3x3 after the first,
    2x2 after the second, windows that do not overlap) and dropout. For 28 x 28 images
    of one channel this has 131,220 parameters, the count in the paper.

    Attributes:
      num_classes: number of outputs.
      dropout_rate: share of units dropped in training (0.25 in the paper).
      conv_general_dilated: how to convolve, `jax.lax.conv_general_dilated` say.
    """

    num_classes: int = 10
    dropout_rate: float = 0.25
    conv_general_dilated: Callable[..., jax.Array] = conv_general_dilated

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits.

        Args:
          images: `[batch, height, width, channels]`, scaled to about [-1, 1]; at
            least 18 x 18 pixels.
          train: whether to use the batch's statistics and to drop units.

        Returns:
          Logits, `[batch, num_classes]`.
        """
        x = images
        for features, pool in ((20, 3), (50, 2)):
            x = nn.Conv(
                features,
                (5, 5),
                padding="VALID",
                conv_general_dilated=self.conv_general_dilated,
            )(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            # ReLU commutes with a maximum and has 9 (4) times less to do after it.
            x = nn.relu(max_pool(x, pool))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(500)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class SmallLeNet(nn.Module):
    """Two 5x5 convolutions (10, 20) and a hidden layer of 128 units, without BatchNorm.

    For 28 x 28 images of one channel this has 47,658 parameters: the network whose
    Hessian the Entropy-SGD paper shows in its Figure 1.

    Attributes:
      num_classes: number of outputs.
      dropout_rate: share of the hidden units dropped in training.
    """

    num_classes: int = 10
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits.

        Args:
          images: `[batch, height, width, channels]`, scaled to about [-1, 1]; at
            least 16 x 16 pixels.
          train: whether to drop units.

        Returns:
          Logits, `[batch, num_classes]`.
        """
        x = images
        for features in (10, 20):
            x = nn.Conv(
                features,
                (5, 5),
                padding="VALID",
                conv_general_dilated=conv_general_dilated,
            )(x)
            x = nn.relu(max_pool(x, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(128)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class AllCNN(nn.Module):
    """All-CNN-C with BatchNorm: nine convolutions and a mean over the image.

    Springenberg et al. (ICLR 2015) with 3x3 in place of 1x1 in the last but one layer,
    which gives the 1.67 million parameters that the Entropy-SGD paper counts.

    Attributes:
      num_classes: number of outputs.
      dropout_rate: share of the channels' entries dropped in training, after each
        convolution of stride 2; of the images 0.4 times as many.
    """

    num_classes: int = 10
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits.

        Args:
          images: `[batch, height, width, channels]`, whitened.
          train: whether to use the batch's statistics and to drop units.

        Returns:
          Logits, `[batch, num_classes]`.
        """
        x = nn.Dropout(0.4 * self.dropout_rate, deterministic=not train)(images)
        for features, stride in (
            *((96, 1), (96, 1), (96, 2)),
            *((192, 1), (192, 1), (192, 2)),
            *((192, 1), (192, 1)),
        ):
            x = self._conv(features, 3, stride)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.relu(x)
            if stride == 2:
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return self._conv(self.num_classes, 1, 1)(x).mean(axis=(1, 2))

    @staticmethod
    def _conv(features: int, size: int, stride: int) -> nn.Conv:
        return nn.Conv(
            features,
            (size, size),
            stride,
            padding="SAME",
            conv_general_dilated=conv_general_dilated,
        )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mnistfc": MnistFC,
    "mnistfc_bn": partial(MnistFC, batch_norm=True),
    "mnistfc_torch": partial(MnistFC, torch_init=True),
    "lenet": LeNet,
    "allcnn": AllCNN,
    # Small enough for studies of many runs.
    "mlp": partial(MnistFC, features=(100,), dropout_rate=0.0),
    # Those whose Hessians the paper shows, and one whose spectrum is exact in a minute.
    "mlp_small": partial(MnistFC, features=(32,), dropout_rate=0.0),
    "mnistfc_small": partial(MnistFC, features=(64,), dropout_rate=0.0),
    "lenet_small": SmallLeNet,
}
