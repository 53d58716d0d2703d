"""Variants of a data set: wrong labels in training, and smaller images."""

import numpy as np

from entropy_optax.experiments._idx import DataError

# One for all runs: they differ in their seeds, not in their data.
_NOISE_SEED = 20161106


def mislabel(labels: np.ndarray, share: float, num_classes: int) -> np.ndarray:
    """Replaces a share of the labels by wrong ones, always the same ones.

    The labels that a smaller share replaces are among those of a larger one, and are
    replaced by the same.

    Args:
      labels: `[n]`, integers in [0, num_classes).
      share: in [0, 1); `round(share * n)` labels are replaced.
      num_classes: number of classes; a wrong label is one of the others, all of them
        equally probable.

    Returns:
      `[n]`, `labels` itself if none is replaced, otherwise int32.

    Raises:
      DataError: if the share is not in [0, 1), or there is no other class.
    """
    if not 0 <= share < 1:
        raise DataError(f"label_noise: got {share}, expected a share in [0, 1)")
    count = round(share * len(labels))
    if count == 0:
        return labels
    if num_classes < 2:
        raise DataError("label_noise: found a single class, expected a wrong one")
    # Raw bits: of all that NumPy draws, they alone are the same in every version.
    which, shift = np.random.PCG64(_NOISE_SEED).random_raw((2, len(labels)))
    wrong = np.argsort(which, kind="stable")[:count]
    noisy = labels.astype(np.int32)
    # From 1 to num_classes - 1 classes further on, which is never the right one.
    noisy[wrong] += 1 + (shift[wrong] % (num_classes - 1)).astype(np.int32)
    return noisy % num_classes


def pool_blocks(images: np.ndarray, size: int) -> np.ndarray:
    """Averages square blocks of pixels.

    Args:
      images: `[n, height, width, channels]`.
      size: side of a block, in pixels.

    Returns:
      `[n, height / size, width / size, channels]`, float32; `images` itself if size
      is 1.

    Raises:
      DataError: if the height or the width is not a multiple of the size.
    """
    if size == 1:
        return images
    num, height, width, channels = images.shape
    if size < 1 or height % size or width % size:
        raise DataError(
            f"pool: got {size}, expected a divisor of the height and the width of"
            f" images of {height} x {width} pixels"
        )
    blocks = images.reshape(num, height // size, size, width // size, size, channels)
    return blocks.mean((2, 4), dtype=np.float32)
