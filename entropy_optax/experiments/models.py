"""The paper's two MNIST networks, in Flax linen.

Both are called as `model.apply(variables, images, train=bool, rngs=..., mutable=...)`.
In training they need a `"dropout"` key, and LeNet updates `"batch_stats"`.
"""

import flax.linen as nn
import jax

from entropy_optax.experiments._convolution import conv_general_dilated, max_pool


class MnistFC(nn.Module):
    """Fully connected 784-1024-1024-10 with ReLU and dropout.

    Attributes:
      num_classes: number of outputs.
      features: width of each hidden layer, in units.
      dropout_rate: share of hidden units dropped in training (0.15 in the paper).
    """

    num_classes: int = 10
    features: tuple[int, ...] = (1024, 1024)
    dropout_rate: float = 0.15

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes logits.

        Args:
          images: `[batch, height, width, channels]`, scaled to about [-1, 1].
          train: whether to drop units.

        Returns:
          Logits, `[batch, num_classes]`.
        """
        x = images.reshape(images.shape[0], -1)
        for features in self.features:
            x = nn.relu(nn.Dense(features)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class LeNet(nn.Module):
    """Two 5x5 convolutions (20, 50) and a hidden layer of 500 units.

    Each convolution is followed by BatchNorm, ReLU, max pooling (3x3 after the first,
    2x2 after the second, windows that do not overlap) and dropout. For 28 x 28 images
    of one channel this has 131,220 parameters, the count in the paper.

    Attributes:
      num_classes: number of outputs.
      dropout_rate: share of units dropped in training (0.25 in the paper).
    """

    num_classes: int = 10
    dropout_rate: float = 0.25

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
                conv_general_dilated=conv_general_dilated,
            )(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            # ReLU commutes with a maximum and has 9 (4) times less to do after it.
            x = nn.relu(max_pool(x, pool))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(500)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


MODELS = {"mnistfc": MnistFC, "lenet": LeNet}
