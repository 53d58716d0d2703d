"""CIFAR-10: two forms of its files, contrast normalisation and whitening.

Either form is read with NumPy and Pillow alone; Python's own form of the data set is
a program that runs when it is read, and is not supported.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from entropy_optax.experiments._idx import DataError

TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
NUM_CLASSES = 10
_SHAPE = (32, 32, 3)
_IMAGE_BYTES = 32 * 32 * 3
# A PNG holds one image a row, with a byte (grey) or three (RGB) in each of its pixels.
_PNG_WIDTHS = {"L": _IMAGE_BYTES, "RGB": _IMAGE_BYTES // 3}


def read_cifar10(
    folder: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads CIFAR-10 from a folder.

    The files are either those of the official binary version, `data_batch_1.bin` to
    `data_batch_5.bin` and `test_batch.bin`, or PNGs of the same names with one image a
    row (its bytes in the order height, width, channel) beside `train_labels.json` and
    `test_labels.json`, lists of integers. Files may hold any number of images.

    Args:
      folder: the folder that holds the files.

    Returns:
      Training images `[n, 32, 32, 3]`, uint8, and their labels `[n]`, int32, then
      those of the test file.

    Raises:
      DataError: if a file is missing or damaged, or a label is not that of a class.
    """
    if (folder / f"{TRAIN_FILES[0]}.bin").is_file():
        train, test = _read_bins(folder, TRAIN_FILES), _read_bins(folder, (TEST_FILE,))
    elif (folder / f"{TRAIN_FILES[0]}.png").is_file():
        train = _read_pngs(folder, TRAIN_FILES, "train_labels.json")
        test = _read_pngs(folder, (TEST_FILE,), "test_labels.json")
    else:
        raise DataError(
            f"{folder}: found neither {TRAIN_FILES[0]}.bin nor {TRAIN_FILES[0]}.png,"
            " expected the files of CIFAR-10's binary version, or PNGs"
        )
    return *train, *test


def global_contrast_normalise(images: np.ndarray) -> np.ndarray:
    """Gives every image the mean 0 and the standard deviation 1, over all its pixels.

    Args:
      images: `[n, height, width, channels]`, of any type.

    Returns:
      Images of the same shape, float32; an image of a single value becomes zeros.
    """
    axes = tuple(range(1, images.ndim))
    mean = images.mean(axes, dtype=np.float64, keepdims=True)
    std = images.std(axes, dtype=np.float64, keepdims=True)
    normalised = images.astype(np.float32)
    normalised -= mean.astype(np.float32)
    normalised /= np.maximum(std, 1e-8).astype(np.float32)
    return normalised


def fit_zca(images: np.ndarray, epsilon: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Finds the whitening that changes the images least.

    With `C = U diag(lambda) U'`, the covariance of the flattened images (divided by
    their number), the matrix is `W = U diag((lambda + epsilon)^-1/2) U'`: symmetric,
    so that a whitened image still looks like one. The whitened images have the
    covariance `C (C + epsilon I)^-1`, for small epsilon the identity.

    Args:
      images: `[n, height, width, channels]`, those to fit; the training split alone.
      epsilon: what is added to each variance, above 0. The default, customary for
        CIFAR-10 at a contrast of 1, is small beside the large variances (hundreds) and
        keeps the many small ones, which are mostly noise, from being blown up.

    Returns:
      The mean `[pixels]` and the matrix `[pixels, pixels]`, both float32.

    Raises:
      ValueError: if epsilon is not above 0.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: got {epsilon}, expected a number above 0")
    flat = images.reshape(len(images), -1).astype(np.float32)
    mean = flat.mean(0, dtype=np.float64).astype(np.float32)
    flat -= mean
    variances, directions = np.linalg.eigh(flat.T @ flat / np.float32(len(flat)))
    # Rounding leaves variances of 0 slightly negative.
    scales = (np.maximum(variances, 0) + np.float32(epsilon)) ** np.float32(-0.25)
    half = directions * scales
    return mean, half @ half.T  # a product with itself is symmetric to the last bit


def apply_zca(images: np.ndarray, mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Whitens images.

    Args:
      images: `[n, height, width, channels]`.
      mean: what `fit_zca` returned first.
      matrix: what `fit_zca` returned second.

    Returns:
      `(images - mean) W`, of the same shape, float32.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= mean
    return (flat @ matrix).reshape(images.shape)


def preprocess(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Normalises the contrast of several splits and whitens them by the first.

    Args:
      images: of each split `[n, height, width, channels]`, the training split first.

    Returns:
      The images of each split, float32.
    """
    normalised = [global_contrast_normalise(split) for split in images]
    mean, matrix = fit_zca(normalised[0])
    return [apply_zca(split, mean, matrix) for split in normalised]


def _read_bins(
    folder: pathlib.Path, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    record = 1 + _IMAGE_BYTES
    images, labels = [], []
    for path in (folder / f"{name}.bin" for name in names):
        data = _read_bytes(path)
        if not data or len(data) % record:
            raise DataError(
                f"{path}: found {len(data)} bytes, expected a multiple of {record}, a"
                " label and an image"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, record)
        _check_labels(path, records[:, 0])
        labels.append(records[:, 0].astype(np.int32))
        planes = records[:, 1:].reshape(-1, _SHAPE[2], *_SHAPE[:2])
        images.append(planes.transpose(0, 2, 3, 1))
    return np.concatenate(images), np.concatenate(labels)


def _read_pngs(
    folder: pathlib.Path, names: Sequence[str], labels_name: str
) -> tuple[np.ndarray, np.ndarray]:
    images = np.concatenate([_read_png(folder / f"{name}.png") for name in names])
    path = folder / labels_name
    try:
        labels = json.loads(_read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: found no JSON ({error}), expected a list") from error
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise DataError(f"{path}: found something else, expected a list of integers")
    if len(labels) != len(images):
        raise DataError(
            f"{path}: found {len(labels)} labels, expected {len(images)}, the number of"
            " images in the PNGs"
        )
    _check_labels(path, labels)
    return images, np.array(labels, np.int32)


def _read_png(path: pathlib.Path) -> np.ndarray:
    # Imported here: no other data set needs it. It comes with Matplotlib.
    from PIL import Image

    _read_bytes(path)  # names a missing file as the other form does
    try:
        with Image.open(path, formats=["PNG"]) as png:
            if png.width != _PNG_WIDTHS.get(png.mode):
                raise DataError(
                    f"{path}: found rows of {png.width} pixels of mode {png.mode},"
                    f" expected an image of {_IMAGE_BYTES} bytes in each: 3072 pixels"
                    " of mode L or 1024 of mode RGB"
                )
            rows = np.asarray(png)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), expected a complete PNG"
        ) from error
    return rows.reshape(-1, *_SHAPE)


def _read_bytes(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}), expected a file of"
            " CIFAR-10"
        ) from error


def _check_labels(path: pathlib.Path, labels: Sequence[int] | np.ndarray) -> None:
    wrong = [label for label in labels if not 0 <= label < NUM_CLASSES]
    if wrong:
        raise DataError(
            f"{path}: found the label {wrong[0]}, expected labels from 0 to"
            f" {NUM_CLASSES - 1}"
        )
